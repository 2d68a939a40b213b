"""What a scrape shows: the families of a registry, with the values of all workers."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from metrics.store.exemplars import Exemplar
from metrics.store.families import Family
from metrics.store.format import Key
from metrics.store.internals import collectors_of, has_function, mode_of
from metrics.store.reader import Reader
from metrics.store.store import Store, process_store

logger = logging.getLogger(__name__)

STORED = (Counter, Gauge, Histogram, Summary)  # prometheus_client's types that keep numbers


class Layout:
    """The families of a scrape in their order: those of a registry and then, if asked for, all others."""

    def __init__(
        self, collectors: Sequence[Collector], keys: Sequence[Key], help_texts: dict[str, str], *, others: bool
    ) -> None:
        """`others` adds the families among `keys` that belong to no collector."""
        self.collectors = collectors
        stored: dict[str, list[tuple[int, Key]]] = {}
        for total, key in enumerate(keys):
            stored.setdefault(key.family, []).append((total, key))
        self._parts: list[tuple[Collector | None, Family | None]] = []
        for collector in collectors:
            family = None
            if isinstance(collector, STORED):
                (metric,) = collector.describe()
                mode = mode_of(collector) if isinstance(collector, Gauge) else ""
                family = Family(metric, matching(stored.pop(metric.name, []), metric.type, mode))
            self._parts.append((collector, family))
        if others:
            for name, found in stored.items():
                _, first = found[0]
                metric = Metric(name, help_texts.get(name, ""), first.type)
                self._parts.append((None, Family(metric, matching(found, first.type, first.mode))))

    def collect(self, totals: Sequence[float], gauges: dict[int, float]) -> Iterable[Metric]:
        """Yields the families with their samples."""
        for collector, family in self._parts:
            if family and not has_function(collector):
                yield family.collect(totals, gauges)
            elif collector:
                yield from collector.collect()

    def text(self, totals: Sequence[float], gauges: dict[int, float], exemplars: Mapping[int, Exemplar]) -> bytes:
        """Returns what generate_latest writes for collect(), with these exemplars."""
        parts = []
        for collector, family in self._parts:
            if family and not has_function(collector):
                parts.append(family.text(totals, gauges, exemplars).encode())
            elif collector:
                parts.append(generate_latest(collector))
        return b"".join(parts)


def matching(found: Sequence[tuple[int, Key]], kind: str, mode: str) -> Sequence[tuple[int, Key]]:
    """Returns the keys of this type and mode: others, from another version of the code, would spoil the family."""
    same = [(total, key) for total, key in found if (key.type, key.mode) == (kind, mode)]
    if len(same) < len(found):
        warn_of_mismatch(found[0][1].family, kind)
    return same


@cache
def warn_of_mismatch(family: str, kind: str) -> None:
    """Logs it once."""
    logger.warning("%s is stored with another type or mode than this %s: those values are skipped", family, kind)


class Exposition(Collector):
    """What a scrape shows: the metrics of `registry` with the values of all workers. Thread-safe.

    Metrics of the registry that keep no values here (collectors, Info, Enum, gauges with a function) are collected in
    this process, as prometheus_client does. With `others`, stored metrics that are not in `registry` come last: those
    of other registries, and those of a module that only other workers have loaded so far.
    """

    def __init__(self, registry: CollectorRegistry, *, others: bool = False, store: Store = process_store) -> None:
        self._registry = registry
        self._others = others
        self._store = store
        self._layout: Layout | None = None
        self._laid_out_for: tuple[Reader, int] | None = None

    def collect(self) -> Iterable[Metric]:
        """Returns the families with their samples."""
        with self._store.reading:
            if (found := self._store.read()) is None:
                return list(self._registry.collect())
            reader, totals, gauges = found
            layout = self._current_layout(reader)
        return list(layout.collect(totals, gauges))

    def text(self, *, exemplars: bool = False) -> bytes:
        """Returns the Prometheus text format, byte for byte what generate_latest(self) returns, and much faster.

        With `exemplars`, the buckets of histograms have theirs, as OpenMetrics allows and the text format does not.
        """
        with self._store.reading:
            if (found := self._store.read()) is None:
                return generate_latest(self._registry)
            reader, totals, gauges = found
            layout = self._current_layout(reader)
            noted = reader.exemplars() if exemplars else {}
        return layout.text(totals, gauges, noted)

    def _current_layout(self, reader: Reader) -> Layout:
        """Returns the layout, a new one if the registry or the keys have changed."""
        collectors = collectors_of(self._registry)
        if (
            self._layout is None
            or self._laid_out_for != (reader, reader.version)
            or self._layout.collectors != collectors
        ):
            self._layout = Layout(collectors, reader.keys, reader.help, others=self._others)
            self._laid_out_for = (reader, reader.version)
        return self._layout
