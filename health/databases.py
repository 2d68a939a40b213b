"""The checks' own connections to the default database, apart from those of the pages."""

import select
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg2
from django.db import DEFAULT_DB_ALIAS, Error, connections
from psycopg2.extensions import POLL_OK, POLL_READ

from health.reasons import Reason, Unhealthy

# Seconds after which a check gives up its own connection, so that the next run makes a new one. Far above the deadline:
# a frozen server answers on the same connection as soon as it thaws, and does not get a new one from every probe.
CONNECTION_TIMEOUT = 5.0
SHUT_AFTER = 5.0  # seconds without a colour that takes writes after which that is no switch, but a fault


class PostgresProbe:
    """A connection to PostgreSQL of which no step blocks for longer than CONNECTION_TIMEOUT.

    libpq's own timeouts do not bound a query on an established connection to a frozen server: its kernel acknowledges,
    so tcp_user_timeout sees nothing wrong, and statement_timeout is enforced by the frozen server. So the connection is
    asynchronous, and the waiting is done here.
    https://www.psycopg.org/docs/advanced.html#asynchronous-support
    """

    colour = ""
    query = "SHOW transaction_read_only"
    space_query = "SELECT count(*) FROM generate_series(1, 10000)"  # exceeds work_mem, so it needs a temporary file

    def __init__(self, parameters: dict[str, Any]) -> None:
        """`parameters` are psycopg2.connect()'s."""
        self.parameters = {"fallback_application_name": "health"} | parameters | {"async_": True}
        self.parameters["options"] = f"{parameters.get('options', '')} -c work_mem=64kB".strip()
        self.connection: Any = None

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Returns the rows of a query, connecting first if need be. Raises psycopg2.Error, TimeoutError."""
        until = time.monotonic() + CONNECTION_TIMEOUT
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

    def each(self, sql: str) -> Iterator[list[tuple[Any, ...]]]:
        """Yields the rows of a query in each database that the app may use. Raises what rows() raises."""
        yield self.rows(sql)

    def fetch(self, sql: str, until: float) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            self.wait(until)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def wait(self, until: float) -> None:
        """Waits for the connection's current operation until `until` (time.monotonic()). Raises TimeoutError."""
        while (state := self.connection.poll()) != POLL_OK:
            poll = select.poll()  # its socket may change while it tries one address after the other
            poll.register(self.connection.fileno(), select.POLLIN if state == POLL_READ else select.POLLOUT)
            if not poll.poll(max(0, until - time.monotonic()) * 1000):
                raise TimeoutError(f"PostgreSQL timed out after {CONNECTION_TIMEOUT:g} s")

    def close(self) -> None:
        if self.connection:
            self.connection.close()
            self.connection = None


class ColoursProbe:
    """The same for a database per colour: the answers are those of the colour that takes writes."""

    query, space_query = PostgresProbe.query, PostgresProbe.space_query

    def __init__(self, parameters: dict[str, dict[str, Any]], fence: str) -> None:
        """`parameters` are psycopg2.connect()'s by colour, and `fence` is the query that returns 1 where writes go."""
        self.probes = {colour: PostgresProbe(each) for colour, each in parameters.items()}
        self.fence = fence
        self.colour = next(iter(self.probes))
        self.open_at = time.monotonic()  # when a colour last took writes

    @property
    def connection(self) -> Any:
        return self.probes[self.colour].connection

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Returns the rows of a query. Raises psycopg2.Error, TimeoutError, Unhealthy.

        The other colour is asked only if the one of the last time takes no writes. What that one raised counts then.
        """
        failure: Exception | None = None
        for colour in sorted(self.probes, key=lambda each: each != self.colour):
            try:
                if self.takes_writes(self.probes[colour]):
                    self.colour, self.open_at = colour, time.monotonic()
                    return self.probes[colour].rows(sql)
            except (psycopg2.Error, TimeoutError) as error:
                failure = failure or error
        if failure:
            raise failure
        if time.monotonic() - self.open_at > SHUT_AFTER:
            raise Unhealthy(Reason.READ_ONLY, "neither colour's database takes writes")
        return self.probes[self.colour].rows(sql)

    def each(self, sql: str) -> Iterator[list[tuple[Any, ...]]]:
        """Yields the rows of a query, first those of the colour that takes writes. Raises what rows() raises."""
        yield self.rows(sql)
        for colour, probe in self.probes.items():
            if colour != self.colour:
                with suppress(psycopg2.Error, TimeoutError):
                    yield probe.rows(sql)

    def takes_writes(self, probe: PostgresProbe) -> bool:
        """Whether the fence is open. Before it is prepared, the database that has tables has none."""
        try:
            return probe.rows(self.fence) == [(1,)]
        except psycopg2.Error as error:
            if not missing_table(error):
                raise
        return probe.rows("SELECT to_regclass('django_migrations') IS NOT NULL") == [(True,)]

    def close(self) -> None:
        for probe in self.probes.values():
            probe.close()


class DjangoProbe:
    """The same for any other database, as Django connects to it. Whether it accepts writes is not known."""

    colour = space_query = ""

    def __init__(self) -> None:
        self.django = connections.create_connection(DEFAULT_DB_ALIAS)
        # SQLite reads its file only for a query that needs it.
        sqlite = self.django.vendor == "sqlite"
        self.query = "SELECT 'off' FROM (SELECT count(*) FROM sqlite_master)" if sqlite else "SELECT 'off'"

    @property
    def connection(self) -> Any:
        return self.django.connection

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Returns the rows of a query. Raises django.db.Error."""
        try:
            with self.django.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall())
        except Error:
            self.close()
            raise

    def each(self, sql: str) -> Iterator[list[tuple[Any, ...]]]:
        """Yields the rows of a query. Raises django.db.Error."""
        yield self.rows(sql)

    def close(self) -> None:
        self.django.close()


def database_probe() -> PostgresProbe | ColoursProbe | DjangoProbe:
    """Returns a new connection to the default database, which is opened when it is first used."""
    wrapper: Any = connections[DEFAULT_DB_ALIAS]
    if wrapper.vendor != "postgresql":
        return DjangoProbe()
    if by_colour := getattr(wrapper, "parameters_by_colour", None):
        return ColoursProbe({colour: plain(each) for colour, each in by_colour().items()}, wrapper.fence_query)
    return PostgresProbe(plain(wrapper.get_connection_params()))


def plain(parameters: dict[str, Any]) -> dict[str, Any]:
    """Returns what psycopg2.connect() needs for a connection that Django does not use."""
    return {name: value for name, value in parameters.items() if name != "cursor_factory"}


def missing_table(error: BaseException) -> bool:
    """Whether `error` means that a table does not exist (SQLSTATE 42P01, or SQLite's message)."""
    cause = error.__cause__ or error
    return getattr(cause, "pgcode", None) == "42P01" or str(cause).startswith("no such table")
