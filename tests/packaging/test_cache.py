"""The cache in Redis while Redis is stopped, frozen, or answers with errors: it fails open."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from prometheus_client import Counter

import backstagetest1.cache
from backstagetest1.cache import RedisCache
from metrics.registry import CACHE_ERRORS
from metrics.store.internals import value_of
from settings.base import redis_cache
from tests.support.servers import Redis, frozen


def redis_at(url: str) -> RedisCache:
    """The backend as the settings make it, for the server at `url`, with a breaker of its own."""
    backstagetest1.cache._breakers.pop(url, None)
    backend: Any = RedisCache
    made: RedisCache = backend(url, redis_cache("")["default"])
    return made


@pytest.fixture
def redis_backend(own_redis: Redis) -> Iterator[RedisCache]:
    backend = redis_at(own_redis.url)
    backend.clear()
    yield backend


def value(counter: Counter, *labels: str) -> float:
    return value_of(counter.labels(*labels)).get()


def is_open(backend: RedisCache) -> bool:
    return backend.breaker.retry_at > 0


OPERATIONS: dict[str, tuple[Callable[[Any], object], object]] = {
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


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_raises_while_redis_is_stopped(name: str, caplog: pytest.LogCaptureFixture) -> None:
    do, expected = OPERATIONS[name]
    backend = redis_at("redis://127.0.0.1:1/1")
    assert do(backend) == expected, "the call that finds it stopped"
    assert is_open(backend)
    assert do(backend) == expected, "the calls that skip it"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


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
    assert [record.getMessage().split(";")[0] for record in caplog.records] == ["Redis is unavailable"]


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
    monkeypatch.setattr(backstagetest1.cache, "monotonic", lambda: now)
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
    assert [record.getMessage().split(";")[0].split(",")[0] for record in caplog.records] == [
        "Redis is unavailable",
        "Redis is available again",
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
    monkeypatch.setattr(backstagetest1.cache.Breaker, "MAX_STALE", 3)
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


def test_limits_that_are_counted_here_take_a_bounded_amount_of_memory() -> None:
    backend = redis_at("redis://127.0.0.1:1/2")
    backend.local.clear()
    for number in range(backstagetest1.cache.MAX_LOCAL + 500):
        backend.set(f"allauth:rl:login:{number}", [1.0], 60)
    local: Any = backend.local
    assert len(local._cache) <= backstagetest1.cache.MAX_LOCAL
    assert backend.get(f"allauth:rl:login:{number}") == [1.0]
    assert backend.get("another key") is None and not backend.breaker.stale
    backend.local.clear()
