"""Faster ways to count than prometheus_client's methods, for what every request and every query pays.

Each takes metrics without labels, or children (`metric.labels(...)`), and returns a function that skips their checks.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from time import time

from prometheus_client import Counter, Gauge, Histogram

from metrics.store import values
from metrics.store.exemplars import Mark
from metrics.store.internals import buckets_of, value_of
from metrics.store.store import Store, process_store


def adder(metric: Counter | Gauge) -> Callable[[float], None]:
    """Returns `metric.inc` without its checks."""
    return value_of(metric).inc


def observer(histogram: Histogram) -> Callable[[float], None]:
    """Returns a faster `histogram.observe`: one lock, and the bucket found by bisection."""
    return recorder((), (histogram,))


def recorder(counters: Iterable[Counter], histograms: Iterable[Histogram]) -> Callable[..., None]:
    """Returns a function of one finite number per histogram: it adds one to each counter and observes each number in
    its histogram, all under one lock.
    """
    ones = [value_of(counter) for counter in counters]
    targets = [buckets_of(histogram) for histogram in histograms]

    def record(*amounts: float) -> None:
        with values.lock:
            for value in ones:
                value.cells[value.i] += 1.0
            # zip(strict=True) would cost as much as the counting itself.
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
    """Returns a function of a duration (seconds) and a size (bytes): it counts one request, observes both numbers, and
    takes one from the requests in progress.

    This is recorder() written out for what every request pays, at half the cost.
    """
    one, running = value_of(requests), value_of(in_progress)
    duration_bounds, duration_buckets, duration_sum = buckets_of(duration)
    size_bounds, size_buckets, size_sum = buckets_of(size)

    def record(seconds: float, amount: float) -> None:
        duration_bucket = duration_buckets[bisect_left(duration_bounds, seconds)]
        size_bucket = size_buckets[bisect_left(size_bounds, amount)]
        with values.lock:
            one.cells[one.i] += 1.0
            duration_bucket.cells[duration_bucket.i] += 1.0
            duration_sum.cells[duration_sum.i] += seconds
            size_bucket.cells[size_bucket.i] += 1.0
            size_sum.cells[size_sum.i] += amount
            running.cells[running.i] -= 1.0

    return record


def noter(histogram: Histogram, store: Store = process_store) -> Callable[[float, str], None]:
    """Returns a function of a number that `histogram` has observed and of the trace that it belongs to (32 hex digits):
    the trace becomes the exemplar of the number's bucket.
    """
    bounds, buckets, _ = buckets_of(histogram)
    marks: dict[int, Mark] = {}

    def note(amount: float, trace: str) -> None:
        index = bisect_left(bounds, amount)
        with values.lock:
            if (mark := marks.get(index)) is None:
                mark = marks[index] = store.mark(buckets[index])
            mark.set(trace, amount, time())

    return note
