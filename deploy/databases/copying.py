"""Waits for rows to arrive on the other side, and says meanwhile how far they are."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from psycopg2 import sql

from deploy.databases import statements
from deploy.databases.errors import DatabaseError, TimedOut, Unreachable
from deploy.databases.heartbeat import beat
from deploy.databases.links import PAUSE, Key, Say, Told
from deploy.databases.side import Side

# A worker that has failed so often, and for so many seconds, without any progress is given up.
ERRORS, STUCK = 3, 10.0
LOCK_NOT_AVAILABLE, DEADLOCK = "55P03", "40P01"  # SQLSTATEs
LOCK_ATTEMPTS = 100


@dataclass
class Copying:
    """The first copy of all tables over a subscription, on its way."""

    source: Side
    target: Side
    subscription: str
    sizes: dict[Key, int] = field(default_factory=dict)
    began: float = 0.0
    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def wait(self, say: Say, patience: float) -> None:
        """Waits until every table is copied. Raises DatabaseError if nothing moves for `patience` seconds."""
        self.sizes = {(schema, name): size for schema, name, size in self.source.run(statements.SIZES)}
        self.began = time.monotonic()
        furthest = (0, 0, 0)

        def look() -> object:
            nonlocal furthest
            tables = self.target.run(statements.COPYING, [self.subscription])
            done = self.count(tables)
            if done == len(tables):
                return None
            say(self.progress(done, len(tables)))
            furthest = max(furthest, (done, self.bytes, self.rows))  # a copy that fails begins anew, again and again
            return furthest

        Watch(self.source, self.target, self.subscription, patience).wait(look, say, PAUSE)

    def count(self, tables: list[tuple[Any, ...]]) -> int:
        """Sums up the rows of statements.COPYING. Returns how many tables are done."""
        self.seconds = time.monotonic() - self.began
        # What is known of a table that has just ended comes late.
        self.rows = max(self.rows, sum(rows for *_, rows in tables))
        self.bytes = sum(
            self.sizes.get((schema, name), 0) if copied else min(read, self.sizes.get((schema, name), 0))
            for schema, name, copied, _, read, _ in tables
        )
        return sum(ready for *_, ready, _, _ in tables)

    def progress(self, done: int, tables: int) -> Told:
        """How far it is, in a line."""
        total = sum(self.sizes.values())
        left = (total - self.bytes) / self.rate if self.rate and self.bytes < total else None
        return Told(
            f"{done} of {tables} tables copied, {self.rows:,} rows, {size(self.bytes)} of {size(total)}, "
            f"{size(self.rate)}/s" + ("" if left is None else f", {spell(left)} left"),
            self.figures
            | {"tables_copied": done, "bytes_total": total, "seconds_left": None if left is None else round(left, 1)},
        )

    def summary(self) -> Told:
        """What was copied, and how fast."""
        what = f"{len(self.sizes)} tables, {self.rows:,} rows, {size(self.bytes)}"
        return Told(f"{what} in {spell(self.seconds)} ({size(self.rate)}/s)", self.figures)

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.bytes / self.seconds if self.seconds else 0.0

    @property
    def figures(self) -> dict[str, float | None]:
        """What was copied so far."""
        return {"tables": len(self.sizes), "rows": self.rows, "bytes": self.bytes, "bytes_per_second": round(self.rate)}


class Watch:
    """Notices that a subscription no longer gets on."""

    def __init__(self, sender: Side, receiver: Side, subscription: str, patience: float) -> None:
        self.sender, self.receiver, self.subscription, self.patience = sender, receiver, subscription, patience
        self.seen: object = None
        self.moved = time.monotonic()
        self.errors = self.failures()

    def failures(self) -> int:
        """How often its workers have ended with an error."""
        found = self.receiver.run(statements.ERRORS, [self.subscription])
        return sum(found[0]) if found else 0

    def wait(self, look: Callable[[], object], say: Say, pause: float) -> None:
        """Calls `look` until it returns None; until then, what it returns has to change. Raises DatabaseError.

        A database that does not answer is asked again: its server may be restarting, and replication goes on by itself.
        """
        while True:
            try:
                if (seen := look()) is None:
                    return
                self.judge(seen)
            except (Unreachable, TimedOut) as error:
                if time.monotonic() - self.moved > self.patience:
                    raise
                say(f"{error} Trying again.")
            time.sleep(pause)

    def judge(self, seen: object) -> None:
        """Raises DatabaseError if `seen` has not changed for too long or in too many attempts, or the slot is lost."""
        slot = self.sender.run(statements.SLOT, [self.subscription])
        if not slot or slot[0][2] == "lost":
            raise DatabaseError(
                f"The replication slot {self.subscription} on {self.sender.colour} is lost: more WAL than "
                "max_slot_wal_keep_size was written before it was read. Raise that setting, then prepare again."
            )
        if seen != self.seen:
            self.seen, self.moved, self.errors = seen, time.monotonic(), self.failures()
            return
        since = time.monotonic() - self.moved
        if since > STUCK and (errors := self.failures() - self.errors) >= ERRORS:
            raise DatabaseError(
                f"Replication to {self.receiver.colour} has stopped: its worker failed {errors} times and gets no "
                "further. The log of that server says why; a row that the schema does not take is the usual reason."
            )
        if since > self.patience:
            raise DatabaseError(f"Replication to {self.receiver.colour} has not moved for {since:.0f} s.")


def caught_up(sender: Side, receiver: Side, subscription: str, *, say: Say, patience: float) -> float:
    """Waits until `receiver` has all that `sender` has written before the call. Returns the seconds that it took.

    Raises DatabaseError if nothing moves for `patience` seconds.
    """
    marker = beat(sender)
    began = told = time.monotonic()

    def look() -> object:
        nonlocal told
        if receiver.value(statements.SEEN, [marker, sender.colour]):
            return None
        behind, *_, confirmed = next(iter(sender.run(statements.SLOT, [subscription])), (0, None))
        if time.monotonic() - told > 5 * PAUSE:
            told = time.monotonic()
            text = f"{receiver.colour} is {size(behind)} and {spell(told - began)} behind {sender.colour}"
            say(Told(text, {"lag_bytes": behind, "lag_seconds": round(told - began, 1)}))
        return confirmed or ""  # how far it is behind changes as long as anybody writes

    Watch(sender, receiver, subscription, patience).wait(look, say, PAUSE / 10)
    return time.monotonic() - began


def retried(side: Side, statement: sql.Composable, *, timeout: float = 10.0) -> None:
    """Runs a statement that needs a lock of a table, without ever making others wait for long: it gives up and tries
    again. Raises DatabaseError."""
    for attempt in range(LOCK_ATTEMPTS, 0, -1):
        try:
            side.run(sql.SQL(statements.BRIEFLY) + statement, timeout=timeout)
            return
        except DatabaseError as error:
            if error.code not in (LOCK_NOT_AVAILABLE, DEADLOCK) or attempt == 1:
                raise
        time.sleep(PAUSE)


def size(number: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def spell(seconds: float) -> str:
    """A duration for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
