"""Metrics that are computed at each scrape: collectors, run in parallel and by a deadline.

A collector is a function without arguments that returns Prometheus metric families. settings.METRICS_COLLECTORS lists
them by dotted path, so any app can have one. A collector may wait for the network: it runs in a thread of its own,
which lives as long as the process. One that fails, or takes longer than METRICS_COLLECTOR_TIMEOUT seconds, is left out
of the scrape and counted in metrics_collector_errors_total. While it is stuck it is not started again, so a frozen
database holds no more than one thread and one connection.

Those in a tuple run one after the other in one thread, and so share a database connection and the deadline.
"""

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from time import monotonic, perf_counter, time
from typing import Any

from django.conf import settings
from django.core.cache import DEFAULT_CACHE_ALIAS, caches
from django.db import DEFAULT_DB_ALIAS, close_old_connections, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest
from django.utils.module_loading import import_string
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

from metrics import store
from metrics.registry import CACHE_HITS, CACHE_MISSES, COLLECTOR_ERRORS, DATABASE_QUERY_DURATION

logger = logging.getLogger(__name__)

ACTIVE_SECONDS = 15 * 60  # a user seen in this time is active
NOTED_SECONDS = 60  # a worker records the same user at most once in this time


Found = dict[str, "list[Metric] | Exception"]  # by the collector's path


class CollectorThread:
    """Runs the collectors of one group in a long-lived thread. Scrapes that come while it runs share the run."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self.paths = paths
        self.lock = threading.Lock()
        self.jobs: SimpleQueue[Future[Found] | None] = SimpleQueue()
        self.running: Future[Found] | None = None
        self.started_at = 0.0
        self.thread = threading.Thread(target=self.work, name=f"collector {paths[0]}", daemon=True)
        self.thread.start()

    def ask(self) -> tuple["Future[Found]", float]:
        """Returns the current run, or a new one, and its deadline (time.monotonic())."""
        with self.lock:
            if self.running is None or self.running.done():
                self.running, self.started_at = Future(), monotonic()
                self.jobs.put(self.running)
            return self.running, self.started_at + settings.METRICS_COLLECTOR_TIMEOUT

    def work(self) -> None:
        """Runs in the thread: collects for one job after the other until it gets None."""
        while job := self.jobs.get():
            close_old_connections()  # no request does it for this thread
            job.set_result({path: self.run(path) for path in self.paths})
        connections.close_all()

    def run(self, path: str) -> list[Metric] | Exception:
        """Returns what the collector returns, or the exception that it raised."""
        try:
            return list(import_string(path)())
        except Exception as error:
            return error

    def stop(self) -> None:
        """Stops the thread after its current run, and closes its connections."""
        self.jobs.put(None)
        self.thread.join(settings.METRICS_COLLECTOR_TIMEOUT)


_threads: dict[tuple[str, ...], CollectorThread] = {}
_starting = threading.Lock()


def _after_fork() -> None:
    """Forgets the threads in the child of a fork, where they do not exist; one of them may have held the lock."""
    global _starting
    _threads.clear()
    _starting = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def collect() -> list[Metric]:
    """Returns what the collectors return. Those that fail or miss the deadline are left out, counted and logged."""
    groups = [(entry,) if isinstance(entry, str) else tuple(entry) for entry in settings.METRICS_COLLECTORS]
    with _starting:
        for group in groups:
            if group not in _threads:
                _threads[group] = CollectorThread(group)
        asked = [(group, *_threads[group].ask()) for group in groups]
    families: list[Metric] = []
    for group, run, deadline in asked:
        try:
            found = run.result(max(0.0, deadline - monotonic()))
        except TimeoutError as overdue:
            found = dict.fromkeys(group, overdue)
        for path, result in found.items():
            if isinstance(result, Exception):
                COLLECTOR_ERRORS.labels(path).inc()
                late = not run.done()
                why = "missed its deadline" if late else "failed"
                logger.warning(
                    "Collector %s %s; left out of this scrape.", path, why, exc_info=None if late else result
                )
            else:
                families += result
    return families


def close() -> None:
    """Stops the collectors' threads and closes their database connections; the next scrape starts new ones."""
    with _starting:
        while _threads:
            _threads.popitem()[1].stop()


# The collectors


def app_info() -> Iterable[Metric]:
    """Returns app_info: version, commit and environment of this instance, as labels."""
    labels = {"version": settings.VERSION, "commit": settings.COMMIT, "environment": settings.ENVIRONMENT}
    return [InfoMetricFamily("app", "Version, commit and environment of this instance.", labels)]


def active_users() -> Iterable[Metric]:
    """Returns active_users: one number for all workers and instances, because all record users in the same cache."""
    count = _cache().recent("active_users", ACTIVE_SECONDS)
    return [GaugeMetricFamily("active_users", "Distinct users seen in the last 15 minutes.", count)]


def cache_hit_ratio() -> Iterable[Metric]:
    """Returns cache_hit_ratio, from the totals of all workers. NaN before the first lookup."""
    hits, misses = (sample.value for metric in _CACHE_TOTALS.collect() for sample in metric.samples)
    ratio = hits / (hits + misses) if hits + misses else float("nan")
    return [GaugeMetricFamily("cache_hit_ratio", "Share of cache lookups that found the key.", ratio)]


_CACHE_REGISTRY = CollectorRegistry()
for _counter in (CACHE_HITS, CACHE_MISSES):
    _CACHE_REGISTRY.register(_counter)
_CACHE_TOTALS = store.Exposition(_CACHE_REGISTRY)


# A role may not use the connections that are reserved for others, nor more than its own limit and the database's, of
# which -1 means none. reserved_connections and its role came with PostgreSQL 16.
# https://www.postgresql.org/docs/current/runtime-config-connection.html
_DATABASE = """
SELECT
    (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'),
    (SELECT CASE WHEN rolsuper THEN current_setting('max_connections')::int ELSE least(
        current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int - CASE
            WHEN (SELECT pg_has_role(session_user, oid, 'USAGE') FROM pg_roles
                WHERE rolname = 'pg_use_reserved_connections') THEN 0
            ELSE coalesce(current_setting('reserved_connections', true)::int, 0) END,
        nullif(rolconnlimit, -1),
        nullif(datconnlimit, -1)) END
    FROM pg_roles, pg_database WHERE rolname = session_user AND datname = current_database()),
    extract(epoch FROM clock_timestamp())::float
"""


def database() -> Iterable[Metric]:
    """Returns database_connections_active, database_connections_limit and clock_offset_seconds.

    With SQLite, the first counts this process's own connections, and the others have no series: nothing limits
    connections, and the clock is the same. The offset is exact to half of the time that the query takes.

    https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW
    """
    active = GaugeMetricFamily("database_connections_active", "Open connections to the database.")
    limit = GaugeMetricFamily("database_connections_limit", "Connections to the database that this app's role may use.")
    offset = GaugeMetricFamily("clock_offset_seconds", "This instance's clock minus that of the database.")
    connection = connections[DEFAULT_DB_ALIAS]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            before = time()
            cursor.execute(_DATABASE)
            count, most, now = cursor.fetchone()
            offset.add_metric([], (before + time()) / 2 - now)
        if most is not None:
            limit.add_metric([], most)
    else:
        count = sum(one.connection is not None for one in list(_opened))
    active.add_metric([], count)
    return [active, limit, offset]


# What requests record for the collectors

_noted: set[Any] = set()
_noted_until = 0.0


def note_user(request: HttpRequest) -> Callable[[], None] | None:
    """Returns a function to call after the response is sent, which records the request's user as active.

    Returns None for an anonymous user, and for one whom this worker has recorded in the last minute. Only a user whom
    the request has loaded anyway counts: this never queries the session or the database.
    """
    global _noted, _noted_until
    loaded = request.__dict__
    user = loaded.get("_cached_user") or loaded.get("_acached_user")
    if user is None or (key := user.pk) is None:
        return None
    now = monotonic()
    if now > _noted_until:
        _noted, _noted_until = set(), now + NOTED_SECONDS
    if key in _noted:
        return None
    _noted.add(key)
    return lambda: _cache().remember("active_users", str(key), ACTIVE_SECONDS)


def _cache() -> Any:
    """Returns the default cache, whose backend has remember() and recent(): see metrics.cache."""
    return caches[DEFAULT_CACHE_ALIAS]


_opened: "weakref.WeakSet[BaseDatabaseWrapper]" = weakref.WeakSet()
_query_observers: dict[str, Callable[[float], None]] = {}


def watch_connection(connection: BaseDatabaseWrapper, **_: Any) -> None:
    """Receives Django's connection_created, and has the connection's queries timed from now on."""
    _opened.add(connection)
    if _time_query not in connection.execute_wrappers:
        # First, because connection.execute_wrapper() removes the last one when it ends.
        connection.execute_wrappers.insert(0, _time_query)


def _time_query(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
    """Observes the duration of a query, also of one that fails.

    https://docs.djangoproject.com/en/5.2/topics/db/instrumentation/
    """
    alias = context["connection"].alias
    observe = _query_observers.get(alias)
    if observe is None:
        observe = _query_observers[alias] = store.observer(DATABASE_QUERY_DURATION.labels(alias))
    started = perf_counter()
    try:
        return execute(sql, params, many, context)
    finally:
        observe(perf_counter() - started)
