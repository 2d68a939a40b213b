"""Whether two databases can replicate to each other without stopping and without losing anything in silence.

It compares catalogs, not migrations: what counts is what the two databases are, however they came to be so.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from psycopg2 import sql

from deploy.databases import schemas, statements
from deploy.databases.catalogs import Catalog, Notes, Table, label, read
from deploy.databases.findings import Finding, finding
from deploy.databases.pgoutput import Written
from deploy.databases.requirements import extensions_missing, role, server
from deploy.databases.side import Side

LONG = 5.0  # seconds that a transaction may be open
APART = 0.5  # seconds that the clocks may differ
SCAN = 60.0  # seconds for the search for rows without a parent
# Written by every `migrate` that brings a model: they reach the source, and their ids are far from its own.
PERMISSIONS = ("django_content_type", "auth_permission", "auth_group", "auth_group_permissions")
LOCAL = "django_migrations"  # each database has its own
HARMLESS = "confl_update_origin_differs"  # counts ordinary rows: both sides write, one after the other


@dataclass(frozen=True)
class Counters:
    """The errors and conflicts that each subscription of a side has counted, to be compared with later ones."""

    source: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    target: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def compare(
    source: Side,
    target: Side,
    *,
    notes: Notes | None = None,
    written: Iterable[Written] = (),
    seeded: Collection[str] = (),
) -> list[Finding]:
    """Everything about the two schemas and their rows that is refused or should be known; empty if they are the same.

    `notes` are those of the target before it was migrated, `written` is what its reverse slot held after that.
    `seeded` are the tables that the migration filled with rows of its own, none of them made from rows that it found.
    Raises DatabaseError.
    """
    ours, theirs = read(source), read(target)
    return [
        *schemas.compare(ours, theirs, notes),
        *orphans(target, ours, theirs),
        *filled(target, ours, theirs, seeded),
        *migrated(written, seeded),
    ]


def before(source: Side, target: Side) -> list[Finding]:
    """What is refused, or should be known, before anything is copied: by the servers, and by what the source has.

    Raises DatabaseError.
    """
    sides = 2 if source.value(statements.SERVER_ID) == target.value(statements.SERVER_ID) else 1
    servers = [each for side in (source, target) for each in server(side, sides)]
    if any(each.code == "server-version" for each in servers):  # what follows asks for what older ones do not have
        return servers
    ours = read(source)
    found = [
        *servers,
        *role(source),
        *role(target),
        *extensions_missing(target, ours.extensions),
        *schemas.databases(ours, read(target)),
        # Compared with itself, a schema shows what replication cannot carry; twice, of which the first is meant.
        *(each for each in schemas.compare(ours, ours) if each.table or each.column),
        *(each for side in (source, target) for each in transactions(side) if each.code == "prepared-transaction"),
        *clocks(source, target),
    ]
    once: dict[tuple[str, ...], Finding] = {}
    for each in found:
        where = (each.table, each.column) if each.table else (each.reason,)
        once.setdefault((each.code, *where), each)
    return list(once.values())


def orphans(target: Side, ours: Catalog, theirs: Catalog) -> Iterator[Finding]:
    """Rows of the target that a foreign key forbids which the source does not have. Replication checks none."""
    for key, child in theirs.tables.items():
        for each in schemas.foreign_keys(child, ours.tables.get(key)):
            pairs = list(zip(each.columns, each.parent_columns, strict=True))
            columns = [(sql.Identifier("c", one), sql.Identifier("p", other)) for one, other in pairs]
            statement = sql.SQL(statements.ORPHAN).format(
                child=schemas.identifier(child),
                parent=sql.Identifier(*each.parent),
                present=sql.SQL(" and ").join(sql.SQL("{} is not null").format(one) for one, _ in columns),
                equal=sql.SQL(" and ").join(sql.SQL("{} = {}").format(other, one) for one, other in columns),
            )
            if each.validated and target.value(statement, timeout=SCAN):
                yield finding(
                    "orphans",
                    f"Rows that refer to no row of {label(each.parent)} have entered in spite of {each.name}.",
                    "Delete or correct them in the source, or in the target if that alone has the table.",
                    table=child.label,
                    column=", ".join(each.columns),
                )


def filled(target: Side, ours: Catalog, theirs: Catalog, seeded: Collection[str]) -> Iterator[Finding]:
    """New tables with rows: those may be made from rows of which the source keeps getting more."""
    for key in sorted(theirs.tables.keys() - ours.tables.keys()):
        each = theirs.tables[key]
        if each.parent:  # a partition's rows may be those of the table that both sides have
            continue
        if target.value(sql.SQL(statements.FILLED).format(schemas.identifier(each))):
            yield rows(each.label, "The new table has rows", "table-new-filled", seeded)


def migrated(written: Iterable[Written], seeded: Collection[str]) -> Iterator[Finding]:
    """What a migration wrote into tables that both sides have."""
    for each in written:
        if each.schema == "bg":
            continue
        name = label((each.schema, each.table))
        done = ", ".join(
            f"{count:,} {word}"
            for count, word in (
                (each.inserts, "inserted"),
                (each.updates, "updated"),
                (each.deletes, "deleted"),
                (each.truncates, "truncated"),
            )
            if count
        )
        only_inserts = not (each.updates or each.deletes or each.truncates)
        if each.table in PERMISSIONS and only_inserts:
            yield finding(
                "permissions-written",
                f"The migration added content types, permissions or roles ({done}); they reach the source too.",
                table=name,
            )
        else:
            yield rows(name, f"The migration wrote rows ({done})", "rows-written", seeded if only_inserts else ())


def rows(table: str, what: str, code: str, seeded: Collection[str]) -> Finding:
    """A table that the migration wrote to; allowed if somebody has said that the rows depend on no others."""
    if table in seeded:
        return finding("rows-seeded", f"{what}, said to be independent of other rows.", table=table)
    return finding(
        code,
        f"{what}: rows that the source gets later miss what it did"
        + (", and its changes would overwrite theirs." if code == "rows-written" else "."),
        "Ship the schema first, and change the rows in a release after it. If they depend on no other row, say so.",
        table=table,
    )


def links(ours: Catalog, theirs: Catalog) -> Iterator[Finding]:
    """Tables that replication or the fence does not cover, on either side."""
    for name, here, there in (("source", ours, theirs), ("target", theirs, ours)):
        for _, each in sorted(here.tables.items()):
            if not each.guarded:
                yield finding(
                    "unguarded",
                    f"Without the guard in the {name}: writes to it are not stopped by the fence.",
                    "Prepare again: it adds the guard to every table.",
                    table=each.label,
                )
            if each.name != LOCAL:
                yield from published(name, each, here, there)


def published(name: str, each: Table, here: Catalog, there: Catalog) -> Iterator[Finding]:
    """How the table is published on the side called `name`, compared with what both sides have."""
    other, ways = there.tables.get(each.key), here.published.get(each.key, ())
    again = "Prepare again: it publishes what both sides have."
    if not other:
        if ways:
            yield finding(
                "published-alone",
                f"The {name} publishes it, and the other side does not have it: its first row stops replication.",
                again,
                table=each.label,
            )
        return
    if not ways:
        if not each.partitioned and not whole(each, here):
            yield finding("unpublished", f"Not published in the {name}: its rows stay there.", again, table=each.label)
        return
    sent = set[str]().union(*(way.columns for way in ways))
    for column in schemas.common(each, other):
        if column not in sent:
            yield finding(
                "columns-unpublished",
                f"Not published in the {name}: its values stay there.",
                again,
                table=each.label,
                column=column,
            )
    for column in sorted(sent - set(schemas.common(each, other))):
        yield finding(
            "published-alone",
            f"The {name} publishes it, and the other side has nothing to write it to: the next row stops replication.",
            again,
            table=each.label,
            column=column,
        )
    if any(way.filtered or not way.complete for way in ways):
        yield finding(
            "publication-partial",
            f"The publication of the {name} leaves out rows or kinds of changes.",
            "Publish all rows, and insert, update, delete and truncate.",
            table=each.label,
        )


def whole(each: Table, here: Catalog) -> bool:
    """Whether a table that it is a partition of is published as a whole."""
    parent = here.tables.get(each.parent) if each.parent else None
    if not parent:
        return False
    return any(way.via_root for way in here.published.get(parent.key, ())) or whole(parent, here)


def state(source: Side, target: Side, *, since: Counters | None = None) -> tuple[list[Finding], Counters]:
    """What is wrong with replication in either direction right now, with the counters to pass as `since` next time.

    Without `since` no counter is judged: an error that was healed stays counted. Raises DatabaseError.
    """
    catalogs = read(source), read(target)
    found = [*links(*catalogs), *transactions(source), *transactions(target), *clocks(source, target)]
    counters = {}
    for name, subscriber, publisher in (("source", source, target), ("target", target, source)):
        slots = {slot: (status, safe) for slot, status, safe in publisher.run(statements.SLOTS)}
        subscriptions = subscriber.run(statements.SUBSCRIPTIONS)
        if not subscriptions:
            found.append(
                finding(
                    "subscription-missing",
                    f"The {subscriber.colour} database does not subscribe to the {publisher.colour} one.",
                    "Prepare again.",
                )
            )
        counters[name] = {subscription: numbers(stats) for subscription, *_, stats in subscriptions}
        before = getattr(since, name) if since else {}
        for subscription, slot, enabled, running, waiting, stats in subscriptions:
            found += subscribed(subscriber, subscription, enabled, running, waiting)
            found += slot_state(publisher, slot, slots.get(slot))
            if subscription in before:
                found += grown(subscriber, subscription, numbers(stats), before[subscription])
    return found, Counters(**counters)


def numbers(stats: Mapping[str, object]) -> dict[str, int]:
    """The counters of pg_stat_subscription_stats that count errors and conflicts (the latter since 18)."""
    return {
        name: value
        for name, value in stats.items()
        if isinstance(value, int) and name.endswith(("_count",)) or name.startswith("confl_")
        if isinstance(value, int) and name != HARMLESS
    }


def subscribed(
    side: Side, subscription: str, enabled: bool, running: bool, waiting: Collection[str]
) -> Iterator[Finding]:
    """A subscription's worker, and the tables that are still being copied."""
    if not enabled or not running:
        why = "is disabled" if not enabled else "has no worker: it has failed, or there are too few worker processes"
        yield finding(
            "worker-down",
            f"The subscription {subscription} of the {side.colour} database {why}.",
            "See the server's log; it names the row and the reason.",
        )
    for name in waiting:
        yield finding(
            "copy-unfinished",
            f"The copy into the {side.colour} database has not finished.",
            "Wait for it.",
            table=name,
        )


def slot_state(side: Side, slot: str, found: tuple[str, str] | None) -> Iterator[Finding]:
    """A slot that keeps, for the other side, what this one has written."""
    if not found:
        yield finding(
            "slot-missing",
            f"The slot {slot} of the {side.colour} database does not exist.",
            "Prepare again: what the slot kept is lost to the other side.",
        )
    elif found[0] != "reserved":
        kept = f", {found[1]} before it is lost" if found[1] else ""
        yield finding(
            "slot-lost",
            f"The slot {slot} of the {side.colour} database is {found[0]}{kept}; expected: reserved.",
            "Prepare again." if found[0] == "lost" else "Let the other side catch up, or raise max_slot_wal_keep_size.",
        )


def grown(side: Side, subscription: str, now: Mapping[str, int], before: Mapping[str, int]) -> Iterator[Finding]:
    """Counters that are higher than before."""
    for name, value in now.items():
        more = value - before.get(name, 0)
        if more > 0:
            conflict = name.startswith("confl_")
            yield finding(
                "conflicts" if conflict else "apply-errors",
                f"{subscription} of the {side.colour} database: {more} more of {name}.",
                (
                    "Something else writes to both databases: find it, and prepare again."
                    if conflict
                    else "See the server's log; loosen the idle side if a row does not fit there."
                ),
            )


def transactions(side: Side) -> Iterator[Finding]:
    """Transactions that would delay a slot or the switch."""
    for pid, seconds in side.run(statements.LONG_TRANSACTIONS, [LONG]):
        yield finding(
            "long-transaction",
            f"Process {pid} of the {side.colour} server has had a transaction open for {seconds:.0f} s.",
            f"Wait for it, or end it: SELECT pg_terminate_backend({pid}).",
        )
    for name, seconds in side.run(statements.PREPARED_TRANSACTIONS):
        yield finding(
            "prepared-transaction",
            f"The {side.colour} server has had the prepared transaction {name} open for {seconds:.0f} s.",
            "COMMIT PREPARED or ROLLBACK PREPARED.",
        )


def clocks(source: Side, target: Side) -> Iterator[Finding]:
    """Clocks that differ: the deadline of a switch is set by one of them and judged by the other."""
    apart = offset(target) - offset(source)
    if abs(apart) > APART:
        yield finding(
            "clocks",
            f"The servers' clocks are {abs(apart):.1f} s apart, limit {APART} s.",
            "Synchronise both with NTP.",
        )


def offset(side: Side) -> float:
    """The seconds by which the side's clock is ahead of this machine's, by the fastest of three answers."""
    answers = []
    for _ in range(3):
        sent = time.time()
        theirs = side.value(statements.CLOCK)
        received = time.time()
        answers.append((received - sent, theirs - (sent + received) / 2))
    return float(min(answers)[1])
