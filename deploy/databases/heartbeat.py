"""Heartbeats: a row that one side writes, and that arrives at the other after all that was committed before it."""

import time
import uuid

from psycopg2 import sql

from deploy.databases import statements
from deploy.databases.side import Session, Side

ASKED_EVERY = 0.001  # seconds


def beating(colour: str, marker: str) -> sql.Composable:
    """The statement that writes `marker` as the heartbeat of `colour`."""
    return sql.SQL(statements.BEAT).format(colour=sql.Literal(colour), marker=sql.Literal(marker))


def new_marker() -> str:
    return str(uuid.uuid4())


def beat(side: Session) -> str:
    """Writes a heartbeat. Returns its marker. Raises DatabaseError."""
    marker = new_marker()
    side.run(beating(side.colour, marker))
    return marker


def arrives(target: Session, colour: str, marker: str, within: float, *, answer: float = 0.5) -> bool:
    """Whether the heartbeat of the other `colour` arrives at `target` within so many seconds.

    Raises DatabaseError if the target does not answer within `answer` seconds.
    """
    until = time.monotonic() + within
    while not target.value(statements.SEEN, [marker, colour], timeout=answer):
        if time.monotonic() > until:
            return False
        time.sleep(ASKED_EVERY)
    return True


def lag(source: Side, target: Side, within: float) -> float | None:
    """Seconds that a heartbeat takes from source to target; None if it has not arrived `within` as many.

    Raises DatabaseError.
    """
    started = time.monotonic()
    return time.monotonic() - started if arrives(target, source.colour, beat(source), within) else None
