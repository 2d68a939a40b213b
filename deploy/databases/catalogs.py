"""What a database's catalogs say about its schema, as frozen values that can be compared, noted and fingerprinted."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from deploy.databases import statements
from deploy.databases.side import Side


@dataclass(frozen=True)
class Column:
    """A column. `default` is SQL; `missing` is what ADD COLUMN gave the rows that were there, as text."""

    name: str
    number: int  # attnum: kept by a rename, never used again
    type: str  # as format_type() writes it, with its schema unless that is pg_catalog
    not_null: bool
    default: str | None
    identity: bool
    generated: bool
    collation: str
    missing: str | None

    @property
    def constant(self) -> bool:
        """Whether every row that does not carry the column gets the same value (null included)."""
        return not (self.identity or self.generated or any(word in (self.default or "") for word in VOLATILE))

    @property
    def fillable(self) -> bool:
        """Whether a row that does not carry the column can be inserted."""
        return not self.not_null or self.default is not None or self.identity or self.generated


# A default that calls one of these differs from row to row.
VOLATILE = ("nextval(", "uuid", "random(", "clock_timestamp(")


@dataclass(frozen=True)
class Index:
    """An index. Two with the same `definition` (all but the names) do the same."""

    name: str
    columns: tuple[str, ...]  # without expressions
    definition: str
    unique: bool  # or an exclusion constraint's
    immediate: bool  # False if the constraint is deferrable
    primary: bool
    identity: bool  # chosen as the replica identity
    constraint: bool  # belongs to a constraint of the same name
    expressions: bool


@dataclass(frozen=True)
class Check:
    """A CHECK constraint."""

    name: str
    definition: str


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key of the table to `parent`, (schema, name)."""

    name: str
    columns: tuple[str, ...]
    parent: tuple[str, str]
    parent_columns: tuple[str, ...]
    validated: bool


@dataclass(frozen=True)
class Trigger:
    """A trigger that is not PostgreSQL's own. `events` are the bits of pg_trigger.tgtype."""

    name: str
    function: str  # with its schema
    enabled: str  # O: not while changes are applied; A: always; R: only then; D: never
    events: int


@dataclass(frozen=True)
class Table:
    """A table or a partitioned table with all that belongs to it."""

    schema: str
    name: str
    oid: int
    partitioned: bool
    parent: tuple[str, str] | None  # of which it is a partition
    unlogged: bool
    identity: str  # pg_class.relreplident: d (primary key), i (an index), f (all columns), n (nothing)
    forced_row_security: bool
    columns: tuple[Column, ...]
    indexes: tuple[Index, ...]
    checks: tuple[Check, ...]
    foreign_keys: tuple[ForeignKey, ...]
    triggers: tuple[Trigger, ...]

    @property
    def key(self) -> tuple[str, str]:
        return self.schema, self.name

    @property
    def label(self) -> str:
        return label(self.key)

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)

    @property
    def identity_columns(self) -> frozenset[str]:
        """The columns by which a replicated UPDATE or DELETE finds its row; empty if there are none."""
        if self.identity == "f":
            return frozenset(column.name for column in self.columns)
        for index in self.indexes:
            if index.primary if self.identity == "d" else index.identity and self.identity == "i":
                return frozenset(index.columns)
        return frozenset()

    @property
    def guarded(self) -> bool:
        """Whether triggers that perform bg.guard() stop every INSERT, UPDATE, DELETE and TRUNCATE."""
        events = 0
        for trigger in self.triggers:
            if trigger.function == "bg.guard" and trigger.enabled == "O" and not trigger.events & ROW:
                events |= trigger.events
        return events & GUARDED == GUARDED


ROW, GUARDED = 1, 4 | 8 | 16 | 32  # tgtype: for each row; INSERT, DELETE, UPDATE, TRUNCATE


@dataclass(frozen=True)
class Sequence:
    """A sequence. `last` is None until it is first called."""

    schema: str
    name: str
    increment: int
    lowest: int
    highest: int
    cycles: bool
    last: int | None
    owner: tuple[str, str, str] | None  # schema, table and column

    @property
    def key(self) -> tuple[str, str]:
        return self.schema, self.name

    @property
    def label(self) -> str:
        return label(self.key)


@dataclass(frozen=True)
class Type:
    """An enum with its labels, or a domain with what it stands for."""

    labels: tuple[str, ...]
    base: str
    checks: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """How a publication sends a table; `columns` without the generated ones."""

    publication: str
    columns: tuple[str, ...]
    filtered: bool
    complete: bool  # INSERT, UPDATE, DELETE and TRUNCATE
    via_root: bool


@dataclass(frozen=True)
class Catalog:
    """A database's schema, without PostgreSQL's own, that of extensions, and `bg`."""

    version: int  # server_version_num
    encoding: str
    large_objects: bool
    extensions: tuple[str, ...]
    unpopulated: tuple[tuple[str, str], ...]  # materialized views that were never refreshed
    tables: Mapping[tuple[str, str], Table]
    sequences: Mapping[tuple[str, str], Sequence]
    types: Mapping[str, Type]
    published: Mapping[tuple[str, str], tuple[Published, ...]]  # by the publications bg_*

    @property
    def fingerprint(self) -> str:
        """A digest of all of the schema, the same until DDL changes it; the sequences' values are no part of it."""
        tables = sorted(self.tables.values(), key=lambda table: table.key)
        sequences = [
            (*key, each.increment, each.lowest, each.highest, each.cycles) for key, each in self.sequences.items()
        ]
        text = repr((tables, sorted(sequences), sorted(self.types.items()), self.extensions))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Notes:
    """The oids of the tables and the attnums of their columns before a migration, to recognise what it renamed.

    They belong to the database that is migrated: one that was restored from a dump has oids and attnums of its own.
    """

    tables: Mapping[int, tuple[str, str]]
    columns: Mapping[tuple[int, int], str]

    def to_json(self) -> str:
        """The notes as JSON, to be kept in the database that they are of."""
        return json.dumps(
            [
                [oid, *name, {n: c for (o, n), c in self.columns.items() if o == oid}]
                for oid, name in self.tables.items()
            ]
        )

    @classmethod
    def from_json(cls, text: str) -> "Notes":
        """The notes that to_json() wrote."""
        tables = json.loads(text)
        return cls(
            {oid: (schema, name) for oid, schema, name, _ in tables},
            {(oid, int(number)): column for oid, _, _, columns in tables for number, column in columns.items()},
        )


def note(catalog: Catalog) -> Notes:
    """What to take down of the target's catalog right before it is migrated."""
    return Notes(
        {table.oid: table.key for table in catalog.tables.values()},
        {(table.oid, each.number): each.name for table in catalog.tables.values() for each in table.columns},
    )


def label(key: tuple[str, str]) -> str:
    """The name of a table or sequence as people know it: with its schema unless that is `public`."""
    return key[1] if key[0] == "public" else ".".join(key)


def read(side: Side) -> Catalog:
    """Reads the catalogs of one side. Raises DatabaseError."""
    ((version, encoding, large_objects, extensions),) = side.run(statements.DATABASE)
    unpopulated = tuple((schema, name) for schema, name in side.run(statements.UNPOPULATED))
    columns = gathered(side.run(statements.COLUMNS), lambda row: Column(*row))
    indexes = gathered(side.run(statements.INDEXES), lambda row: Index(row[0], tuple(row[1]), alike(row[2]), *row[3:]))
    checks = gathered(side.run(statements.CHECKS), lambda row: Check(row[0], alike(row[1])))
    foreign_keys = gathered(
        side.run(statements.FOREIGN_KEYS),
        lambda row: ForeignKey(row[0], tuple(row[1]), (row[2], row[3]), tuple(row[4]), row[5]),
    )
    triggers = gathered(side.run(statements.TRIGGERS), lambda row: Trigger(*row))
    tables = [
        Table(
            schema,
            name,
            oid,
            partitioned,
            (parent_schema, parent) if parent else None,
            unlogged,
            identity,
            forced,
            columns.get(oid, ()),
            indexes.get(oid, ()),
            checks.get(oid, ()),
            foreign_keys.get(oid, ()),
            triggers.get(oid, ()),
        )
        for oid, schema, name, partitioned, parent_schema, parent, unlogged, identity, forced in side.run(
            statements.TABLES
        )
    ]
    sequences = [
        Sequence(
            schema, name, increment, lowest, highest, cycles, last, (owner_schema, owner, column) if owner else None
        )
        for schema, name, increment, lowest, highest, cycles, last, owner_schema, owner, column in side.run(
            statements.SEQUENCES
        )
    ]
    published: dict[tuple[str, str], list[Published]] = {}
    for schema, name, publication, names, filtered, complete, via_root in side.run(statements.PUBLISHED):
        way = Published(publication, tuple(names), filtered, complete, via_root)
        published.setdefault((schema, name), []).append(way)
    return Catalog(
        version,
        encoding,
        large_objects,
        tuple(extensions),
        unpopulated,
        {table.key: table for table in tables},
        {sequence.key: sequence for sequence in sequences},
        {name: Type(tuple(labels), base, tuple(rules)) for name, labels, base, rules in side.run(statements.TYPES)},
        {key: tuple(ways) for key, ways in published.items()},
    )


CAST = re.compile(r"::(?:text|character varying)(?:\(\d+\))?(?:\[\])?")


def alike(definition: str) -> str:
    """A definition without its casts between kinds of text, and the parentheses around one word and around others.

    PostgreSQL writes `status IN ('a', 'b')` as ANY ((ARRAY['a'::character varying, ...])::text[]). What it makes of
    that, as when a dump is restored, it writes in another way.
    """
    text = re.sub(r"\(([^()\s,]+)\)", r"\1", CAST.sub("", definition))
    return re.sub(r"\(\(([^()]*)\)\)", r"(\1)", text)


Part = TypeVar("Part")


def gathered(rows: Iterable[tuple[Any, ...]], make: Callable[[tuple[Any, ...]], Part]) -> dict[int, tuple[Part, ...]]:
    """What `make` makes of the rows (sorted by their first column, a table's oid), by table."""
    return {oid: tuple(make(row[1:]) for row in group) for oid, group in groupby(rows, key=lambda row: row[0])}
