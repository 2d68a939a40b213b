"""Which colour writes, how far the other one is, and whether a rollback would lose anything."""

from dataclasses import dataclass
from datetime import datetime

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
    linked. More than one in `writable_colours` is a fault.
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
    writable_colours: tuple[str, ...] = ()


def status(blue: Side, green: Side, *, wait: float = 1.0) -> Status:
    """Reads both databases; one that does not answer is said to be unreachable.

    Writes a heartbeat on each side, and waits for it on the other for at most `wait` seconds.
    """
    sides = {side.colour: side for side in (blue, green)}
    fences: dict[str, fence.FenceState] = {}
    unreachable, faults = [], []
    link, since, linked_at = None, None, None
    heartbeats: dict[str, datetime] = {}
    for side in (blue, green):
        try:
            if side.value(statements.INSTALLED):
                fences[side.colour] = fence.read(side)
                if noted := links.noted(side):
                    link, linked_at = noted, links.notes(side, "link")["link"].at
                other = green if side is blue else blue
                if at := side.value(statements.BEATEN, [other.colour]):
                    heartbeats[other.colour] = at
        except DatabaseError as error:
            unreachable.append(side.colour)
            faults.append(str(error))
    writable = [colour for colour, state in fences.items() if state.writable]
    if len(writable) > 1:
        faults.append("Both databases accept writes. Run `manage.py bluegreen recover` now.")
    if not writable and len(fences) == 2:
        faults.append("No database accepts writes. Run `manage.py bluegreen recover`.")
    directions = []
    if link:
        for sender, receiver, name in ((link.source, link.target, "f"), (link.target, link.source, "r")):
            if sender in sides and receiver in sides:
                directions.append(
                    direction(sides[sender], sides[receiver], links.name(link.id, name), unreachable, wait)
                )
        if not unreachable:  # else it is unknown what is missing
            faults += [each.fault for each in directions if each.fault]
    back = next((each for each in directions if [each.sender] == writable), None)
    lossless = bool(link and link.ready and back and not back.fault and (back.lag_seconds or 0) < BEHIND)
    if back and lossless:
        lately = links.notes(sides[back.sender], "lossless").get(back.sender)
        since = lately.at if lately else None
    return Status(
        "".join(writable[:1]),
        tuple(unreachable),
        {colour: state.phase for colour, state in fences.items()},
        link,
        tuple(directions),
        heartbeats,
        lossless,
        since,
        back.lost_at if back else None,
        tuple(faults),
        linked_at,
        tuple(writable),
    )


def direction(sender: Side, receiver: Side, name: str, unreachable: list[str], wait: float) -> Direction:
    """How one link is."""
    slot = worker = seconds = lost_at = None
    errors = 0
    if sender.colour not in unreachable:
        slot = next(iter(sender.run(statements.SLOT, [name])), None)
    if receiver.colour not in unreachable:
        worker = next(iter(receiver.run(statements.WORKER, [name])), None)
        errors = sum(next(iter(receiver.run(statements.ERRORS, [name])), (0,)))
    behind, active, wal_status, safe, inactive, now, _ = slot or (None,) * 7
    if slot and worker:
        last = receiver.value(statements.BEATEN, [sender.colour])
        seconds = lag(sender, receiver, wait if active else 0.0)
        if seconds is None and last:
            seconds = (now - last).total_seconds()
    if slot and not active and inactive and safe is not None and behind and now > inactive:
        lost_at = now + safe * (now - inactive) / behind
    return Direction(
        sender.colour,
        receiver.colour,
        name,
        bool(worker and worker[0] and worker[1] and active),
        behind,
        seconds,
        wal_status,
        safe,
        inactive,
        lost_at,
        errors,
    )


def note_lossless(side: Side) -> None:
    """Notes that from now on the other colour gets all that this one, which writes, has written."""
    links.note(side, "lossless", side.colour, "")
