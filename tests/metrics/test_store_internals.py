"""The attributes of prometheus_client that metrics.store.internals depends on, by name: an upgrade fails here first."""

import re

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values

from metrics.store import Store, internals
from metrics.store.values import Value
from tests.support.servers import ROOT


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_values_value_class_makes_the_values_of_new_metrics(registry: CollectorRegistry) -> None:
    before = internals.set_value_class(Store().value)
    try:
        counter = Counter("made", "Made.", registry=registry)
        gauge = Gauge("held", "Held.", multiprocess_mode="livesum", registry=registry)
        histogram = Histogram("took", "Took.", buckets=(1, 2), registry=registry)
    finally:
        internals.set_value_class(before)
    assert values.ValueClass is before
    assert isinstance(counter._value, Value) and internals.value_of(counter) is counter._value
    assert isinstance(gauge._value, Value) and internals.value_of(gauge) is gauge._value
    bounds, buckets, total = internals.buckets_of(histogram)
    assert bounds is histogram._upper_bounds and list(bounds) == [1, 2, float("inf")]
    assert buckets is histogram._buckets and all(isinstance(bucket, Value) for bucket in buckets)
    assert total is histogram._sum and isinstance(total, Value)


def test_a_registrys_collector_to_names_are_its_collectors_in_order(registry: CollectorRegistry) -> None:
    made = [Counter("b", "B.", registry=registry), Counter("a", "A.", registry=registry)]
    with registry._lock:
        assert list(registry._collector_to_names) == made
    assert internals.collectors_of(registry) == made


def test_a_gauges_multiprocess_mode_is_kept(registry: CollectorRegistry) -> None:
    gauge = Gauge("a", "A.", multiprocess_mode="livemax", registry=registry)
    assert internals.mode_of(gauge) == gauge._multiprocess_mode == "livemax"


def test_child_samples_of_a_gauge_or_of_its_metrics_tell_a_function(registry: CollectorRegistry) -> None:
    plain = Gauge("a", "A.", multiprocess_mode="livesum", registry=registry)
    whole = Gauge("b", "B.", multiprocess_mode="livesum", registry=registry)
    labelled = Gauge("c", "C.", ["kind"], multiprocess_mode="livesum", registry=registry)
    labelled.labels("x").set(1)
    assert not any(map(internals.has_function, (plain, whole, labelled, None)))
    whole.set_function(lambda: 1)
    labelled.labels("y").set_function(lambda: 1)
    assert "_child_samples" in vars(whole) and len(vars(labelled)["_metrics"]) == 2
    assert internals.has_function(whole) and internals.has_function(labelled)


def test_go_string_writes_what_the_text_format_has() -> None:
    assert [internals.go_string(number) for number in (1e6, 0.1, float("inf"))] == ["1e+06", "0.1", "+Inf"]


def test_no_other_module_touches_them_and_the_minor_version_is_pinned() -> None:
    private = r"\._(value|upper_bounds|buckets|sum|collector_to_names|multiprocess_mode|child_samples)\b|ValueClass\b"
    files = [path for room in ("metrics", "health", "backstagetest1") for path in (ROOT / room).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if re.search(private, path.read_text())}
    assert found == {"metrics/store/internals.py"}
    assert re.search(r"^prometheus-client~=\d+\.\d+\.\d+ ", (ROOT / "requirements.in").read_text(), re.M)
