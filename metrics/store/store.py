"""The values of one process, and how they get into its slot."""

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter

from metrics.store import exemplars, values
from metrics.store.exemplars import Mark
from metrics.store.format import Key
from metrics.store.internals import set_value_class, value_of
from metrics.store.leases import clear
from metrics.store.reader import Reader
from metrics.store.slots import Slot
from metrics.store.values import Unleased, Value

logger = logging.getLogger(__name__)


class StoreError(RuntimeError):
    """The store cannot be started; the message says what to do. gunicorn prints it and exits with 1."""


class Store:
    """The values of one process. Its only instance is process_store; tests make more to play several processes."""

    def __init__(self) -> None:
        self._values: list[Value] = []
        self._waiting: list[Value] = []  # have no cell in the slot yet
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
        """Creates a value; the parameters are prometheus_client's. Raises ValueError for a gauge per process."""
        if multiprocess_mode in ("all", "liveall"):
            raise ValueError(
                f"Gauge {metric_name}: multiprocess_mode {multiprocess_mode!r} would make one series per process id. "
                "Choose livesum, livemax, livemin, livemostrecent, sum, max, min or mostrecent."
            )
        labels = tuple(sorted(zip(labelnames, labelvalues, strict=True)))
        value = Value(Key(typ, multiprocess_mode, metric_name, name.removeprefix(metric_name), labels), help_text)
        self._add(value)
        return value

    def mark(self, bucket: Value) -> Mark:
        """Creates the place for a bucket's exemplar."""
        mark = Mark(bucket)
        for value in (mark.id, mark.number):  # in this order: a number without an id would be an exemplar
            self._add(value)
        return mark

    def _add(self, value: Value) -> None:
        """Takes a new value, and gives it a cell if there is a slot."""
        with values.lock:
            self._values.append(value)
            self._waiting.append(value)
            if self._slot:
                self._place()
            elif self._folder and not self._failed:
                value.cells = Unleased(self.lease, value)

    def count_errors(self, registry: CollectorRegistry) -> None:
        """Adds the counter metrics_store_errors_total{reason} to `registry`."""
        counter = Counter(
            "metrics_store_errors",
            "Failures of the metrics store: no space for a value, or a corrupt file.",
            ["reason"],
            registry=registry,
        )
        self._errors = {reason: value_of(counter.labels(reason)) for reason in ("space", "corrupt")}

    def _count_error(self, reason: str) -> None:
        if reason in self._errors:
            self._errors[reason].inc(1)

    def start(self, folder: str) -> None:
        """Prepares `folder` and shares it. Raises StoreError. See start() below."""
        if self._folder:
            raise StoreError(f"The metrics store is already started, in {self._folder}.")
        if not folder:
            raise StoreError(
                "METRICS_DIR is empty. Expected a folder, such as METRICS_DIR=/tmp/metrics. See .env.example."
            )
        path = Path(folder).absolute()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
            if not clear(path):
                logger.warning("METRICS_DIR %s is in use by a live process: keeping its totals", path)
        except OSError as error:
            raise StoreError(
                f"METRICS_DIR={folder} cannot be used ({error.strerror}). "
                "Expected a folder that this process can create or write to. See .env.example."
            ) from None
        self.share(path)

    def share(self, folder: Path) -> None:
        """Leases slots of `folder`, which the master has prepared, from now on."""
        with values.lock:
            self._folder = folder
            if any(value.get() for value in self._values):
                self.lease()  # so that nothing counted so far is lost
            else:
                self._unlease()

    def _unlease(self) -> None:
        """Lets every value start at nothing, and lease a slot at its first access."""
        self._waiting = list(self._values)
        for value in self._values:
            value.cells = Unleased(self.lease, value)
            value.i = 0

    def lease(self) -> None:
        """Takes a slot, if the store is started and the process has none. Never raises for lack of space."""
        with values.lock:
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
        """Moves the waiting values, with what they have counted so far, to cells of the slot."""
        assert self._slot
        placed = 0
        try:
            for value in self._waiting:
                cell = self._slot.cells_of.get(value.line) or self._slot.add(value.key, value.line, value.help)
                cells = self._slot.cells
                number, stamp = value.pair()
                if value.key.type == exemplars.TYPE:
                    pass  # that of the slot's former worker stays until the next traced request
                elif value.key.type != "gauge":
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
        """Keeps the waiting values in the process. A scrape, or the next new value, tries again."""
        for value in self._waiting:
            if isinstance(value.cells, Unleased):
                value.cells = [0.0, 1.0]
        if not self._failed:
            self._failed = True
            logger.warning(
                "METRICS_DIR %s: %s. Until there is room, only scrapes answered by process %d include its new values",
                self._folder,
                error.strerror,
                os.getpid(),
            )
            self._count_error("space")

    def read(self) -> tuple[Reader, list[float], dict[int, float]] | None:
        """Returns the totals of all processes; None before start(). Hold `reading` while calling it."""
        if self._folder is None:
            return None
        with values.lock:
            if self._failed:
                if self._slot:
                    self._place()
                else:
                    self.lease()
            local = [
                (value.key, value.help, *value.pair())
                for value in self._waiting
                if value.key.type != exemplars.TYPE  # without a slot there are none
            ]
        if self._reader is None:
            self._reader = Reader(self._folder, lambda: self._count_error("corrupt"))
        return self._reader, *self._reader.read(local)

    def forget(self) -> None:
        """Drops the parent's slot in the child of a fork: the child starts at nothing and will lease its own."""
        self.reading = Lock()
        self._reader = None
        if self._slot:
            self._slot.close()
            self._slot = None
        self._failed = False
        if self._folder:
            self._unlease()

    def stop(self) -> None:
        """Returns to the state before start(), as if the process had ended. For tests."""
        self.forget()
        self._folder = None
        for value in self._values:
            value.cells = [0.0, 1.0]


process_store = Store()
os.register_at_fork(after_in_child=process_store.forget)


def install(registry: CollectorRegistry) -> None:
    """Makes all metrics created from now on keep their values here. Call it before the first one.

    Adds the counter metrics_store_errors_total{reason} to `registry`. Switches `_created` series off.
    """
    set_value_class(process_store.value)
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    process_store.count_errors(registry)


def start(folder: str) -> None:
    """Shares values through `folder` from now on, in this process and its children. Call it once, in the master.

    Creates the folder if it is missing, and removes former slots (and nothing else) unless a live process has one.
    Raises StoreError, which names METRICS_DIR, if the folder cannot be used.
    """
    process_store.start(folder)


def lease() -> None:
    """Takes a slot now instead of at the first write, so that a scrape shows this process's metrics at zero.

    Does nothing before start(), or if the process has a slot. Never raises for lack of space: values then stay in the
    process, which is logged once and counted in metrics_store_errors_total.
    """
    process_store.lease()
