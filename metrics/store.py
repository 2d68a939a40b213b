"""The values of all metrics, shared by the workers of one server.

prometheus_client keeps its registry, metric types and exposition; only the place where a metric's numbers live is
ours. Until start() has been called values are plain numbers of this process (runserver, manage.py, tests). After it
each process leases a slot, a file of the folder, at its first write, and a scrape adds up all slots, whichever worker
answers it. docs/metrics-store.md has the file's format, the lease and the reasons.

metrics/registry.py, before the first metric is made:

    store.install(REGISTRY)

gunicorn.conf.py (no other hook is needed: the kernel frees the slot of a worker that died, however it died):

    def on_starting(server):
        from metrics import store
        store.start(folder)     # METRICS_DIR; in the master, once: makes or empties it

    def post_fork(server, worker):
        from metrics import store
        store.lease()           # in the worker, before its first request

The view:

    EXPOSITION = store.Exposition(REGISTRY, others=True)
    EXPOSITION.text()                                   # bytes, as prometheus_client.generate_latest(REGISTRY)
    openmetrics.exposition.generate_latest(EXPOSITION)  # it is a Collector: anything that calls collect() will do

Limits, each the price of sharing: a Gauge must say how workers' values become one (multiprocess_mode livesum, livemax,
livemin, livemostrecent, sum, max, min or mostrecent; not per process: all, liveall); exemplars are dropped; labels that
were removed stay in the scrape; there are no `_created` series.
"""

import logging
import os
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Lock, RLock
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from metrics.store_families import Layout
from metrics.store_slots import Key, Reader, Slot, clear

logger = logging.getLogger(__name__)

# Guards every read-modify-write of a value. Re-entrant: a signal handler may count while its thread is counting.
_lock = RLock()


class StoreError(RuntimeError):
    """The store cannot work as told; the message says what to do. gunicorn prints it and exits with 1."""


class Value:
    """One number of a metric, what prometheus_client calls a ValueClass: two cells, the value and its stamp.

    Only a gauge has a stamp: 0 for no value, 1 for one without a time, else the time of set() in seconds since 1970.
    """

    __slots__ = ("cells", "i", "key", "line", "help")

    def __init__(self, key: Key, help_text: str) -> None:
        self.key = key
        self.line = key.encode()
        self.help = help_text
        # Where it lives: in the process (a list), in its slot (a view of the file), or nowhere yet (_Unleased).
        self.cells: list[float] | memoryview[float] | _Unleased = [0.0, 1.0]
        self.i = 0

    def inc(self, amount: float) -> None:
        with _lock:
            self.cells[self.i] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        with _lock:
            self.cells[self.i] = value
            self.cells[self.i + 1] = timestamp or 1.0

    def get(self) -> float:
        """What this process's slot holds; for all processes together see Exposition."""
        with _lock:
            return self.pair()[0]

    def pair(self) -> tuple[float, float]:
        """Value and stamp; to ask leases nothing."""
        return (0.0, 1.0) if isinstance(self.cells, _Unleased) else (self.cells[self.i], self.cells[self.i + 1])

    def set_exemplar(self, exemplar: object) -> None:
        """Dropped: it is no number."""

    def get_exemplar(self) -> None:
        return None


class _Unleased:
    """Stands where a value's cells will be, and leases the slot when they are touched: no write has to test for it."""

    __slots__ = ("_store", "_value")

    def __init__(self, store: "Store", value: Value) -> None:
        self._store = store
        self._value = value

    def __getitem__(self, i: int) -> float:
        self._store.lease()
        return float(self._value.cells[self._value.i + i])

    def __setitem__(self, i: int, number: float) -> None:
        self._store.lease()
        self._value.cells[self._value.i + i] = number


class Store:
    """The values of one process. There is one for each process; tests make more to play several."""

    def __init__(self) -> None:
        self._values: list[Value] = []
        self._waiting: list[Value] = []  # have no cell of the slot
        self._folder: Path | None = None
        self._slot: Slot | None = None
        self._failed = False
        self._errors: dict[str, Value] = {}
        self._reader: Reader | None = None
        self.reading = Lock()

    def value(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Sequence[str],
        labelvalues: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> Value:
        """A new value; the parameters are prometheus_client's. Raises ValueError for a gauge per process."""
        if multiprocess_mode in ("all", "liveall"):
            raise ValueError(
                f"Gauge {metric_name}: multiprocess_mode {multiprocess_mode!r} makes a series for every process id. "
                "Choose livesum, livemax, livemin, livemostrecent, sum, max, min or mostrecent."
            )
        labels = tuple(sorted(zip(labelnames, labelvalues, strict=True)))
        value = Value(Key(typ, multiprocess_mode, metric_name, name.removeprefix(metric_name), labels), help_text)
        with _lock:
            self._values.append(value)
            self._waiting.append(value)
            if self._slot:
                self._place()
            elif self._folder and not self._failed:
                value.cells = _Unleased(self, value)
        return value

    def count_errors(self, registry: CollectorRegistry) -> None:
        counter = Counter(
            "metrics_store_errors",
            "Times the value store could not do its work: no space for a value, or a corrupt file.",
            ["reason"],
            registry=registry,
        )
        self._errors = {reason: counter.labels(reason)._value for reason in ("space", "corrupt")}

    def _count_error(self, reason: str) -> None:
        if reason in self._errors:
            self._errors[reason].inc(1)

    def start(self, folder: str) -> None:
        if self._folder:
            raise StoreError(f"The metrics store has been started already, in {self._folder}.")
        if not folder:
            raise StoreError(
                "METRICS_DIR is empty. Expected: a folder, as in METRICS_DIR=/tmp/metrics. See .env.example."
            )
        path = Path(folder).absolute()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
            if not clear(path):
                logger.warning("METRICS_DIR %s is in use by a live process: its totals are carried on", path)
        except OSError as error:
            raise StoreError(
                f"METRICS_DIR={folder} cannot be used ({error.strerror}). "
                "Expected: a folder that this process may make or write to. See .env.example."
            ) from None
        self.share(path)

    def share(self, folder: Path) -> None:
        """From now on leases slots of `folder`, which the master has prepared."""
        with _lock:
            self._folder = folder
            if any(value.get() for value in self._values):
                self.lease()  # what has been counted so far is not lost
            else:
                self._unlease()

    def _unlease(self) -> None:
        self._waiting = list(self._values)
        for value in self._values:
            value.cells = _Unleased(self, value)
            value.i = 0

    def lease(self) -> None:
        with _lock:
            if self._slot or not self._folder:
                return
            corrupt: list[None] = []
            try:
                self._slot = Slot.lease(self._folder, lambda: corrupt.append(None))
            except OSError as error:
                self._fail(error)
            else:
                self._failed = False
                self._place()
            for _ in corrupt:
                self._count_error("corrupt")

    def _place(self) -> None:
        """Gives the values that wait a cell of the slot, with what they have counted so far."""
        assert self._slot
        placed = 0
        try:
            for value in self._waiting:
                cell = self._slot.cells_of.get(value.line) or self._slot.add(value.key, value.line, value.help)
                cells = self._slot.cells
                number, stamp = value.pair()
                if value.key.type != "gauge":
                    cells[cell] += number
                elif number or stamp > cells[cell + 1]:
                    cells[cell], cells[cell + 1] = number, stamp
                value.cells, value.i = cells, cell
                placed += 1
        except OSError as error:
            del self._waiting[:placed]
            self._fail(error)
        else:
            self._waiting.clear()
            self._failed = False

    def _fail(self, error: OSError) -> None:
        """Lets what waits live in the process; it is tried again at a scrape and when a value is added."""
        for value in self._waiting:
            if isinstance(value.cells, _Unleased):
                value.cells = [0.0, 1.0]
        if not self._failed:
            self._failed = True
            logger.warning(
                "METRICS_DIR %s: %s. New values stay in process %d, and in its own scrapes, until there is room",
                self._folder,
                error.strerror,
                os.getpid(),
            )
            self._count_error("space")

    def read(self) -> tuple[Reader, list[float], dict[int, float]] | None:
        """The totals of all processes; None before start(). For one thread at a time: under `reading`."""
        if self._folder is None:
            return None
        with _lock:
            if self._failed:
                if self._slot:
                    self._place()
                else:
                    self.lease()
            local = [(value.key, value.help, *value.pair()) for value in self._waiting]
        if self._reader is None:
            self._reader = Reader(self._folder, lambda: self._count_error("corrupt"))
        return self._reader, *self._reader.read(local)

    def forget(self) -> None:
        """In a child after fork: the slot is the parent's, so the child starts at nothing and will lease its own."""
        self.reading = Lock()
        self._reader = None
        if self._slot:
            self._slot.close()
            self._slot = None
        self._failed = False
        if self._folder:
            self._unlease()

    def stop(self) -> None:
        """Back to before start(), as if the process had ended; for tests."""
        self.forget()
        self._folder = None
        for value in self._values:
            value.cells = [0.0, 1.0]


_store = Store()


def _after_fork() -> None:
    global _lock
    _lock = RLock()  # another thread of the parent may have held it
    _store.forget()


os.register_at_fork(after_in_child=_after_fork)


def install(registry: CollectorRegistry) -> None:
    """Makes all metrics that are created from now on keep their values here; call it before the first one.

    Adds the counter metrics_store_errors_total{reason} to `registry`. Switches `_created` series off.
    """
    values.ValueClass = _store.value
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    _store.count_errors(registry)


def start(folder: str) -> None:
    """Shares values through `folder` from now on, in this process and its children. For the master, once.

    The folder is made if it is missing, and emptied of former slots (of nothing else) unless a live process has one.
    Raises StoreError, which names METRICS_DIR, if the folder cannot be used.
    """
    _store.start(folder)


def lease() -> None:
    """Takes a slot now instead of at the first write, so that a scrape shows this process's metrics at zero.

    Does nothing before start(), or when the process has one. Never raises for want of space: values then stay in the
    process, with one line in the log and metrics_store_errors_total.
    """
    _store.lease()


class Exposition(Collector):
    """What a scrape shows: the metrics of `registry` with the values of all workers. For any thread.

    Metrics of the registry that keep no values here (collectors, Info, Enum, gauges with a function) are collected in
    this process, as prometheus_client does. With `others`, stored metrics that are not in `registry` come last: those
    of other registries, and those of a module that only other workers have loaded yet.
    """

    def __init__(self, registry: CollectorRegistry, *, others: bool = False, store: Store = _store) -> None:
        self._registry = registry
        self._others = others
        self._store = store
        self._layout: Layout | None = None
        self._laid_out_for: tuple[Reader, int] | None = None

    def collect(self) -> Iterable[Metric]:
        with self._store.reading:
            if (found := self._store.read()) is None:
                return list(self._registry.collect())
            reader, totals, gauges = found
            layout = self._current_layout(reader)
        return list(layout.collect(totals, gauges))

    def text(self) -> bytes:
        """The Prometheus text format, byte for byte what generate_latest(self) gives, and much faster."""
        with self._store.reading:
            if (found := self._store.read()) is None:
                return generate_latest(self._registry)
            reader, totals, gauges = found
            layout = self._current_layout(reader)
        return layout.text(totals, gauges)

    def _current_layout(self, reader: Reader) -> Layout:
        with self._registry._lock:
            collectors = list(self._registry._collector_to_names)
        if (
            self._layout is None
            or self._laid_out_for != (reader, reader.version)
            or self._layout.collectors != collectors
        ):
            self._layout = Layout(collectors, reader.keys, reader.help, others=self._others)
            self._laid_out_for = (reader, reader.version)
        return self._layout


def adder(metric: Counter | Gauge) -> Callable[[float], None]:
    """`metric.inc` without its checks, for hot paths: of a child, or of a metric without labels."""
    value: Value = metric._value
    return value.inc


def observer(histogram: Histogram) -> Callable[[float], None]:
    """`histogram.observe`, faster: one lock, and the bucket by bisection."""
    return recorder((), (histogram,))


def recorder(counters: Iterable[Counter], histograms: Iterable[Histogram]) -> Callable[..., None]:
    """A function of as many numbers as there are histograms: adds one to each counter and observes each number in its
    histogram, all under one lock. The metrics are children, or without labels. Numbers are finite.
    """
    ones: list[Value] = [counter._value for counter in counters]
    targets = [(histogram._upper_bounds, histogram._buckets, histogram._sum) for histogram in histograms]

    def record(*amounts: float) -> None:
        with _lock:
            for value in ones:
                value.cells[value.i] += 1.0
            # No zip(strict=True): it would cost as much as the counting.
            position = 0
            for bounds, buckets, total in targets:
                amount = amounts[position]
                position += 1
                bucket = buckets[bisect_left(bounds, amount)]
                bucket.cells[bucket.i] += 1.0
                total.cells[total.i] += amount

    return record


def request_recorder(
    requests: Counter, duration: Histogram, size: Histogram, in_progress: Gauge
) -> Callable[[float, float], None]:
    """A function of a duration and a size: counts one request, observes both, and has one less in progress.

    It is recorder() written out for the one thing that every request pays for, at half of its cost.
    """
    one, running = requests._value, in_progress._value
    duration_bounds, duration_buckets, duration_sum = duration._upper_bounds, duration._buckets, duration._sum
    size_bounds, size_buckets, size_sum = size._upper_bounds, size._buckets, size._sum

    def record(seconds: float, amount: float) -> None:
        lasted = duration_buckets[bisect_left(duration_bounds, seconds)]
        sized = size_buckets[bisect_left(size_bounds, amount)]
        with _lock:
            one.cells[one.i] += 1.0
            lasted.cells[lasted.i] += 1.0
            duration_sum.cells[duration_sum.i] += seconds
            sized.cells[sized.i] += 1.0
            size_sum.cells[size_sum.i] += amount
            running.cells[running.i] -= 1.0

    return record
