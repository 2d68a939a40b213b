"""The cache's metrics: what counts as a hit and as a miss, whichever backend is behind."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.cache.backends.base import BaseCache
from prometheus_client import Counter

import metrics.cache
from backstagetest1.cache import RedisCache
from metrics.cache import LocMemCache
from metrics.registry import CACHE_HITS, CACHE_MISSES
from metrics.store.internals import value_of
from settings.base import redis_cache
from tests.support.servers import Redis


@pytest.fixture(params=["redis", "locmem"])
def backend(request: pytest.FixtureRequest, own_redis: Redis) -> Iterator[BaseCache]:
    redis: Any = RedisCache
    found = redis(own_redis.url, redis_cache("")["default"]) if request.param == "redis" else LocMemCache("test", {})
    found.clear()
    yield found


def value(counter: Counter) -> float:
    return value_of(counter).get()


def hits_and_misses(do: Callable[[], object]) -> tuple[float, float]:
    hits, misses = value(CACHE_HITS), value(CACHE_MISSES)
    do()
    return value(CACHE_HITS) - hits, value(CACHE_MISSES) - misses


def test_each_key_asked_for_counts_once_as_a_hit_or_a_miss(backend: BaseCache) -> None:
    backend.set("here", 1)
    backend.set("none", None)
    assert hits_and_misses(lambda: backend.get("here")) == (1, 0)
    assert hits_and_misses(lambda: backend.get("none")) == (1, 0)
    assert hits_and_misses(lambda: backend.get("away", "default")) == (0, 1)
    assert hits_and_misses(lambda: backend.get_many(iter(["here", "none", "away"]))) == (2, 1)
    assert hits_and_misses(lambda: backend.get_or_set("made", lambda: 5)) == (0, 1)
    assert hits_and_misses(lambda: backend.get_or_set("made", lambda: 6)) == (1, 0)


def test_operations_that_ask_for_no_value_do_not_count(backend: BaseCache) -> None:
    def others() -> None:
        backend.set("number", 1)
        backend.incr("number")
        backend.add("number", 1)
        backend.touch("number")
        assert "number" in backend
        backend.delete("number")
        backend.set_many({"one": 1})
        backend.delete_many(["one"])

    assert hits_and_misses(others) == (0, 0)


def test_get_or_set_keeps_what_is_there(backend: BaseCache) -> None:
    assert backend.get_or_set("key", lambda: "made") == "made"
    assert backend.get_or_set("key", "other") == backend.get("key") == "made"


async def asked(backend: BaseCache) -> list[object]:
    await backend.aset("here", 1)
    return [await backend.aget("here"), await backend.aget_many(["here", "away"]), await backend.aget_or_set("new", 2)]


def test_asynchronous_calls_count_alike(backend: BaseCache) -> None:
    results: list[object] = []
    assert hits_and_misses(lambda: results.extend(async_to_sync(asked)(backend))) == (2, 2)
    assert results == [1, {"here": 1}, 2]


def test_a_missing_key_cannot_be_incremented(backend: BaseCache) -> None:
    with pytest.raises(ValueError, match="away"):
        backend.incr("away")
    with pytest.raises(ValueError, match="away"):
        backend.decr("away")


def test_members_seen_lately_are_counted_once_and_forgotten_in_time(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(metrics.cache, "time", lambda: now)
    for member in ("1", "2", "1"):
        backend.remember("seen", member, 60)
    assert backend.recent("seen", 60) == 2
    now += 59
    backend.remember("seen", "3", 60)
    assert backend.recent("seen", 60) == 3
    now += 2
    assert backend.recent("seen", 60) == 1
