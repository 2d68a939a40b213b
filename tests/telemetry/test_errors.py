"""Errors: what Sentry gets from real workers and their threads, what it never gets, and what a frozen one costs."""

import ast
import logging
import logging.handlers
import os
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction

from backstagetest1.telemetry import deployment, errors
from statuspage.uptime import Sampler
from tests.support.collector import collecting
from tests.support.sentry import Sentry, reading
from tests.support.servers import ROOT, Gunicorn, eventually, free_port
from tests.telemetry.asking import ask, median, time_to_end

ROOMS = ("accounts", "audit", "backstagetest1", "board", "deploy", "health", "ledger", "metrics", "pages", "statuspage")


@pytest.fixture(scope="module")
def sentry() -> Iterator[Sentry]:
    with reading() as sentry:
        yield sentry


@pytest.fixture(scope="module")
def server(sentry: Sentry, django_db_setup: None) -> Iterator[Gunicorn]:
    with collecting() as collector:
        with Gunicorn(
            DJANGO_SETTINGS_MODULE="tests.support.more_settings",
            TRUSTED_PROXIES="127.0.0.1",
            REDIS_URL=f"redis://127.0.0.1:{free_port()}/1",  # nothing is there, so a health check fails
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            SENTRY_DSN=sentry.dsn,
            APP_VERSION="1.4.0",
            APP_COMMIT="abcdef0",
            APP_REVISION="5d8f7c",
        ) as server:
            yield server


TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.django_db
def test_an_error_has_its_request_its_release_and_its_trace(server: Gunicorn, sentry: Sentry) -> None:
    parent = f"00-{TRACE}-b7ad6b7169203331-01"
    status, page = ask(server, "/fail/", X_Request_ID="error-page-1", traceparent=parent)
    assert status == 500 and "error-page-1" in page
    event = eventually(lambda: sentry.of_request("error-page-1"))
    assert (event["release"], event["environment"], event["level"]) == ("1.4.0", "testing", "error")
    assert event["transaction"] == "/fail/"
    expected = {"method": "GET", "route": "/fail/", "revision": "5d8f7c", "commit": "abcdef0"}
    assert {name: event["tags"][name] for name in expected} == expected
    assert event["contexts"]["trace"]["trace_id"] == TRACE
    (error,) = event["exception"]["values"]
    frame = error["stacktrace"]["frames"][-1]
    assert (error["type"], frame["function"], frame["context_line"].strip()) == (
        "ZeroDivisionError",
        "fail",
        "raise ZeroDivisionError",
    )
    assert frame["filename"] == "tests/support/more_pages.py" and frame["in_app"]


@pytest.mark.django_db
def test_nothing_private_is_sent(server: Gunicorn, sentry: Sentry) -> None:
    """The view's error has the whole form in its text and in a variable; its path, headers and cookies are private."""
    token = "c" * 32
    status, _ = ask(
        server,
        "/tell/?key=s3cret",
        "POST",
        f"email=ann@example.com&password=hunter2hunter2&csrfmiddlewaretoken={token}",
        Content_Type="application/x-www-form-urlencoded",
        Cookie=f"session=c00kie; csrf={token}",
        Authorization="Bearer t0ken",
        X_Request_ID="error-private-1",
        X_Forwarded_For="198.51.100.7",
        User_Agent="agent-x",
    )
    assert status == 500
    event = eventually(lambda: sentry.of_request("error-private-1"))
    assert [one["type"] for one in event["exception"]["values"]] == ["KeyError", "ValueError"], "with what caused it"
    private = ["ann@", "hunter2", "s3cret", "c00kie", "t0ken", token, "198.51.100.7", "agent-x", "127.0.0.1"]
    private += [os.uname().nodename, os.environ["SECRET_KEY"], os.environ["DATABASE_URL"]]
    sent = "".join(sentry.raw)
    assert [word for word in private if word in sent] == []
    known = {*errors.EVENT}
    assert not [name for one in sentry.events for name in one if name not in known]
    frames = [frame for one in event["exception"]["values"] for frame in one["stacktrace"]["frames"]]
    assert {name for frame in frames for name in frame} <= {*errors.FRAME}


@pytest.mark.django_db
def test_an_error_of_a_health_check_comes_from_its_thread(server: Gunicorn, sentry: Sentry) -> None:
    assert ask(server, "/health/")[0] == 503

    def found() -> list[dict[str, Any]]:
        return [one for one in sentry.events if one["tags"].get("thread") == "health-cache"]

    event = eventually(found)[0]
    assert event["logentry"]["message"] == "The check %s is unhealthy: %s"
    assert event["logger"] == "health" and event["exception"]["values"][-1]["type"] == "ConnectionError"


@pytest.mark.django_db
def test_what_clients_do_wrong_is_no_error(server: Gunicorn, sentry: Sentry) -> None:
    assert ask(server, "/", Host="elsewhere.example", X_Request_ID="error-client-1")[0] == 400
    assert ask(server, "/nowhere/", X_Request_ID="error-client-2")[0] == 404
    ask(server, "/fail/", X_Request_ID="error-client-3")
    eventually(lambda: sentry.of_request("error-client-3"))
    assert not sentry.of_request("error-client-1") and not sentry.of_request("error-client-2")


@pytest.mark.slow
@pytest.mark.django_db
def test_a_frozen_sentry_slows_no_error_page_and_delays_no_end(sentry: Sentry) -> None:
    with Gunicorn(DJANGO_SETTINGS_MODULE="tests.support.more_settings", SENTRY_DSN=sentry.dsn) as server:
        median(server, "/fail/", 20)
        before = median(server, "/fail/", 100)
        sentry.answers.clear()
        try:
            during = median(server, "/fail/", 100)
            ask(server, "/tell/?frozen")  # from another place, so that something waits
            took = time_to_end(server)
        finally:
            sentry.answers.set()
    assert during < 2 * before + 0.1, "one that waited for it would take TIMEOUT, 5 s"
    assert took < 25, "GRACEFUL_TIMEOUT"


# In this process


@pytest.fixture
def sending(sentry: Sentry, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sentry]:
    settings.SENTRY_DSN, settings.REVISION = sentry.dsn, ""
    monkeypatch.setattr(deployment, "current", lambda: "61")
    sentry.events.clear()
    errors.start()
    try:
        yield sentry
    finally:
        errors.stop()


def test_an_error_of_the_sampler_is_sent_with_the_deployment(sending: Sentry, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler()

    def turn() -> None:
        sampler.stopped.set()
        raise ZeroDivisionError

    monkeypatch.setattr(sampler, "pause", lambda: 0)
    monkeypatch.setattr(sampler, "turn", turn)
    sampler.start()
    sampler.join()
    errors.stop()
    (event,) = sending.events
    assert (event["logentry"]["message"], event["tags"]["thread"]) == ("Uptime sample failed", "uptime")
    assert event["tags"]["deployment"] == "61"


def test_what_ends_a_thread_is_sent_and_logged(sending: Sentry, caplog: pytest.LogCaptureFixture) -> None:
    thread = threading.Thread(target=lambda: 1 // 0, name="of a library")
    thread.start()
    thread.join()
    errors.stop()
    (event,) = sending.events
    assert event["tags"]["thread"] == "of a library" and event["exception"]["values"][0]["type"] == "ZeroDivisionError"
    assert "A thread ended with an error" in caplog.text


@pytest.mark.django_db
def test_an_error_of_the_database_has_its_code_and_not_its_text(sending: Sentry) -> None:
    secret = "-".join(("hunter", "two"))  # the lines around an error are sent, and these are among them
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        try:
            cursor.execute("SELECT %s::int", [secret])
        except DatabaseError:
            logging.getLogger("accounts.views").exception("Cannot send to %s", secret)
            raise
    errors.stop()
    (event,) = sending.events
    assert event["tags"]["sqlstate"] == "22P02" and secret not in sending.raw[-1]
    assert event["logentry"]["message"] == "Cannot send to %s"


def test_a_message_of_a_library_is_not_sent(sending: Sentry) -> None:
    logging.getLogger("some.library").error("ann@example.com is unknown")
    errors.stop()
    (event,) = sending.events
    assert event["logentry"]["message"].startswith("Logged by some.library in test_a_message_of_a_library")


def test_an_outage_sends_a_few_errors_a_minute_of_each_place(sending: Sentry) -> None:
    for _ in range(3 * errors.MOST):
        logging.getLogger("board.views").error("The same")
    logging.getLogger("board.views").error("Another")
    errors.stop()
    messages = [one["logentry"]["message"] for one in sending.events]
    assert messages == ["The same"] * errors.MOST + ["Another"]


def test_a_sentry_that_is_gone_is_logged_once_a_minute(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.SENTRY_DSN = f"http://a1b2@127.0.0.1:{free_port()}/1"
    monkeypatch.setattr(deployment, "current", lambda: "")
    queue: SimpleQueue[logging.LogRecord] = SimpleQueue()
    lines = logging.handlers.QueueHandler(queue)
    logging.getLogger("urllib3.connectionpool").addHandler(lines)
    try:
        errors.start()
        logging.getLogger("board.views").error("One")
        logging.getLogger("board.views").error("Two")
        errors.stop()
    finally:
        logging.getLogger("urllib3.connectionpool").removeHandler(lines)
    assert queue.qsize() == 1 and queue.get().levelname == "WARNING"


def test_our_messages_are_written_in_the_code() -> None:
    """They are sent as they are, without what is filled in: a message that is put together first might contain it."""
    calls = [
        (path.relative_to(ROOT), node)
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("error", "exception", "critical")
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("logger", "log", "logging")
    ]
    assert len(calls) > 5
    assert not [f"{path}:{node.lineno}" for path, node in calls if not isinstance(node.args[0], ast.Constant)]
