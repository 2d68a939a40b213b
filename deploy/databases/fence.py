"""The fence: one number in each database that decides whether anybody may write there.

A trigger on every table asks it, for every role and every kind of write. What applies the other colour's changes fires
no such trigger: https://www.postgresql.org/docs/current/logical-replication-architecture.html.
"""

import time
from dataclasses import dataclass
from datetime import datetime

from psycopg2 import sql

from deploy.databases import statements
from deploy.databases.errors import DatabaseError
from deploy.databases.side import Side

TRIGGER_LOCK = 0.2  # seconds that writers of a table may wait for CREATE TRIGGER, which waits for those before them
PATIENCE = 60.0  # seconds in which a table's lock has to be granted
INSUFFICIENT_PRIVILEGE = "42501"
UNDEFINED = ("42P01", "3F000")  # a table, a schema


@dataclass(frozen=True)
class FenceState:
    """A database's fence and note. The fence is the truth; `phase` tells how far the attempt to switch has come.

    `phase` is active, standby, fencing or committing (it gives up the writes) or target (it takes them over).
    `deadline` is when the target stops accepting the commit.
    """

    writable: bool
    attempt: int
    phase: str
    deadline: datetime | None = None


def install(side: Side, *, writable: bool = False) -> None:
    """Creates the schema `bg`. A database that has one keeps its state, so it can be repeated.

    Install with `writable` what is being written to. Guards no table yet. Raises DatabaseError.
    """
    side.run(statements.SCHEMA)
    side.run(statements.START, ["active" if writable else "standby"])
    try:
        side.run(statements.EVENT_TRIGGER)
    except DatabaseError as error:
        if error.code != INSUFFICIENT_PRIVILEGE:  # only a superuser may: changed_tables() finds what it would prevent
            raise


def read(side: Side, *, timeout: float = 5.0) -> FenceState:
    """The fence of this moment. Raises DatabaseError, also if the database was not prepared."""
    try:
        rows = side.run(statements.READ_STATE, timeout=timeout)
    except DatabaseError as error:
        if error.code not in UNDEFINED:
            raise
        rows = []
    if not rows:
        raise DatabaseError(f"The {side.colour} database is not prepared. Run manage.py bluegreen prepare.")
    return FenceState(*rows[0])


def unguarded(side: Side) -> list[tuple[str, str]]:
    """The tables and partitions, with their schemas, that anybody could write to despite the fence."""
    return [(schema, table) for schema, table in side.run(statements.UNGUARDED)]


def guard_tables(side: Side, *, patience: float = PATIENCE) -> list[tuple[str, str]]:
    """Guards each table that is not. Returns them. Writers wait for 0.2 s at most; a busy table is tried again.

    Raises DatabaseError if a table's lock was not granted within `patience` seconds.
    """
    found = unguarded(side)
    for schema, table in found:
        _repeat(side, statements.CREATE_GUARD, schema, table, patience)
    return found


def unguard_tables(side: Side, *, patience: float = PATIENCE) -> None:
    """Takes away the guards; the fence stays for those who ask it. Raises what guard_tables() raises."""
    for schema, table in side.run(statements.GUARDED):
        _repeat(side, statements.DROP_GUARD, schema, table, patience)


def remove(side: Side, *, patience: float = PATIENCE) -> None:
    """Takes away the guards and the schema `bg`: nothing stops writes any more. Raises what guard_tables() raises."""
    unguard_tables(side, patience=patience)
    side.run(statements.DROP_SCHEMA)


def refuses_ddl(side: Side) -> bool:
    """Whether the database itself refuses DDL behind the fence, which only a superuser can set up."""
    return bool(side.value(statements.HAS_EVENT_TRIGGER))


def remember_tables(side: Side) -> None:
    """Notes what the tables look like, at the end of preparation."""
    side.run(statements.REMEMBER_CATALOG)


def changed_tables(side: Side) -> list[str]:
    """The tables, as schema.table, that were created, altered or dropped since remember_tables()."""
    return [table for (table,) in side.run(statements.CHANGED_TABLES)]


def _repeat(side: Side, statement: str, schema: str, table: str, patience: float) -> None:
    """Runs it with a short lock_timeout, again and again: whoever comes after a waiting lock waits as well."""
    until = time.monotonic() + patience
    named = sql.SQL(statement).format(
        timeout=sql.Literal(f"{TRIGGER_LOCK * 1000:.0f}ms"), table=sql.Identifier(schema, table)
    )
    while True:
        try:
            side.run(named)
            return
        except DatabaseError as error:
            if error.code != statements.LOCK_TIMEOUT:
                raise
            if time.monotonic() > until:
                raise DatabaseError(
                    f"Table {schema}.{table} of the {side.colour} database was locked for {patience:.0f} s. End the "
                    "long transactions that use it, and try again.",
                    code=error.code,
                ) from None
        time.sleep(TRIGGER_LOCK)  # those who waited go first
