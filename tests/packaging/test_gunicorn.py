"""gunicorn as configured: its access log, its limits, its end."""

import http.client
import json
import os
import runpy
import signal
import socket
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


@pytest.fixture(scope="module")
def leaving(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gunicorn, Path, Path]]:
    """A server with the files that move its clients elsewhere: the traffic has left it, it drains."""
    folder = tmp_path_factory.mktemp("leaving")
    left, drain = folder / "close-connections", folder / "drain"
    with Gunicorn(
        CLOSE_CONNECTIONS_FILE=str(left), HEALTH_DRAIN_FILE=str(drain), APP_VERSION="1.4.0", APP_REVISION="5d8f7c"
    ) as server:
        yield server, left, drain


def kept(links: list[http.client.HTTPConnection], method: str = "GET") -> int:
    """How many of these connections, after an answer over each, are still the same and open."""
    count = 0
    for link in links:
        sock = link.sock
        link.request(method, "/accounts/login/" if method == "POST" else "/health/live/", b"a=b" * (method == "POST"))
        response = link.getresponse()
        response.read()
        assert response.will_close == (response.headers["Connection"] == "close")
        count += link.sock is sock is not None  # http.client has closed it already if it was told to
    return count


@pytest.mark.parametrize("which", ["left", "draining"])
def test_a_server_that_the_traffic_leaves_closes_every_kept_connection_with_its_next_answer(
    leaving: tuple[Gunicorn, Path, Path], which: str
) -> None:
    """In every worker, for GET and POST, and only for as long as the file says so."""
    server, left, drain = leaving
    file = left if which == "left" else drain
    left.write_text("")  # as the downward API writes an annotation that the pod does not have
    links = []
    for other in eventually(lambda: len(found := server.workers()) == 2 and found):  # two connections to each worker
        os.kill(other, signal.SIGSTOP)
        for _ in range(2):
            links.append(http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE))
            kept(links[-1:])
        os.kill(other, signal.SIGCONT)
    assert kept(links) == kept(links, "POST") == 4
    file.write_text("2026-03-01T12:00:00Z")
    assert kept(links[::2]) == kept(links[1::2], "POST") == 0
    assert kept(links) == 0, "a new connection gets one answer as well"
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as raw, raw.makefile("rb") as answer:
        raw.sendall(b"GET /health/live/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"Connection: close" in answer.read(), "the server itself closes it, or there would be no end"
    file.unlink()
    kept(links)
    assert kept(links) == 4
    for link in links:
        link.close()


def test_every_answer_says_which_release_gave_it(leaving: tuple[Gunicorn, Path, Path]) -> None:
    asset = next(path for path in Path(os.environ["STATIC_ROOT"]).rglob("*.css"))
    for path, status in (
        ("/", 200),
        ("/health/", 200),
        ("/health/live/", 200),
        ("/metrics", 200),
        ("/nowhere/", 404),
        ("/accounts/profile/", 302),
        ("/api/nothing", 404),
        (f"/static/{asset.relative_to(os.environ['STATIC_ROOT'])}", 200),
    ):
        response = get(leaving[0], path)
        assert (response.status, response.headers["App-Version"]) == (status, "1.4.0"), path
        assert response.headers["App-Revision"] == "5d8f7c", path
    assert get(leaving[0], "/", Host="elsewhere.example").headers["App-Version"] == "1.4.0"


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
