"""gunicorn as configured: its access log, its limits, its end."""

import http.client
import json
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import PATIENCE, ROOT, Gunicorn, eventually

pytestmark = pytest.mark.django_db  # the fixture django_db_setup makes a database only if a test is marked


@pytest.fixture(scope="module")
def server(django_db_setup: None) -> Iterator[Gunicorn]:
    with Gunicorn(TRUSTED_PROXIES="127.0.0.1") as server:
        yield server


def get(server: Gunicorn, path: str, **headers: str) -> http.client.HTTPResponse:
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    link.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = link.getresponse()
    response.read()
    link.close()
    return response


def line(server: Gunicorn, request_id: str) -> dict[str, Any]:
    """The access log's line for this request."""

    def find() -> dict[str, Any] | None:
        lines = (json.loads(text) for text in server.log.splitlines() if text.startswith("{"))
        wanted = ("gunicorn.access", request_id)
        return next((line for line in lines if (line["logger"], line["request_id"]) == wanted), None)

    found = eventually(find)
    assert isinstance(found, dict)
    return found


def test_the_access_log_is_one_json_line_a_request(server: Gunicorn) -> None:
    response = get(server, "/?token=secret", X_Request_ID="test-line-1", X_Forwarded_For="198.51.100.7")
    assert (response.status, response.headers["X-Request-ID"]) == (200, "test-line-1")
    logged = line(server, "test-line-1")
    assert logged["duration_ms"] > 0 and logged["bytes"] > 0 and logged["time"].endswith("+00:00")
    for name, value in {
        "level": "INFO",
        "logger": "gunicorn.access",
        "client": "198.51.100.7",
        "method": "GET",
        "path": "/",
        "route": "/",
        "status": 200,
    }.items():
        assert logged[name] == value, name


@pytest.mark.parametrize(
    "path", ["/accounts/password/reset/key/1-s3cret-k3y/", "/accounts/confirm-email/s3cret-k3y/", "/?key=s3cret-k3y"]
)
def test_no_one_time_key_reaches_the_log(server: Gunicorn, path: str) -> None:
    request_id = f"test-key-{len(path)}"
    get(server, path, X_Request_ID=request_id)
    assert line(server, request_id)["path"]
    assert "s3cret-k3y" not in server.log


def test_a_log_line_of_the_app_has_the_requests_id(server: Gunicorn) -> None:
    assert get(server, "/nowhere/", X_Request_ID="test-app-line").status == 404

    def warned() -> list[str]:
        return [text for text in server.log.splitlines() if "test-app-line" in text and '"django.request"' in text]

    assert json.loads(eventually(warned)[0])["level"] == "WARNING"


def test_on_sigterm_it_ends_cleanly_and_soon() -> None:
    server = Gunicorn().start()
    try:
        process = server.process
        assert process
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        server.close()


@pytest.mark.parametrize(
    ("limit", "workers"), [("max 100000", None), ("50000 100000", 2), ("200000 100000", 3), ("9900000 100000", None)]
)
def test_workers_follow_the_containers_limit(limit: str, workers: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: limit if path.name == "cpu.max" else read(path))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64))
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    assert runpy.run_path(str(ROOT / "gunicorn.conf.py"))["workers"] == (workers or 9)


def test_a_count_that_is_none_stops_it_by_name() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--check-config", "-c", "gunicorn.conf.py", "backstagetest1.wsgi"],
        cwd=ROOT,
        env={"THREADS": "many"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "THREADS is invalid: expected a whole number" in done.stderr


def test_idle_times_are_ordered() -> None:
    """gunicorn keeps an idle connection for longer than the proxy does, and ends before the pod is killed."""
    conf = runpy.run_path(str(ROOT / "gunicorn.conf.py"))
    assert conf["keepalive"] > 60
    assert conf["graceful_timeout"] < 30
    assert conf["timeout"] > 15, "a statement may take 15 s (settings.services.database)"
