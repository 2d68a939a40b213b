"""How the other environments are: asked over HTTP, shared through the cache, and never waited for."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pytest_django import Settings

from health.reasons import Reason
from health.client import Unreachable, ask
from health.runner import Report, Result
from ledger.environments import read
from statuspage import readings, uptime
from statuspage.metrics import CERTIFICATE_EXPIRY
from tests.support.certificates import secure, self_signed
from tests.support.gate import Silent
from tests.support.servers import PATIENCE, eventually, free_port


class Environment(ThreadingHTTPServer):
    """An environment's /health/, which answers `status` and `body` and counts how often it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.scheme = "http"
        self.asked = 0
        self.status = 200
        self.later: tuple[int, str] | None = None  # what it answers from the second question on
        self.body = json.dumps({"status": "healthy", "version": "1.2", "checks": {"database": "healthy"}})

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Environment

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.server.later and self.server.asked > 1:
            self.server.status, self.server.body = self.server.later
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def staging() -> Iterator[Environment]:
    with Environment() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def alone(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own, and nothing known yet."""
    settings.CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache", "LOCATION": uuid.uuid4().hex}}
    settings.WATCH_ENVIRONMENTS = True
    settings.ENVIRONMENTS_FILE = tmp_path / f"{uuid.uuid4().hex}.toml"
    at(settings)
    monkeypatch.setattr("statuspage.readings.report", lambda: Report(datetime.now(UTC), {"cache": Result(None, 0)}))
    readings.latest.clear()
    CERTIFICATE_EXPIRY.clear()
    yield
    for thread in list(readings.asking.values()):
        thread.join(PATIENCE)
    readings.latest.clear()
    readings.asking.clear()


def at(settings: Settings, **urls: str) -> None:
    names = ("development", "testing", "staging", "production")
    settings.ENVIRONMENTS_FILE.write_text("".join(f'[{name}]\nurl = "{urls.get(name, "")}"\n' for name in names))
    read.cache_clear()


def test_an_environment_is_what_it_says(settings: Settings, staging: Environment) -> None:
    at(settings, staging=staging.url)
    found = readings.readings()
    assert list(found) == ["development", "testing", "staging", "production"]
    assert (found["staging"].state, found["staging"].version) == ("healthy", "1.2")
    assert found["staging"].checks == {"database": "healthy"} and (found["staging"].latency_ms or 0) > 0
    assert found["testing"].state == "healthy", "this instance itself, which nobody has to ask"
    assert found["production"].state == found["development"].state == "unknown"


@pytest.mark.parametrize(
    ("status", "body", "state"),
    [
        (503, '{"status": "unhealthy", "checks": {"database": "unhealthy: refused"}}', "unhealthy"),
        (200, "<html>", "unreachable"),
        (200, '{"status": 1}', "unreachable"),
        (500, "", "unreachable"),
    ],
)
def test_what_else_it_may_say(settings: Settings, staging: Environment, status: int, body: str, state: str) -> None:
    at(settings, staging=staging.url)
    staging.status, staging.body = status, body
    assert readings.readings()["staging"].state == state


LATE = '{"status": "unhealthy", "checks": {"database": "unhealthy: timeout", "cache": "healthy"}}'


def test_one_that_was_late_once_is_asked_again_before_that_is_believed(
    settings: Settings, staging: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings, "CERTAIN", 600)
    monkeypatch.setattr(readings, "RETRY", 0.01)
    at(settings, staging=staging.url)
    staging.later, staging.status, staging.body = (200, staging.body), 503, LATE
    assert [up for name, _, up in uptime.observe() if name == "staging"] == [True]
    assert staging.asked == 2


def test_one_that_stays_late_is_down(settings: Settings, staging: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "CERTAIN", 0.2)
    monkeypatch.setattr(readings, "RETRY", 0.01)
    at(settings, staging=staging.url)
    staging.status, staging.body = 503, LATE
    assert [up for name, _, up in uptime.observe() if name == "staging"] == [False]
    assert staging.asked > 1


def test_an_instance_that_has_had_no_answer_yet_does_not_call_its_environment_down(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings, "CERTAIN", 600)
    monkeypatch.setattr(readings, "RETRY", 0.01)
    durations = [0.9, 1.8, 3.1]
    monkeypatch.setattr(
        readings,
        "report",
        lambda: Report(datetime.now(UTC), {"database": Result(Reason.TIMEOUT, durations.pop(0))}),
    )
    assert readings.readings()["testing"].state == "unknown"
    assert [up for _, _, up in uptime.observe()] == [False], "it waits until it is certain"
    assert durations == []


def test_a_port_where_nobody_listens_is_unreachable(settings: Settings) -> None:
    at(settings, staging=f"http://127.0.0.1:{free_port()}")
    assert readings.readings()["staging"].state == "unreachable"


def test_one_that_hangs_is_not_waited_for_and_holds_one_thread(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings, "DEADLINE", 2)
    monkeypatch.setattr(readings, "TIMEOUT", 5)
    with Silent() as silent:
        at(settings, staging=f"http://127.0.0.1:{silent.port}", production=f"http://127.0.0.1:{silent.port}")
        started = time.monotonic()
        assert readings.readings()["staging"].state == "unknown"
        assert time.monotonic() - started < 4, "both together"
        readings.readings()
        assert sum(each.name == "watch-staging" for each in threading.enumerate()) == 1
        assert eventually(lambda: readings.readings()["staging"].state == "unreachable")


def test_one_that_hangs_or_dawdles_is_down_in_the_samples(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "DEADLINE", 0.05)
    monkeypatch.setattr(readings, "TIMEOUT", 0.2)
    monkeypatch.setattr(readings, "CERTAIN", 0.2)
    finished = threading.Event()

    def dawdle(url: str, timeout: float) -> dict[str, object]:
        """As with a server that sends a byte now and then: beyond the time-out."""
        finished.wait(PATIENCE)
        raise Unreachable

    monkeypatch.setattr(readings, "ask", lambda url, timeout, _: (dawdle if "slow" in url else ask)(url, timeout))
    with Silent() as silent:
        at(settings, staging=f"http://127.0.0.1:{silent.port}", production="http://slow.example")
        try:
            observed = {name: up for name, _, up in uptime.observe()}
        finally:
            finished.set()
    assert observed == {"testing": True, "staging": False, "production": False}


def test_a_process_that_does_not_serve_tells_of_what_answers_and_not_of_itself(staging: Environment) -> None:
    assert [(name, up) for name, _, up in uptime.observe(url=staging.url)] == [("testing", True)]
    nobody = f"http://127.0.0.1:{free_port()}"
    assert [(name, up) for name, _, up in uptime.observe(url=nobody)] == [("testing", False)]
    assert [(name, up) for name, _, up in uptime.observe()] == [("testing", True)]


def test_what_one_process_has_asked_the_others_know(
    settings: Settings, staging: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(settings, staging=staging.url)
    readings.readings()
    readings.latest.clear()  # as in another process
    monkeypatch.setattr(readings, "begin", lambda *_: pytest.fail("it is asked again"))
    assert readings.readings()["staging"].version == "1.2" and staging.asked == 1


def test_without_a_cache_each_process_knows_for_itself(settings: Settings, staging: Environment) -> None:
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    at(settings, staging=staging.url)
    readings.readings()
    assert readings.readings()["staging"].state == "healthy" and staging.asked == 1


def test_an_old_reading_is_given_at_once_and_taken_anew(
    settings: Settings, staging: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(settings, staging=staging.url)
    readings.readings()
    staging.body = staging.body.replace("1.2", "1.3")
    monkeypatch.setattr(readings, "FRESH", 0.0)
    assert readings.readings()["staging"].version == "1.2"
    assert eventually(lambda: readings.readings()["staging"].version == "1.3")
    monkeypatch.setattr(readings, "KEPT", -1.0)
    monkeypatch.setattr(readings, "begin", lambda *_: threading.Thread())
    monkeypatch.setattr(threading.Thread, "join", lambda *_: None)
    assert readings.readings()["staging"].state == "unknown", "what is too old says nothing about now"


def test_nobody_is_asked_unless_it_is_switched_on(settings: Settings, staging: Environment) -> None:
    settings.WATCH_ENVIRONMENTS = False
    at(settings, staging=staging.url)
    assert readings.readings()["staging"].state == "unknown" and staging.asked == 0


def certificates() -> dict[str, float]:
    """The metric's values by environment."""
    return {
        each.labels["environment"]: each.value for family in CERTIFICATE_EXPIRY.collect() for each in family.samples
    }


def test_the_end_of_a_certificate_is_recorded_and_kept_while_the_environment_is_unreachable(
    settings: Settings, staging: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    secure(staging, pem)
    staging.scheme = "https"
    assert readings.request_reading("staging", staging.url).state == "healthy"
    (expiry,) = certificates().values()
    assert abs(expiry - time.time() - 24 * 3600) < PATIENCE
    monkeypatch.delenv("SSL_CERT_FILE")
    assert readings.request_reading("staging", staging.url).state == "unreachable", "it is not trusted any more"
    assert certificates() == {"staging": expiry}


def test_without_tls_there_is_no_certificate(settings: Settings, staging: Environment) -> None:
    at(settings, staging=staging.url, testing=staging.url)
    readings.readings()
    readings.look_at_own_certificate()
    assert certificates() == {} and staging.asked == 1


@pytest.mark.parametrize("watched", [True, False])
def test_the_own_certificate_is_looked_at_as_visitors_get_it(
    settings: Settings, staging: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    pem = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    secure(staging, pem)
    staging.scheme, staging.status, settings.WATCH_ENVIRONMENTS = "https", 502, watched
    at(settings, testing=staging.url)
    readings.look_at_own_certificate()
    assert list(certificates()) == ["testing"] * watched
