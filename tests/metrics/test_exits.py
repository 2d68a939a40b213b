"""How gunicorn's workers end, as its master counts it."""

import http.client
import os
import re
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from metrics import exits as hooks
from metrics.registry import WORKER_EXITS
from metrics.store.internals import value_of
from tests.support.servers import PATIENCE, Gunicorn, eventually

RECYCLED_AFTER = 40  # requests of one worker; its master adds up to 4


class Impatient(Gunicorn):
    """A gunicorn that gives a worker three seconds to report, and recycles it soon."""

    def __init__(self) -> None:
        super().__init__(2, MAX_REQUESTS=str(RECYCLED_AFTER))

    def command(self) -> list[str]:
        return [*super().command(), "--timeout", "3"]


REASONS = ("timeout", "crash", "recycled")


@pytest.mark.parametrize(
    ("error", "requests", "aborted", "reason"),
    [
        (SystemExit(0), 1, False, None),
        (SystemExit(), 1, False, None),
        (SystemExit(0), 10, False, "recycled"),
        (SystemExit(1), 1, False, "crash"),
        (ZeroDivisionError(), 10, False, "crash"),
        (SystemExit(1), 1, True, "timeout"),  # it came to react to SIGABRT
    ],
)
def test_a_worker_that_ends_by_an_error_has_crashed(
    error: BaseException, requests: int, aborted: bool, reason: str | None
) -> None:
    before = {each: value_of(WORKER_EXITS.labels(each)).get() for each in REASONS}
    worker = SimpleNamespace(nr=requests, max_requests=10, aborted=aborted)
    hooks.pre_fork(worker)
    try:
        raise error
    except BaseException:
        hooks.worker_exit(worker)
    hooks.child_exit(worker)
    found = {each: value_of(WORKER_EXITS.labels(each)).get() - before[each] for each in REASONS}
    assert found == {each: float(each == reason) for each in REASONS}


@pytest.fixture
def server(django_db_setup: None) -> Iterator[Impatient]:
    with Impatient() as server:
        yield server


def get(server: Gunicorn, path: str) -> str:
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    link.request("GET", path, headers={"Connection": "close"})
    try:
        return link.getresponse().read().decode()
    finally:
        link.close()


def exits(server: Gunicorn) -> dict[str, float]:
    found = re.findall(r'^worker_exits_total\{reason="(\w+)"\} (\S+)$', get(server, "/metrics"), re.MULTILINE)
    return {reason: float(value) for reason, value in found}


def replaced(server: Gunicorn, pid: int) -> None:
    """Waits until another worker has the place of `pid`."""
    eventually(lambda: pid not in server.workers() and len(server.workers()) == 2)


@pytest.mark.slow
@pytest.mark.django_db
def test_a_crash_a_time_out_and_a_recycled_worker_are_told_apart(server: Impatient) -> None:
    assert exits(server) == {"timeout": 0, "crash": 0, "recycled": 0}
    for number, reason, count in (
        (signal.SIGTERM, None, 0),  # told to end
        (signal.SIGKILL, "crash", 1),  # out of memory
        (signal.SIGSEGV, "crash", 2),
        (signal.SIGSTOP, "timeout", 1),  # does not even react to SIGABRT
    ):
        pid = server.workers()[0]
        os.kill(pid, number)
        replaced(server, pid)
        if reason:
            assert exits(server)[reason] >= count
    found = exits(server)
    assert found["crash"] == 2 and found["recycled"] == 0, "a machine that is too slow makes time-outs, and no others"
    for _ in range(3 * RECYCLED_AFTER):
        get(server, "/health/live/")
    assert eventually(lambda: exits(server)["recycled"]) >= 1
    assert exits(server)["crash"] == 2
