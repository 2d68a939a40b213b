"""The cache in Redis, which fails open: while Redis is unavailable, the app goes on as if the cache were empty."""

import logging
import threading
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, TypeVar

import redis
from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.core.cache.backends.locmem import LocMemCache
from django_redis.cache import RedisCache as DjangoRedisCache

from metrics.cache import CountingRedisMixin
from metrics.registry import CACHE_ERRORS

logger = logging.getLogger(__name__)
T = TypeVar("T")

UNAVAILABLE = (redis.RedisError, OSError)  # Redis does not answer, or answers with an error


class Breaker:
    """A circuit breaker: skips a Redis that does not answer, so that one call every `seconds` times out, not each.

    https://martinfowler.com/bliki/CircuitBreaker.html
    """

    MAX_STALE = 10_000  # keys

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.retry_at = 0.0  # by monotonic(); 0 while the circuit is closed
        self.opened_at = 0.0
        self.stale: set[str] = set()  # keys whose last write was lost, so that Redis holds an old value
        self.lock = threading.Lock()

    def allows(self) -> bool:
        """Whether to call Redis now. While it is unavailable, one caller every `seconds` may try."""
        if not self.retry_at:
            return True
        with self.lock:
            now = monotonic()
            if now < self.retry_at:
                return False
            self.retry_at = now + self.seconds
            return True

    def succeeded(self) -> None:
        """Closes the circuit: Redis answered."""
        if not self.retry_at:
            return
        with self.lock:
            seconds, self.retry_at = monotonic() - self.opened_at, 0.0
        logger.warning("Redis is available again, after %.1f s", seconds)

    def failed(self, error: Exception) -> None:
        """Opens the circuit, or keeps it open, for `seconds`."""
        with self.lock:
            now = monotonic()
            first = not self.retry_at
            self.retry_at = now + self.seconds
            if first:
                self.opened_at = now
        if first:
            kind = type(error).__name__
            logger.warning("Redis is unavailable; retrying every %g s: %s: %s", self.seconds, kind, error)


# By server: Django makes a backend for each thread, and all of a process share the state of a server.
_breakers: dict[str, Breaker] = {}


# Prefixes of the keys that hold limits: allauth's rates (sign-in, password resets, mail), the API's, and the codes of
# authenticator apps that were used.
RATE_LIMITS = ("allauth:rl:", "api-limit:", "totp-used:")
MAX_LOCAL = 10_000  # such keys in the memory of a process; beyond that, the oldest are dropped

# By server, like the breakers: what a process counts itself while Redis is unavailable.
_local_counts: dict[str, LocMemCache] = {}


def is_rate_limit(key: Any) -> bool:
    """Whether `key` holds a rate limit."""
    return str(key).startswith(RATE_LIMITS)


class FailOpenRedisCache(DjangoRedisCache):  # type: ignore[misc]
    """django-redis that does not raise while Redis is unavailable: reads are misses, and writes are lost.

    Rate limits stay in force: meanwhile each process counts the keys in RATE_LIMITS in its own memory. So while Redis
    is down, a client gets the limit once from each process, and no more.

    Keys that were written or deleted meanwhile are deleted from Redis before anything else is read from it again: a
    session that was ended must not come back.

    This applies to Django's own cache API; what django-redis adds to it (ttl, lock, ...) raises redis.RedisError.
    OPTIONS["BREAKER_SECONDS"] (default 2) is how long Redis is skipped after it failed to answer.
    """

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        super().__init__(server, params)
        self._ignore_exceptions = False  # they are handled here
        seconds = float(params.get("OPTIONS", {}).get("BREAKER_SECONDS", 2))
        self.breaker = _breakers.setdefault(str(server), Breaker(seconds))
        local = LocMemCache(f"limits {server}", {"MAX_ENTRIES": MAX_LOCAL})
        self.local = _local_counts.setdefault(str(server), local)

    def ask(self, operation: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Returns what `operation` returns. Raises redis.RedisError or OSError; at once while Redis is skipped."""
        if not self.breaker.allows():
            CACHE_ERRORS.labels("skipped").inc()
            raise redis.ConnectionError("Redis failed to answer a moment ago")
        try:
            if self.breaker.stale:
                self._drop_stale()
            result = operation(*args, **kwargs)
        except (redis.TimeoutError, redis.ConnectionError, OSError) as error:
            CACHE_ERRORS.labels("timeout" if isinstance(error, redis.TimeoutError) else "connection").inc()
            self.breaker.failed(error)
            raise
        except redis.ReadOnlyError as error:  # a replica: after a failover the name may resolve to another server now
            CACHE_ERRORS.labels("response").inc()
            self.breaker.failed(error)
            self.client.get_client().connection_pool.disconnect(inuse_connections=False)
            raise
        except redis.RedisError as error:  # it answers with an error: out of memory, wrong type
            CACHE_ERRORS.labels("response").inc()
            logger.warning("Redis rejected a cache operation: %s", error)
            self.breaker.succeeded()
            raise
        self.breaker.succeeded()
        return result

    def _drop_stale(self) -> None:
        """Deletes the stale keys from Redis; everything, if they are too many. Raises redis.RedisError, OSError."""
        with self.breaker.lock:
            stale, self.breaker.stale = self.breaker.stale, set()
        try:
            if len(stale) > Breaker.MAX_STALE:
                self.client.clear()
            elif stale:
                self.client.get_client().delete(*stale)
        except BaseException:
            with self.breaker.lock:
                self.breaker.stale |= stale
            raise

    def attempt(self, lost: T, operation: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Returns what `operation` returns, or `lost` if Redis does not carry it out."""
        try:
            return self.ask(operation, *args, **kwargs)
        except UNAVAILABLE:
            return lost

    def write(
        self, keys: Iterable[Any], version: int | None, lost: T, operation: Callable[..., T], *args: Any, **kwargs: Any
    ) -> T:
        """Does the same as attempt() for an operation that changes the values of `keys`."""
        try:
            return self.ask(operation, *args, version=version, **kwargs)
        except UNAVAILABLE:
            with self.breaker.lock:
                if len(self.breaker.stale) <= Breaker.MAX_STALE:
                    self.breaker.stale.update(self.make_key(key, version) for key in keys)
            return lost

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        found = self.attempt(default, super().get, key, default, version)
        # The local count is newer than Redis's, which may answer reads and reject writes.
        return self.local.get(key, found, version) if is_rate_limit(key) else found

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        return self.attempt({}, super().get_many, keys, version=version)

    def has_key(self, key: Any, version: int | None = None) -> bool:
        return self.attempt(False, super().has_key, key, version=version)

    def set(
        self, key: Any, value: Any, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None, **kwargs: Any
    ) -> Any:
        """Returns False while Redis is unavailable; a rate limit is then stored in this process."""
        if not is_rate_limit(key):
            return self.write([key], version, False, super().set, key, value, timeout, **kwargs)
        try:
            done = self.ask(super().set, key, value, timeout, version=version, **kwargs)
        except UNAVAILABLE:
            self.local.set(key, value, timeout, version)
            return False
        self.local.delete(key, version)
        return done

    def set_many(
        self, data: dict[Any, Any], timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        return self.write(data, version, list(data), super().set_many, data, timeout) or []

    def add(self, key: Any, *args: Any, **kwargs: Any) -> bool:
        """Returns True also when Redis is down, except for RATE_LIMITS: a lock made with add() then locks nothing."""
        try:
            return bool(self.ask(super().add, key, *args, **kwargs))
        except UNAVAILABLE:
            return bool(self.local.add(key, *args, **kwargs)) if is_rate_limit(key) else True

    def touch(self, *args: Any, **kwargs: Any) -> bool:
        return self.attempt(False, super().touch, *args, **kwargs)

    def incr(self, key: Any, delta: int = 1, version: int | None = None, **kwargs: Any) -> int:
        """Counts from 0 while Redis is unavailable. Raises ValueError for a missing key, as Django does."""
        if not is_rate_limit(key):
            return self.write([key], version, delta, super().incr, key, delta, **kwargs)
        try:
            return int(self.ask(super().incr, key, delta, version=version, **kwargs))
        except UNAVAILABLE:
            self.local.add(key, 0, version=version)
            return int(self.local.incr(key, delta, version))

    def decr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Counts from 0 while Redis is unavailable. Raises ValueError for a missing key, as Django does."""
        return self.write([key], version, -delta, super().decr, key, delta)

    def incr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return self.write([key], version, (version or self.version) + delta, super().incr_version, key, delta)

    def delete(self, key: Any, version: int | None = None) -> bool:
        deleted = is_rate_limit(key) and self.local.delete(key, version)
        return self.write([key], version, deleted, super().delete, key)

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        keys = list(keys)
        self.write(keys, version, None, super().delete_many, keys)

    def clear(self) -> None:
        self.attempt(None, super().clear)


class RedisCache(CountingRedisMixin, FailOpenRedisCache):  # type: ignore[misc]  # its writes return more than None
    """The cache in Redis, shared by all workers and instances, which fails open and counts hits and misses."""

    def remember(self, name: str, member: str, seconds: float) -> None:
        """Records that `member` of the set `name` was seen now, unless Redis is unavailable."""
        self.attempt(None, super().remember, name, member, seconds)

    def recent(self, name: str, seconds: float) -> int:
        """Returns how many members of the set `name` were seen in the last `seconds`.

        Raises redis.RedisError or OSError if Redis is unavailable.
        """
        return self.ask(super().recent, name, seconds)
