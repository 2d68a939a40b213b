"""Runs the checks and reports by a deadline, whatever the checks do.

Each check has one worker thread in each process, started when it is first needed (so after gunicorn has forked) and
kept. report() starts a run of every check that has no recent result, joins the runs in progress, and waits until each
has finished or is overdue. A stuck run stays the only one of its check: no other is started, and its result counts as
soon as it arrives.

One missed deadline is not an outage: on a busy machine a healthy dependency is late now and then. So a check that was
healthy stays healthy until it has had no answer for settings.HEALTH_DOWN_AFTER seconds in a row. Only this module
decides that; whoever reads a report, here or from /health/, need not ask twice.
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

from health.checks import Check
from health.reasons import Reason, Unhealthy, reason

logger = logging.getLogger("health")

IDLE = 60.0  # seconds without a request after which a check closes its connection
LOG_EVERY = 60.0  # seconds between two log lines about a failure that lasts

# How long to wait again for an overdue run, as a share of the time since the last wait ended. A single probe, seconds
# after the one before, waits long enough to see the dependency recover; a hundred at once, even in a worker with a
# single thread, hardly wait at all.
WAIT_SHARE = 0.25
MIN_WAIT = 0.01  # seconds; a shorter wait costs more in thread switches than it could gain


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a check: `reason` is None if and only if it is healthy; `duration` is in seconds.

    After a timeout, `duration` is how long there has been no answer.
    """

    reason: Reason | None
    duration: float
    note: str = ""  # what the check adds to a healthy result

    @property
    def healthy(self) -> bool:
        return self.reason is None

    @property
    def late(self) -> bool:
        """Whether there has been no answer, but not for long enough to call the dependency down."""
        return self.reason is Reason.TIMEOUT and self.duration < settings.HEALTH_DOWN_AFTER

    def __str__(self) -> str:
        return "healthy" if self.reason is None else f"unhealthy: {self.reason}"


@dataclass(frozen=True, slots=True)
class Report:
    """The results of checks, by name, and when the report was made (an aware datetime in UTC)."""

    timestamp: datetime
    checks: dict[str, Result]

    @property
    def healthy(self) -> bool:
        return all(result.healthy for result in self.checks.values())

    @property
    def status(self) -> str:
        return "healthy" if self.healthy else "unhealthy"

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON object of /health/."""
        notes = {name: result.note for name, result in self.checks.items() if result.note}
        return {
            "status": self.status,
            "timestamp": self.timestamp.isoformat(),
            "version": settings.VERSION,
            "commit": settings.COMMIT,
            "checks": {name: str(result) for name, result in self.checks.items()},
            "durations_ms": {name: round(result.duration * 1000, 1) for name, result in self.checks.items()},
        } | ({"notes": notes} if notes else {})


class Run:
    """One run of a check. Times are those of time.monotonic()."""

    __slots__ = ("started", "wait_until", "expires", "done", "result", "previous", "silent_since")

    def __init__(self, started: float, wait_until: float, last: "Run | None") -> None:
        self.previous: Result | None = None  # the last result that was not just late
        self.silent_since = started  # when the last answer came; before `started` if the last run timed out
        if last:
            result = last.result or last.previous
            self.previous = last.previous if result and result.late else result
            if last.result is None or last.result.reason is Reason.TIMEOUT:
                self.silent_since = last.silent_since
        self.started = started
        self.wait_until = wait_until  # nobody waits for the result longer than this
        self.expires = started  # when the result stops being shared
        self.done = threading.Event()
        self.result: Result | None = None


class CheckWorker:
    """The worker of one check: its thread, its latest run, and what was logged about it."""

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path
        self.lock = threading.RLock()
        self.queue: SimpleQueue[tuple[Context, Run] | None] = SimpleQueue()
        self.thread: threading.Thread | None = None
        self.latest: Run | None = None
        self.logged: Reason | None = None
        self.logged_at = 0.0
        self.late_logged_at = -LOG_EVERY

    def ask(self) -> tuple[Run, float]:
        """Returns the run whose result counts now, starting one if need be, and until when to wait for it."""
        now = time.monotonic()
        with self.lock:
            run = self.latest
            if run is None or (run.result and now >= run.expires) or not self.alive():
                run = self.latest = Run(now, now + settings.HEALTH_CHECK_TIMEOUT, run)
                self.start(run)
            elif (wait := min((now - run.wait_until) * WAIT_SHARE, settings.HEALTH_CHECK_TIMEOUT)) >= MIN_WAIT:
                run.wait_until = now + wait
            return run, run.wait_until

    def answer(self, run: Run, until: float, *, whole: bool = True) -> Result | None:
        """Returns the run's result, waiting for it until `until`; a timeout if the run is overdue by then.

        Without `whole` it may be too early for that: then the result of the run before.
        """
        if run.result is None and (left := until - time.monotonic()) > 0:
            run.done.wait(left)
        if run.result:
            return self.tolerate(run, run.result)
        now = time.monotonic()
        if now - run.started < settings.HEALTH_CHECK_TIMEOUT and not whole:
            return run.previous
        silent = now - run.silent_since
        result = self.tolerate(run, Result(Reason.TIMEOUT, silent))
        if not result.healthy:
            self.log(Reason.TIMEOUT, TimeoutError(f"no answer for {silent:.1f} s; still waiting"))
        return result

    def tolerate(self, run: Run, found: Result) -> Result:
        """Returns `found`, or a healthy result with its duration if `found` is merely late and the last was healthy."""
        if not (found.late and run.previous and run.previous.healthy):
            return found
        now = time.monotonic()
        if now - self.late_logged_at > LOG_EVERY:
            self.late_logged_at = now
            logger.warning("The check %s is late: no answer for %.1f s", self.name, found.duration)
        return Result(None, found.duration)

    def alive(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def start(self, run: Run) -> None:
        """Queues a run, starting the thread if it is not alive."""
        if not self.alive():
            self.thread = threading.Thread(target=self.work, name=f"health-{self.name}", daemon=True)
            try:
                self.thread.start()
            except RuntimeError as error:  # the process may not start more threads
                self.finish(run, error, keep=0)
                return
        self.queue.put((copy_context(), run))  # the context gives the log the request's id

    def work(self) -> None:
        """Runs in the thread: takes one run after the other from the queue, until it gets None."""
        check: Check | None = None
        while True:
            try:
                job = self.queue.get(timeout=IDLE)
            except Empty:
                if check:
                    check.close()
                continue
            if job is None:
                break
            check = job[0].run(self.perform, check, job[1])
        if check:
            check.close()

    def perform(self, check: Check | None, run: Run) -> Check | None:
        """Runs the check, creating its instance first if need be, and returns the instance."""
        error: Exception | None = None
        try:
            check = check or import_string(self.path)()
            check.run()
        except Exception as caught:
            error = caught
        keep, note = (check.keep, check.note) if check else (0, "")
        self.finish(run, error, keep, note)
        return check

    def finish(self, run: Run, error: Exception | None, keep: float, note: str = "") -> None:
        """Sets the run's result and wakes whoever waits for it; `keep` and `note` are those of the check.

        A healthy result is as fresh as the end of its run, because the dependency has just answered. An unhealthy one
        is as old as the start, so that what a stuck run finally reports does not delay the next run.
        """
        ended = time.monotonic()
        result = Result(reason(error), ended - run.started) if error else Result(None, ended - run.started, note)
        if result.reason is Reason.TIMEOUT:
            result = Result(Reason.TIMEOUT, ended - run.silent_since)
        if result.healthy:
            run.expires = ended + max(keep, settings.HEALTH_CACHE_SECONDS)
        else:
            run.expires = run.started + settings.HEALTH_CACHE_SECONDS
        if self.tolerate(run, result) == result:
            self.log(result.reason, error)
        run.result = result
        run.done.set()

    def log(self, found: Reason | None, error: Exception | None) -> None:
        """Logs a change; a failure that lasts only once a minute, however many probes see it."""
        now = time.monotonic()
        with self.lock:
            if found == self.logged and (found is None or now - self.logged_at < LOG_EVERY):
                return
            before, self.logged, self.logged_at = self.logged, found, now
        if found is None:
            logger.info("The check %s is healthy again (was: %s)", self.name, before)
        elif isinstance(error, Unhealthy):
            logger.error("The check %s is unhealthy: %s (%s)", self.name, found, error)
        else:
            logger.error("The check %s is unhealthy: %s", self.name, found, exc_info=error)


_workers: dict[tuple[str, str], CheckWorker] = {}
_creating = threading.Lock()


def _worker(name: str) -> CheckWorker:
    """Returns the worker of a check, creating it if need be. Raises KeyError."""
    key = name, settings.HEALTH_CHECKS[name]
    if found := _workers.get(key):
        return found
    with _creating:
        return _workers.setdefault(key, CheckWorker(*key))


def report(names: Iterable[str] | None = None, *, wait: float | None = None) -> Report:
    """Returns the state of the named checks, or of all in settings.HEALTH_CHECKS, within HEALTH_CHECK_TIMEOUT seconds.

    With `wait` (seconds) it returns within that time, for a page or a scrape that would rather have an earlier result
    than wait for a check that may be stuck. Checks without any result yet are then omitted.

    Thread-safe; blocks. Raises KeyError for a name that is not in settings.HEALTH_CHECKS.
    """
    asked = [(worker, *worker.ask()) for worker in map(_worker, settings.HEALTH_CHECKS if names is None else names)]
    checks = {}
    deadline = time.monotonic() + (settings.HEALTH_CHECK_TIMEOUT if wait is None else wait)
    for worker, run, until in asked:
        if result := worker.answer(run, min(until, deadline), whole=wait is None):
            checks[worker.name] = result
    return Report(datetime.now(UTC), checks)


def has_run(name: str) -> bool:
    """Whether this process has run the check `name` before."""
    return (name, settings.HEALTH_CHECKS.get(name)) in _workers


def stop() -> None:
    """Stops the worker threads and closes their connections, unless they are stuck. For tests."""
    workers = list(_workers.values())
    _workers.clear()
    for worker in workers:
        worker.queue.put(None)
    for worker in workers:
        if worker.thread:
            worker.thread.join(1)


def _forget() -> None:
    """Forgets all workers in the child of a fork: the threads and their connections are the parent's."""
    global _creating
    _creating = threading.Lock()
    _workers.clear()


os.register_at_fork(after_in_child=_forget)
