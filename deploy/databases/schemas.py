"""Compares two schemas, of which each database replicates to the other. Looks at the catalogs alone.

What replication cannot do: https://www.postgresql.org/docs/current/logical-replication-restrictions.html. What it loses
in silence was found by trial; the tests show each.
"""

from collections.abc import Iterator

from psycopg2 import sql

from deploy.databases.casts import change
from deploy.databases.catalogs import Catalog, Column, ForeignKey, Notes, Sequence, Table, label
from deploy.databases.findings import Finding, finding

OLDEST = 160000  # the first version with "origin = none"
LEAST = 100_000  # values that a sequence must have left; a tenth of them if it has fewer than a million
LIMITS = {"smallint": 2**15 - 1, "integer": 2**31 - 1, "bigint": 2**63 - 1}
TWO_STEPS = "Ship it in two releases: first add the new one and write both, then drop the old one."


def compare(source: Catalog, target: Catalog, notes: Notes | None = None) -> Iterator[Finding]:
    """Everything about the two schemas that stops replication, loses something in silence, or should be known.

    `notes` are those of the target before its migration; without them, renames look like drops and additions.
    """
    yield from databases(source, target)
    moved = set()
    for each in renames(target, notes) if notes else ():
        moved.add((each.table, each.column))
        yield each
    for key in sorted(source.tables.keys() | target.tables.keys()):
        before, after = source.tables.get(key), target.tables.get(key)
        if before and after:
            yield from (each for each in table(before, after, source, target) if (each.table, each.column) not in moved)
        elif (label(key), "") not in moved:
            yield lone(before or after, source, target)
    yield from partitions(source, target)
    for key in sorted(target.sequences):
        yield from sequence(target.sequences[key], source.sequences.get(key), target)


def databases(source: Catalog, target: Catalog) -> Iterator[Finding]:
    """The servers and what belongs to no table."""
    for name, catalog in (("source", source), ("target", target)):
        if catalog.version < OLDEST:
            yield finding(
                "server-version",
                f"The {name} runs PostgreSQL {catalog.version // 10000}; both directions at once require 16.",
                "Upgrade PostgreSQL, or deploy with one database.",
            )
        if catalog.large_objects:
            yield finding(
                "large-objects",
                f"The {name} has large objects, which are not replicated.",
                "Store them in a bytea column or in files, and remove them with lo_unlink().",
            )
    for key in target.unpopulated:
        yield finding(
            "view-empty",
            "A materialized view that the target has not filled; it cannot be read, and replication never fills it.",
            "Prepare again, which refreshes it; refresh it again after each switch.",
            table=label(key),
            sql=(sql.SQL("REFRESH MATERIALIZED VIEW {}").format(sql.Identifier(*key)),),
            side="target",
        )
    if source.encoding != target.encoding:
        yield finding(
            "encoding",
            f"The source is encoded in {source.encoding}, the target in {target.encoding}.",
            f"Create the target with ENCODING '{source.encoding}'.",
        )


def renames(target: Catalog, notes: Notes) -> Iterator[Finding]:
    """What kept its oid or attnum and has another name, and what kept its name and is something new."""
    for each in target.tables.values():
        was = notes.tables.get(each.oid)
        if was is None and each.key in notes.tables.values():
            yield finding(
                "table-replaced",
                f"{each.label} was dropped and created again: the rows copied into it are gone.",
                TWO_STEPS,
                table=each.label,
            )
        if was is not None and was != each.key:
            for name in (label(was), each.label):
                yield finding(
                    "table-renamed",
                    f"{label(was)} was renamed to {each.label}: rows written under one name do not reach the other.",
                    f"{TWO_STEPS} Or keep the table's name (db_table in Django).",
                    table=name,
                )
        before = {name: number for (oid, number), name in notes.columns.items() if oid == each.oid}
        for column in each.columns:
            old = notes.columns.get((each.oid, column.number), column.name)
            if old != column.name:
                for name in (old, column.name):
                    yield finding(
                        "column-renamed",
                        f"{old} was renamed to {column.name}: values written under one name do not reach the other.",
                        f"{TWO_STEPS} Or keep the column's name (db_column in Django).",
                        table=each.label,
                        column=name,
                    )
            elif before.get(column.name, column.number) != column.number:
                yield finding(
                    "column-replaced",
                    "Dropped and added again: the values copied into it are gone.",
                    f"{TWO_STEPS} The new column needs a name of its own.",
                    table=each.label,
                    column=column.name,
                )


def lone(only: Table | None, source: Catalog, target: Catalog) -> Finding:
    """A table that one side has."""
    assert only
    new = only.key in target.tables
    if only.parent in source.tables and only.parent in target.tables:
        return finding(
            "partition-alone",
            f"A partition that only the {'target' if new else 'source'} has: "
            f"replication {'back ' if new else ''}stops at a row of it that fits no partition on the other side.",
            "Create the partition on both sides.",
            table=only.label,
        )
    if new:
        return finding(
            "table-new",
            "Exists in the target only. Its rows stay there when the release is rolled back.",
            table=only.label,
        )
    return finding(
        "table-gone",
        "Exists in the source only. Its rows stay there; rows that refer to rows deleted meanwhile remain.",
        table=only.label,
    )


def common(source: Table, target: Table) -> list[str]:
    """The columns to publish, in both directions: those that both sides have and neither computes."""
    names = {column.name for column in target.columns if not column.generated}
    return [column.name for column in source.columns if column.name in names and not column.generated]


def table(source: Table, target: Table, sources: Catalog, targets: Catalog) -> Iterator[Finding]:
    """A table that both sides have."""
    yield from carried(source, target)
    yield from unsent(source, target)
    shared = common(source, target)
    if [name for name in (each.name for each in target.columns) if name in shared] != shared:
        yield finding("column-order", "The columns have another order, which nothing depends on.", table=source.label)
    for name in shared:
        before, after = source.column(name), target.column(name)
        assert before and after
        yield from column(source, before, after, sources, targets)
    yield from indexes(source, target, set(shared))
    yield from constraints(source, target)
    yield from triggers(source, target)


def carried(source: Table, target: Table) -> Iterator[Finding]:
    """What replication needs of the table as a whole: a key, a log, and nothing that rejects it."""
    for side, each in (("source", source), ("target", target)):
        if each.unlogged:
            yield finding(
                "unlogged",
                f"Unlogged in the {side}: not replicated, and emptied by a crash.",
                "Log it: ALTER TABLE ... SET LOGGED.",
                table=each.label,
                sql=(sql.SQL("ALTER TABLE {} SET LOGGED").format(identifier(each)),),
                side=side,
            )
        if not each.identity_columns:
            yield finding(
                "no-key",
                f"Without a replica identity in the {side}: once it is published, UPDATE and DELETE fail.",
                "Add a primary key, or ALTER TABLE ... REPLICA IDENTITY USING INDEX.",
                table=each.label,
            )
        if each.forced_row_security:
            yield finding(
                "row-security",
                f"Row-level security is forced in the {side}, which stops replication.",
                "ALTER TABLE ... NO FORCE ROW LEVEL SECURITY.",
                table=each.label,
                sql=(sql.SQL("ALTER TABLE {} NO FORCE ROW LEVEL SECURITY").format(identifier(each)),),
                side=side,
            )
        if each.identity == "f" and set(common(source, target)) != {column.name for column in each.columns}:
            yield finding(
                "identity-full",
                f"REPLICA IDENTITY FULL in the {side} allows no column list, and the columns differ.",
                "Add a primary key, and ALTER TABLE ... REPLICA IDENTITY DEFAULT.",
                table=each.label,
            )
    keys = source.identity_columns, target.identity_columns
    if all(keys) and keys[0] != keys[1] and "f" not in (source.identity, target.identity):
        yield finding(
            "key-changed",
            f"The key was ({', '.join(sorted(keys[0]))}) and is ({', '.join(sorted(keys[1]))}): "
            "UPDATE and DELETE do not find their rows.",
            "Keep the primary key, and add a unique constraint for the new one.",
            table=source.label,
        )


def unsent(source: Table, target: Table) -> Iterator[Finding]:
    """The columns that only one side has, and those that one side computes."""
    shared = set(common(source, target))
    for each in target.columns:
        other = source.column(each.name)
        if other and each.generated != other.generated:
            yield finding(
                "generated-changed",
                "Computed on one side only, so its values are not replicated.",
                "Add a new column, and leave this one as it is until the release after.",
                table=source.label,
                column=each.name,
            )
        if not other:
            yield from unsent_column(target, each, new=True)
    for each in source.columns:
        if not target.column(each.name):
            yield from unsent_column(source, each, new=False)
    for side, each_table in (("source", source), ("target", target)):
        for index in each_table.indexes:
            columns = [each for each in each_table.columns if each.name in index.columns]
            alike = index.unique and not index.expressions and not shared & set(index.columns)
            nulls = any(each.default is None and not each.not_null for each in columns)
            if alike and all(each.constant for each in columns) and (not nulls or NULLS in index.definition):
                yield finding(
                    "default-collides",
                    f"Unique in the {side} ({index.name}), and each row from the other side gets the same value.",
                    "Let it be null, or give it a default that differs: an identity, or gen_random_uuid().",
                    table=source.label,
                    column=index.columns[0],
                )


NULLS = "NULLS NOT DISTINCT"


def unsent_column(owner: Table, each: Column, *, new: bool) -> Iterator[Finding]:
    """A column that only the target has (`new`), or only the source."""
    if each.fillable:
        given = (
            "the value it computes" if each.generated or each.identity else "its default" if each.default else "null"
        )
        yield finding(
            "column-new" if new else "column-gone",
            f"Rows written in the {'source' if new else 'target'} get {given}.",
            table=owner.label,
            column=each.name,
        )
        return
    value = each.missing if new else each.missing or NEUTRAL.get(each.type.partition("(")[0])
    statement = sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET DEFAULT {}").format(
        identifier(owner), sql.Identifier(each.name), sql.Literal(value)
    )
    reason = f"NOT NULL without a default: rows written in the {'source' if new else 'target'} stop replication"
    yield finding(
        "column-needs-default" if new else "column-gone-needs-default",
        f"{reason}." if new else f"{reason} after the switch.",
        (
            "Give the field db_default in Django"
            + (f", or set the default {value!r} until finalize." if value is not None else ".")
            if new
            else "Set a default in the source, or let it be null there; rows from the target get that value."
        ),
        table=owner.label,
        column=each.name,
        sql=() if value is None else (statement,),
        side="target" if new else "source",
    )


# What a column that the new release no longer has gets in the old database, if it was never given a default.
NEUTRAL = {
    **dict.fromkeys(("character varying", "text", "character"), ""),
    **dict.fromkeys(("smallint", "integer", "bigint", "numeric", "real", "double precision", "interval"), "0"),
    **dict.fromkeys(("json", "jsonb"), "{}"),
    "boolean": "false",
}


def column(owner: Table, before: Column, after: Column, sources: Catalog, targets: Catalog) -> Iterator[Finding]:
    """A column that is replicated."""
    name = after.name
    kind = change(before.type, after.type, sources.types, targets.types)
    if kind in ("rounds", "changed"):
        yield finding(
            f"type-{kind}",
            f"{before.type} became {after.type}: "
            + (
                "values are rounded or cut off without an error."
                if kind == "rounds"
                else "values may change on the way."
            ),
            f"Add a column of the new type. {TWO_STEPS}",
            table=owner.label,
            column=name,
        )
    if kind in ("looser", "stricter"):
        side, wanted = ("source", targets) if kind == "looser" else ("target", sources)
        enum = after.type.removesuffix("[]")  # quoted where it has to be
        labels = wanted.types[enum].labels if enum in wanted.types else ()
        if labels:
            own = (sources if side == "source" else targets).types[enum].labels
            add = sql.SQL(f"ALTER TYPE {enum} ADD VALUE {{}}")
            statements = tuple(add.format(sql.Literal(each)) for each in labels if each not in own)
        else:
            text = after.type if kind == "looser" else before.type
            statements = (alter_column(owner, after.name, f"TYPE {text}"),)
        yield misfit(
            f"type-{kind}", f"{before.type} became {after.type}", side, statements, table=owner.label, column=name
        )
    if before.collation != after.collation:
        yield finding(
            "collation-changed",
            f"Collation {before.collation or 'of the database'} became {after.collation or 'that of the database'}: "
            "values may be equal on one side alone, where they then stop at a unique index.",
            table=owner.label,
            column=name,
        )
    if before.not_null != after.not_null:
        side = "source" if before.not_null else "target"
        yield misfit(
            "null-allowed" if before.not_null else "null-refused",
            "NOT NULL was dropped" if before.not_null else "NOT NULL was added",
            side,
            (alter_column(owner, after.name, "DROP NOT NULL"),),
            table=owner.label,
            column=name,
        )


def misfit(
    code: str, what: str, side: str, statements: tuple[sql.Composable, ...], *, table: str, column: str = ""
) -> Finding:
    """A finding of which the `side` is the stricter: what does not fit there stops replication, and loses nothing."""
    if side == "source":
        return finding(
            code,
            f"{what}. After the switch, a row that the source does not accept stops replication back to it.",
            "Loosen the source after the switch; what was stopped goes on within a second.",
            table=table,
            column=column,
            sql=statements,
            side=side,
        )
    return finding(
        code,
        f"{what}. What the target does not accept stops replication, and the switch is refused.",
        "Correct the rows before the switch, or loosen the target; what was stopped goes on within a second.",
        table=table,
        column=column,
        sql=statements,
        side=side,
    )


def indexes(source: Table, target: Table, shared: set[str]) -> Iterator[Finding]:
    """Indexes of which the other side has none that does the same, whatever their names."""
    for side, here, there in (("source", source, target), ("target", target, source)):
        same = {index.definition for index in there.indexes if not index.unique}
        unique = {(index.definition, index.immediate) for index in there.indexes if index.unique}
        for index in here.indexes:
            if not index.unique:
                if index.definition not in same:
                    yield finding("index", f"Only the {side} has the index {index.name}.", table=here.label)
                continue
            sent = shared & set(index.columns) or index.expressions
            if index.primary or not sent or (index.definition, index.immediate) in unique:
                continue
            if not index.immediate:
                yield finding(
                    "unique-deferrable",
                    f"{index.name} is deferrable and exists in the {side} only: "
                    "replication does not check it, and duplicates enter.",
                    "Make it NOT DEFERRABLE.",
                    table=here.label,
                )
                continue
            statement = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                identifier(here), sql.Identifier(index.name)
            )
            if not index.constraint:
                statement = sql.SQL("DROP INDEX {}").format(sql.Identifier(here.schema, index.name))
            what = f"The unique {index.name} was {'dropped' if side == 'source' else 'added'}"
            code = "unique-gone" if side == "source" else "unique-new"
            yield misfit(code, what, side, (statement,), table=here.label, column=", ".join(index.columns))


def constraints(source: Table, target: Table) -> Iterator[Finding]:
    """CHECK constraints and foreign keys of which the other side has none that says the same."""
    for side, here, there in (("source", source, target), ("target", target, source)):
        checks = {check.definition for check in there.checks}
        for check in here.checks:
            if check.definition not in checks:
                yield misfit(
                    "check-gone" if side == "source" else "check-new",
                    f"{check.name} was {'dropped' if side == 'source' else 'added'}",
                    side,
                    (
                        sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                            identifier(here), sql.Identifier(check.name)
                        ),
                    ),
                    table=here.label,
                )
    for each in foreign_keys(target, source):
        yield finding(
            "foreign-key-new",
            f"{each.name} is not checked for rows that replication brings. If any has no parent, a switch is refused.",
            table=target.label,
            column=", ".join(each.columns),
        )
    for each in foreign_keys(source, target):
        yield finding(
            "foreign-key-gone",
            f"{each.name} was dropped: rows without a parent enter the source. If any is there, a rollback is refused.",
            table=source.label,
            column=", ".join(each.columns),
        )


def foreign_keys(here: Table, there: Table | None) -> Iterator[ForeignKey]:
    """The foreign keys of `here` that `there` does not have."""
    others = {(each.columns, each.parent, each.parent_columns) for each in there.foreign_keys} if there else set()
    for each in here.foreign_keys:
        if (each.columns, each.parent, each.parent_columns) not in others:
            yield each


def triggers(source: Table, target: Table) -> Iterator[Finding]:
    """Triggers that only one side has, and those that fire a second time."""
    own = [
        {each.function for each in side.triggers if not each.function.startswith("bg.")} for side in (source, target)
    ]
    if own[0] != own[1]:
        yield finding(
            "trigger-differs",
            f"Triggers differ ({', '.join(sorted(own[0] ^ own[1]))}), and none fires for rows that replication brings.",
            table=source.label,
        )
    for side, each in (("source", source), ("target", target)):
        for trigger in each.triggers:
            if trigger.enabled in "AR" and not trigger.function.startswith("bg."):
                enable = sql.SQL("ALTER TABLE {} ENABLE TRIGGER {}")
                yield finding(
                    "trigger-always",
                    f"{trigger.name} in the {side} also fires for rows that replication brings, for a second time.",
                    "Fire it for the app's own writes only: ALTER TABLE ... ENABLE TRIGGER.",
                    table=each.label,
                    sql=(enable.format(identifier(each), sql.Identifier(trigger.name)),),
                    side=side,
                )


def partitions(source: Catalog, target: Catalog) -> Iterator[Finding]:
    """Tables that are partitioned otherwise, unless they are published as the whole that they are."""
    for key in sorted(source.tables.keys() & target.tables.keys()):
        if not source.tables[key].partitioned and not target.tables[key].partitioned:
            continue
        ways = [side.published.get(key, ()) for side in (source, target)]
        whole = all(each and all(way.via_root for way in each) for each in ways)
        if leaves(source, key) != leaves(target, key) and not whole:
            yield finding(
                "partitions-differ",
                "Partitioned otherwise: rows of a partition that one side does not have stop replication.",
                "Publish it as a whole: publish_via_partition_root = true, on both sides.",
                table=label(key),
            )


def leaves(catalog: Catalog, key: tuple[str, str]) -> frozenset[tuple[str, str]]:
    """The partitions of a table that have rows, at any depth; empty if it is a plain table."""
    children = [table for table in catalog.tables.values() if table.parent == key]
    own = {table.key for table in children if not table.partitioned}
    return frozenset(own.union(*(leaves(catalog, table.key) for table in children if table.partitioned)))


def sequence(each: Sequence, other: Sequence | None, target: Catalog) -> Iterator[Finding]:
    """A sequence of the target that is to continue from where the source is."""
    highest = each.highest
    if each.owner:
        owner = target.tables.get(each.owner[:2])
        held = owner.column(each.owner[2]) if owner else None
        highest = min(highest, LIMITS.get(held.type if held else "", highest))
    used = [sequence.last for sequence in (each, other) if sequence and sequence.last is not None]
    if each.increment < 0:
        left, size = (min(used, default=highest) - each.lowest), highest - each.lowest
    else:
        left, size = highest - max(used, default=each.lowest), highest - each.lowest
    left //= abs(each.increment)
    if not each.cycles and left < min(LEAST, size // abs(each.increment) // 10):
        yield finding(
            "sequence-near-end",
            f"{each.label} has {max(left, 0):,} values left; each switch skips 1,000.",
            "Make the column and its sequence bigint.",
            table=label(each.owner[:2]) if each.owner else "",
            column=each.owner[2] if each.owner else "",
        )


def alter_column(owner: Table, name: str, what: str) -> sql.Composed:
    """ALTER TABLE ... ALTER COLUMN; `what` is SQL that the catalogs gave."""
    return sql.SQL("ALTER TABLE {} ALTER COLUMN {} {}").format(identifier(owner), sql.Identifier(name), sql.SQL(what))


def identifier(owner: Table) -> sql.Identifier:
    return sql.Identifier(owner.schema, owner.name)
