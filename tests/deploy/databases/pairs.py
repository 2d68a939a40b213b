"""Two databases that replicate to each other, made by hand: what happens to rows, whatever preflight says of it."""

import secrets
from collections.abc import Sequence
from typing import Any, Self

from psycopg2 import sql

from deploy.databases import fence, links
from deploy.databases.catalogs import Catalog, Notes, note, read
from deploy.databases.findings import Finding
from deploy.databases.pgoutput import Written
from deploy.databases.preflight import compare
from deploy.databases.schemas import common
from deploy.databases.side import Side
from tests.support.servers import PATIENCE, Postgres, eventually

MARK = "create table mark (id int primary key);"
SUBSCRIBED = """
select subname from pg_subscription where subdbid = (select oid from pg_database where datname = current_database())
"""
SCHEMAS = "select nspname from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'"


class Pair:
    """A source and a target in one server, with the same schema until a release changes the target's."""

    notes: Notes

    def __init__(self, server: Postgres, encodings: Sequence[str] = ("UTF8", "UTF8")) -> None:
        self.name, self.marks = f"p{secrets.token_hex(4)}", 0
        admin = Side("blue", server.url_of("postgres"))
        names = [f"{self.name}_blue", f"{self.name}_green"]
        for name, encoding in zip(names, encodings, strict=True):
            create = sql.SQL("create database {} template template0 encoding {}")
            admin.run(create.format(sql.Identifier(name), sql.Literal(encoding)), timeout=PATIENCE)
        admin.close()
        self.source, self.target = (
            Side(colour, server.url_of(f"{self.name}_{colour}")) for colour in ("blue", "green")
        )

    def begin(self, old: str, new: str = "") -> Self:
        """Makes the schema `old` on both sides, or the schema `new` on the target."""
        for side, schema in ((self.source, old), (self.target, new or old)):
            side.run(MARK + schema)
        self.take_notes()
        return self

    def take_notes(self) -> None:
        """Notes the target's names, right before its migration."""
        self.notes = note(read(self.target))

    def end(self) -> None:
        """Removes all that begin() and the test have made, for the next test."""
        for side in (self.source, self.target):
            for (name,) in side.run(SUBSCRIBED):
                disable = "alter subscription {0} disable; alter subscription {0} set (slot_name = none)"
                side.run(sql.SQL(disable + "; drop subscription {0}").format(sql.Identifier(name)))
        for side in (self.source, self.target):
            side.run("drop publication if exists bg_pub")
            for (schema,) in side.run(SCHEMAS):
                side.run(sql.SQL("drop schema {} cascade").format(sql.Identifier(schema)))
            side.run("create schema public; select lo_unlink(oid) from pg_largeobject_metadata")
            for (name,) in side.run("select slot_name from pg_replication_slots where database = current_database()"):
                self.drop_slot(side, name)

    def close(self) -> None:
        """end(), and disconnects."""
        self.end()
        self.source.close()
        self.target.close()

    def drop_slot(self, side: Side, name: str) -> None:
        """Drops a slot as soon as its walsender is gone."""
        drop = "select pg_drop_replication_slot(slot_name) is not null from pg_replication_slots"
        eventually(lambda: side.run(f"{drop} where slot_name = %s and not active", [name]))

    def release(self, change: str) -> None:
        """What the release's migration does to the target."""
        self.target.run(change)

    def findings(self, **given: Any) -> list[Finding]:
        """What preflight says of the two."""
        return compare(self.source, self.target, notes=self.notes, **given)

    def codes(self, **given: Any) -> set[str]:
        """The codes of what preflight says."""
        return {each.code for each in self.findings(**given)}

    def catalogs(self) -> tuple[Catalog, Catalog]:
        return read(self.source), read(self.target)

    def publish(self) -> None:
        """Publishes what both sides have, both ways, and makes the slots."""
        source, target = self.catalogs()
        for side, here, there in ((self.source, source, target), (self.target, target, source)):
            tables = [
                part(key, common(here.tables[key], other), len(here.tables[key].columns))
                for key, other in sorted(there.tables.items())
                if key in here.tables and not other.parent and not here.tables[key].parent
            ]
            side.run(
                sql.SQL("create publication bg_pub for table {} with (publish_via_partition_root = true)").format(
                    sql.SQL(", ").join(tables)
                )
            )
            side.run("select pg_create_logical_replication_slot(%s, 'pgoutput')", [self.slot(side)])

    def subscribe(self) -> None:
        """Subscribes each side to the other. Nothing is copied: the rows there are on both sides already."""
        for side, other in ((self.source, self.target), (self.target, self.source)):
            side.run(
                sql.SQL(
                    "create subscription {0} connection {1} publication bg_pub"
                    " with (create_slot = false, slot_name = {0}, copy_data = false, origin = none)"
                ).format(sql.Identifier(self.slot(other)), sql.Literal(other.url))
            )

    def link(self) -> None:
        """Lets the two replicate to each other."""
        self.publish()
        self.subscribe()

    def guard(self) -> None:
        """Puts the fence's guard on every table of both sides, and lets both be written."""
        for side in (self.source, self.target):
            fence.install(side, writable=True)
            fence.guard_tables(side)

    def slot(self, publisher: Side) -> str:
        """The name of the slot, and of the subscription that reads it."""
        return f"bg_{self.name}_{publisher.colour}"

    def other(self, side: Side) -> Side:
        return self.target if side is self.source else self.source

    def sync(self, writer: Side) -> None:
        """Waits until all that `writer` has written so far has reached the other side."""
        self.marks += 1
        number = 2 * self.marks + (writer is self.target)
        writer.run("insert into mark values (%s)", [number])
        eventually(lambda: self.other(writer).run("select 1 from mark where id = %s", [number]))

    def sent(self, writer: Side, statement: str, question: str) -> list[tuple[Any, ...]]:
        """Writes on one side, and returns what the other side says once that has arrived."""
        writer.run(statement)
        self.sync(writer)
        return self.other(writer).run(question)

    def errors(self, writer: Side) -> int:
        """How often the other side has failed to apply what `writer` wrote."""
        return int(
            self.other(writer).value(
                "select apply_error_count from pg_stat_subscription_stats where subname = %s", [self.slot(writer)]
            )
        )

    def stops(self, writer: Side, statement: str) -> None:
        """Writes on one side, and waits until the other side fails to apply it."""
        before = self.errors(writer)
        writer.run(statement)
        eventually(lambda: self.errors(writer) > before)

    def loosen(self, found: Finding) -> None:
        """Runs the cure that the finding offers; a column that is published by name cannot be altered."""
        assert found.cure_sql
        side = self.source if found.cure_side == "source" else self.target
        table = sql.Identifier(*found.table.split("."))
        names = side.value("select attnames::text[] from pg_publication_tables where tablename = %s", [found.table])
        side.run(sql.SQL("alter publication bg_pub drop table {}").format(table))
        for statement in found.cure_sql:
            side.run(statement)
        side.run(
            sql.SQL("alter publication bg_pub add table {} ({})").format(
                table, sql.SQL(", ").join(map(sql.Identifier, names))
            )
        )

    def peeked(self) -> tuple[Written, ...]:
        """What the target's slot holds, unread."""
        return links.peek(self.target, self.slot(self.target))


def part(key: tuple[str, str], columns: Sequence[str], width: int) -> sql.Composable:
    """A table of a publication: by column only if it has others than these."""
    table = sql.Identifier(*key)
    if len(columns) == width:
        return table
    return sql.SQL("{} ({})").format(table, sql.SQL(", ").join(map(sql.Identifier, columns)))
