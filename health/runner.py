"""Runs the checks, and answers by a deadline whatever they do.

Each check has one thread in each process, made when it is first needed (so after gunicorn has forked) and kept. Who
asks for a report starts a run of every check that has no recent result, joins the runs under way, and waits until
each has ended or is overdue. A run that is stuck stays the only one of its check: nothing is started beside it, and
its result counts as soon as it comes.

A deadline that has passed once is not an outage: on a busy machine a healthy dependency is late now and then. So what
was healthy remains so until it has given no answer for settings.HEALTH_DOWN_AFTER seconds on end. This is the one place
that decides it; whoever reads a report, here or through /health/, can take it at its word.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable
from contextvars import Context, copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from health.checks import Check, Reason, Unhealthy, reason

logger = logging.getLogger("health")

IDLE = 60.0  # seconds without a question after which a check lets go of its connection
SAY_AGAIN = 60.0  # seconds after which a failure that lasts is logged once more

# An overdue run is waited for again for this part of the time since that was last done. So a single probe, coming
# seconds after the one before, waits long enough to see the dependency come back, while a hundred at once, even in a
# worker that has but one thread to answer them, wait for next to nothing each.
PATIENCE = 0.25
WORTH_IT = 0.01  # seconds; a shorter wait costs more in switching threads than it may gain


@dataclass(frozen=True, slots=True)
class Result:
    """What a check found: `reason` is None if and only if it is healthy; `duration` is in seconds.

    Of a time-out `duration` is the time since when there has been no answer.
    """

    reason: Reason | None
    duration: float

    @property
    def healthy(self) -> bool:
        return self.reason is None

    @property
    def late(self) -> bool:
        """Whether all that is known is that no answer has come yet: too little to call it down."""
        return self.reason is Reason.TIMEOUT and self.duration < settings.HEALTH_DOWN_AFTER

    def __str__(self) -> str:
        return "healthy" if self.reason is None else f"unhealthy: {self.reason}"


@dataclass(frozen=True, slots=True)
class Report:
    """The results of some checks, by name, and when they were put together (an aware datetime in UTC)."""

    timestamp: datetime
    checks: dict[str, Result]

    @property
    def healthy(self) -> bool:
        return all(result.healthy for result in self.checks.values())

    @property
    def status(self) -> str:
        return "healthy" if self.healthy else "unhealthy"

    def as_dict(self) -> dict[str, Any]:
        """The JSON object that /health/ answers with."""
        return {
            "status": self.status,
            "timestamp": self.timestamp.isoformat(),
            "version": settings.VERSION,
            "commit": settings.COMMIT,
            "checks": {name: str(result) for name, result in self.checks.items()},
            "durations_ms": {name: round(result.duration * 1000, 1) for name, result in self.checks.items()},
        }


class Run:
    """One run of a check; times are of time.monotonic()."""

    __slots__ = ("started", "until", "expires", "done", "result", "before", "silent")

    def __init__(self, started: float, until: float, last: "Run | None") -> None:
        self.before: Result | None = None  # what the last run found that had an answer, or waited long enough for one
        self.silent = started  # since when there has been no answer; earlier than `started` after one that timed out
        if last:
            result = last.result or last.before
            self.before = last.before if result and result.late else result
            if last.result is None or last.result.reason is Reason.TIMEOUT:
                self.silent = last.silent
        self.started = started
        self.until = until  # who asks waits until then, and not longer
        self.expires = started  # until when the result is shared
        self.done = threading.Event()
        self.result: Result | None = None


class Watch:
    """One check: its thread, its last run, and what the log was told of it."""

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path
        self.lock = threading.RLock()
        self.orders: SimpleQueue[tuple[Context, Run] | None] = SimpleQueue()
        self.thread: threading.Thread | None = None
        self.latest: Run | None = None
        self.said: Reason | None = None
        self.said_at = 0.0
        self.late_at = -SAY_AGAIN

    def ask(self) -> tuple[Run, float]:
        """The run whose result counts now, started if need be, and until when to wait for it."""
        now = time.monotonic()
        with self.lock:
            run = self.latest
            if run is None or (run.result and now >= run.expires) or not self.alive():
                run = self.latest = Run(now, now + settings.HEALTH_CHECK_TIMEOUT, run)
                self.start(run)
            elif (patience := min((now - run.until) * PATIENCE, settings.HEALTH_CHECK_TIMEOUT)) >= WORTH_IT:
                run.until = now + patience
            return run, run.until

    def answer(self, run: Run, until: float, *, whole: bool = True) -> Result | None:
        """The run's result, or that it is overdue; before it is that, if not the `whole` time is to be waited for,
        the result of the run before."""
        if run.result is None and (left := until - time.monotonic()) > 0:
            run.done.wait(left)
        if run.result:
            return self.judge(run, run.result)
        now = time.monotonic()
        if now - run.started < settings.HEALTH_CHECK_TIMEOUT and not whole:
            return run.before
        silent = now - run.silent
        result = self.judge(run, Result(Reason.TIMEOUT, silent))
        if not result.healthy:
            self.say(Reason.TIMEOUT, TimeoutError(f"no answer for {silent:.1f} s; still waiting for it"))
        return result

    def judge(self, run: Run, found: Result) -> Result:
        """`found`, unless that is one late answer of what was healthy: then healthy, in the time that it takes."""
        if not (found.late and run.before and run.before.healthy):
            return found
        now = time.monotonic()
        if now - self.late_at > SAY_AGAIN:
            self.late_at = now
            logger.warning("The check %s is late: no answer for %.1f s so far", self.name, found.duration)
        return Result(None, found.duration)

    def alive(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def start(self, run: Run) -> None:
        if not self.alive():
            self.thread = threading.Thread(target=self.work, name=f"health-{self.name}", daemon=True)
            try:
                self.thread.start()
            except RuntimeError as error:  # the system lets this process have no more threads
                self.finish(run, error, keep=0)
                return
        self.orders.put((copy_context(), run))  # with the context the log gets the id of the request that asks

    def work(self) -> None:
        """The thread: takes one run after the other, until it is given None."""
        check: Check | None = None
        while True:
            try:
                order = self.orders.get(timeout=IDLE)
            except Empty:
                if check:
                    check.close()
                continue
            if order is None:
                break
            check = order[0].run(self.perform, check, order[1])
        if check:
            check.close()

    def perform(self, check: Check | None, run: Run) -> Check | None:
        error: Exception | None = None
        try:
            check = check or import_string(self.path)()
            check.run()
        except Exception as caught:
            error = caught
        self.finish(run, error, check.keep if check else 0)
        return check

    def finish(self, run: Run, error: Exception | None, keep: float) -> None:
        """Settles the run. A good result is as fresh as its end: the dependency has answered just now. A bad one is
        as old as its start, so that what a run that was stuck has to say in the end keeps nobody from asking anew."""
        ended = time.monotonic()
        result = Result(reason(error) if error else None, ended - run.started)
        if result.reason is Reason.TIMEOUT:
            result = Result(Reason.TIMEOUT, ended - run.silent)
        if result.healthy:
            run.expires = ended + max(keep, settings.HEALTH_CACHE_SECONDS)
        else:
            run.expires = run.started + settings.HEALTH_CACHE_SECONDS
        if self.judge(run, result) == result:
            self.say(result.reason, error)
        run.result = result
        run.done.set()

    def say(self, found: Reason | None, error: Exception | None) -> None:
        """Logs what has changed; a failure that lasts, once a minute: a flood of probes is no flood of lines."""
        now = time.monotonic()
        with self.lock:
            if found == self.said and (found is None or now - self.said_at < SAY_AGAIN):
                return
            before, self.said, self.said_at = self.said, found, now
        if found is None:
            logger.info("The check %s is healthy again; it was: %s", self.name, before)
        elif isinstance(error, Unhealthy):
            logger.error("The check %s is unhealthy: %s (%s)", self.name, found, error)
        else:
            logger.error("The check %s is unhealthy: %s", self.name, found, exc_info=error)


_watches: dict[tuple[str, str], Watch] = {}
_making = threading.Lock()


def _watch(name: str) -> Watch:
    key = name, settings.HEALTH_CHECKS[name]
    if found := _watches.get(key):
        return found
    with _making:
        return _watches.setdefault(key, Watch(*key))


def report(names: Iterable[str] | None = None, *, wait: float | None = None) -> Report:
    """The state of the checks named, or of all in settings.HEALTH_CHECKS, HEALTH_CHECK_TIMEOUT from now at the latest.

    With `wait` (seconds) it comes that soon, for those who would rather have what was known before than wait for what
    may be stuck: a page, a scrape. What is not known yet is then left out.

    It may be called from any thread; it blocks. Raises KeyError for a name that is not in settings.HEALTH_CHECKS.
    """
    asked = [(watch, *watch.ask()) for watch in map(_watch, settings.HEALTH_CHECKS if names is None else names)]
    checks = {}
    enough = time.monotonic() + (settings.HEALTH_CHECK_TIMEOUT if wait is None else wait)
    for watch, run, until in asked:
        if result := watch.answer(run, min(until, enough), whole=wait is None):
            checks[watch.name] = result
    return Report(datetime.now(UTC), checks)


def watched(name: str) -> bool:
    """Whether this process has asked for the check `name` before."""
    return (name, settings.HEALTH_CHECKS.get(name)) in _watches


def stop() -> None:
    """Ends the checking threads and closes their connections, as far as they are not stuck. For tests."""
    watches = list(_watches.values())
    _watches.clear()
    for watch in watches:
        watch.orders.put(None)
    for watch in watches:
        if watch.thread:
            watch.thread.join(1)


def _forget() -> None:
    """In the child of a fork: the threads have stayed with the parent, and the connections are its own."""
    global _making
    _making = threading.Lock()
    _watches.clear()


os.register_at_fork(after_in_child=_forget)
