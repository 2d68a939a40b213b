"""manage.py health and python -m health: what people and scripts get, and the exit codes."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from health import client, runner
from health.client import Unreachable, ask
from tests.support.certificates import secure, self_signed
from tests.support.gate import Silent
from tests.support.servers import PATIENCE, ROOT, free_port

HEALTHY = b'{"status": "healthy", "version": "7", "checks": {"database": "healthy"}, "durations_ms": {"database": 1.5}}'
UNHEALTHY = b'{"status": "unhealthy", "checks": {"database": "unhealthy: timeout", "cache": "healthy"}}'
DRAINING = b'{"status": "draining", "version": "7"}'
DEGRADED = b'{"status": "degraded", "checks": {"database": "unhealthy: refused"}}'  # readiness, with 200


@contextmanager
def answering(
    body: bytes, status: int = 200, headers: dict[str, str] | None = None, certificate: Path | None = None
) -> Iterator[str]:
    """The address of a server that gives this answer to /health/ and 404 to anything else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/" else 404)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body if self.path == "/health/" else b"Not Found")

        def log_message(self, *_: object) -> None:
            pass

    class Server(HTTPServer):
        def handle_error(self, *_: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        if certificate:
            secure(server, certificate)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def run(*arguments: str) -> tuple[int, str, str]:
    """The exit code, standard output and standard error of python -m health, as in a container."""
    done = subprocess.run([sys.executable, "-m", "health", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def command(*arguments: str, **options: object) -> tuple[int, str]:
    """The exit code and the output of manage.py health."""
    out = StringIO()
    try:
        call_command("health", *arguments, stdout=out, **options)
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code, out.getvalue()
    except CommandError as error:
        return error.returncode, str(error)
    return 0, out.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "code", "line"),
    [
        (HEALTHY, 200, 0, "healthy; database=healthy\n"),
        (UNHEALTHY, 503, 1, "unhealthy; database=unhealthy: timeout; cache=healthy\n"),
        (DRAINING, 503, 1, "draining\n"),
        (DEGRADED, 200, 0, "degraded; database=unhealthy: refused\n"),
    ],
)
def test_a_running_instance_is_asked_by_its_address(body: bytes, status: int, code: int, line: str) -> None:
    with answering(body, status) as url:
        assert run("--url", url) == (code, line, "")
        assert run("--json", "--url", f"{url}/health/")[0] == code
        found, out = command("--url", url, "--json")
        assert (found, json.loads(out)["status"]) == (code, json.loads(body)["status"])


def test_the_table_shows_each_check(settings: Settings) -> None:
    settings.HEALTH_CHECKS = {
        "database": "tests.health.test_checks.Good",
        "cache": "tests.health.test_checks.Bad",
    }
    settings.VERSION = "1.2.3"
    code, out = command()
    runner.stop()
    assert code == 1
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["Check", "State", "Milliseconds"]
    assert lines[1][:2] == ["database", "healthy"]
    assert lines[2][:3] == ["cache", "unhealthy:", "refused"]
    assert lines[3] == ["unhealthy", "(version", "1.2.3)"]


def test_colour_is_for_terminals() -> None:
    with answering(UNHEALTHY, 503) as url:
        assert "\x1b[" not in command("--url", url)[1]
        assert "\x1b[" in command("--url", url, force_color=True)[1]


def test_what_the_table_shows_of_another_server_is_no_markup() -> None:
    with answering(b'{"status": "[bold]x", "checks": {"[red]a": "[/]b"}}') as url:
        code, out = command("--url", url)
        assert code == 1
        assert "[bold]x" in out and "[red]a" in out and "[/]b" in out


def test_refused() -> None:
    code, out, err = run("--url", f"http://127.0.0.1:{free_port()}")
    assert (code, out) == (1, "")
    assert "connection refused; is it running, and on this port?" in err


def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with Silent() as nobody, pytest.raises(Unreachable, match=r"timed out after 0\.2 s"):
        ask(f"http://127.0.0.1:{nobody.port}", timeout=0.2)


@pytest.mark.parametrize(
    ("body", "status", "headers", "said"),
    [
        (b"<!doctype html>", 200, {}, "status 200, but not a health report"),
        (b"", 502, {}, "status 502, but not a health report"),
        (b"[]", 200, {}, "not a health report"),
        (b'{"status": 7}', 200, {}, "not a health report"),
        (b'{"status": "healthy", "checks": "none"}', 200, {}, "not a health report"),
        (b'{"status": "\\u001b[2J", "checks": {}}', 200, {}, "not a health report"),
        (b"\xff\xfe{", 200, {}, "not a health report"),
        (
            b"",
            301,
            {"Location": "https://example.com/health/"},
            "redirects to https://example.com/health/; use that URL",
        ),
    ],
)
def test_what_is_not_a_report_is_one_line(body: bytes, status: int, headers: dict[str, str], said: str) -> None:
    with answering(body, status, headers) as url:
        with pytest.raises(Unreachable) as raised:
            ask(url)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_an_answer_without_end_is_cut_off() -> None:
    with answering(b"x" * (client.MAX_BYTES * 4)) as url, pytest.raises(Unreachable, match="not a health report"):
        ask(url)


def speak(words: bytes) -> Callable[[socket.socket], None]:
    def serve(listener: socket.socket) -> None:
        link, _ = listener.accept()
        with link:
            link.recv(4096)
            link.sendall(words)

    return serve


@pytest.mark.parametrize("words", [b"SSH-2.0-OpenSSH_9.2p1\r\n", b""], ids=["ssh", "nothing"])
def test_a_server_that_speaks_no_http(words: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=speak(words), args=(listener,))
        thread.start()
        with pytest.raises(Unreachable, match="not an HTTP response"):
            ask(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def test_https_where_there_is_none() -> None:
    with answering(HEALTHY) as url, pytest.raises(Unreachable, match="TLS failed"):
        ask(url.replace("http:", "https:"))


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    seen: list[float] = []
    with answering(HEALTHY, certificate=self_signed(tmp_path)) as url:
        with pytest.raises(Unreachable, match=r"certificate not trusted \(self-signed certificate\)"):
            ask(url, on_certificate=seen.append)
    assert seen == []


@pytest.mark.parametrize("body", [HEALTHY, b"Bad Gateway"])
def test_the_end_of_a_trusted_certificate_is_told_whatever_the_answer(
    tmp_path: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    seen: list[float] = []
    with answering(body, certificate=pem) as url, suppress(Unreachable):
        ask(url, on_certificate=seen.append)
    (expiry,) = seen
    assert abs(expiry - time.time() - 24 * 3600) < PATIENCE


def test_without_tls_no_certificate_is_told() -> None:
    with answering(HEALTHY) as url:
        assert ask(url, on_certificate=lambda expiry: pytest.fail(str(expiry)))["status"] == "healthy"


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://host:port", "http://[::1"])
def test_what_is_no_address_is_wrong_usage(url: str) -> None:
    with pytest.raises(ValueError):
        ask(url)
    code, out = command("--url", url)
    assert code == 2


def test_wrong_usage_exits_with_two() -> None:
    for arguments in ((), ("--url",), ("--url", "nowhere"), ("--what",)):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("usage: python -m health")


def test_the_containers_check_loads_no_django() -> None:
    code = "import sys, health.client, health.__main__; sys.exit('django' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", ["health", "drain"])
def test_help_has_examples_and_exit_codes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call_command(name, "--help")
    out = capsys.readouterr().out
    assert "examples:\n  manage.py" in out and "exit codes: 0" in out
