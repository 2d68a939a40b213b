"""From totals to what Prometheus reads: a family of a scrape, its lines complete but for the numbers.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from metrics.store.exemplars import Exemplar
from metrics.store.format import Key
from metrics.store.internals import go_string

Labels = tuple[tuple[str, str], ...]


class Family:
    """A family's samples, and the totals that each sample's value comes from."""

    def __init__(self, metric: Metric, keys: Sequence[tuple[int, Key]]) -> None:
        """`metric` has no samples; each key comes with its index among the totals."""
        self._metric = metric
        self._samples: list[tuple[str, dict[str, str]]] = []
        # For each child: the totals to accumulate and count (buckets), and those shown as they are.
        self._children: list[tuple[list[int], list[int]]] = []
        self._bucket_totals: list[int] = []  # for each sample the total of its bucket; -1 if it is none
        if metric.type == "histogram":
            self._add_histograms(keys)
        else:
            for total, key in keys:
                self._samples.append((metric.name + key.suffix, dict(key.labels)))
                self._children.append(([], [total]))
                self._bucket_totals.append(-1)
        self._head, self._prefixes = self._lines()

    def _add_histograms(self, keys: Sequence[tuple[int, Key]]) -> None:
        """Adds the samples of each child of a histogram: its buckets in ascending order, their count, and the sum."""
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
                sums = []  # as in prometheus_client: with negative observations the sum may fall, so it is left out
            self._samples += [(f"{name}_bucket", {**dict(labels_), "le": bound}) for bound in bounds]
            self._samples.append((f"{name}_count", dict(labels_)))
            self._samples += [(f"{name}_sum", dict(labels_)) for _ in sums]
            self._children.append((totals := [buckets[bound] for bound in bounds], sums))
            self._bucket_totals += [*totals, -1, *(-1 for _ in sums)]

    def _lines(self) -> tuple[str, list[str]]:
        """Returns HELP and TYPE, and each sample's line up to its value, as prometheus_client itself writes them."""
        lines = generate_latest(_Only(self.collect([], {}, empty=True))).decode().split("\n")[:-1]
        return f"{lines[0]}\n{lines[1]}\n", [line[: line.rindex(" ") + 1] for line in lines[2:]]

    def _values(self, totals: Sequence[float], gauges: dict[int, float]) -> list[float | None]:
        """Returns one value for each sample; None for a gauge that no live process has."""
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
        """Returns the family with its samples; with `empty`, each is 0."""
        metric = Metric(self._metric.name, self._metric.documentation, self._metric.type, self._metric.unit)
        values = [0.0] * len(self._samples) if empty else self._values(totals, gauges)
        for (name, labels), value in zip(self._samples, values, strict=True):
            if value is not None:
                metric.add_sample(name, labels, value)
        return metric

    def text(
        self, totals: Sequence[float], gauges: dict[int, float], exemplars: Mapping[int, Exemplar] | None = None
    ) -> str:
        """Returns what generate_latest writes for collect(). With `exemplars`, by total, the buckets have theirs."""
        if exemplars and not exemplars.keys().isdisjoint(self._bucket_totals):
            return self._head + "".join(
                f"{prefix}{go_string(value)}{exemplars[bucket].text() if bucket in exemplars else ''}\n"
                for prefix, bucket, value in zip(
                    self._prefixes, self._bucket_totals, self._values(totals, gauges), strict=True
                )
                if value is not None
            )
        lines = [
            # go_string() of a number this small is its repr().
            f"{prefix}{value!r}\n" if 0 <= value < 1e6 else f"{prefix}{go_string(value)}\n"
            for prefix, value in zip(self._prefixes, self._values(totals, gauges), strict=True)
            if value is not None
        ]
        return self._head + "".join(lines)


class _Only(Collector):
    """A collector of one metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return [self._metric]
