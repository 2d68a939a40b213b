"""Counts what the cache finds: mixins for Django's cache backends, and its in-process backend with them.

A key that is asked for its value counts once, as a hit or a miss: get, get_many and get_or_set. Operations that ask for
no value (`in`, add, incr, touch, ...) do not count.
"""

import threading
from collections.abc import Iterable
from time import time
from typing import Any

from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.core.cache.backends.locmem import LocMemCache as DjangoLocMemCache

from metrics.registry import CACHE_HITS, CACHE_MISSES

MISSING = object()


class CountingMixin(BaseCache):
    """Counts hits and misses. List it before a backend whose get_many() calls get() for each key, as Django's does."""

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
        """Returns the key's value, storing `default` (a value or a function) if there is none. Counts the key once."""
        value = self.get(key, MISSING, version)
        if value is not MISSING:
            return value
        if callable(default):
            default = default()
        self.add(key, default, timeout, version)
        return super().get(key, default, version)  # another process may have been first; this read does not count

    async def aget_or_set(
        self, key: Any, default: Any, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        return await sync_to_async(self.get_or_set)(key, default, timeout, version)


class LocMemCache(CountingMixin, DjangoLocMemCache):
    """Django's in-process cache, for development."""

    def remember(self, name: str, member: str, seconds: float) -> None:
        """Records that `member` of the set `name` was seen now; it is dropped after `seconds`."""
        now = time()
        with _remembering:
            seen: dict[str, float] = super(CountingMixin, self).get(name, {})
            seen = {one: at for one, at in seen.items() if at > now - seconds} | {member: now}
            self.set(name, seen, seconds)

    def recent(self, name: str, seconds: float) -> int:
        """Returns how many members of the set `name` were seen in the last `seconds`."""
        since = time() - seconds
        return sum(at > since for at in super(CountingMixin, self).get(name, {}).values())


_remembering = threading.Lock()


class CountingRedisMixin(CountingMixin):
    """The same for django-redis, whose get_many() is a single command."""

    client: Any  # django-redis's own

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        keys = list(dict.fromkeys(keys))
        found = super().get_many(keys, version)
        CACHE_HITS.inc(len(found))
        CACHE_MISSES.inc(len(keys) - len(found))
        return found

    def remember(self, name: str, member: str, seconds: float) -> None:
        """Records that `member` of the set `name` was seen now; it is dropped after `seconds`.

        Raises redis.RedisError, OSError.
        """
        key, now = self.make_key(name), time()
        with self.client.get_client().pipeline(transaction=False) as pipe:
            pipe.zadd(key, {member: now}).zremrangebyscore(key, 0, now - seconds).expire(key, int(seconds) + 1)
            pipe.execute()

    def recent(self, name: str, seconds: float) -> int:
        """Returns how many members of the set `name` were seen in the last `seconds`.

        Raises redis.RedisError, OSError.
        """
        return int(self.client.get_client().zcount(self.make_key(name), time() - seconds, "inf"))
