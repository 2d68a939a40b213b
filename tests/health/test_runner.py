"""The runner keeps its deadline, its one thread and its one run whatever a check does."""

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.checks import run_checks
from pytest_django import Settings

from backstagetest1.proxy import request_id
from backstagetest1.logs import RequestIdFilter
from health import runner
from health.checks import Check
from health.collector import health_checks
from health.reasons import Reason, Unhealthy
from health.runner import report
from tests.support.servers import eventually

DEADLINE = 0.2  # seconds, in the tests in which a check is stuck
SLACK = 20.0  # for a machine that is busy; what is stuck stays so for STUCK seconds
STUCK = 60.0
SECRET = "host=db.internal user=app password=hunter2 SELECT * FROM people"


class Fake(Check):
    """A check that does as it is told by the test, and counts."""

    runs = 0
    made = 0
    closed = 0
    stuck = threading.Event()  # set: run() goes on
    error: BaseException | None = None

    def __init__(self) -> None:
        Fake.made += 1

    def run(self) -> None:
        Fake.runs += 1
        Fake.stuck.wait(STUCK)
        if Fake.error:
            raise Fake.error

    def close(self) -> None:
        Fake.closed += 1


class Rare(Fake):
    keep = 60.0


@pytest.fixture(autouse=True)
def fake(settings: Settings) -> Iterator[None]:
    settings.HEALTH_CHECKS = {"fake": f"{__name__}.Fake"}
    settings.HEALTH_CHECK_TIMEOUT = 20
    settings.HEALTH_CACHE_SECONDS = 60
    settings.HEALTH_DOWN_AFTER = 0  # what is late is down at once, where a test does not ask for more
    Fake.runs = Fake.made = Fake.closed = 0
    Fake.error = None
    Fake.stuck.set()
    yield
    Fake.stuck.set()
    runner.stop()


@pytest.fixture
def stuck(settings: Settings) -> None:
    """The check is stuck until Fake.stuck is set."""
    settings.HEALTH_CHECK_TIMEOUT = DEADLINE
    Fake.stuck.clear()


def threads() -> int:
    return sum(thread.name == "health-fake" for thread in threading.enumerate())


def state() -> str:
    return str(report().checks["fake"])


def test_a_report_has_the_guides_shape(settings: Settings) -> None:
    settings.VERSION, settings.COMMIT = "1.2.3", "4f2a9c1"
    found = report().as_dict()
    assert list(found) == ["status", "timestamp", "version", "commit", "checks", "durations_ms"]
    assert (found["status"], found["checks"]) == ("healthy", {"fake": "healthy"})
    assert (found["version"], found["commit"]) == ("1.2.3", "4f2a9c1")
    assert found["timestamp"].endswith("+00:00")
    assert found["durations_ms"]["fake"] >= 0


def test_concurrent_askers_share_one_run_and_later_ones_its_result() -> None:
    Fake.stuck.clear()
    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(state) for _ in range(50)]
        assert eventually(lambda: Fake.runs == 1)
        Fake.stuck.set()
        assert {each.result() for each in asked} == {"healthy"}
    assert {state() for _ in range(100)} == {"healthy"}
    assert (Fake.runs, Fake.made, threads()) == (1, 1, 1)


def test_a_result_is_shared_for_a_moment_only(settings: Settings) -> None:
    settings.HEALTH_CACHE_SECONDS = 0
    assert state() == "healthy"
    Fake.error = Unhealthy(Reason.REFUSED)
    assert state() == "unhealthy: refused"
    assert (Fake.runs, Fake.made, threads()) == (2, 1, 1)


def test_a_check_may_ask_for_a_good_result_to_be_kept_and_not_for_a_bad_one(settings: Settings) -> None:
    settings.HEALTH_CACHE_SECONDS = 0
    settings.HEALTH_CHECKS = {"fake": f"{__name__}.Rare"}
    Fake.error = Unhealthy(Reason.PENDING_MIGRATIONS)
    assert (state(), state()) == ("unhealthy: pending migrations", "unhealthy: pending migrations")
    Fake.error = None
    assert (state(), state(), state()) == ("healthy", "healthy", "healthy")
    assert Fake.runs == 3


def test_a_stuck_check_holds_one_thread_and_nobody_beyond_the_deadline(stuck: None) -> None:
    def ask() -> tuple[str, float]:
        started = time.monotonic()
        return state(), time.monotonic() - started

    with ThreadPoolExecutor(200) as pool:
        for _ in range(3):
            answers = [each.result() for each in [pool.submit(ask) for _ in range(200)]]
            assert {said for said, _ in answers} == {"unhealthy: timeout"}
            assert max(took for _, took in answers) < DEADLINE + SLACK
    assert (Fake.runs, threads()) == (1, 1)


def test_five_hundred_asking_one_after_the_other_wait_little_more_than_once(stuck: None) -> None:
    """As in a worker with a single thread, where the last of five hundred probes waits for all before it."""
    started = time.monotonic()
    assert {state() for _ in range(500)} == {"unhealthy: timeout"}  # 100 s if each waited
    assert time.monotonic() - started < DEADLINE + SLACK


def test_what_comes_late_and_well_counts_at_once_without_another_run(stuck: None) -> None:
    assert state() == "unhealthy: timeout"
    Fake.stuck.set()
    assert eventually(lambda: state() == "healthy")
    assert Fake.runs == 1


def test_one_who_asks_after_a_pause_waits_for_the_stuck_run_to_end(stuck: None) -> None:
    assert state() == "unhealthy: timeout"
    time.sleep(0.8)  # a quarter of it is worth waiting
    threading.Timer(0.05, Fake.stuck.set).start()
    assert state() == "healthy"
    assert Fake.runs == 1


def test_what_comes_late_and_badly_keeps_nobody_from_asking_anew(settings: Settings, stuck: None) -> None:
    settings.HEALTH_CACHE_SECONDS = 0.3
    assert state() == "unhealthy: timeout"
    time.sleep(0.2)
    Fake.error = ConnectionResetError()
    Fake.stuck.set()
    (worker,) = runner._workers.values()
    assert eventually(lambda: worker.latest and worker.latest.result)
    Fake.error = None
    settings.HEALTH_CHECK_TIMEOUT = 20
    assert state() == "healthy"
    assert Fake.runs == 2


def test_one_late_answer_is_not_an_outage(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """The machine is busy; the server is not down."""
    settings.HEALTH_CACHE_SECONDS = 0
    settings.HEALTH_DOWN_AFTER = 600
    assert state() == "healthy"
    settings.HEALTH_CHECK_TIMEOUT = DEADLINE
    Fake.stuck.clear()
    found = report()
    assert found.healthy and found.checks["fake"].duration >= DEADLINE
    assert report(wait=0.01).healthy
    Fake.stuck.set()
    assert state() == "healthy"
    assert [record.getMessage()[:22] for record in caplog.records] == ["The check fake is late"]


def test_no_answer_for_seconds_on_end_is_one_and_lasts_until_there_is_an_answer(settings: Settings) -> None:
    settings.HEALTH_CACHE_SECONDS = 0
    settings.HEALTH_DOWN_AFTER = 0.6
    assert state() == "healthy"
    settings.HEALTH_CHECK_TIMEOUT = 0.05
    Fake.stuck.clear()
    assert state() == "healthy"
    assert eventually(lambda: state() == "unhealthy: timeout")
    Fake.error = TimeoutError()  # it gives up, and the next run begins
    Fake.stuck.set()
    assert eventually(lambda: state() == "unhealthy: timeout" and Fake.runs >= 3)
    Fake.stuck.clear()
    assert state() == "unhealthy: timeout", "the new run is young, the silence is not"
    Fake.error = None
    Fake.stuck.set()
    assert eventually(lambda: state() == "healthy")


def test_time_outs_of_a_check_s_own_are_an_outage_only_one_after_the_other(settings: Settings) -> None:
    settings.HEALTH_CACHE_SECONDS = 0
    settings.HEALTH_DOWN_AFTER = 600
    assert state() == "healthy"
    Fake.error = TimeoutError()
    assert [state() for _ in range(3)] == ["healthy"] * 3
    settings.HEALTH_DOWN_AFTER = 0.05
    time.sleep(0.06)
    assert state() == "unhealthy: timeout"
    Fake.error = Unhealthy(Reason.REFUSED)
    assert state() == "unhealthy: refused"


def test_what_has_never_answered_is_unhealthy_and_known_to_be_late_only(settings: Settings, stuck: None) -> None:
    settings.HEALTH_DOWN_AFTER = 600
    assert state() == "unhealthy: timeout"
    assert report().checks["fake"].late
    assert [family.samples for family in health_checks()] == [[], []]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_replaced(settings: Settings, stuck: None) -> None:
    Fake.error = SystemExit()
    Fake.stuck.set()
    assert state() == "unhealthy: timeout"
    assert eventually(lambda: threads() == 0)
    Fake.error = None
    settings.HEALTH_CHECK_TIMEOUT = 20
    assert state() == "healthy"


def test_no_more_threads_is_an_unhealthy_check_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", start)
        assert state() == "unhealthy: error"
    assert state() == "healthy"


def test_a_forked_child_has_threads_and_locks_of_its_own() -> None:
    assert state() == "healthy"
    (worker,) = runner._workers.values()
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with worker.lock, runner._creating:
            held.set()
            free.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    readable, writable = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12: forking with threads about
        child = os.fork()
    if child == 0:
        signal.alarm(10)
        try:
            os.write(writable, f"{state()} {Fake.runs} {threads()}".encode())
        finally:
            os._exit(0)
    free.set()
    holder.join()
    os.close(writable)
    with os.fdopen(readable) as pipe:
        assert pipe.read() == "healthy 2 1"
    os.waitpid(child, 0)


def test_a_check_lets_go_when_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "IDLE", 0.05)
    assert state() == "healthy"
    assert eventually(lambda: Fake.closed >= 1)
    assert threads() == 1


def test_who_will_not_wait_gets_what_was_known_before(settings: Settings) -> None:
    settings.HEALTH_CACHE_SECONDS = 0
    settings.HEALTH_CHECK_TIMEOUT = 0.5
    Fake.stuck.clear()
    assert report(wait=0.01).checks == {}
    Fake.stuck.set()
    assert eventually(lambda: state() == "healthy")
    Fake.stuck.clear()
    assert report(wait=0.01).healthy, "not overdue yet: as it was before"
    assert eventually(lambda: str(report(wait=0.01).checks["fake"]) == "unhealthy: timeout"), "overdue"


def test_the_gauges_are_one_or_zero(settings: Settings) -> None:
    settings.HEALTH_CACHE_SECONDS = 0
    failures = (Unhealthy(Reason.REFUSED), Unhealthy(Reason.READ_ONLY), Unhealthy(Reason.PENDING_MIGRATIONS))
    for error in (None, *failures, ZeroDivisionError()):
        Fake.error = error
        up, why = health_checks()
        assert [(sample.name, sample.labels, sample.value) for sample in up.samples] == [
            ("health_check_up", {"check": "fake"}, float(error is None))
        ]
        named = getattr(error, "reason", Reason.ERROR if error else None)
        assert {(sample.labels["check"], sample.labels["reason"]): sample.value for sample in why.samples} == {
            ("fake", str(reason)): float(reason == named) for reason in Reason
        }


def test_an_exception_is_logged_and_not_shown_to_the_client(caplog: pytest.LogCaptureFixture) -> None:
    """The text of an exception may contain host names, user names and SQL."""
    caplog.handler.addFilter(RequestIdFilter())
    Fake.error = RuntimeError(SECRET)
    request_id.set("the-request-that-asked")
    assert report().as_dict()["checks"] == {"fake": "unhealthy: error"}
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("health", "ERROR")
    assert SECRET in caplog.text and "Traceback" in caplog.text
    assert vars(record)["request_id"] == "the-request-that-asked"


def test_a_flood_of_probes_is_no_flood_of_log_lines(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "health")
    settings.HEALTH_CACHE_SECONDS = 0
    state()
    Fake.error = Unhealthy(Reason.WRONG_ANSWER, "got 41, expected 42")
    for _ in range(50):
        state()
    Fake.stuck.clear()
    settings.HEALTH_CHECK_TIMEOUT = DEADLINE
    for _ in range(50):
        state()
    Fake.error = None
    Fake.stuck.set()
    assert eventually(lambda: state() == "healthy")
    assert [record.getMessage() for record in caplog.records] == [
        "The check fake is unhealthy: wrong answer (got 41, expected 42)",
        "The check fake is unhealthy: timeout",
        "The check fake is healthy again (was: timeout)",
    ]


def test_a_failure_that_lasts_is_logged_again_after_a_minute(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.HEALTH_CACHE_SECONDS = 0
    Fake.error = Unhealthy(Reason.REFUSED)
    state()
    monkeypatch.setattr(runner, "LOG_EVERY", 0)
    state()
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("checks", "ready", "said"),
    [
        ({"fake": "no.such.Check"}, [], ["health.E001"]),
        ({"fake": f"{__name__}.Missing"}, [], ["health.E001"]),
        ({"fake": f"{__name__}.Fake"}, ["fake", "databse"], ["health.E002"]),
        ({"fake": f"{__name__}.Fake"}, ["fake"], []),
    ],
)
def test_settings_that_cannot_work_are_found_at_start(
    checks: dict[str, str], ready: list[str], said: list[str], settings: Settings
) -> None:
    settings.HEALTH_CHECKS, settings.HEALTH_READY = checks, ready
    assert [found.id for found in run_checks() if str(found.id).startswith("health.")] == said


def test_a_check_that_cannot_be_made_is_unhealthy(settings: Settings) -> None:
    settings.HEALTH_CHECKS = {"fake": "no.such.Check"}
    assert state() == "unhealthy: error"
