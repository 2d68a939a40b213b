"""The checks.

A check is a class named by its dotted path in settings.HEALTH_CHECKS. health.runner creates one instance in a thread of
the check's own and calls run() there, never twice at once. So run() may block, and may keep a connection between calls;
whoever waits for the result enforces the deadline. docs/health.md shows how to add a check.
"""

import secrets
import shutil
import time
from pathlib import Path

import psycopg2
import redis
from django.conf import settings
from django.core.cache import DEFAULT_CACHE_ALIAS, caches
from django.core.cache.backends.base import BaseCache
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import Error
from django.db.migrations import Migration
from django.db.migrations.loader import MigrationLoader
from redis.backoff import NoBackoff
from redis.retry import Retry

from health import databases
from health.reasons import Reason, Unhealthy

# The checks without which an instance cannot serve, by name. The cache is not one: without it, the app is only slower.
SERVING = ("database", "migrations")
SPACE_EVERY = 10.0  # seconds between two checks for room on the database's disk


class Check:
    """Base class of all checks. An instance lives in one thread and is used there only."""

    # Minimum number of seconds for which a healthy result is shared, for checks that need not run often.
    keep = 0.0
    # What /health/ adds to the result: one word, for anyone to read.
    note = ""

    def run(self) -> None:
        """Returns if the dependency is healthy; raises Unhealthy, or any other exception, if not."""
        raise NotImplementedError

    def close(self) -> None:
        """Releases what run() keeps. Called when nobody has asked for a minute."""


class Database(Check):
    """The default database answers a query, accepts writes and has room for them.

    The check writes nothing: a standby, or an old primary after a failover, reports that it is read-only, and a full
    disk shows when a query needs a temporary file, which takes no row, no table and no log.
    """

    def __init__(self) -> None:
        self.database = databases.database_probe()
        self.space_checked = -SPACE_EVERY

    def run(self) -> None:
        reused = self.database.connection is not None
        rows = self.database.rows(self.database.query)
        if rows == [("on",)] and reused:  # it may be a connection to a former primary
            self.database.close()
            rows = self.database.rows(self.database.query)
        if rows == [("on",)]:
            self.database.close()
            raise Unhealthy(Reason.READ_ONLY, "a standby, or default_transaction_read_only is on")
        if rows != [("off",)]:
            raise Unhealthy(Reason.WRONG_ANSWER)
        if self.database.space_query and time.monotonic() - self.space_checked >= SPACE_EVERY:
            self.database.rows(self.database.space_query)
            self.space_checked = time.monotonic()
        self.note = self.database.colour

    def close(self) -> None:
        self.database.close()


class Migrations(Check):
    """All of this version's migrations are applied to the default database; of a database per colour, to one of them.

    A release starts before the writes move to the database that was migrated for it.

    The list is read from disk once, because running code does not change. While some are pending, every run asks which
    are applied, so that a pod is ready as soon as the migration ends; after that, once a minute.
    """

    keep = 60.0

    def __init__(self) -> None:
        self.database = databases.database_probe()
        loader = MigrationLoader(None, load=False)
        loader.load_disk()
        self.needed: dict[tuple[str, str], Migration] = loader.disk_migrations or {}

    def run(self) -> None:
        pending: list[str] = []
        try:
            for applied in self.database.each("SELECT app, name FROM django_migrations"):
                missing = self.missing({(app, name) for app, name in applied})
                if not missing:
                    return
                pending = pending or missing
        except (psycopg2.Error, Error) as error:
            if not databases.missing_table(error):
                raise
            pending = pending or self.missing(set())
        finally:
            self.database.close()  # it is not needed again for a minute
        if pending:
            raise Unhealthy(Reason.PENDING_MIGRATIONS, ", ".join(pending))

    def missing(self, applied: set[tuple[str, str]]) -> list[str]:
        """Returns what is not applied. A squashed migration counts as applied if all that it replaces are, as with
        `manage.py migrate`.
        """
        return sorted(
            ".".join(key)
            for key, migration in self.needed.items()
            if key not in applied and not (migration.replaces and applied.issuperset(migration.replaces))
        )


class Cache(Check):
    """The default cache returns what was written to it a moment ago.

    Redis is asked directly, because the backend fails open and hides a dead server. The check has its own connection,
    which keeps waiting where the connections of the pages have timed out.
    """

    def __init__(self) -> None:
        self.backend: BaseCache = caches.create_connection(DEFAULT_CACHE_ALIAS)
        self.key = f"health:{secrets.token_hex(8)}"  # one per process, so that none reads another's value
        self.client: redis.Redis | None = None
        if client := getattr(self.backend, "client", None):  # django-redis
            factory = client.connection_factory
            pool = factory.get_connection_pool(factory.make_connection_params(client._server[0]))
            pool.connection_kwargs |= {
                "socket_timeout": databases.CONNECTION_TIMEOUT,
                "socket_connect_timeout": databases.CONNECTION_TIMEOUT,
                "retry": Retry(NoBackoff(), 0),
            }
            self.key = str(client.make_key(self.key))
            self.client = redis.Redis(connection_pool=pool)

    def run(self) -> None:
        value = secrets.token_hex(8)
        if self.client:
            try:
                read = self.exchange(self.client, value)
            except redis.ReadOnlyError:  # it may be a connection to a former primary
                self.close()
                read = self.exchange(self.client, value)
        else:
            self.backend.set(self.key, value, 60)
            read = self.backend.get(self.key)
        if read != value:
            raise Unhealthy(Reason.WRONG_ANSWER, "the cache did not return the value that was written to it")

    def exchange(self, client: redis.Redis, value: str) -> str | None:
        """Writes `value` and returns what is then read. Raises redis.RedisError."""
        with client.pipeline(transaction=False) as pipe:
            pipe.set(self.key, value, ex=60)
            pipe.get(self.key)
            read = pipe.execute()[1]
        return read.decode() if isinstance(read, bytes) else read

    def close(self) -> None:
        if self.client:
            self.client.connection_pool.disconnect()


class Storage(Check):
    """The media storage saves a file, returns it and deletes it."""

    keep = 10.0

    def run(self) -> None:
        value = secrets.token_hex(8).encode()
        name = f"health-{value.decode()}"
        try:
            name = default_storage.save(name, ContentFile(value))
            with default_storage.open(name) as file:
                if file.read() != value:
                    raise Unhealthy(Reason.WRONG_ANSWER, f"{name} does not contain what was written to it")
        finally:
            default_storage.delete(name)


class Disk(Check):
    """The file system of the media has at least settings.HEALTH_MIN_FREE_MB megabytes free."""

    keep = 10.0

    def run(self) -> None:
        folder = Path(settings.MEDIA_ROOT).absolute()
        while not folder.exists():
            folder = folder.parent  # the first upload creates it
        free = shutil.disk_usage(folder).free / 1e6
        if free < settings.HEALTH_MIN_FREE_MB:
            raise Unhealthy(Reason.DISK_FULL, f"{free:.0f} MB free at {folder}")
