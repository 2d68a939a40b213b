"""One number of a metric, wherever it lives: in this process, or in the process's slot."""

import os
from collections.abc import Callable
from threading import RLock

from metrics.store.format import Key

# Guards every read-modify-write of a value. Re-entrant, as a signal handler may count while its thread is counting.
# Use it as values.lock: a fork replaces it.
lock = RLock()


def _renew_lock() -> None:
    """Replaces the lock in the child of a fork: another thread of the parent may have held it."""
    global lock
    lock = RLock()


os.register_at_fork(after_in_child=_renew_lock)


class Value:
    """One number of a metric, with the methods that prometheus_client calls. It has two cells, the number and a stamp.

    Only a gauge has a stamp: 0 means no value, 1 a value without a time, anything else the time of set() in seconds
    since 1970.
    """

    __slots__ = ("cells", "i", "key", "line", "help")

    def __init__(self, key: Key, help_text: str) -> None:
        self.key = key
        self.line = key.encode()
        self.help = help_text
        # Where it lives: in the process (a list), in its slot (a view of the file), or nowhere yet (Unleased).
        self.cells: list[float] | memoryview[float] | Unleased = [0.0, 1.0]
        self.i = 0

    def inc(self, amount: float) -> None:
        with lock:
            self.cells[self.i] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        with lock:
            self.cells[self.i] = value
            self.cells[self.i + 1] = timestamp or 1.0

    def get(self) -> float:
        """Returns this process's number; Exposition has the total of all processes."""
        with lock:
            return self.pair()[0]

    def pair(self) -> tuple[float, float]:
        """Returns the number and its stamp, without leasing a slot."""
        return (0.0, 1.0) if isinstance(self.cells, Unleased) else (self.cells[self.i], self.cells[self.i + 1])

    def set_exemplar(self, exemplar: object) -> None:
        """Does nothing: an exemplar is not a number, so it cannot be shared."""

    def get_exemplar(self) -> None:
        return None


class Unleased:
    """Stands in for a value's cells and leases the slot at the first access, so that no write has to test for it."""

    __slots__ = ("lease", "value")

    def __init__(self, lease: Callable[[], None], value: Value) -> None:
        """`lease` gives `value` other cells."""
        self.lease = lease
        self.value = value

    def __getitem__(self, i: int) -> float:
        self.lease()
        return float(self.value.cells[self.value.i + i])

    def __setitem__(self, i: int, number: float) -> None:
        self.lease()
        self.value.cells[self.value.i + i] = number
