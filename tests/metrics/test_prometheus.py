"""The client of Prometheus: against a real one, and against servers that do not answer as one does."""

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from metrics.prometheus import Prometheus, PrometheusError, quoted
from tests.support.prometheus import PrometheusServer, constant
from tests.support.servers import free_port
from tests.support.tools import needs

DEADLINE = 0.3
SOON = 5.0  # seconds that a busy machine may take for what is over after DEADLINE
AMPLE = 60.0  # seconds, where the deadline is not what is tested
LABELS = {"environment": "production", "version": '1"0\\'}
NOW = 1_700_000_000.0


@pytest.fixture(scope="module")
def real() -> Iterator[Prometheus]:
    server = PrometheusServer()
    series = [
        ("errors", LABELS, constant(0.25)),
        ("unknown", {}, constant(math.nan)),
        ("halved", {}, lambda at: at - NOW if at <= NOW - 60 else math.nan),
    ]
    server.write(series, seconds=120, step=10, until=NOW)
    with server:
        yield Prometheus(server.url)


@needs("prometheus")
def test_a_query_returns_the_series_that_have_a_value(real: Prometheus) -> None:
    labels = ", ".join(f"{name}={quoted(value)}" for name, value in LABELS.items())
    (found,) = real.query(f"errors{{{labels}}}", AMPLE, NOW)
    assert found.labels == {"__name__": "errors"} | LABELS and found.value == 0.25
    assert [each.value for each in real.query("scalar(errors) * 2", AMPLE, NOW)] == [0.5]
    assert real.query("errors / 0", AMPLE, NOW)[0].value == math.inf
    for expression in ("unknown", "halved", "nothing", "errors", "scalar(nothing)"):
        assert real.query(expression, AMPLE, NOW if expression != "errors" else NOW - 86_400) == []


@needs("prometheus")
def test_a_range_leaves_out_what_is_unknown(real: Prometheus) -> None:
    (found,) = real.query_range("halved", NOW - 120, NOW, 30, AMPLE)
    assert found.points == [(NOW - 120, -120.0), (NOW - 90, -90.0), (NOW - 60, -60.0)]
    assert real.query_range("unknown", NOW - 120, NOW, 30, AMPLE) == []


@needs("prometheus")
def test_what_prometheus_rejects_is_told_in_its_words(real: Prometheus) -> None:
    with pytest.raises(PrometheusError, match=r"rejected the query: .*parse error: unexpected identifier"):
        real.query("no query", AMPLE)
    with pytest.raises(PrometheusError, match="result of another form"):
        real.query("errors[1m]", AMPLE, NOW)
    with pytest.raises(PrometheusError, match="rejected the query: exceeded maximum resolution"):
        real.query_range("errors", 0, NOW, 1, AMPLE)


# Servers that do not answer as Prometheus does


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that answers every request by `answer`; its requests are kept in `requests`."""
    requests.clear()

    def serve() -> None:
        with suppress(OSError):  # closed
            while True:
                link, _ = listener.accept()
                with link, suppress(OSError):  # the client is gone
                    requests.append(link.recv(65_536).decode())
                    answer(link)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


requests: list[str] = []
STOP = threading.Event()


def reply(status: str, body: str) -> Callable[[socket.socket], None]:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return lambda link: link.sendall((head + body).encode())


def success(kind: str, result: object) -> Callable[[socket.socket], None]:
    return reply("200 OK", json.dumps({"status": "success", "data": {"resultType": kind, "result": result}}))


def failure(status: str, error: str) -> Callable[[socket.socket], None]:
    return reply(status, json.dumps({"status": "error", "errorType": "unavailable", "error": error}))


def drip(link: socket.socket) -> None:
    """A byte now and then, so that no read of the client takes long."""
    link.sendall(b"HTTP/1.1 200 OK\r\n")
    until = time.monotonic() + 2 * SOON
    while not STOP.wait(0.02) and time.monotonic() < until:
        link.sendall(b"X")


def flood(link: socket.socket) -> None:
    link.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        link.sendall(b" " * 65_536)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (failure("503 Service Unavailable", "query timed out in query execution"), "answered 503: query timed out in"),
        (reply("503 Service Unavailable", "<h1>503</h1>"), "answered 503 with something that is not an answer of Prom"),
        (reply("401 Unauthorized", "Unauthorized"), "answered 401; check PROMETHEUS_TOKEN"),
        (reply("403 Forbidden", ""), "answered 403; check PROMETHEUS_TOKEN"),
        (reply("302 Found", ""), "answered 302, a redirect; PROMETHEUS_URL must be the final address"),
        (failure("422 Unprocessable Entity", f"bad\n {'x' * 900}"), f"rejected the query: bad {'x' * 196}"),
        (reply("200 OK", "<html>"), "answered 200 with something that is not"),
        (reply("200 OK", "[" * 100_000), "answered 200 with something that is not"),
        (reply("200 OK", "[]"), "answered 200 with something that is not"),
        (reply("200 OK", '{"status": "success"}'), "answered 200 with something that is not"),
        (reply("500 Oops", '{"status": "success", "data": {}}'), "answered 500 with something that is not"),
        (success("matrix", []), "a result of another form"),
        (success("vector", [{"metric": {}, "value": [1, 2]}]), "a result of another form"),
        (success("vector", [{"metric": {}, "value": [1, "1_0"]}]), "a result of another form"),
        (success("vector", [{"metric": {}, "value": ["1", "1"]}]), "a result of another form"),
        (success("vector", [{"metric": {"a": 1}, "value": [1, "1"]}]), "a result of another form"),
        (success("vector", [{"metric": {}, "histogram": [1, {}]}]), "a result of another form"),
        (success("vector", {"metric": {}}), "a result of another form"),
        (success("scalar", None), "a result of another form"),
        (lambda link: None, "did not answer in HTTP"),
        (lambda link: link.sendall(b"SSH-2.0-OpenSSH\r\n"), "did not answer in HTTP"),
        (lambda link: link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"), "did not answer in HTTP"),
        (flood, "answered with more than 4 MB"),
    ],
)
def test_an_answer_that_cannot_be_used_is_one_clear_error(answer: Callable[[socket.socket], None], told: str) -> None:
    with server(answer) as url, pytest.raises(PrometheusError) as found:
        Prometheus(url).query("up", AMPLE)
    assert told in str(found.value) and len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize("answer", [drip, lambda link: STOP.wait(SOON)])
def test_the_deadline_is_for_the_whole_call(answer: Callable[[socket.socket], None]) -> None:
    """A server that sends a byte now and then is never late for a timeout of the socket."""
    STOP.clear()
    began = time.monotonic()
    with server(answer) as url, pytest.raises(PrometheusError, match="timed out after 0.3 s"):
        Prometheus(url).query("up", DEADLINE)
    STOP.set()
    assert DEADLINE <= time.monotonic() - began < SOON


def test_a_name_that_nobody_answers_for_takes_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [] if done.wait(AMPLE) else [])
    began = time.monotonic()
    with pytest.raises(PrometheusError, match="timed out after 0.3 s"):
        Prometheus("http://prometheus.example").query("up", DEADLINE)
    assert time.monotonic() - began < SOON
    done.set()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (f"http://127.0.0.1:{free_port()}", "refused the connection; is it running, and on this port?"),
        (f"http://{'a' * 70}.invalid", "host not found (not a valid name)"),
    ],
    ids=["a closed port", "not a name"],  # the port is another in each process
)
def test_an_address_where_nobody_is_is_named(url: str, told: str) -> None:
    with pytest.raises(PrometheusError) as found:
        Prometheus(url).query("up", AMPLE)
    assert str(found.value) == f"Prometheus ({url}): {told}"


def test_the_token_and_the_path_are_sent_and_nothing_follows_a_redirect() -> None:
    with server(success("vector", [])) as url:
        assert Prometheus(f"{url}/prefix", "secret").query("up{a='b c'}", AMPLE, 5.0) == []
    assert requests[0].startswith("GET /prefix/api/v1/query?query=up%7Ba%3D%27b+c%27%7D&time=5.000&timeout=60.000 HTTP")
    assert "\r\nAuthorization: Bearer secret\r\n" in requests[0]
    with server(reply("307 Temporary Redirect", "")) as url, pytest.raises(PrometheusError):
        Prometheus(url).query("up", AMPLE)
    assert len(requests) == 1 and "Authorization" not in requests[0]
