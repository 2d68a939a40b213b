"""Static files of other releases: pages that are still open in browsers go on asking for them."""

import os
import re
import time
from pathlib import Path

import pytest
from django.conf import settings as current
from django.contrib.staticfiles.storage import staticfiles_storage
from django.test import Client
from pytest_django import Settings

from backstagetest1 import assets
from tests.packaging.test_gunicorn import get
from tests.support.servers import Gunicorn, eventually

OTHERS = "style.0123456789ab.css"  # no release here has it


@pytest.fixture
def shared(settings: Settings, tmp_path: Path) -> Path:
    settings.STATIC_SHARED = str(tmp_path / "static")
    return tmp_path / "static"


def of_this_release(name: str) -> str:
    return staticfiles_storage.url(name)


@pytest.mark.django_db  # to end the response
@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("gzip, br", "br"),
        ("gzip;q=1.0, br;q=0", "gzip"),
        ("gzip;q=0, br;q=0", None),
        ("gzip; Q=0.000", None),
        ("br;q=x", None),
        ("*;q=0", None),
        ("x-gzip-not, brotli", None),
    ],
)
def test_a_static_file_is_not_sent_in_a_coding_that_is_refused(
    client: Client, accepted: str, coding: str | None
) -> None:
    response = client.get(of_this_release("style.css"), headers={"accept-encoding": accepted})
    assert response.status_code == 200
    assert response.headers.get("Content-Encoding") == coding
    assert response["Vary"] == "Accept-Encoding"
    response.close()


def test_what_is_collected_is_public_and_so_holds_static_files_only(client: Client) -> None:
    """The manifest tells of every file and of the hashes of all: it stands beside the folder."""
    root = Path(current.STATIC_ROOT)
    assert root.with_name(f"{root.name}.json").is_file()
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert not [name for name in names if re.search(r"\.(json|py|map|toml|ya?ml|env|sqlite3)$|(^|/)\.", name)]
    for name in ("staticfiles.json", f"{root.name}.json", "../manage.py", "errors/503.html"):
        assert client.get(f"/static/{name}").status_code == 404, name


def test_a_release_shares_its_hashed_files_and_nothing_else(shared: Path) -> None:
    assets.share()
    own = Path(current.STATIC_ROOT)
    found = {path.relative_to(shared): path for path in shared.rglob("*") if path.is_file()}
    hashed = {path.relative_to(own) for path in own.rglob("*") if assets.HASHED.fullmatch(str(path.relative_to(own)))}
    assert set(found) == hashed and any(str(name).startswith("style.") for name in hashed)
    for name, path in found.items():
        assert path.read_bytes() == (own / name).read_bytes()
        assert path.stat().st_mode & 0o777 == 0o644


def test_files_that_no_release_had_for_a_month_go_and_those_in_use_stay(shared: Path) -> None:
    assets.share()
    (style,) = shared.glob("style.*.css")
    (shared / OTHERS).write_text("old")
    recent = shared / "style.ba9876543210.css"
    recent.write_text("recent")
    for path in (style, shared / OTHERS):
        os.utime(path, (time.time() - 31 * 86_400,) * 2)
    assets.share()
    assert style.exists() and recent.exists() and not (shared / OTHERS).exists()


def test_a_folder_that_cannot_be_written_keeps_nobody_from_starting(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    settings.STATIC_SHARED = str(tmp_path / "file" / "static")
    assets.share()
    assert "could not be shared" in caplog.text


def test_only_hashed_names_below_the_folder_are_served(shared: Path, client: Client) -> None:
    shared.mkdir()
    (shared / OTHERS).write_text("body{}")
    (shared / "plain.css").write_text("x")
    (shared.parent / OTHERS).write_text("secret")
    response = client.get(f"/static/{OTHERS}")
    assert response.status_code == 200 and b"".join(response) == b"body{}"
    assert response["Content-Type"] == "text/css" and "immutable" in response["Cache-Control"]
    assert "Set-Cookie" not in response and "Cookie" not in response.get("Vary", "")
    for name in ("plain.css", f"../{OTHERS}", f"%2e%2e/{OTHERS}", f"./{OTHERS}", f"none/{OTHERS}", f"/{OTHERS}"):
        assert client.get(f"/static/{name}").status_code == 404, name
    assert client.post(f"/static/{OTHERS}").status_code in (403, 405)


def test_without_a_shared_folder_there_is_nothing(client: Client) -> None:
    assert client.get(f"/static/{OTHERS}").status_code == 404


@pytest.mark.django_db
def test_an_instance_has_its_own_files_and_those_of_another_release(django_db_setup: None, tmp_path: Path) -> None:
    with Gunicorn(STATIC_SHARED=str(tmp_path), ALLOWED_HOSTS="127.0.0.1") as server:
        (own,) = tmp_path.glob("style.*.css")
        (tmp_path / OTHERS).write_text("body{}")
        assert get(server, f"/static/{own.name}").status == 200
        answer = eventually(lambda: get(server, f"/static/{OTHERS}"))
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/css")
