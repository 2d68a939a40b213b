"""The checks, and the short list of reasons that a client may see.

A check is a class named by its dotted path in settings.HEALTH_CHECKS. health.runner makes one instance in a thread of
the check's own and calls run() there, never twice at once. So run() may block, and may keep a connection between its
calls; the deadline is held by those who wait for the answer. docs/health.md shows how to add one.
"""

import errno
import re
import secrets
import select
import shutil
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import psycopg2
import redis
from django.conf import settings
from django.core.cache import DEFAULT_CACHE_ALIAS, caches
from django.core.cache.backends.base import BaseCache
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import DEFAULT_DB_ALIAS, Error, connections
from django.db.migrations import Migration
from django.db.migrations.loader import MigrationLoader
from psycopg2.extensions import POLL_OK, POLL_READ
from redis.backoff import NoBackoff
from redis.retry import Retry

# The checks without which an instance cannot serve, by name. The cache is none of them: without it the app is slow.
SERVING = ("database", "migrations")

# Seconds after which a check's own connection is given up and the next run makes a new one. Far above the deadline:
# a frozen server answers on the same connection as soon as it thaws, and is not met by a new one at every probe.
GIVE_UP = 5.0
ROOM_EVERY = 10.0  # seconds for which it is believed that the database's disk has room


class Reason(StrEnum):
    """Why a check failed, as far as an anonymous client may know. The log has the exception."""

    TIMEOUT = "timeout"
    REFUSED = "refused"
    AUTHENTICATION = "authentication"
    WRONG_ANSWER = "wrong answer"
    PENDING_MIGRATIONS = "pending migrations"
    READ_ONLY = "read-only"
    DISK_FULL = "disk full"
    NOT_WRITABLE = "not writable"
    ERROR = "error"


class Unhealthy(Exception):
    """Raised by a check that knows what is wrong; `detail` goes to the log only."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


class Check:
    """Base of all checks; the instance lives in one thread and is used there alone."""

    # Seconds for which a healthy result is shared at the least, where asking more often would be waste.
    keep = 0.0

    def run(self) -> None:
        """Returns if all is well. Raises Unhealthy, or whatever exception comes, if not."""
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of what run() keeps; called when nobody has asked for a minute."""


class Database(Check):
    """The default database answers a query, takes writes and has room for them.

    It writes nothing: a standby, and what a failover leaves behind, say themselves that they are read-only. That the
    disk is full shows when a query needs a temporary file, which costs no row, no table and no log.
    """

    def __init__(self) -> None:
        self.link = open_database()
        self.had_room = -ROOM_EVERY

    def run(self) -> None:
        kept = self.link.connection is not None
        rows = self.link.rows(self.link.probe)
        if rows == [("on",)] and kept:  # the connection may be one to the primary of before
            self.link.close()
            rows = self.link.rows(self.link.probe)
        if rows == [("on",)]:
            self.link.close()
            raise Unhealthy(Reason.READ_ONLY, "it is a standby, or default_transaction_read_only is on")
        if rows != [("off",)]:
            raise Unhealthy(Reason.WRONG_ANSWER)
        if self.link.room and time.monotonic() - self.had_room >= ROOM_EVERY:
            self.link.rows(self.link.room)
            self.had_room = time.monotonic()

    def close(self) -> None:
        self.link.close()


class Migrations(Check):
    """Every migration that this code brings along is applied to the default database.

    Which there are is read from disk once, as running code does not change. Which are applied is asked at every run
    while some are pending, so that a pod is ready the moment the migration ends, and after that once a minute.
    """

    keep = 60.0

    def __init__(self) -> None:
        self.link = open_database()
        loader = MigrationLoader(None, load=False)
        loader.load_disk()
        self.needed: dict[tuple[str, str], Migration] = loader.disk_migrations or {}

    def run(self) -> None:
        try:
            applied = set(self.link.rows("SELECT app, name FROM django_migrations"))
        except (psycopg2.Error, Error) as error:
            if not missing_table(error):
                raise
            applied = set()
        finally:
            self.link.close()  # it is a minute until it is needed again
        # A squashed migration counts as applied when all that it replaces are, as with `manage.py migrate`.
        pending = [
            ".".join(key)
            for key, migration in self.needed.items()
            if key not in applied and not (migration.replaces and applied.issuperset(migration.replaces))
        ]
        if pending:
            raise Unhealthy(Reason.PENDING_MIGRATIONS, ", ".join(sorted(pending)))


class Cache(Check):
    """The default cache gives back what was written to it a moment ago.

    For Redis the question goes past the backend, which swallows a dead server's exceptions, by a
    connection of its own that keeps waiting where the pages' connections have given up.
    """

    def __init__(self) -> None:
        self.backend: BaseCache = caches.create_connection(DEFAULT_CACHE_ALIAS)
        self.key = f"health:{secrets.token_hex(8)}"  # another for each process: they do not read each other's values
        self.client: redis.Redis | None = None
        if client := getattr(self.backend, "client", None):  # django-redis
            factory = client.connection_factory
            pool = factory.get_connection_pool(factory.make_connection_params(client._server[0]))
            pool.connection_kwargs |= {
                "socket_timeout": GIVE_UP,
                "socket_connect_timeout": GIVE_UP,
                "retry": Retry(NoBackoff(), 0),
            }
            self.key = str(client.make_key(self.key))
            self.client = redis.Redis(connection_pool=pool)

    def run(self) -> None:
        value = secrets.token_hex(8)
        if self.client:
            try:
                read = self.exchange(self.client, value)
            except redis.ReadOnlyError:  # the connection may be one to the primary of before
                self.close()
                read = self.exchange(self.client, value)
        else:
            self.backend.set(self.key, value, 60)
            read = self.backend.get(self.key)
        if read != value:
            raise Unhealthy(Reason.WRONG_ANSWER, "the cache did not give back the value written to it")

    def exchange(self, client: redis.Redis, value: str) -> str | None:
        """Writes `value`, and returns what is read then. Raises redis.RedisError."""
        with client.pipeline(transaction=False) as pipe:
            pipe.set(self.key, value, ex=60)
            pipe.get(self.key)
            read = pipe.execute()[1]
        return read.decode() if isinstance(read, bytes) else read

    def close(self) -> None:
        if self.client:
            self.client.connection_pool.disconnect()


class Storage(Check):
    """The media storage takes a file, gives it back and deletes it."""

    keep = 10.0

    def run(self) -> None:
        value = secrets.token_hex(8).encode()
        name = f"health-{value.decode()}"
        try:
            name = default_storage.save(name, ContentFile(value))
            with default_storage.open(name) as file:
                if file.read() != value:
                    raise Unhealthy(Reason.WRONG_ANSWER, f"{name} did not hold what was written to it")
        finally:
            default_storage.delete(name)


class Disk(Check):
    """The file system of the media has settings.HEALTH_MIN_FREE_MB megabytes left."""

    keep = 10.0

    def run(self) -> None:
        folder = Path(settings.MEDIA_ROOT).absolute()
        while not folder.exists():
            folder = folder.parent  # it is made by the first upload
        free = shutil.disk_usage(folder).free / 1e6
        if free < settings.HEALTH_MIN_FREE_MB:
            raise Unhealthy(Reason.DISK_FULL, f"{free:.0f} MB free at {folder}")


class PostgresLink:
    """A connection to PostgreSQL of which no step blocks for longer than GIVE_UP.

    libpq's own time-outs do not bound a query on an established connection to a server that is frozen: its kernel
    acknowledges, so tcp_user_timeout sees nothing wrong, and statement_timeout is the frozen server's to keep. So the
    connection is asynchronous and the waiting is done here.
    https://www.psycopg.org/docs/advanced.html#asynchronous-support
    """

    probe = "SHOW transaction_read_only"
    room = "SELECT count(*) FROM generate_series(1, 10000)"  # more than work_mem: it goes to a file

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.parameters = {"fallback_application_name": "health"} | parameters | {"async_": True}
        self.parameters["options"] = f"{parameters.get('options', '')} -c work_mem=64kB".strip()
        self.connection: Any = None

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows that `sql` gives. Raises psycopg2.Error, and TimeoutError if no answer comes."""
        until = time.monotonic() + GIVE_UP
        try:
            if self.connection:
                # A connection that has died since the last call is replaced within this one.
                with suppress(psycopg2.OperationalError, psycopg2.InterfaceError):
                    return self.fetch(sql, until)
                self.close()
            self.connection = psycopg2.connect(**self.parameters)
            self.wait(until)
            return self.fetch(sql, until)
        except (psycopg2.Error, TimeoutError):
            self.close()
            raise

    def fetch(self, sql: str, until: float) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            self.wait(until)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def wait(self, until: float) -> None:
        """Until the connection has done what it is at. Raises TimeoutError."""
        while (state := self.connection.poll()) != POLL_OK:
            poll = select.poll()  # while it connects, its socket may change with the address that it tries
            poll.register(self.connection.fileno(), select.POLLIN if state == POLL_READ else select.POLLOUT)
            if not poll.poll(max(0, until - time.monotonic()) * 1000):
                raise TimeoutError(f"PostgreSQL gave no answer for {GIVE_UP:g} s")

    def close(self) -> None:
        if self.connection:
            self.connection.close()
            self.connection = None


class DjangoLink:
    """The same for any other database, as Django connects to it. Whether it takes writes is not known."""

    room = ""

    def __init__(self) -> None:
        self.django = connections.create_connection(DEFAULT_DB_ALIAS)
        # SQLite reads its file only for a query that needs it.
        lite = self.django.vendor == "sqlite"
        self.probe = "SELECT 'off' FROM (SELECT count(*) FROM sqlite_master)" if lite else "SELECT 'off'"

    @property
    def connection(self) -> Any:
        return self.django.connection

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        try:
            with self.django.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall())
        except Error:
            self.close()
            raise

    def close(self) -> None:
        self.django.close()


def open_database() -> PostgresLink | DjangoLink:
    """A connection of one's own to the default database; it is made when it is first used."""
    wrapper: Any = connections[DEFAULT_DB_ALIAS]
    if wrapper.vendor != "postgresql":
        return DjangoLink()
    parameters = wrapper.get_connection_params()
    parameters.pop("cursor_factory", None)
    return PostgresLink(parameters)


def missing_table(error: BaseException) -> bool:
    cause = error.__cause__ or error
    return getattr(cause, "pgcode", None) == "42P01" or str(cause).startswith("no such table")


# What goes wrong while psycopg2 connects has no code: only the words of libpq and of the server.
WORDS = {
    Reason.AUTHENTICATION: "authentication failed|no password supplied|no pg_hba|role .* (does not|is not)",
    Reason.REFUSED: "refused|starting up|shutting down|recovery mode|too many|slots are reserved|closed",
    Reason.TIMEOUT: "timed out|timeout",
    Reason.DISK_FULL: "no space left|file too large|quota exceeded",
}
CODES = {"25006": Reason.READ_ONLY, "53100": Reason.DISK_FULL}  # SQLSTATE
NUMBERS = {
    errno.ENOSPC: Reason.DISK_FULL,
    errno.EDQUOT: Reason.DISK_FULL,
    errno.EFBIG: Reason.DISK_FULL,
    errno.EROFS: Reason.NOT_WRITABLE,
    errno.EACCES: Reason.NOT_WRITABLE,
    errno.EPERM: Reason.NOT_WRITABLE,
}


def reason(error: BaseException) -> Reason:
    """The class of `error`, by what it is or by what caused it."""
    cause: BaseException | None = error
    while cause:
        match cause:
            case Unhealthy():
                return cause.reason
            case TimeoutError() | redis.TimeoutError():
                return Reason.TIMEOUT
            case ConnectionError() | redis.BusyLoadingError():
                return Reason.REFUSED
            case redis.AuthenticationError() | redis.exceptions.NoPermissionError():
                return Reason.AUTHENTICATION
            case redis.ReadOnlyError():
                return Reason.READ_ONLY
            case psycopg2.Error() if cause.pgcode in CODES:
                return CODES[cause.pgcode]
            case OSError() if cause.errno in NUMBERS:
                return NUMBERS[cause.errno]
            case psycopg2.Error() | redis.ConnectionError():
                for found, words in WORDS.items():
                    if re.search(words, str(cause), re.IGNORECASE):
                        return found
        cause = cause.__cause__ or cause.__context__
    return Reason.ERROR
