"""From totals to what Prometheus reads: the families of a scrape, their lines ready but for the numbers.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import accumulate

from prometheus_client import Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from metrics.store_slots import Key

logger = logging.getLogger(__name__)

STORED = (Counter, Gauge, Histogram, Summary)  # those of prometheus_client's types that keep ValueClass objects
go_string: Callable[[float], str] = floatToGoString
Labels = tuple[tuple[str, str], ...]


class Family:
    """Which samples a family has, and from which totals each one's value comes."""

    def __init__(self, metric: Metric, keys: Sequence[tuple[int, Key]]) -> None:
        """`metric` has no samples; `keys` come with their index among the totals."""
        self._metric = metric
        self._samples: list[tuple[str, dict[str, str]]] = []
        # One for each child: the totals to be cumulated and counted (buckets), and those to be shown as they are.
        self._children: list[tuple[list[int], list[int]]] = []
        if metric.type == "histogram":
            self._add_histograms(keys)
        else:
            for total, key in keys:
                self._samples.append((metric.name + key.suffix, dict(key.labels)))
                self._children.append(([], [total]))
        self._head, self._prefixes = self._lines()

    def _add_histograms(self, keys: Sequence[tuple[int, Key]]) -> None:
        children: dict[Labels, tuple[dict[str, int], list[int]]] = {}
        for total, key in keys:
            labels = dict(key.labels)
            bound = labels.pop("le", None)
            buckets, sums = children.setdefault(tuple(labels.items()), ({}, []))
            if bound is None:
                sums.append(total)
            else:
                buckets[bound] = total
        name = self._metric.name
        for labels_, (buckets, sums) in children.items():
            bounds = sorted(buckets, key=float)
            if not bounds:
                continue
            if float(bounds[0]) < 0:
                sums = []  # as in prometheus_client: such a sum may fall, so it is none
            self._samples += [(f"{name}_bucket", {**dict(labels_), "le": bound}) for bound in bounds]
            self._samples.append((f"{name}_count", dict(labels_)))
            self._samples += [(f"{name}_sum", dict(labels_)) for _ in sums]
            self._children.append(([buckets[bound] for bound in bounds], sums))

    def _lines(self) -> tuple[str, list[str]]:
        """HELP and TYPE, and each sample's line up to its value: from prometheus_client, so that they are its own."""
        lines = generate_latest(_Of(self.collect([], {}, empty=True))).decode().split("\n")[:-1]
        return f"{lines[0]}\n{lines[1]}\n", [line[: line.rindex(" ") + 1] for line in lines[2:]]

    def _values(self, totals: Sequence[float], gauges: dict[int, float]) -> list[float | None]:
        """One for each sample; None for a gauge that no live process has."""
        if self._metric.type == "gauge":
            return [gauges.get(total) for _, (total,) in self._children]
        values: list[float | None] = []
        for buckets, plain in self._children:
            if buckets:
                cumulated = list(accumulate(map(totals.__getitem__, buckets)))
                values += cumulated
                values.append(cumulated[-1])
            values += map(totals.__getitem__, plain)
        return values

    def collect(self, totals: Sequence[float], gauges: dict[int, float], *, empty: bool = False) -> Metric:
        """The family with its samples."""
        metric = Metric(self._metric.name, self._metric.documentation, self._metric.type, self._metric.unit)
        values = [0.0] * len(self._samples) if empty else self._values(totals, gauges)
        for (name, labels), value in zip(self._samples, values, strict=True):
            if value is not None:
                metric.add_sample(name, labels, value)
        return metric

    def text(self, totals: Sequence[float], gauges: dict[int, float]) -> str:
        """What generate_latest makes of collect()."""
        lines = [
            # floatToGoString of a number this small is its repr().
            f"{prefix}{value!r}\n" if 0 <= value < 1e6 else f"{prefix}{go_string(value)}\n"
            for prefix, value in zip(self._prefixes, self._values(totals, gauges), strict=True)
            if value is not None
        ]
        return self._head + "".join(lines)


class _Of(Collector):
    """A collector of one metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return [self._metric]


class Layout:
    """The families of a scrape in their order: those of a registry, and after them, if wanted, all others."""

    def __init__(
        self, collectors: Sequence[Collector], keys: Sequence[Key], help_texts: dict[str, str], *, others: bool
    ) -> None:
        """`others` adds the families among `keys` that no collector has."""
        self.collectors = collectors
        stored: dict[str, list[tuple[int, Key]]] = {}
        for total, key in enumerate(keys):
            stored.setdefault(key.family, []).append((total, key))
        self._parts: list[tuple[Collector | None, Family | None]] = []
        for collector in collectors:
            family = None
            if isinstance(collector, STORED):
                (metric,) = collector.describe()
                mode = collector._multiprocess_mode if isinstance(collector, Gauge) else ""
                family = Family(metric, fitting(stored.pop(metric.name, []), metric.type, mode))
            self._parts.append((collector, family))
        if others:
            for name, found in stored.items():
                _, first = found[0]
                metric = Metric(name, help_texts.get(name, ""), first.type)
                self._parts.append((None, Family(metric, fitting(found, first.type, first.mode))))

    def collect(self, totals: Sequence[float], gauges: dict[int, float]) -> Iterable[Metric]:
        for collector, family in self._parts:
            if family and not computed(collector):
                yield family.collect(totals, gauges)
            elif collector:
                yield from collector.collect()

    def text(self, totals: Sequence[float], gauges: dict[int, float]) -> bytes:
        """What generate_latest makes of collect()."""
        parts = []
        for collector, family in self._parts:
            if family and not computed(collector):
                parts.append(family.text(totals, gauges).encode())
            elif collector:
                parts.append(generate_latest(collector))
        return b"".join(parts)


def fitting(found: Sequence[tuple[int, Key]], kind: str, mode: str) -> Sequence[tuple[int, Key]]:
    """The keys of this type and mode; others, of another version of the code, would make the family invalid."""
    same = [(total, key) for total, key in found if (key.type, key.mode) == (kind, mode)]
    if len(same) < len(found):
        warn_of_misfits(found[0][1].family, kind)
    return same


@cache
def warn_of_misfits(family: str, kind: str) -> None:
    """Logs it once."""
    logger.warning("%s is stored with another type or mode than this %s: those values are left out", family, kind)


def computed(collector: Collector | None) -> bool:
    """Whether this is a gauge that asks a function (set_function), for itself or for a child: it stores nothing."""
    if not isinstance(collector, Gauge):
        return False
    children = list(vars(collector).get("_metrics", {}).values()) or [collector]
    return any("_child_samples" in vars(child) for child in children)
