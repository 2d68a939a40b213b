"""The image: what is in it, what is not, and as whom it runs."""

import io
import json
import re
import secrets
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import build, clone, docker, say
from tests.support.servers import PATIENCE

BASE = "python:3.11-slim"


@pytest.fixture(scope="module")
def layers(image: str, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    """Path and content of every file in the layers that are ours, those that later layers hide included."""
    return list(contents(image, tmp_path_factory.mktemp("layers")))


def contents(image: str, folder: Path) -> Iterator[tuple[str, bytes]]:
    docker("save", "--output", str(folder / "image.tar"), image)
    below = len(json.loads(docker("inspect", BASE))[0]["RootFS"]["Layers"])
    with tarfile.open(folder / "image.tar") as whole:
        manifest = whole.extractfile("manifest.json")
        assert manifest
        for name in json.load(manifest)[0]["Layers"][below:]:
            layer = whole.extractfile(name)
            assert layer
            with tarfile.open(fileobj=io.BytesIO(layer.read())) as files:
                for member in files:
                    content = files.extractfile(member) if member.isfile() else None
                    yield member.name, content.read() if content else b""


def inside(image: str, script: str) -> str:
    return docker("run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-euc", script)


def test_nothing_that_lies_about_in_the_checkout_gets_into_a_layer(tmp_path: Path) -> None:
    mark = secrets.token_hex(16)
    (tmp_path / "context").mkdir()
    folder = clone(tmp_path / "context")
    for name in (
        ".env",
        "accounts/.env",
        ".git/config",
        ".venv/secret",
        "db.sqlite3",
        "media/me",
        "var/backups/b.tar",
        "id_rsa",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(mark)
    image = build(folder, "marked", version="1")
    found = [name for name, content in contents(image, tmp_path) if mark.encode() in content]
    assert not found
    assert mark not in docker("history", "--no-trunc", image) + docker("inspect", image)


def test_a_change_of_code_makes_the_layer_of_the_code_anew_and_no_other(image: str, second: str) -> None:
    def layers_of(name: str) -> list[str]:
        found: list[str] = json.loads(docker("inspect", name))[0]["RootFS"]["Layers"]
        return found

    before, after = layers_of(image), layers_of(second)
    assert [a == b for a, b in zip(before, after, strict=True)].count(False) == 1


def test_no_secret_is_in_a_layer_or_in_the_history(layers: list[tuple[str, bytes]], image: str) -> None:
    assert len(layers) > 1000
    assigned = re.compile(rb"(SECRET_KEY|PASSWORD|TOKEN)['\"]?\s*[=:]\s*['\"]?[A-Za-z0-9_\-]{32,}")
    ours = [(name, content) for name, content in layers if name.startswith("app/")]
    assert not [name for name, content in ours if assigned.search(content)]
    assert not [name for name, content in layers if re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\n", content)]
    told = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image) + docker("inspect", image)
    assert not assigned.search(told.encode())
    assert not re.search(r'"(SECRET_KEY|DATABASE_URL|[A-Z_]*PASSWORD)=', told)
    say(f"{len(layers)} files in our layers, {len(ours)} of the app")


def test_it_holds_what_it_runs_on_and_no_more(layers: list[tuple[str, bytes]]) -> None:
    names = {name for name, _ in layers}
    assert {"app/staticfiles.json", "app/errors/503.html"} <= names
    assert not [name for name in names if re.match(r"app/staticfiles/(.*\.json$|errors)", name)], "all there is public"
    assert any(re.fullmatch(r"app/staticfiles/style\.[0-9a-f]{12}\.css\.br", name) for name in names)
    assert any(re.fullmatch(r"app/accounts/__pycache__/models\.cpython-3\d+\.pyc", name) for name in names)
    unwanted = re.compile(
        r"(^|/)(tests?|k8s|bench|docs)/.*\.py$|requirements.*\.txt$|/bin/(pip|gcc|cc|make)|\.cache/|(^|/)\.git"
    )
    assert not [name for name in names if name.startswith("app/") and unwanted.search(name)]
    assert not [name for name in names if re.search(r"bin/(pip|gcc|cc|make|ld)[0-9.]*$|root/\.cache|\.whl$", name)]


def test_it_adds_no_setuid_file(image: str) -> None:
    find = "find / -xdev -type f -perm /6000 | sort"
    assert inside(image, find) == inside(BASE, find)


def test_it_says_what_it_is(image: str) -> None:
    config = json.loads(docker("inspect", image))[0]["Config"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"])
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["Labels"]["org.opencontainers.image.version"] == "1.0.0"
    assert config["Labels"]["org.opencontainers.image.revision"] == "one"
    assert config["Labels"]["org.opencontainers.image.created"] == "2026-01-31T09:15:00+00:00"
    size = int(docker("inspect", "--format", "{{.Size}}", image)) - int(
        docker("inspect", "--format", "{{.Size}}", BASE)
    )
    say(f"{size / 1e6:.0f} MB over {BASE}")


def test_without_its_secrets_it_ends_and_names_what_is_missing(image: str) -> None:
    done = subprocess.run(["docker", "run", "--rm", image], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode != 0
    assert "SECRET_KEY is not set" in done.stdout + done.stderr


def test_it_can_write_only_to_its_volumes_and_tmp(image: str) -> None:
    writable = inside(
        image,
        "find / -xdev -writable ! -type l ! -path '/proc/*' ! -path '/dev/*' ! -path '/tmp' ! -path '/var/tmp' "
        "! -path '/run/lock' 2>/dev/null || true",
    )
    assert set(writable.split()) <= {"/app/media", "/srv/static", "/run/web", "/run/secrets"} | {
        f"/srv/secrets/{service}"
        for service in ("app", "migrate", "db", "db_green", "redis", "prometheus", "alertmanager")
    }
