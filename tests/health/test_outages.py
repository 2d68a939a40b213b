"""What the probes say, and how soon, while PostgreSQL or Redis is stopped, frozen, unreachable or wrong.

Here the app runs in the test's own process; test_health_gunicorn.py has the same under gunicorn and under load.
"""

import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.db import connections
from django.db.migrations.loader import MigrationLoader
from django.test import Client
from pytest_django import DjangoDbBlocker, Settings

from health import checks, databases, runner
from tests.health.test_checks import new_server
from tests.support.gate import Gate, Silent
from tests.support.servers import Postgres, Redis, children, eventually, frozen

pytestmark = pytest.mark.slow

DEADLINE = 0.8 + 0.2  # seconds; the promise
SLACK = (
    20.0  # for a machine that is busy; who breaks the promise waits for CONNECTION_TIMEOUT, here a minute, or for ever
)

Server = Postgres | Redis
Pointer = Callable[[Any], None]


def write_migrations(server: Postgres) -> None:
    """The table that tells which migrations are applied, with all that there are, and none of their tables."""
    loader = MigrationLoader(None)
    connection = server.connect()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS django_migrations (app text, name text)")
        cursor.executemany("INSERT INTO django_migrations VALUES (%s, %s)", list(loader.disk_migrations or ()))
    connection.close()


@pytest.fixture(scope="module")
def migrated(own_postgres: Postgres) -> Postgres:
    write_migrations(own_postgres)
    return own_postgres


@pytest.fixture(autouse=True)
def pointed(
    migrated: Postgres, own_redis: Redis, monkeypatch: pytest.MonkeyPatch, settings: Settings, tmp_path: Path
) -> Iterator[dict[str, Pointer]]:
    """The checks look at the module's own servers; a test may point them at another port."""
    settings.HEALTH_CACHE_SECONDS = 0
    new_server(settings, tmp_path)
    monkeypatch.setattr(databases, "CONNECTION_TIMEOUT", 60.0)
    settings.HEALTH_DOWN_AFTER = 0  # what is late is down at once: test_health_runner.py has how long it may be late
    database: dict[str, Any] = connections.settings["default"]
    cache: dict[str, Any] = caches.settings["default"]
    runner.stop()

    def database_at(port: int) -> None:
        monkeypatch.setitem(database, "PORT", port)

    def cache_at(port: int) -> None:
        monkeypatch.setitem(cache, "LOCATION", f"redis://127.0.0.1:{port}/1")

    for key, value in {"HOST": "127.0.0.1", "USER": "app", "PASSWORD": migrated.password, "NAME": "app"}.items():
        monkeypatch.setitem(database, key, value)
    database_at(migrated.port)
    cache_at(own_redis.port)
    forget_the_cache()
    yield {"database": database_at, "cache": cache_at}
    runner.stop()
    forget_the_cache()


def forget_the_cache() -> None:
    """The next who asks for this thread's cache gets one at the address of then."""
    caches.close_all()
    with suppress(AttributeError):  # nobody has asked for it
        del caches["default"]


@pytest.fixture(params=["database", "cache"])
def part(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(part: str, migrated: Postgres, own_redis: Redis) -> Server:
    return migrated if part == "database" else own_redis


def ask(path: str = "/health/", *, within: float = DEADLINE + SLACK) -> tuple[int, dict[str, Any]]:
    started = time.monotonic()
    response = Client().get(path)
    took = time.monotonic() - started
    print(f"{path} {response.status_code} in {took:.3f} s: {response.content!r}")
    assert took < within
    return response.status_code, response.json()


def healthy() -> bool:
    return ask()[0] == 200


def assert_down(part: str, *reasons: str) -> None:
    """All three probes tell, in time, that this part is down and the others are not."""
    status, body = ask()
    assert (status, body["status"]) == (503, "unhealthy")
    assert body["checks"].pop(part) in [f"unhealthy: {reason}" for reason in reasons]
    if part == "cache":
        assert set(body["checks"].values()) == {"healthy"}
    else:
        assert body["checks"]["cache"] == "healthy"
    assert ask("/health/live/")[0] == 200
    status, body = ask("/health/ready/")
    assert (status, set(body["checks"])) == (200 if part == "cache" else 503, {"database", "migrations"})


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


def runs(pid: int) -> bool:
    """Whether the process runs. One that has ended has no command line, also while nobody has reaped it."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


@contextmanager
def killed(server: Server) -> Iterator[None]:
    family = children(server.pid)
    server.stop(SIGKILL)
    # A backend of PostgreSQL may still answer in the moment before it notices that its parent is gone.
    assert eventually(lambda: not any(runs(pid) for pid in family))
    try:
        yield
    finally:
        server.start()


def test_all_is_well(part: str) -> None:
    status, body = ask()
    assert (status, body["status"]) == (200, "healthy")
    assert body["checks"] == {"database": "healthy", "cache": "healthy", "migrations": "healthy"}


@pytest.mark.parametrize(
    ("warm", "give_up"),
    [(True, 60.0), (False, 60.0), (True, 0.3)],
    ids=["connected before", "never connected", "for longer than a connection is kept"],
)
def test_a_frozen_server_is_a_timeout_and_seen_to_recover_by_the_next_probe(
    part: str, server: Server, warm: bool, give_up: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery takes only the server's answer on the waiting connection, not a timeout of ours."""
    if warm:
        assert healthy()
    with frozen(server):
        monkeypatch.setattr(databases, "CONNECTION_TIMEOUT", give_up)
        assert_down(part, "timeout")
        time.sleep(0.5)
    monkeypatch.setattr(databases, "CONNECTION_TIMEOUT", 60.0)
    assert healthy()


@pytest.mark.parametrize("outage", [stopped, killed])
def test_a_server_that_is_gone_refuses_and_is_seen_to_recover_by_the_next_probe(
    part: str, server: Server, outage: Callable[[Server], AbstractContextManager[None]]
) -> None:
    assert healthy()
    with outage(server):
        assert_down(part, "refused")
        assert_down(part, "refused")
    assert healthy()


def test_a_restart_between_two_probes_is_no_failure(part: str, server: Server) -> None:
    assert healthy()
    server.stop()
    server.start()
    assert healthy()


def test_the_database_ending_a_connection_is_no_failure(migrated: Postgres) -> None:
    assert healthy()
    connection = migrated.connect()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'app' AND pid <> %s",
            [connection.info.backend_pid],
        )
        assert cursor.fetchall() == [(True,)], "the check keeps one connection"
    connection.close()
    assert healthy()


@pytest.mark.parametrize("full", [False, True], ids=["takes connections", "takes none"])
def test_a_socket_that_never_answers_is_a_timeout(part: str, full: bool, pointed: dict[str, Pointer]) -> None:
    """A naive check would wait for minutes."""
    with Silent(full=full) as nobody:
        pointed[part](nobody.port)
        assert_down(part, "timeout")
        assert_down(part, "timeout")


def test_dropped_packets_are_a_timeout_until_they_come_through(
    part: str, server: Server, pointed: dict[str, Pointer]
) -> None:
    """The waiting connection is used again: the kernel retransmits what was lost."""
    with Gate(server.port) as gate:
        pointed[part](gate.port)
        assert healthy()
        taken = gate.taken
        gate.drop()
        assert_down(part, "timeout")
        assert_down(part, "timeout")
        gate.restore()
        assert eventually(healthy)
        assert gate.taken == taken


def test_a_connection_that_never_answers_again_is_given_up_for_a_new_one(
    part: str, server: Server, pointed: dict[str, Pointer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a proxy that keeps a connection whose other end is gone: the kernel sees nothing wrong with it."""
    monkeypatch.setattr(databases, "CONNECTION_TIMEOUT", 1.2)
    with Gate(server.port) as gate:
        pointed[part](gate.port)
        assert healthy()
        taken = gate.taken
        gate.forget()
        assert ask()[0] == 503
        assert eventually(healthy)
        assert gate.taken == taken + 1


def test_a_wrong_password_is_distinguished_from_a_server_that_is_down(
    part: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(server, Postgres):
        monkeypatch.setitem(connections.settings["default"], "PASSWORD", "wrong")
        assert_down(part, "authentication")
        return
    with server.client() as client:
        client.config_set("requirepass", "another")
        try:
            assert_down(part, "authentication")
        finally:
            client.config_set("requirepass", "")
    assert healthy()


def test_a_database_that_takes_no_more_connections_refuses(migrated: Postgres) -> None:
    connection = migrated.connect()
    with connection.cursor() as cursor:
        cursor.execute("CREATE ROLE guest LOGIN PASSWORD 'guest' CONNECTION LIMIT 0")
    connections.settings["default"] |= {"USER": "guest", "PASSWORD": "guest"}
    try:
        assert_down("database", "refused")
    finally:
        connections.settings["default"]["USER"] = "app"
        with connection.cursor() as cursor:
            cursor.execute("DROP ROLE guest")
        connection.close()


def test_a_database_that_is_not_there_is_an_error_without_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of an exception may contain host names, user names and SQL."""
    monkeypatch.setitem(connections.settings["default"], "NAME", "secret_name")
    assert_down("database", "error")
    assert b"secret_name" not in Client().get("/health/").content


@contextmanager
def read_only(server: Postgres) -> Iterator[None]:
    """As a failover leaves the old primary where it is only told to take no more writes."""
    with closing(server.connect()) as connection, connection.cursor() as cursor:
        try:
            cursor.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            cursor.execute("SELECT pg_reload_conf()")
            yield
        finally:
            cursor.execute("SET default_transaction_read_only = off")
            cursor.execute("ALTER SYSTEM RESET default_transaction_read_only")
            cursor.execute("SELECT pg_reload_conf()")


@contextmanager
def standby(server: Postgres) -> Iterator[None]:
    server.stop()
    (server.folder / "data" / "standby.signal").touch()
    server.start()
    try:
        yield
    finally:
        with closing(server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_promote()")


@pytest.mark.parametrize("outage", [read_only, standby])
def test_a_database_that_refuses_writes_is_unhealthy_for_a_reason_of_its_own(
    migrated: Postgres, outage: Callable[[Postgres], AbstractContextManager[None]]
) -> None:
    """A standby, or an old primary after a failover, still answers SELECT 1."""
    assert healthy()
    with outage(migrated):
        assert eventually(lambda: ask()[0] == 503)  # a setting that is read anew reaches a connection a moment later
        assert ask()[1]["checks"] == {"database": "unhealthy: read-only", "cache": "healthy", "migrations": "healthy"}
    assert eventually(healthy)


def test_a_redis_replica_is_unhealthy(own_redis: Redis) -> None:
    assert healthy()
    with own_redis.client() as client:
        client.replicaof("127.0.0.1", "1")
        try:
            assert_down("cache", "read-only")
        finally:
            client.replicaof("NO", "ONE")
    assert healthy()


def test_a_database_whose_disk_is_full_is_unhealthy(migrated: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check's own backend may not write files above 16 kB, which to it is a full disk."""
    monkeypatch.setattr(checks, "SPACE_EVERY", 0.0)
    assert healthy()
    with closing(migrated.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'health'")
        for (pid,) in cursor.fetchall():  # by the server's own user, as no other may
            limit = ["prlimit", "--fsize=16384", "--pid", str(pid)]
            subprocess.run(limit, user=migrated.user, check=True)
        assert ask()[1]["checks"]["database"] == "unhealthy: disk full"
        assert ask()[1]["checks"]["database"] == "healthy", "on a connection without the limit"


def test_a_full_redis_is_unhealthy(own_redis: Redis) -> None:
    """Reads still work, and django-redis swallows the exception of the write."""
    assert healthy()
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)
        try:
            assert_down("cache", "error")
        finally:
            client.config_set("maxmemory", 0)
    assert healthy()


class Forgetful(LocMemCache):
    """Loses every write."""

    def set(self, *args: Any, **kwargs: Any) -> None:
        pass


class Stale(LocMemCache):
    """Keeps the first value for ever."""

    def set(self, key: Any, value: Any, *args: Any, **kwargs: Any) -> None:
        self.add("one", value)

    def get(self, key: Any, *args: Any, **kwargs: Any) -> Any:
        return super().get("one")


@pytest.mark.parametrize("backend", [Forgetful, Stale])
def test_a_cache_that_loses_writes_gives_a_wrong_answer(backend: type[LocMemCache], settings: Settings) -> None:
    """A check that writes without comparing what it reads would find the cache healthy."""
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.{backend.__name__}", "LOCATION": backend.__name__}}
    ask()
    assert_down("cache", "wrong answer")


def test_a_cache_in_the_process_is_checked_likewise(settings: Settings) -> None:
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    assert healthy()


def test_code_ahead_of_its_schema_is_not_ready_until_the_migration_ends(migrated: Postgres) -> None:
    """A new version whose migrations are pending must not get requests."""
    connection = migrated.connect()
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'accounts' AND name = '0001_initial'")
        for path in ("/health/", "/health/ready/"):
            status, body = ask(path)
            assert (status, body["checks"]["migrations"]) == (503, "unhealthy: pending migrations")
            assert body["checks"]["database"] == "healthy"
        assert ask("/health/live/")[0] == 200
        cursor.execute("INSERT INTO django_migrations VALUES ('accounts', '0001_initial')")
    connection.close()
    assert ask("/health/ready/")[0] == 200


def test_a_database_without_any_migration_is_not_ready(migrated: Postgres) -> None:
    connection = migrated.connect()
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE django_migrations RENAME TO elsewhere")
        try:
            assert ask("/health/ready/")[1]["checks"]["migrations"] == "unhealthy: pending migrations"
        finally:
            cursor.execute("ALTER TABLE elsewhere RENAME TO django_migrations")
    connection.close()
    assert ask("/health/ready/")[0] == 200


def test_code_behind_its_schema_is_ready(migrated: Postgres) -> None:
    """The old version serves on while the new one's migrations are already applied."""
    connection = migrated.connect()
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO django_migrations VALUES ('accounts', '9999_of_the_next_version')")
        assert ask("/health/ready/")[0] == 200
        cursor.execute("DELETE FROM django_migrations WHERE name = '9999_of_the_next_version'")
    connection.close()


def test_sqlite_is_checked_by_reading_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, django_db_blocker: DjangoDbBlocker
) -> None:
    file = tmp_path / "db.sqlite3"
    lite = {"ENGINE": "django.db.backends.sqlite3", "NAME": file, "OPTIONS": {}, "CONN_MAX_AGE": 0}
    monkeypatch.setitem(connections.settings, "default", connections.settings["default"] | lite)

    def said() -> list[str]:
        with django_db_blocker.unblock():
            found = [str(result) for result in runner.report(["database", "migrations"]).checks.values()]
        runner.stop()
        return found

    assert said() == ["healthy", "unhealthy: pending migrations"]
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE django_migrations (app text, name text)")
        rows = list(MigrationLoader(None).disk_migrations or ())
        database.executemany("INSERT INTO django_migrations VALUES (?, ?)", rows)
        database.commit()
    assert said() == ["healthy", "healthy"]
    file.write_bytes(b"this is no database" * 100)
    assert said() == ["unhealthy: error", "unhealthy: error"]


def test_liveness_makes_no_query_and_waits_for_nobody(migrated: Postgres, own_redis: Redis) -> None:
    """Not even while every worker thread of the checks is stuck."""
    with frozen(migrated), frozen(own_redis):
        status, body = ask()
        assert set(body["checks"].values()) == {"unhealthy: timeout"}
        for _ in range(20):
            assert ask("/health/live/", within=SLACK)[0] == 200
