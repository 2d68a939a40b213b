"""Which pg_dump is used, and where it comes from."""

import os
import subprocess
from pathlib import Path

import pytest

from deploy.databases import dump
from deploy.errors import DeployRefused
from tests.support.servers import ROOT, postgres_bin


def test_pg_dump_has_to_be_there_and_as_new_as_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump, "INSTALLED", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeployRefused, match="pg_dump not found; the blue database needs pg_dump 18 or newer. Install"):
        dump.find("", 18, "blue")
    for version in ("9.6", "17", "18"):
        program = tmp_path / version / "bin" / "pg_dump"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {version}.4 (Debian {version}.4-1)'\n")
        program.chmod(0o755)
    assert dump.find("", 18, "blue") == str(tmp_path / "18" / "bin" / "pg_dump")
    older = str(tmp_path / "17" / "bin" / "pg_dump")
    assert dump.find(older, 17, "blue") == older
    with pytest.raises(DeployRefused, match=r"/17/bin/pg_dump is of version 17; the blue database needs pg_dump 18"):
        dump.find(older, 18, "blue")


def test_pg_dump_runs_from_a_folder_that_has_all_that_it_loads(tmp_path: Path) -> None:
    path = f"{postgres_bin()}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", ROOT / "scripts" / "pg_client.sh", tmp_path], check=True, env=os.environ | {"PATH": path})
    for library in (tmp_path / "lib").iterdir():
        assert not library.is_symlink()
    said = subprocess.run(
        [tmp_path / "pg_dump", "--version"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert said.stdout.startswith("pg_dump (PostgreSQL)"), said.stderr
