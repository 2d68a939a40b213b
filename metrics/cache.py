"""The cache backends: Django's in-process one and Redis, both counting what they find.

A key asked for its value counts once, as a hit or as a miss: get, get_many and get_or_set. What asks for no value
(`in`, add, incr, touch, ...) does not count.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from time import monotonic, time
from typing import Any, TypeVar

import redis
from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.core.cache.backends.locmem import LocMemCache as DjangoLocMemCache
from django_redis.cache import RedisCache as DjangoRedisCache

from metrics.registry import CACHE_ERRORS, CACHE_HITS, CACHE_MISSES

logger = logging.getLogger(__name__)
T = TypeVar("T")

MISSING = object()
AWAY = (redis.RedisError, OSError)  # Redis does not answer, or answers and refuses


class Counting(BaseCache):
    """Counts hits and misses; it stands before a backend in a class's bases."""

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        value = super().get(key, MISSING, version)
        if value is MISSING:
            CACHE_MISSES.inc()
            return default
        CACHE_HITS.inc()
        return value

    def get_or_set(
        self, key: Any, default: Any, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        value = self.get(key, MISSING, version)
        if value is not MISSING:
            return value
        if callable(default):
            default = default()
        self.add(key, default, timeout, version)
        return super().get(key, default, version)  # another may have been quicker; not asked a second time

    async def aget_or_set(
        self, key: Any, default: Any, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        return await sync_to_async(self.get_or_set)(key, default, timeout, version)


class LocMemCache(Counting, DjangoLocMemCache):
    """Django's cache in this process's memory, for development."""

    def remember(self, name: str, member: str, seconds: float) -> None:
        """Notes that `member` of the set `name` was seen now; it is forgotten after `seconds`."""
        now = time()
        with _remembering:
            seen: dict[str, float] = super(Counting, self).get(name, {})
            seen = {one: at for one, at in seen.items() if at > now - seconds} | {member: now}
            self.set(name, seen, seconds)

    def recent(self, name: str, seconds: float) -> int:
        """How many members of the set `name` were seen in the last `seconds`."""
        since = time() - seconds
        return sum(at > since for at in super(Counting, self).get(name, {}).values())


_remembering = threading.Lock()


class Breaker:
    """Skips a Redis that does not answer, so that it costs one caller a time-out every `seconds`, and not every call.

    The pattern is the circuit breaker: https://martinfowler.com/bliki/CircuitBreaker.html
    """

    MOST_STALE = 10_000

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.retry_at = 0.0  # by monotonic(), 0 while all is well
        self.opened_at = 0.0
        self.stale: set[str] = set()  # keys whose last write was lost: what Redis has of them is out of date
        self.lock = threading.Lock()

    def allows(self) -> bool:
        """Whether to ask Redis now. While it is away, one caller every `seconds` is told to try."""
        if not self.retry_at:
            return True
        with self.lock:
            now = monotonic()
            if now < self.retry_at:
                return False
            self.retry_at = now + self.seconds
            return True

    def succeeded(self) -> None:
        if not self.retry_at:
            return
        with self.lock:
            away, self.retry_at = monotonic() - self.opened_at, 0.0
        logger.warning("Redis answers again: it was skipped for %.1f s.", away)

    def failed(self, error: Exception) -> None:
        with self.lock:
            now = monotonic()
            first = not self.retry_at
            self.retry_at = now + self.seconds
            if first:
                self.opened_at = now
        if first:
            kind = type(error).__name__
            logger.warning(
                "Redis does not answer, or is read-only, and is asked only every %g s: %s: %s",
                self.seconds,
                kind,
                error,
            )


# By server: the backends are made anew for each thread, and share a process's view of a server.
_breakers: dict[str, Breaker] = {}


# Keys that count how often somebody has tried something: allauth's (sign-in, resets, mail) and deploy.api_guard's.
LIMITS = ("allauth:rl:", "api-limit:")
MOST_COUNTED = 10_000  # of these keys in the memory of a process; beyond it, the ones set longest ago go

# By server, as the breakers are: what a process counts itself while Redis does not.
_counted_here: dict[str, DjangoLocMemCache] = {}


def is_limit(key: Any) -> bool:
    return str(key).startswith(LIMITS)


class FailingOpen(DjangoRedisCache):  # type: ignore[misc]
    """django-redis that does not raise when Redis is away: what is read is not there, and what is written is lost.

    But limits go on: what Redis does not take of the keys in LIMITS, this process counts in its own memory. So while
    Redis is down, a client may try as often as the limit says in each process, and no more.

    What Redis still holds of a key that was written or deleted meanwhile is deleted before it is asked for anything
    else again: a session that was ended must not come back.

    That goes for Django's own cache API; what django-redis adds to it (ttl, lock, ...) raises redis.RedisError.
    OPTIONS["BREAKER_SECONDS"] (default 2) says how long Redis is skipped after it failed to answer.
    """

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        super().__init__(server, params)
        self._ignore_exceptions = False  # they are handled here instead
        seconds = float(params.get("OPTIONS", {}).get("BREAKER_SECONDS", 2))
        self.breaker = _breakers.setdefault(str(server), Breaker(seconds))
        here = DjangoLocMemCache(f"limits {server}", {"MAX_ENTRIES": MOST_COUNTED})
        self.here = _counted_here.setdefault(str(server), here)

    def ask(self, operation: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What `operation` returns. Raises redis.RedisError or OSError, at once while Redis is being skipped."""
        if not self.breaker.allows():
            CACHE_ERRORS.labels("skipped").inc()
            raise redis.ConnectionError("Redis did not answer a moment ago.")
        try:
            if self.breaker.stale:
                self._drop_stale()
            result = operation(*args, **kwargs)
        except (redis.TimeoutError, redis.ConnectionError, OSError) as error:
            CACHE_ERRORS.labels("timeout" if isinstance(error, redis.TimeoutError) else "connection").inc()
            self.breaker.failed(error)
            raise
        except redis.ReadOnlyError as error:  # a replica: after a failover the name may point to another server by now
            CACHE_ERRORS.labels("response").inc()
            self.breaker.failed(error)
            self.client.get_client().connection_pool.disconnect(inuse_connections=False)
            raise
        except redis.RedisError as error:  # it answers, and refuses: out of memory, a value of another type
            CACHE_ERRORS.labels("response").inc()
            logger.warning("Redis refused a cache operation: %s", error)
            self.breaker.succeeded()
            raise
        self.breaker.succeeded()
        return result

    def _drop_stale(self) -> None:
        with self.breaker.lock:
            stale, self.breaker.stale = self.breaker.stale, set()
        try:
            if len(stale) > Breaker.MOST_STALE:
                self.client.clear()
            elif stale:
                self.client.get_client().delete(*stale)
        except BaseException:
            with self.breaker.lock:
                self.breaker.stale |= stale
            raise

    def attempt(self, lost: T, operation: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What `operation` returns, or `lost` if Redis does not carry it out."""
        try:
            return self.ask(operation, *args, **kwargs)
        except AWAY:
            return lost

    def write(
        self, keys: Iterable[Any], version: int | None, lost: T, operation: Callable[..., T], *args: Any, **kwargs: Any
    ) -> T:
        """Like attempt(), for what changes the values of `keys`."""
        try:
            return self.ask(operation, *args, version=version, **kwargs)
        except AWAY:
            with self.breaker.lock:
                if len(self.breaker.stale) <= Breaker.MOST_STALE:
                    self.breaker.stale.update(self.make_key(key, version) for key in keys)
            return lost

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        found = self.attempt(default, super().get, key, default, version)
        # What was counted here is newer than what Redis has: it may answer, and refuse to write.
        return self.here.get(key, found, version) if is_limit(key) else found

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        return self.attempt({}, super().get_many, keys, version=version)

    def has_key(self, key: Any, version: int | None = None) -> bool:
        return self.attempt(False, super().has_key, key, version=version)

    def set(
        self, key: Any, value: Any, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None, **kwargs: Any
    ) -> Any:
        if not is_limit(key):
            return self.write([key], version, False, super().set, key, value, timeout, **kwargs)
        try:
            done = self.ask(super().set, key, value, timeout, version=version, **kwargs)
        except AWAY:
            self.here.set(key, value, timeout, version)
            return False
        self.here.delete(key, version)
        return done

    def set_many(
        self, data: dict[Any, Any], timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        return self.write(data, version, list(data), super().set_many, data, timeout) or []

    def add(self, key: Any, *args: Any, **kwargs: Any) -> bool:
        """True also when Redis is down, except for LIMITS: whoever locks something by a key goes on unlocked."""
        try:
            return bool(self.ask(super().add, key, *args, **kwargs))
        except AWAY:
            return bool(self.here.add(key, *args, **kwargs)) if is_limit(key) else True

    def touch(self, *args: Any, **kwargs: Any) -> bool:
        return self.attempt(False, super().touch, *args, **kwargs)

    def incr(self, key: Any, delta: int = 1, version: int | None = None, **kwargs: Any) -> int:
        """As if the key had been 0 when Redis is away. Raises ValueError if there is no such key, as Django says."""
        if not is_limit(key):
            return self.write([key], version, delta, super().incr, key, delta, **kwargs)
        try:
            return int(self.ask(super().incr, key, delta, version=version, **kwargs))
        except AWAY:
            self.here.add(key, 0, version=version)
            return int(self.here.incr(key, delta, version))

    def decr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """As if the key had been 0 when Redis is away. Raises ValueError if there is no such key, as Django says."""
        return self.write([key], version, -delta, super().decr, key, delta)

    def incr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return self.write([key], version, (version or self.version) + delta, super().incr_version, key, delta)

    def delete(self, key: Any, version: int | None = None) -> bool:
        here = is_limit(key) and self.here.delete(key, version)
        return self.write([key], version, here, super().delete, key)

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        keys = list(keys)
        self.write(keys, version, None, super().delete_many, keys)

    def clear(self) -> None:
        self.attempt(None, super().clear)


class RedisCache(Counting, FailingOpen):  # type: ignore[misc]  # its writes tell more than None
    """The cache in Redis, shared by all workers and instances."""

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        keys = list(dict.fromkeys(keys))
        found = super().get_many(keys, version)
        CACHE_HITS.inc(len(found))
        CACHE_MISSES.inc(len(keys) - len(found))
        return found

    def remember(self, name: str, member: str, seconds: float) -> None:
        """Notes that `member` of the set `name` was seen now; it is forgotten after `seconds`."""

        def write() -> None:
            key, now = self.make_key(name), time()
            with self.client.get_client().pipeline(transaction=False) as pipe:
                pipe.zadd(key, {member: now}).zremrangebyscore(key, 0, now - seconds).expire(key, int(seconds) + 1)
                pipe.execute()

        self.attempt(None, write)

    def recent(self, name: str, seconds: float) -> int:
        """How many members of the set `name` were seen in the last `seconds`.

        Raises redis.RedisError or OSError if Redis is away.
        """

        def read() -> int:
            return int(self.client.get_client().zcount(self.make_key(name), time() - seconds, "inf"))

        return self.ask(read)
