"""The internals of prometheus_client that the store depends on, all in one place.

prometheus_client has no public way to replace its value class or to reach a metric's values. requirements.in therefore
pins its minor version (~=), and tests/metrics/test_store_internals.py names each attribute used here, so that an
upgrade that moves one fails there first.
"""

from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from metrics.store.values import Value

go_string: Callable[[float], str] = floatToGoString  # how the text format writes a float


def set_value_class(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Makes every metric created from now on call `factory` for each of its values; returns the factory before
    (values.ValueClass).
    """
    before: Callable[..., Any] = values.ValueClass
    values.ValueClass = factory
    return before


def value_of(metric: Counter | Gauge) -> Value:
    """The value of a child, or of a metric without labels (_value)."""
    value: Value = metric._value
    return value


def buckets_of(histogram: Histogram) -> tuple[Sequence[float], Sequence[Value], Value]:
    """The upper bounds, the values of the buckets and the value of the sum (_upper_bounds, _buckets, _sum)."""
    return histogram._upper_bounds, histogram._buckets, histogram._sum


def collectors_of(registry: CollectorRegistry) -> list[Collector]:
    """The registry's collectors in the order in which they were registered (_lock, _collector_to_names)."""
    with registry._lock:
        return list(registry._collector_to_names)


def mode_of(gauge: Gauge) -> str:
    """The gauge's multiprocess_mode (_multiprocess_mode)."""
    return gauge._multiprocess_mode


def has_function(collector: Collector | None) -> bool:
    """Whether this is a gauge whose value, or whose child's, comes from a function (set_function): it stores nothing.

    set_function() replaces the method _child_samples of the instance; the children are in _metrics.
    """
    if not isinstance(collector, Gauge):
        return False
    attributes: dict[str, Any] = vars(collector)
    children = list(attributes.get("_metrics", {}).values()) or [collector]
    return any("_child_samples" in vars(child) for child in children)
