"""Which colour writes, how far the other one is, and whether a rollback would lose anything."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from deploy.databases import fence, links, statements
from deploy.databases.errors import DatabaseError
from deploy.databases.heartbeat import lag
from deploy.databases.side import Side

BEHIND = 30.0  # seconds that the other side may be behind before a rollback counts as not lossless: it has to catch up


@dataclass(frozen=True)
class Direction:
    """The link from one colour to the other. What cannot be read is None.

    `lag_bytes` is the WAL that the receiver has yet to confirm, `lag_seconds` the age of what it has not; `wal_status`,
    `safe_wal_size` (in bytes) and `inactive_since` (PostgreSQL 17) are those of pg_replication_slots. `lost_at` is when
    the slot will be lost if nobody reads it and as much is written as since it was last read.
    """

    sender: str
    receiver: str
    name: str
    running: bool
    lag_bytes: int | None = None
    lag_seconds: float | None = None
    wal_status: str | None = None
    safe_wal_size: int | None = None
    inactive_since: datetime | None = None
    lost_at: datetime | None = None
    errors: int = 0

    @property
    def fault(self) -> str:
        """What is wrong with it, as a sentence; empty if nothing is."""
        way = f"from {self.sender} to {self.receiver}"
        if self.wal_status is None:
            return f"The slot {way} is missing. Prepare again."
        if self.wal_status == "lost":
            return f"The slot {way} is lost: it kept more WAL than max_slot_wal_keep_size. Prepare again."
        if not self.running:
            return f"Nothing is replicated {way}: the worker is down. See the log of the {self.receiver} server."
        if self.wal_status != "reserved":
            return f"The slot {way} is {self.wal_status}; {self.receiver} has to catch up soon."
        return ""


@dataclass(frozen=True)
class Status:
    """Both databases and what links them.

    `writable` is the colour whose fence is open; empty if none is. `unreachable` are the colours that do not answer.
    `directions` are empty while nothing is linked. `lossless` is whether the other colour has, or is about to have, all
    that was written: since `since`, if that is known, and until `until`, when the slot that keeps it will be lost.
    `heartbeats` are the times of the last heartbeat of each colour that the other has. `linked_at` is when they were
    linked, `moved_at` when the writes last moved between them, if they have. More than one in `writable_colours` is a
    fault.
    """

    writable: str
    unreachable: tuple[str, ...]
    phases: dict[str, str]
    link: links.Link | None
    directions: tuple[Direction, ...]
    heartbeats: dict[str, datetime]
    lossless: bool
    since: datetime | None
    until: datetime | None
    faults: tuple[str, ...]
    linked_at: datetime | None = None
    moved_at: datetime | None = None
    writable_colours: tuple[str, ...] = ()


@dataclass
class _Told:
    """What one side tells. `beats` are the heartbeats that it has, its own too; the rest is by the name of a link."""

    state: fence.FenceState | None = None  # None without `bg`
    link: links.Link | None = None
    linked_at: datetime | None = None
    moved_at: datetime | None = None
    beats: dict[str, datetime] = field(default_factory=dict)
    slots: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    workers: dict[str, tuple[bool, bool]] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)


def status(blue: Side, green: Side, *, wait: float | None = 1.0) -> Status:
    """Reads both databases; one that does not answer is said to be unreachable, and what the other one tells is kept.

    Writes a heartbeat on each side, and waits for it on the other for at most `wait` seconds. With None, or as a role
    that may not write one, the lag is the age of the last heartbeat that has yet to arrive.
    """
    sides = {side.colour: side for side in (blue, green)}
    told = {colour: _Told() for colour in sides}
    failed: dict[str, str] = {}

    def ask(read: Callable[[Side, _Told], None]) -> None:
        for colour in [each for each in sides if each not in failed]:
            try:
                read(sides[colour], told[colour])
            except DatabaseError as error:
                told[colour], failed[colour] = _Told(), str(error)

    ask(_tell)
    link, linked_at = None, None
    for each in told.values():
        if each.link:
            link, linked_at = each.link, each.linked_at
    ways = []
    if link and {link.source, link.target} == sides.keys():
        ways = [
            (link.source, link.target, links.name(link.id, links.FORWARD)),
            (link.target, link.source, links.name(link.id, links.BACK)),
        ]
        ask(lambda side, its: _tell_links(side, its, [name for *_, name in ways]))
    directions = tuple(_direction(name, sides[sender], sides[receiver], told, wait) for sender, receiver, name in ways)
    writable = tuple(colour for colour, its in told.items() if its.state and its.state.writable)
    faults = [failed[colour] for colour in sides if colour in failed]
    if len(writable) > 1:
        faults.append("Both databases accept writes. Run `manage.py bluegreen recover` now.")
    if not writable and all(its.state for its in told.values()):
        faults.append("No database accepts writes. Run `manage.py bluegreen recover`.")
    if not failed:  # else it is unknown what is missing
        faults += [way.fault for way in directions if way.fault]
    back = next((way for way in directions if (way.sender,) == writable), None)
    lossless = bool(link and link.ready and back and not back.fault and (back.lag_seconds or 0) < BEHIND)
    moved_at = told[back.sender].moved_at if back else None
    return Status(
        "".join(writable[:1]),
        tuple(colour for colour in sides if colour in failed),
        {colour: its.state.phase for colour, its in told.items() if its.state},
        link,
        directions,
        {
            sender: its.beats[sender]
            for colour, its in told.items()
            for sender in sides.keys() - {colour}
            if sender in its.beats
        },
        lossless,
        moved_at if lossless else None,
        back.lost_at if back else None,
        tuple(faults),
        linked_at,
        moved_at,
        writable,
    )


def _tell(side: Side, told: _Told) -> None:
    """Reads what is in `bg`. Raises DatabaseError."""
    if not side.value(statements.INSTALLED):
        return
    told.state = fence.read(side)
    told.beats = dict(side.run(statements.BEATS))
    if link := links.noted(side):
        told.link, told.linked_at = link, links.notes(side, "link")["link"].at
    if moved := links.notes(side, "lossless").get(side.colour):
        told.moved_at = moved.at


def _tell_links(side: Side, told: _Told, names: list[str]) -> None:
    """Reads how the slots and the workers of the links are. Raises DatabaseError."""
    for name in names:
        for row in side.run(statements.SLOT, [name]):
            told.slots[name] = row
        for enabled, running in side.run(statements.WORKER, [name]):
            told.workers[name] = enabled, running
        told.errors[name] = sum(next(iter(side.run(statements.ERRORS, [name])), (0,)))


def _direction(name: str, sender: Side, receiver: Side, told: dict[str, _Told], wait: float | None) -> Direction:
    """How one link is."""
    ours, theirs = told[sender.colour], told[receiver.colour]
    worker = theirs.workers.get(name)
    behind, active, wal_status, safe, inactive, now, _ = ours.slots.get(name, (None,) * 7)
    seconds = lost_at = None
    if worker and now:
        seconds = _lag(sender, receiver, wait and wait * active, ours.beats, theirs.beats, now)
    if now and not active and inactive and safe is not None and behind and now > inactive:
        lost_at = now + safe * (now - inactive) / behind
    return Direction(
        sender.colour,
        receiver.colour,
        name,
        bool(worker and all(worker) and active),
        behind,
        seconds,
        wal_status,
        safe,
        inactive,
        lost_at,
        theirs.errors.get(name, 0),
    )


def _lag(
    sender: Side,
    receiver: Side,
    wait: float | None,
    sent: dict[str, datetime],
    received: dict[str, datetime],
    now: datetime,
) -> float | None:
    """The seconds that the receiver is behind, by a heartbeat; else by the last one. None if that is unknown."""
    if wait is not None:
        try:
            if (took := lag(sender, receiver, wait)) is not None:
                return took
        except DatabaseError as error:
            if error.code != fence.INSUFFICIENT_PRIVILEGE:
                return None
            wait = None
    last = received.get(sender.colour)
    if last is None:
        return None
    return 0.0 if wait is None and sent.get(sender.colour) == last else (now - last).total_seconds()


def note_lossless(side: Side) -> None:
    """Notes that from now on the other colour gets all that this one, which writes, has written."""
    links.note(side, "lossless", side.colour, "")
