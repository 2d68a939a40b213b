"""Exemplars: for each bucket of a histogram, the trace of the last traced observation in it.

https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md#exemplars
"""

import struct
from typing import NamedTuple, Self

from metrics.store.internals import go_string
from metrics.store.values import Value

TYPE = "exemplar"  # of the keys of its two records
ID = struct.Struct("=dd")  # a trace id is 16 bytes, as long as a value and its stamp


class Exemplar(NamedTuple):
    """A trace id in hex, the number that was observed, and when (seconds since 1970)."""

    trace: str
    amount: float
    at: float

    def text(self) -> str:
        """Returns what follows the value of a bucket's line."""
        return f' # {{trace_id="{self.trace}"}} {go_string(self.amount)} {self.at:.3f}'

    @classmethod
    def read(cls, numbers: "memoryview[float]", cell: int, id_cell: int) -> Self | None:
        """Returns what a writer has put into the two records; None if it has not, or is just doing so."""
        at = numbers[cell + 1]
        amount, trace = numbers[cell], ID.pack(numbers[id_cell], numbers[id_cell + 1])
        return cls(trace.hex(), amount, at) if at and at == numbers[cell + 1] else None


class Mark:
    """Where a process keeps the exemplar of one bucket: its number and time in one record, its trace id in another."""

    def __init__(self, bucket: Value) -> None:
        key = bucket.key._replace(type=TYPE)
        self.number, self.id = Value(key, bucket.help), Value(key._replace(mode="id"), bucket.help)

    def set(self, trace: str, amount: float, at: float) -> None:
        """Replaces the exemplar; `trace` has 32 hex digits. Hold values.lock while calling it."""
        first, second = ID.unpack(bytes.fromhex(trace))
        number, id_ = self.number, self.id
        number.cells[number.i + 1] = 0.0  # the time first and last: without it there is no exemplar
        id_.cells[id_.i], id_.cells[id_.i + 1] = first, second
        number.cells[number.i] = amount
        number.cells[number.i + 1] = at
