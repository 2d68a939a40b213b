"""The links between the two databases: publications, slots and subscriptions.

Each side publishes its tables as `bg_pub`. A link's slot, on the side that sends, and its subscription, on the side
that receives, have the same name: bg_ID_f from source to target, bg_ID_r back. The id is random, as a subscription that
was forgotten somewhere would take what a new slot of its name has.
"""

import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from psycopg2 import extensions, sql

from deploy.databases import statements
from deploy.databases.catalogs import Catalog, Table
from deploy.databases.errors import DatabaseError, TimedOut
from deploy.databases.pgoutput import Written, written
from deploy.databases.side import Side

PUBLICATION = "bg_pub"
UNPUBLISHED = ("django_migrations",)  # each side has applied its own
FORWARD, BACK = "f", "r"
SLOT_ATTEMPT = 3.0  # seconds that one attempt to make a slot waits for open transactions
PAUSE = 0.2  # seconds between two looks
CANCELLED, EXISTS, IN_USE = "57014", "42710", "55006"  # SQLSTATEs

Say = Callable[[str], None]


class Told(str):
    """What Say is told, with the figures in it for machines."""

    figures: Mapping[str, float | None]

    def __new__(cls, text: str, figures: Mapping[str, float | None]) -> "Told":
        told = super().__new__(cls, text)
        told.figures = figures
        return told


Key = tuple[str, str]  # schema and name


@dataclass(frozen=True)
class Link:
    """The two links, as they are noted in both databases. `ready` once both run and the target is migrated."""

    id: str
    source: str  # the colours, as they were when it was prepared
    target: str
    release: str
    ready: bool = False

    def written(self) -> str:
        return json.dumps(vars(self))


def new_id() -> str:
    """An id that no slot or subscription has had before."""
    return secrets.token_hex(4)


def name(link: str, direction: str) -> str:
    """The name of a link's slot and subscription."""
    return f"bg_{link}_{direction}"


def published(catalog: Catalog) -> list[Table]:
    """The tables that a side sends: all but `django_migrations` and partitions, which their root stands for."""
    return [table for table in catalog.tables.values() if not table.parent and table.name not in UNPUBLISHED]


def publish(side: Side, tables: Iterable[Key], lists: Mapping[Key, Sequence[str]] | None = None) -> None:
    """Makes `bg_pub` publish these tables and the heartbeat, and of those in `lists` these columns alone.

    To lift the lists, call it without: PostgreSQL changes the type of no column that is in one.
    """
    parts: list[sql.Composable] = [sql.Identifier("bg", "heartbeat")]
    for key in tables:
        part: sql.Composable = sql.SQL("only {}").format(sql.Identifier(*key))
        if lists and key in lists:
            part = sql.SQL("{} ({})").format(part, sql.SQL(", ").join(map(sql.Identifier, lists[key])))
        parts.append(part)
    form = statements.ALTER_PUBLICATION if side.value(statements.HAS_PUBLICATION) else statements.CREATE_PUBLICATION
    side.run(sql.SQL(form).format(sql.SQL(", ").join(parts)), timeout=60)


def make_slot(side: Side, slot: str, *, say: Say, patience: float) -> None:
    """Makes a slot by hand. CREATE SUBSCRIPTION does it in its own transaction, so in one cluster it waits for itself.

    The server waits for every open transaction of the cluster that has written. Each attempt is short, as those that
    write meanwhile are not kept waiting, but VACUUM is. Raises DatabaseError after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        with side.session(statement_timeout=f"{SLOT_ATTEMPT:g}s") as session:
            try:
                session.run(statements.CREATE_SLOT, [slot], timeout=2 * SLOT_ATTEMPT)
                return
            except DatabaseError as error:
                if error.code == EXISTS:  # by an attempt whose answer was lost
                    return
                if error.code != CANCELLED and not isinstance(error, TimedOut):
                    raise
        holders = side.run(statements.WRITERS)
        who = ", ".join(f"{pid} ({user} in {database}, open for {age:.0f} s)" for pid, user, database, age in holders)
        if time.monotonic() > deadline:
            raise DatabaseError(
                f"No replication slot could be made on {side.colour} within {patience:g} s, as transactions that have "
                f"written are still open: {who or 'unknown'}. End them, then prepare again."
            )
        say(f"waiting for transactions that have written on {side.colour}: {who or 'they have just ended'}")


def subscribe(side: Side, subscription: str, url: str, *, copy: bool) -> None:
    """Makes a subscription to the slot of the same name in the database at `url`, as this side's server reaches it."""
    given = extensions.parse_dsn(url)
    for word in ("options", "application_name"):
        given.pop(word, None)
    side.run(
        sql.SQL(statements.CREATE_SUBSCRIPTION).format(
            name=sql.Identifier(subscription),
            url=sql.Literal(extensions.make_dsn(**({"connect_timeout": "5"} | given))),
            slot=sql.Literal(subscription),
            copy=sql.Literal(copy),
        ),
        timeout=30,
    )


def enable(side: Side, subscription: str, on: bool) -> None:
    """Starts or stops a subscription's worker."""
    form = statements.ENABLE_SUBSCRIPTION if on else statements.DISABLE_SUBSCRIPTION
    side.run(sql.SQL(form).format(sql.Identifier(subscription)))


def disconnect(side: Side) -> list[str]:
    """Drops the subscriptions and the publication of this side. Their slots are the other side's: drop_slots()."""
    dropped = []
    for (subscription,) in side.run(statements.LINK_SUBSCRIPTIONS):
        given = sql.Identifier(subscription)
        # Without its slot's name it is dropped even if the other side cannot be reached.
        side.run(sql.SQL(statements.DISABLE_SUBSCRIPTION).format(given))
        side.run(sql.SQL(statements.FORGET_SLOT).format(given))
        side.run(sql.SQL(statements.DROP_SUBSCRIPTION).format(given), timeout=30)
        dropped.append(f"subscription {subscription} on {side.colour}")
    if side.value(statements.HAS_PUBLICATION):
        side.run(statements.DROP_PUBLICATION)
        dropped.append(f"publication {PUBLICATION} on {side.colour}")
    return dropped


def drop_slots(side: Side, *, patience: float = 20.0) -> list[str]:
    """Drops the slots of this database's links, and ends whoever still reads them. Raises DatabaseError."""
    dropped: list[str] = []
    deadline = time.monotonic() + patience
    while left := [each for each in side.run(statements.LINK_SLOTS) if each[0] not in dropped]:
        for slot, reader in left:
            if reader:
                side.run(statements.TERMINATE, [reader])
            try:
                side.run(statements.DROP_SLOT, [slot])
                dropped.append(slot)
            except DatabaseError as error:
                if error.code != IN_USE or time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE)
    return [f"slot {slot} on {side.colour}" for slot in dropped]


def peek(side: Side, slot: str) -> tuple[Written, ...]:
    """What this side has written since the slot was made, except what it received. The slot keeps it."""
    side.run(statements.FLUSH)
    return written((bytes(head), count) for head, count in side.run(statements.PEEK, [slot, PUBLICATION], timeout=600))


@dataclass(frozen=True)
class Note:
    """What prepare() has noted in a database."""

    value: str
    at: datetime


def note(side: Side, kind: str, name_: str, value: str) -> None:
    """Notes a value in `bg` of this side, in place of an earlier one."""
    side.run(statements.NOTE, [kind, name_, value])


def notes(side: Side, kind: str) -> dict[str, Note]:
    """The notes of a kind by their names; none if `bg` is not there."""
    if not side.value(statements.HAS_NOTES):
        return {}
    return {row[0]: Note(row[1], row[2]) for row in side.run(statements.NOTES, [kind])}


def forget(side: Side, *kinds: str) -> None:
    """Deletes the notes of these kinds."""
    if side.value(statements.HAS_NOTES):
        side.run(statements.FORGET, [list(kinds)])


def masked(text: str) -> str:
    """`text` without the passwords in it."""
    with suppress(re.error):
        text = re.sub(r"(password\s*=\s*)(\\?'(?:[^'\\]|\\.)*'|[^\s']+)|(://[^:@/\s]*:)[^@\s]*(?=@)", r"\1\3***", text)
    return text


def installed(side: Side) -> bool:
    """Whether the fence is in a database."""
    return bool(side.value(statements.INSTALLED))


def noted(side: Side) -> Link | None:
    """The link that is noted in a database, if there is one."""
    found = notes(side, "link")
    return Link(**json.loads(found["link"].value)) if found else None


def intact(source: Side, target: Side, link: Link) -> bool:
    """Whether both links are there and enabled, and neither slot has lost anything."""
    for sender, receiver, direction in ((source, target, FORWARD), (target, source, BACK)):
        slot = sender.run(statements.SLOT, [name(link.id, direction)])
        worker = receiver.run(statements.WORKER, [name(link.id, direction)])
        if not slot or slot[0][2] == "lost" or not worker or not worker[0][0]:
            return False
    return True


def clear(source: Side, target: Side) -> str:
    """Drops the links between the two. Returns what was dropped, as a sentence's end; empty if nothing was there.

    If one side cannot be reached, what is in the other is dropped all the same. Raises DatabaseError after that.
    """
    dropped: list[str] = []
    failures: list[DatabaseError] = []
    for drop in (disconnect, drop_slots):
        for side in (target, source):
            try:
                dropped += drop(side)
                forget(side, "link")
            except DatabaseError as error:
                failures.append(error)
    if failures:
        raise failures[0]
    return f"dropped {', '.join(dropped)}" if dropped else ""
