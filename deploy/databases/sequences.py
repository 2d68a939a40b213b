"""Sequences, which logical replication does not carry: the other side's are moved past those in use.

https://www.postgresql.org/docs/current/logical-replication-restrictions.html
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from psycopg2 import sql

from deploy.databases import statements
from deploy.databases.errors import DatabaseError
from deploy.databases.side import Session


@dataclass(frozen=True)
class Sequence:
    """A sequence and how far it has come. `called` is False as long as `last` is the value that comes next."""

    oid: int
    schema: str
    name: str
    increment: int
    low: int
    high: int
    last: int
    called: bool

    @property
    def used(self) -> int:
        """The last value that was handed out; before the first, the one that would come before it."""
        return self.last if self.called else self.last - self.increment

    def is_behind(self, value: int) -> bool:
        """Whether it has yet to hand out `value`."""
        return self.used < value if self.increment > 0 else self.used > value

    def ahead(self, gap: int) -> int:
        """The value `gap` calls further on, or after a thousandth of the calls that are left, if that is less."""
        left = (self.high - self.used if self.increment > 0 else self.low - self.used) // self.increment
        return self.used + min(gap, left // 1000) * self.increment


Sequences = dict[tuple[str, str], Sequence]  # by schema and name


def read(session: Session) -> Sequences:
    """All sequences but temporary ones and the fence. Raises DatabaseError."""
    found = {
        (schema, name): Sequence(oid, schema, name, increment, low, high, last or 0, last is not None)
        for oid, schema, name, increment, low, high, last in session.run(statements.POSITIONS)
    }
    return updated(found, session.run(reading(found)))


def reading(known: Sequences) -> sql.Composable:
    """The statement that reads how far they have come, for updated().

    One look-up serves all that have been called; PostgreSQL tells of the others only when asked one by one.
    """
    called = [each.oid for each in known.values() if each.called]
    parts: list[sql.Composable] = [sql.SQL(statements.LAST_VALUES).format(oids=sql.Literal(called))]
    parts += [
        sql.SQL(statements.LAST_VALUE).format(oid=sql.Literal(each.oid), name=sql.Identifier(each.schema, each.name))
        for each in known.values()
        if not each.called
    ]
    return sql.SQL(" union all ").join(parts)


def updated(known: Sequences, rows: Iterable[tuple[int, int, bool] | list[int]]) -> Sequences:
    """`known` as of the `rows` that reading() gave: oid, last value, whether it has been called."""
    values = {oid: (last, bool(called)) for oid, last, called in rows}
    return {key: replace(each, last=values[each.oid][0], called=values[each.oid][1]) for key, each in known.items()}


def moves(source: Sequences, target: Sequences, gap: int, *, unused: bool) -> list[tuple[Sequence, int]]:
    """The target's sequences that lie less than `gap` ahead of the source's, with the values that they need.

    `unused` tells whether to move also those that the source has never called. Sequences of one side only do not count.
    Raises DatabaseError if a value does not fit.
    """
    found = []
    for key in source.keys() & target.keys():
        theirs, ours = source[key], target[key]
        value = theirs.ahead(gap)
        if (theirs.called or unused) and ours.is_behind(value):
            if not ours.low <= value <= ours.high:
                raise DatabaseError(
                    f"Sequence {ours.schema}.{ours.name} is at {value} and must not go past {ours.high} in the other "
                    "database. Give the column and its sequence the type bigint there."
                )
            found.append((ours, value))
    return found


def calls(found: Iterable[tuple[Sequence, int]]) -> list[sql.Composable]:
    """The calls of setval for moves()."""
    return [
        sql.SQL(statements.SET_SEQUENCE).format(
            oid=sql.Literal(sequence.oid),
            furthest=sql.SQL("greatest" if sequence.increment > 0 else "least"),
            value=sql.Literal(value),
            name=sql.Identifier(sequence.schema, sequence.name),
        )
        for sequence, value in found
    ]


def advance(source: Session, target: Session, gap: int, *, unused: bool = False) -> None:
    """Moves the target's sequences `gap` calls ahead of the source's, unless they are. Raises DatabaseError."""
    if found := calls(moves(read(source), read(target), gap, unused=unused)):
        target.run(sql.SQL("select {}").format(sql.SQL(", ").join(found)))
