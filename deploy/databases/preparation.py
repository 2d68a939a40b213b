"""The steps by which the other colour's database is prepared.

https://www.postgresql.org/docs/current/logical-replication.html
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from psycopg2 import sql

from deploy.databases import catalogs, dump, fence, links, sequences, statements
from deploy.databases.catalogs import Catalog, Column, Notes
from deploy.databases.copying import Copying, caught_up, retried
from deploy.databases.errors import DatabaseError
from deploy.databases.findings import Finding
from deploy.databases.links import BACK, FORWARD, Key, Link, Say, Told
from deploy.databases.pgoutput import Written
from deploy.databases.rehearsal import Rehearsal
from deploy.databases.side import Side
from deploy.errors import DeployRefused

UNPOPULATED = "55000"  # the SQLSTATE of a view that reads one which was not refreshed
OLDEST = 16  # origin = none lets both directions run at once
# How many values are left free for rows that the source makes until the switch; those that the migration makes come
# after them. Each release uses them up once, so what ends at 2,147,483,647 gets fewer: enough for 200,000 releases.
GAP, NARROW_GAP, NARROW = 1_000_000, 10_000, 2**31
# What judges the two sides before anything is changed, and once the target is migrated: with its names from before, and
# with what the migration wrote.
Before = Callable[[], Iterable[Finding]]
After = Callable[[Notes, tuple[Written, ...]], Iterable[Finding]]


@dataclass(frozen=True)
class Options:
    """What differs from place to place.

    `source_url` and `target_url` are the addresses by which the two servers reach each other, if those are not the
    ones by which this process does. `wal_limit` is how much WAL a slot may keep, set on servers that have no limit;
    empty to leave them without. `empty` allows a target that was never prepared to be emptied. `again` makes links that
    are ready anew. `patience` is in seconds and bounds each wait in which nothing moves.
    """

    source_url: str = ""
    target_url: str = ""
    pg_dump: str = ""
    wal_limit: str = "10GB"
    empty: bool = False
    again: bool = False
    patience: float = 300.0


class Preparation:
    """The steps of prepare(), to be done one after the other; each has a name and returns a note."""

    def __init__(
        self,
        source: Side,
        target: Side,
        *,
        migrate: Callable[[], None],
        say: Say,
        release: str = "",
        before: Before = lambda: (),
        after: After = lambda notes, written: (),
        options: Options = Options(),
    ) -> None:
        self.source, self.target, self.migrate, self.release = source, target, migrate, release
        self.step, self.told = "", say
        self.before, self.after, self.options = before, after, options
        self.id = links.new_id()
        self.forward, self.back = links.name(self.id, FORWARD), links.name(self.id, BACK)
        self.dry = isinstance(target, Rehearsal)
        self.notes = Notes({}, {})
        self.target_major = 0
        self.pg_dump = ""

    def say(self, text: str) -> None:
        """Says how far the current step is."""
        self.told(Told(f"{self.step}: {text}", getattr(text, "figures", {})))

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        """The names and functions of the steps, in order."""
        return [
            ("check", self.check),
            ("clear", self.clear),
            ("guard", self.guard),
            ("schema", self.schema),
            ("publish", self.publish),
            ("copy", self.copy),
            ("sequences", self.sequences),
            ("migrate", self.migrated),
            ("compare", self.compare),
            ("fit", self.fit),
            ("link back", self.link_back),
        ]

    def check(self) -> str:
        """Refuses what cannot work, before anything is changed. Raises DeployRefused."""
        majors = []
        for side in (self.source, self.target):
            version, wal_level, limit, may_limit = side.run(statements.SERVER)[0]
            majors.append(version // 10000)
            if version // 10000 < OLDEST:
                raise DeployRefused(
                    f"The {side.colour} database runs PostgreSQL {version // 10000}; a database per colour needs "
                    f"{OLDEST} or newer: older ones cannot replicate both ways at once (origin = none). Upgrade it."
                )
            if wal_level != "logical":
                raise DeployRefused(
                    f"The {side.colour} database has wal_level = {wal_level}; replication needs logical. "
                    "ALTER SYSTEM SET wal_level = 'logical', then restart the server."
                )
            if limit == "-1" and self.options.wal_limit and not may_limit:
                raise DeployRefused(
                    f"The {side.colour} database has no max_slot_wal_keep_size, so a slot that nobody reads fills its "
                    "disk; a limit is expected, and this role may not set it. As a superuser: ALTER SYSTEM SET "
                    f"max_slot_wal_keep_size = '{self.options.wal_limit}'; SELECT pg_reload_conf()."
                )
        self.target_major = majors[1]
        if links.installed(self.source) and not fence.read(self.source).writable:
            raise DeployRefused(
                f"The {self.source.colour} database does not accept writes, so it cannot be the source. "
                "Run `manage.py bluegreen recover`, or prepare in the other direction."
            )
        known = links.installed(self.target)
        if known and fence.read(self.target).writable:
            raise DeployRefused(
                f"The {self.target.colour} database is the one that accepts writes, so it cannot be the target. "
                "Prepare in the other direction."
            )
        if self.target.value(statements.TABLES_THERE) and not self.options.empty:
            if not known or not links.installed(self.source):
                raise DeployRefused(
                    f"The {self.target.colour} database has tables, and none that an earlier preparation made; an "
                    "empty database is expected. Drop them, or allow it to be emptied (--empty-target)."
                )
        old = links.noted(self.source)
        if old and old.ready and old.source != self.source.colour:
            raise DeployRefused(
                f"{old.source} and {old.target} are still linked, so that the release before this one can be rolled "
                "back to without loss. Run `manage.py bluegreen finalize` to give that up, then prepare again."
            )
        keyless = [table.label for table in links.published(catalogs.read(self.source)) if not table.identity_columns]
        if keyless:
            raise DeployRefused(
                f"Tables without a primary key cannot be replicated: {', '.join(keyless)}. Add one to each, or "
                "ALTER TABLE ... REPLICA IDENTITY USING INDEX."
            )
        refuse(self.before())
        self.pg_dump = dump.find(self.options.pg_dump, majors[0], self.source.colour)
        return f"PostgreSQL {majors[0]} to {majors[1]}"

    def clear(self) -> str:
        """Drops what an earlier preparation has left."""
        return links.clear(self.source, self.target)

    def guard(self) -> str:
        """Installs the fence and the guards on the source, which goes on writing, and bounds what slots may keep."""
        fence.install(self.source, writable=True)
        guarded = len(fence.guard_tables(self.source))
        for side in (self.source, self.target):
            if self.options.wal_limit and side.run(statements.SERVER)[0][2] == "-1":
                side.run(sql.SQL(statements.LIMIT_WAL).format(sql.Literal(self.options.wal_limit)))
                side.run(statements.RELOAD)
        return f"{guarded} tables"

    def schema(self) -> str:
        """Makes the source's schema anew in the target, which is fenced, and tells it which migrations it has."""
        fence.install(self.target, writable=False)
        self.target.run(statements.EMPTY_HEARTBEATS)
        links.forget(self.target, "default", "lossless")
        dropped = dump.empty(self.target)
        text = dump.schema(self.source, self.pg_dump, target_major=self.target_major)
        dump.restore(self.target, text)
        if self.source.value(statements.MIGRATIONS_TABLE):
            applied = self.source.run(statements.MIGRATIONS)
            self.target.run(statements.COPY_MIGRATIONS, [list(column) for column in zip(*applied)] or [[]] * 4)
        return f"{dropped} objects of an earlier release dropped" if dropped else ""

    def publish(self) -> str:
        """Publishes the tables of both sides. The target's before its slot, which reads its catalogs as of then."""
        keys = [table.key for table in links.published(catalogs.read(self.source))]
        for side in (self.source, self.target):
            links.publish(side, keys)
        self.noted(ready=False)
        return f"{len(keys)} tables"

    def copy(self) -> str:
        """Copies all rows, and waits until the target follows."""
        links.make_slot(self.source, self.forward, say=self.say, patience=self.options.patience)
        links.subscribe(self.target, self.forward, self.options.source_url or self.source.url, copy=True)
        if self.dry:
            return ""
        copying = Copying(self.source, self.target, self.forward)
        copying.wait(self.say, self.options.patience)
        caught_up(self.source, self.target, self.forward, say=self.say, patience=self.options.patience)
        return copying.summary()

    def sequences(self) -> str:
        """Holds the target, keeps from now on what it writes, and puts its sequences ahead of the source's."""
        # The migration's locks and the worker's rows would wait for each other, and rows that the new schema does not
        # take would end the worker. The source's slot keeps them meanwhile.
        links.enable(self.target, self.forward, False)
        links.make_slot(self.target, self.back, say=self.say, patience=self.options.patience)
        self.notes = catalogs.note(catalogs.read(self.target))
        theirs, ours = sequences.read(self.source), sequences.read(self.target)
        narrow = {key: each for key, each in theirs.items() if abs(each.high) < NARROW}
        wide = {key: each for key, each in theirs.items() if key not in narrow}
        found = [
            *sequences.moves(wide, ours, GAP, unused=True),
            *sequences.moves(narrow, ours, NARROW_GAP, unused=True),
        ]
        if found:
            self.target.run(sql.SQL("select {}").format(sql.SQL(", ").join(sequences.calls(found))))
        return f"{len(found)} set ahead"

    def migrated(self) -> str:
        """Migrates the target, guards the tables that are new, and fills what no row fills: views and statistics."""
        self.migrate()
        guarded = len(fence.guard_tables(self.target))
        self.refresh()
        for table in catalogs.read(self.target).tables.values():
            if not table.parent:
                self.target.run(sql.SQL(statements.ANALYZE).format(sql.Identifier(*table.key)), timeout=3600)
        return f"{guarded} new tables guarded" if guarded else ""

    def refresh(self) -> None:
        """Fills the materialized views, which a dump leaves empty. One that reads another needs a second turn."""
        views = catalogs.read(self.target).unpopulated
        while views:
            for key in views:
                try:
                    self.target.run(sql.SQL(statements.REFRESH).format(sql.Identifier(*key)), timeout=3600)
                except DatabaseError as error:
                    if error.code != UNPOPULATED:
                        raise
            left = catalogs.read(self.target).unpopulated
            if len(left) == len(views):
                return  # after() is told by the catalog which they are
            views = left

    def compare(self) -> str:
        """Gives new columns that need a value a default until finalize(), and refuses what would lose rows."""
        before, after = self.catalogs()
        given = 0
        for key in before.tables.keys() & after.tables.keys():
            for column in after.tables[key].columns:
                new = before.tables[key].column(column.name) is None
                if new and not column.fillable and (value := self.given(key, column)) is not None:
                    names = sql.Identifier(*key), sql.Identifier(column.name)
                    kind = sql.SQL(column.type)  # as format_type() writes it
                    self.target.run(sql.SQL(statements.SET_DEFAULT).format(*names, sql.Literal(value), kind))
                    links.note(self.target, "default", json.dumps([*key, column.name]), value)
                    given += 1
        if not self.dry:
            refuse(self.after(self.notes, links.peek(self.target, self.back)))
        return f"{given} temporary defaults" if given else ""

    def fit(self) -> str:
        """Publishes on both sides what both have, and lets the target catch up with the source."""
        before, after = self.catalogs()
        common = shared(before, after)
        keys = [table.key for table in links.published(before) if table.key in common]
        # What the source wrote until now is sent with all its columns, whatever is published from now on, and a target
        # without them would stop for good. So it has them once more until those rows have passed.
        absorbers = list(self.absorb(before, after))
        for side, catalog in ((self.source, before), (self.target, after)):
            links.publish(side, keys, lists(catalog, common))
        links.enable(self.target, self.forward, True)
        if not self.dry:
            caught_up(self.source, self.target, self.forward, say=self.say, patience=self.options.patience)
        for statement in absorbers:
            retried(self.target, statement)
        listed = {*lists(before, common), *lists(after, common)}
        return f"{len(keys)} tables in common, {len(listed)} of them by column"

    def link_back(self) -> str:
        """Links the target's rows back to the source, beginning with those that the migration made."""
        links.subscribe(self.source, self.back, self.options.target_url or self.target.url, copy=False)
        if not self.dry:
            caught_up(self.target, self.source, self.back, say=self.say, patience=self.options.patience)
            caught_up(self.source, self.target, self.forward, say=self.say, patience=self.options.patience)
        for side in (self.source, self.target):
            fence.remember_tables(side)
        self.noted(ready=True)
        return "both directions run"

    def given(self, key: Key, column: Column) -> str | None:
        """The value that ADD COLUMN gave the rows that were there, as text; None if it cannot be told.

        PostgreSQL keeps it until the table is rewritten. After that, it is what all rows have, if that is one value.
        """
        if column.missing is not None:
            return column.missing
        form = sql.SQL(statements.VALUES).format(sql.Identifier(column.name), sql.Identifier(*key))
        values: list[str] = [value for (value,) in self.target.run(form, timeout=600)]
        return values[0] if len(values) == 1 else None

    def noted(self, *, ready: bool) -> None:
        """Notes the link on both sides."""
        made = Link(self.id, self.source.colour, self.target.colour, self.release, ready)
        for side in (self.source, self.target):
            links.note(side, "link", "link", made.written())

    def catalogs(self) -> tuple[Catalog, Catalog]:
        """What both sides have. The schema that a rehearsal has not migrated is the source's."""
        source = catalogs.read(self.source)
        return source, source if self.dry else catalogs.read(self.target)

    def absorb(self, before: Catalog, after: Catalog) -> Iterator[sql.Composable]:
        """Adds to the target what the source still sends and the target no longer has. Yields how to drop it again."""
        for table in links.published(before):
            name, there = sql.Identifier(*table.key), after.tables.get(table.key)
            gone = [
                each.name for each in table.columns if not each.generated and not (there and there.column(each.name))
            ]
            if there and gone:
                adds, drops = (
                    sql.SQL(", ").join(sql.SQL(form).format(sql.Identifier(column)) for column in gone)
                    for form in (statements.ADD_ABSORBER, statements.DROP_ABSORBER)
                )
                retried(self.target, sql.SQL(statements.ADD_ABSORBERS).format(name, adds))
                yield sql.SQL(statements.ADD_ABSORBERS).format(name, drops)
            elif not there:
                # Rows of a table that the subscription does not know are passed over; it has to be there all the same.
                columns = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(column)) for column in gone)
                self.target.run(sql.SQL(statements.CREATE_ABSORBER).format(name, columns))
                yield sql.SQL(statements.DROP_TABLE).format(name)


def refuse(findings: Iterable[Finding]) -> None:
    """Raises DeployRefused with those that are refused, one a line, if there are any."""
    lines = [
        f"{'.'.join(filter(None, (each.table, each.column)))}: {each.reason} {each.cure}".strip(": ")
        for each in findings
        if each.refused
    ]
    if lines:
        raise DeployRefused("\n".join(lines))


def shared(one: Catalog, other: Catalog) -> dict[Key, frozenset[str]]:
    """The columns that both sides can send and receive, of the tables that both have."""

    def plain(columns: Iterable[Column]) -> frozenset[str]:
        return frozenset(column.name for column in columns if not column.generated)

    return {
        key: plain(table.columns) & plain(other.tables[key].columns)
        for key, table in one.tables.items()
        if key in other.tables
    }


def lists(catalog: Catalog, common: dict[Key, frozenset[str]]) -> dict[Key, Sequence[str]]:
    """The columns to publish, for the tables of which this side has more than both have."""
    found: dict[Key, Sequence[str]] = {}
    for key, names in common.items():
        table = catalog.tables[key]
        if any(not column.generated and column.name not in names for column in table.columns):
            if missing := table.identity_columns - names:
                raise DeployRefused(
                    f"{table.label}: its key has {', '.join(sorted(missing))}, which the other side has not; "
                    "rows could not be found by it. Keep the key's columns in this release."
                )
            found[key] = [column.name for column in table.columns if column.name in names]
    return found
