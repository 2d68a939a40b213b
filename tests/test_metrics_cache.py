"""The cache backends: what they count, and what happens while Redis is away."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from asgiref.sync import async_to_sync
from django.core.cache.backends.base import BaseCache
from prometheus_client import Counter

from metrics import cache as cache_module
from metrics.cache import LocMemCache, RedisCache
from metrics.registry import CACHE_ERRORS, CACHE_HITS, CACHE_MISSES
from settings.base import redis_cache
from tests.servers import Redis, frozen


def redis_at(url: str) -> RedisCache:
    """The backend as the settings make it, for the server at `url`, with a breaker of its own."""
    cache_module._breakers.pop(url, None)
    backend: Any = RedisCache
    made: RedisCache = backend(url, redis_cache("")["default"])
    return made


@pytest.fixture
def redis_backend(own_redis: Redis) -> Iterator[RedisCache]:
    backend = redis_at(own_redis.url)
    backend.clear()
    yield backend


@pytest.fixture(params=["redis", "locmem"])
def backend(request: pytest.FixtureRequest, own_redis: Redis) -> Iterator[BaseCache]:
    found = redis_at(own_redis.url) if request.param == "redis" else LocMemCache("test", {})
    found.clear()
    yield found


def value(counter: Counter, *labels: str) -> float:
    child = counter.labels(*labels) if labels else counter
    return float(child._value.get())


def hits_and_misses(do: Callable[[], object]) -> tuple[float, float]:
    hits, misses = value(CACHE_HITS), value(CACHE_MISSES)
    do()
    return value(CACHE_HITS) - hits, value(CACHE_MISSES) - misses


def is_open(backend: RedisCache) -> bool:
    return backend.breaker.retry_at > 0


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


AWAY: dict[str, tuple[Callable[[Any], object], object]] = {
    "get": (lambda cache: cache.get("key", "default"), "default"),
    "get_many": (lambda cache: cache.get_many(["key", "other"]), {}),
    "get_or_set": (lambda cache: cache.get_or_set("key", lambda: "made"), "made"),
    "in": (lambda cache: "key" in cache, False),
    "set": (lambda cache: cache.set("key", 1), False),
    "set_many": (lambda cache: cache.set_many({"key": 1}), ["key"]),
    "add": (lambda cache: cache.add("key", 1), True),
    "touch": (lambda cache: cache.touch("key"), False),
    "incr": (lambda cache: cache.incr("key", 3), 3),
    "decr": (lambda cache: cache.decr("key", 3), -3),
    "incr_version": (lambda cache: cache.incr_version("key"), 2),
    "delete": (lambda cache: cache.delete("key"), False),
    "delete_many": (lambda cache: cache.delete_many(["key"]), None),
    "clear": (lambda cache: cache.clear(), None),
    "remember": (lambda cache: cache.remember("set", "member", 60), None),
}


@pytest.mark.parametrize("name", AWAY)
def test_nothing_raises_while_redis_is_stopped(name: str, caplog: pytest.LogCaptureFixture) -> None:
    do, expected = AWAY[name]
    backend = redis_at("redis://127.0.0.1:1/1")
    assert do(backend) == expected, "the call that finds it stopped"
    assert is_open(backend)
    assert do(backend) == expected, "the calls that skip it"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_missing_key_cannot_be_incremented(backend: BaseCache) -> None:
    with pytest.raises(ValueError, match="away"):
        backend.incr("away")
    with pytest.raises(ValueError, match="away"):
        backend.decr("away")


def test_a_frozen_redis_costs_one_time_out_and_then_nothing(
    redis_backend: RedisCache, own_redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [value(CACHE_ERRORS, reason) for reason in ("timeout", "skipped")]
    with frozen(own_redis):
        started = time.monotonic()
        for _ in range(100):
            assert redis_backend.get("key") is None
        took = time.monotonic() - started
    assert 0.4 < took < 25, "one time-out of 0.5 s, not a hundred"
    assert [value(CACHE_ERRORS, reason) for reason in ("timeout", "skipped")] == [errors[0] + 1, errors[1] + 99]
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["Redis does not answer"]


@pytest.mark.parametrize(("error", "calls"), [(redis.TimeoutError, 1), (redis.ConnectionError, 2)])
def test_a_lost_connection_is_tried_again_and_a_time_out_is_not(error: type[Exception], calls: int) -> None:
    made: list[int] = []

    def fail() -> None:
        made.append(1)
        raise error

    with pytest.raises(error):
        redis_cache("")["default"]["OPTIONS"]["CONNECTION_POOL_KWARGS"]["retry"].call_with_retry(fail, lambda _: None)
    assert len(made) == calls


def test_one_caller_tries_again_after_the_breakers_time_and_the_others_go_on_skipping(
    redis_backend: RedisCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(cache_module, "monotonic", lambda: now)
    breaker = redis_backend.breaker
    breaker.failed(TimeoutError())
    assert not breaker.allows()
    now += breaker.seconds
    assert [breaker.allows(), breaker.allows()] == [True, False]
    now += breaker.seconds
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.succeeded()
    assert [breaker.allows(), breaker.allows()] == [True, True]


def let_it_try(backend: RedisCache) -> None:
    """As if the breaker's time had passed."""
    assert is_open(backend)
    backend.breaker.retry_at = time.monotonic()


def test_the_cache_is_used_again_when_redis_answers_and_the_log_says_so(
    redis_backend: RedisCache, own_redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    redis_backend.set("key", "kept")
    own_redis.stop()
    assert redis_backend.get("key") is None
    own_redis.start()
    assert redis_backend.get("key") is None, "still skipped"
    let_it_try(redis_backend)
    redis_backend.set("key", "new")
    assert redis_backend.get("key") == "new"
    assert [record.getMessage().split(",")[0].split(":")[0] for record in caplog.records] == [
        "Redis does not answer",
        "Redis answers again",
    ]


@pytest.mark.parametrize(
    "write",
    [
        lambda cache: cache.delete("session"),
        lambda cache: cache.delete_many(["session"]),
        lambda cache: cache.set("session", "new"),
        lambda cache: cache.set_many({"session": "new"}),
    ],
    ids=["delete", "delete_many", "set", "set_many"],
)
def test_a_value_that_was_changed_while_redis_was_frozen_does_not_come_back(
    redis_backend: RedisCache, own_redis: Redis, write: Callable[[RedisCache], object]
) -> None:
    redis_backend.set_many({"session": "old", "other": "kept"})
    redis_backend.breaker.failed(TimeoutError())
    write(redis_backend)
    let_it_try(redis_backend)
    assert redis_backend.get("session") is None
    assert redis_backend.get("other") == "kept"
    assert not redis_backend.breaker.stale


def test_more_lost_writes_than_can_be_remembered_empty_the_cache(
    redis_backend: RedisCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module.Breaker, "MOST_STALE", 3)
    redis_backend.set("untouched", 1)
    redis_backend.breaker.failed(TimeoutError())
    for number in range(10):
        redis_backend.set(f"key{number}", number)
    assert len(redis_backend.breaker.stale) == 4
    let_it_try(redis_backend)
    assert redis_backend.get("untouched") is None


def test_a_refused_write_leaves_no_old_value_behind(redis_backend: RedisCache, own_redis: Redis) -> None:
    redis_backend.set("key", "old")
    refused = value(CACHE_ERRORS, "response")
    with own_redis.client() as client:
        client.config_set("maxmemory", "1")
        try:
            redis_backend.set("key", "new")
        finally:
            client.config_set("maxmemory", "0")
    assert value(CACHE_ERRORS, "response") == refused + 1
    assert not is_open(redis_backend), "it answers"
    assert redis_backend.get("key") is None


def test_members_seen_lately_are_counted_once_and_forgotten_in_time(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(cache_module, "time", lambda: now)
    for member in ("1", "2", "1"):
        backend.remember("seen", member, 60)
    assert backend.recent("seen", 60) == 2
    now += 59
    backend.remember("seen", "3", 60)
    assert backend.recent("seen", 60) == 3
    now += 2
    assert backend.recent("seen", 60) == 1


def test_limits_that_are_counted_here_take_a_bounded_amount_of_memory() -> None:
    backend = redis_at("redis://127.0.0.1:1/2")
    backend.here.clear()
    for number in range(cache_module.MOST_COUNTED + 500):
        backend.set(f"allauth:rl:login:{number}", [1.0], 60)
    here: Any = backend.here
    assert len(here._cache) <= cache_module.MOST_COUNTED
    assert backend.get(f"allauth:rl:login:{number}") == [1.0]
    assert backend.get("another key") is None and not backend.breaker.stale
    backend.here.clear()
