"""Django's backend for a database per colour: views stay as they are while the writes move to the other database.

The fence in each database says whether it takes writes (deploy/databases/fence.py). A transaction enters with its first
statement, in one message with it, and so holds the lock that a switch waits for; outside a transaction, the guards of
the tables check each statement. Whatever the fence refuses has had no effect. So it is repeated in the other colour's
database, over a connection that each thread keeps open, or waits until one of the two takes writes again.

Reads move at the first query of the next request: the health check of a persistent connection, which Django makes
there anyway, reads the fence as well.

A release in its trial, before the switch, is the exception. It reads the database that was prepared for it, as the
other one lacks its columns; what it writes goes to the other one. So it is until the link between the two ends.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain
from typing import Any

import psycopg2
from django.core.signals import request_finished
from django.db import DEFAULT_DB_ALIAS, DatabaseError, OperationalError, connections
from django.db.backends.utils import CursorDebugWrapper, CursorWrapper
from psycopg2 import errors

from backstagetest1.postgresql import base
from backstagetest1.postgresql.base import within
from deploy.databases import statements

logger = logging.getLogger(__name__)

LOOK = 3.0  # seconds for a look at a fence, connecting included; a frozen server must not hold whoever could leave it
PAUSE = 0.01  # seconds between two attempts while no colour takes writes
RETRY = 10.0  # seconds between two attempts to keep a connection to a colour that could not be reached

# Read-only is what the health check of one database asks for (backstagetest1/postgresql).
GUARDED = "select current_setting('transaction_read_only'), last_value, null from bg.fence"
TRIAL = f"select current_setting('transaction_read_only'), last_value, ({statements.PREPARED}) from bg.fence"
BARE = "select current_setting('transaction_read_only'), to_regclass('bg.fence') is not null, null"
NO_FENCE = (errors.UndefinedTable, errors.InvalidSchemaName)
# It has to come before the snapshot that any other statement takes, so before entering.
FIRST = re.compile(r"\s*set\s+transaction\b", re.IGNORECASE)
# What may commit on its own before the fence refuses it, and must not be repeated.
COMMITS = re.compile(r"\s*(call|do)\b", re.IGNORECASE)

_writable: dict[str, str] = {}  # by alias: the colour that took writes when this process last looked
_retry_at: dict[tuple[str, str], float] = {}  # by alias and colour: when to try to connect again (time.monotonic())


class Fenced(OperationalError):
    """No colour's database took the write in time. The pages and the API answer 503 with Retry-After."""


Base: Any = base.DatabaseWrapper  # of which the stubs know too little


class DatabaseWrapper(Base):  # type: ignore[misc]
    """A connection to the colour that takes writes, and one in standby to the other.

    `settings_dict` is that of Django, with `COLOURS`, what differs by colour, `HOLD_LIMIT`, in seconds, and `OWN`, the
    colour that was prepared for this release, or nothing.
    """

    fence_query = statements.READ_FENCE

    alias: str
    connection: Any
    settings_dict: dict[str, Any]

    def __init__(self, settings_dict: dict[str, Any], alias: str = DEFAULT_DB_ALIAS) -> None:
        self.colours: dict[str, dict[str, Any]] = {
            colour: settings_dict | own for colour, own in settings_dict["COLOURS"].items()
        }
        self.own: str = settings_dict["OWN"]
        self.colour = _writable.get(alias) or next(iter(self.colours))
        super().__init__(self.colours[self.colour], alias)
        self.standby: Any = None  # a psycopg2 connection to the other colour, in autocommit mode
        self.guarded = False  # whether the database has a fence
        self.entered = False  # whether the current transaction has
        self.first: list[str] = []  # its SET TRANSACTION statements

    @property
    def other(self) -> str:
        (colour,) = self.colours.keys() - {self.colour}
        return colour

    # Connecting

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Connects to the colour that takes writes; if none does, to one that answers. Raises psycopg2.Error."""
        found: dict[str, tuple[Any, bool | None]] = {}
        failure: psycopg2.Error | None = None
        first = _writable.get(self.alias, self.colour)
        for colour in sorted(self.colours, key=lambda each: each != first):
            try:
                connection = self._open(colour)
                found[colour] = connection, _fence(connection)
            except psycopg2.Error as error:
                failure = failure or error
                continue
            if found[colour][1]:
                break
        colour = self._choose({colour: fence for colour, (_, fence) in found.items()}, found, failure)
        if self.own not in ("", colour) and found[colour][1] is not None and _prepared(found[colour][0]) == self.own:
            with suppress(psycopg2.Error):  # if it does not answer, the other one is what there is
                found[self.own] = found.get(self.own) or (self._open(self.own), False)
                colour = self.own
        connection, fence = found.pop(colour)
        self._use(colour, guarded=fence is not None)
        if found:
            ((self.standby, _),) = found.values()
        return connection

    def _choose(
        self, fences: dict[str, bool | None], found: dict[str, tuple[Any, Any]], failure: psycopg2.Error | None
    ) -> str:
        """Returns the colour to use, by what each fence says: True, False, or None for no fence. Raises psycopg2.Error.

        Before it is prepared, a database has no fence. It is used if the other one, which has to answer, is fenced or
        empty: two databases must not both be written to.
        """
        if writable := [colour for colour, fence in fences.items() if fence]:
            return writable[0]
        bare = [colour for colour, fence in fences.items() if fence is None]
        if bare and failure:
            raise failure
        used = [colour for colour in bare if _has_tables(found[colour][0])]
        if len(used) > 1:
            raise psycopg2.OperationalError(
                "Neither database has a fence, and both have tables. Run manage.py bluegreen prepare, or set "
                "DATABASE_URL alone."
            )
        if used:
            return used[0]
        if fences and (len(bare) < len(fences)):
            return next(colour for colour, fence in fences.items() if fence is False)
        if bare:  # both are empty and wait for their first migration
            return next(iter(self.colours))
        raise failure or psycopg2.OperationalError("No database answers")

    def parameters_by_colour(self) -> dict[str, dict[str, Any]]:
        """Returns psycopg2.connect()'s parameters for each colour's database."""
        return {colour: self._parameters(colour) for colour in self.colours}

    def _parameters(self, colour: str) -> dict[str, Any]:
        current, self.settings_dict = self.settings_dict, self.colours[colour]
        try:
            return dict(self.get_connection_params())
        finally:
            self.settings_dict = current

    def _open(self, colour: str) -> Any:
        """Returns a new connection to the colour's database, as Django sets it up, in autocommit mode."""
        connection = super().get_new_connection(self._parameters(colour))
        connection.autocommit = True
        self._configure_connection(connection)
        return connection

    def _use(self, colour: str, *, guarded: bool) -> None:
        if guarded and _writable.get(self.alias) != colour:
            logger.info("Using the %s database", colour)
            _writable[self.alias] = colour
        self.colour, self.settings_dict, self.guarded = colour, self.colours[colour], guarded

    def _close(self) -> None:
        self._drop_standby()
        super()._close()

    def _drop_standby(self) -> None:
        connection, self.standby = self.standby, None
        if connection is not None:
            connection.close()

    def is_usable(self) -> bool:
        """Whether the server responds and accepts writes, as with one database. Moves if the other colour takes them.

        Django asks before the first query of a request.
        """
        if self.connection is None:
            return False
        look = BARE if not self.guarded else TRIAL if self.own else GUARDED
        try:
            with within(LOOK), self.connection.cursor() as cursor:
                cursor.execute(look)
                read_only, fence, prepared = cursor.fetchone()
        except psycopg2.Error:  # also if the fence has gone: connecting chooses anew
            return self.guarded and self._leave()
        if read_only != "off":
            return False
        if not self.guarded:
            return not fence  # it has been prepared: connecting reads the fence
        if not self.autocommit:
            return True
        if self.own and prepared == self.own:
            if self.colour != self.own and self._other_takes_writes() is not None:
                self._move()
        elif fence != 1 and self._other_takes_writes():
            self._move()
        return True

    def _leave(self) -> bool:
        """Moves away from a database that does not answer, if the other colour takes writes. Returns whether it did."""
        known_down = self.standby is None and time.monotonic() < _retry_at.get((self.alias, self.other), 0)
        if not self.autocommit or known_down or not self._other_takes_writes():
            return False
        self.connection.close()
        self._move()
        return True

    def keep_standby(self) -> None:
        """Connects to the other colour, so that moving there takes no time. Called after a response was sent."""
        key = self.alias, self.other
        idle = self.connection is not None and self.autocommit and self.guarded and self.standby is None
        if idle and time.monotonic() >= _retry_at.get(key, 0):
            try:
                with within(LOOK):
                    self.standby = self._open(self.other)
            except psycopg2.Error:
                _retry_at[key] = time.monotonic() + RETRY

    # Moving

    def _other_takes_writes(self) -> bool | None:
        """Whether the other colour's fence is open; None if it does not answer. Connects to it if need be, and never
        for longer than LOOK.
        """
        for connected in (self.standby is not None, False):
            try:
                with within(LOOK):
                    if self.standby is None:
                        self.standby = self._open(self.other)
                    return bool(_fence(self.standby))
            except psycopg2.Error:  # a connection that was kept may have been cut since
                self._drop_standby()
                if not connected:
                    break
        return None

    def _move(self) -> None:
        """Exchanges the two connections. Neither has a transaction."""
        here, there = self.connection, self.standby
        there.autocommit = self.autocommit
        self.connection, self.standby = there, here
        if here.closed:
            self._drop_standby()
        else:
            here.autocommit = True
        self._use(self.other, guarded=True)

    def find_writable(self, until: float, error: DatabaseError) -> None:
        """Moves to the colour that takes writes, or waits for a moment. Raises Fenced after `until` (time.monotonic()).

        `error` is the fence's refusal, which has ended the transaction.
        """
        self.errors_occurred = False  # which the error has set; the connection is well
        if not self.autocommit:
            try:
                self.connection.rollback()
            except psycopg2.Error:
                self.connection.close()
        if self._other_takes_writes():
            self._move()
        elif time.monotonic() < until:
            time.sleep(PAUSE)
        else:
            limit = self.settings_dict["HOLD_LIMIT"]
            raise Fenced(f"Neither colour's database took writes for {limit:g} s") from error

    # Transactions

    @property
    def entering(self) -> bool:
        """Whether the next statement is the first of its transaction."""
        return self.guarded and not self.autocommit and not self.entered

    def _set_autocommit(self, autocommit: bool) -> None:
        super()._set_autocommit(autocommit)
        self._forget_transaction()

    def _commit(self) -> None:
        super()._commit()
        self._forget_transaction()

    def _rollback(self) -> None:
        super()._rollback()
        self._forget_transaction()

    def _forget_transaction(self) -> None:
        self.entered, self.first = False, []

    def make_cursor(self, cursor: Any) -> CursorWrapper:
        return Cursor(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> CursorDebugWrapper:
        return DebugCursor(cursor, self)


class Cursor(CursorWrapper):
    """Django's cursor, which enters with a transaction's first statement and repeats what the fence refused."""

    db: DatabaseWrapper
    cursor: Any  # psycopg2's, of the connection that the last statement used

    def _execute(self, sql: Any, params: Any, *context: Any) -> Any:
        execute: Callable[..., Any] = super()._execute  # type: ignore[misc]
        if self.db.entering and isinstance(sql, str) and FIRST.match(sql):
            self._follow()
            self.db.first.append(sql)
            return execute(sql, params, *context)
        if self.db.entering and not (isinstance(sql, str) and self.cursor.name is None):
            self.enter()

        def attempt() -> Any:
            return execute(f"{statements.ENTER}; {sql}" if self.db.entering else sql, params, *context)

        return self._hold(attempt, repeatable=not (isinstance(sql, str) and COMMITS.match(sql)))

    def _executemany(self, sql: Any, param_list: Iterable[Any], *context: Any) -> Any:
        execute: Callable[..., Any] = super()._executemany  # type: ignore[misc]
        if self.db.entering:
            self.enter()
        left = iter(param_list)
        latest: list[Any] = []

        def taken() -> Iterable[Any]:
            for params in left:
                latest[:] = [params]
                yield params

        # In autocommit mode each row is a transaction of its own: those before the refused one are there.
        return self._hold(lambda: execute(sql, chain(tuple(latest), taken()), *context))

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        if self.db.entering:
            self.enter()
        call: Callable[..., Any] = super().callproc
        return self._hold(lambda: call(*args, **kwargs))

    def enter(self) -> None:
        """Enters by itself, for a statement to which nothing can be added."""
        with self.db.cursor() as cursor:
            cursor._execute("", None)

    def _hold(self, attempt: Callable[[], Any], *, repeatable: bool = True) -> Any:
        """Returns what `attempt` does in the colour that takes writes. Raises Fenced."""
        until: float | None = None
        while True:
            self._follow()
            entering = self.db.entering
            try:
                result = attempt()
            except DatabaseError as error:
                if getattr(error.__cause__, "pgcode", None) != statements.FENCED:
                    raise
                if not (repeatable and (entering or self.db.autocommit)):
                    raise Fenced("The other colour's database took over in the middle of a transaction") from error
                if until is None:
                    until = time.monotonic() + self.db.settings_dict["HOLD_LIMIT"]
                self.db.find_writable(until, error)
                self._follow()
                with self.db.wrap_database_errors:
                    for statement in self.db.first:
                        self.cursor.execute(statement)
            else:
                self.db.entered = not self.db.autocommit
                return result

    def _follow(self) -> None:
        """Goes on with the connection in use: another cursor may have moved since this one was made."""
        if self.cursor.connection is not self.db.connection:
            self.cursor = self.db.create_cursor(self.cursor.name)


class DebugCursor(Cursor, CursorDebugWrapper):
    """The same, which also records the statements for connection.queries."""


def keep_standbys(**_: Any) -> None:
    """Receives Django's request_finished."""
    for connection in connections.all(initialized_only=True):
        if isinstance(connection, DatabaseWrapper):
            connection.keep_standby()


request_finished.connect(keep_standbys)


def _fence(connection: Any) -> bool | None:
    """Whether the database takes writes; None if it has no fence. Raises psycopg2.Error."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(statements.READ_FENCE)
            return bool(cursor.fetchone() == (1,))
    except NO_FENCE:
        return None


def _prepared(connection: Any) -> str | None:
    """The colour that was prepared for a release and is linked; None if there is none. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(statements.PREPARED)
        row = cursor.fetchone()
        return str(row[0]) if row else None


def _has_tables(connection: Any) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("select to_regclass('django_migrations') is not null")
        return bool(cursor.fetchone()[0])
