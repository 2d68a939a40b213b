"""The switch: the writes move from one colour's database to the other's. A rollback is the same, with names swapped.

At no moment do both accept writes. Until the one statement that commits was sent, every fault returns the writes to the
source. If it was sent and no answer came, the source stays fenced until the target tells.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

from psycopg2 import sql

from deploy.databases import fence, heartbeat, sequences, statements
from deploy.databases.errors import DatabaseError, TimedOut, Unreachable
from deploy.databases.recover import recover
from deploy.databases.rehearsal import Rehearsal
from deploy.databases.side import Session, Side
from deploy.errors import DeployRefused

MARGIN = 1000  # calls that the target's sequences are ahead, so that few of them need to move while nobody can write
HEARTBEATS = 3  # that arrive fast enough, one after another, before a try
LAG = 0.03  # seconds that each of them may take
OLD = 0.1  # seconds: a transaction that has run for longer is waited for without holding up the others
DRAIN = 0.3  # seconds for the writers under way to finish, in which new ones wait
ARRIVAL = 1.0  # seconds for the last write to arrive at the target
ANSWER = 0.5  # seconds for each statement while nobody can write
COMMIT = 3.0  # seconds from a try's beginning in which the target accepts the commit, by its own clock
ABANDONED = ARRIVAL + 2 * ANSWER  # seconds after which the server frees the lock of a command that has stopped
IN_DOUBT = 30.0  # seconds to ask a target that did not answer whether it has taken over
RETURNED = 5.0  # seconds for a heartbeat to come back after the switch
NOBODY = -1  # the number of no attempt
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)  # seconds between tries; the last one for all that follow


@dataclass(frozen=True)
class Switched:
    """A completed switch. `held` is how many seconds nobody could write, `tries` how many it took.

    `lossless` tells whether a heartbeat has come back, so that a rollback loses nothing.
    """

    attempt: int
    held: float
    tries: int
    lossless: bool


class InDoubt(DatabaseError):
    """It is not known whether the target has taken over. Nobody can write until recover() was run."""


def switch(
    source: Side,
    target: Side,
    *,
    say: Callable[[str], None] = lambda text: None,
    deadline: float = 30.0,
    lag: float = LAG,
    lossy: bool = False,
    on_step: Callable[[str], None] = lambda name: None,
) -> Switched:
    """Moves the writes from source to target. Tries for `deadline` seconds to find a moment that allows it.

    A heartbeat may take `lag` seconds. With `lossy` the target takes over without what has not arrived. `on_step` is
    called with the name of each step that was done.
    Raises DeployRefused if nothing was changed, InDoubt if nobody can write until recover() was run, and another
    DatabaseError if the writes have stayed with the source, or returned to it.
    """
    return _Switch(source, target, say, lag, on_step, lossy).run(time.monotonic() + deadline)


def plan(source: Rehearsal, target: Rehearsal) -> None:
    """Has the two show what switch() would send, in order. Raises DatabaseError."""
    run = _Switch(source, target)
    states = fence.read(source), fence.read(target)
    attempt = max(state.attempt for state in states) + 1
    ours, theirs = sequences.read(source), sequences.read(target)
    sequences.advance(source, target, MARGIN)
    source.run(statements.CLAIM_SOURCE, [attempt, states[0].attempt])
    target.run(statements.CLAIM_TARGET, [attempt, states[1].attempt])
    target.run(statements.SET_DEADLINE, [COMMIT, attempt])
    source.show(f"-- on {source.colour}\nset lock_timeout = '{DRAIN * 1000:.0f}ms'; {statements.TAKE_LOCK};")
    source.run(run._fencing(attempt, None, heartbeat.new_marker(), ours))
    run._commit(attempt, sequences.moves(ours, theirs, 0, unused=True))
    source.run(statements.LEAVE, [attempt])


class _NotNow(Exception):
    """This moment does not allow it, and the source takes the writes. The text says why."""


class _Switch:
    """One attempt, under one number."""

    def __init__(
        self,
        source: Side,
        target: Side,
        say: Callable[[str], None] = lambda text: None,
        lag: float = LAG,
        on_step: Callable[[str], None] = lambda name: None,
        lossy: bool = False,
    ) -> None:
        self.source, self.target, self.say, self.lag, self.on_step = source, target, say, lag, on_step
        self.lossy = lossy
        self.attempt = 0  # 0 until the source was claimed
        self.tries = 0
        self.began = 0.0  # when writers had to wait
        self.in_doubt = False  # whether something was sent that only recover() can tell the end of

    def run(self, until: float) -> Switched:
        while True:
            self.tries += 1
            try:
                try:
                    self._try()
                    break
                except _NotNow as reason:
                    self._pause(str(reason), until)
            except BaseException as error:
                if self.in_doubt:
                    if self._took_over() and isinstance(error, DatabaseError):
                        break
                    raise
                if not self.attempt or not self._gave_up() or not isinstance(error, TimedOut | Unreachable):
                    raise
                self.attempt = 0
                self._pause(str(error), until)
        held = time.monotonic() - self.began
        self.on_step("left")
        lossless = not self.lossy and self._returned()
        self.on_step("returned")
        return Switched(self.attempt, held, self.tries, lossless)

    def _try(self) -> None:
        """Raises _NotNow if the claim holds, and another try may succeed; any other error ends it."""
        if self.attempt:
            self._follow()
        else:
            numbers = self._check()
            self._follow()
            self._claim(*numbers)
        self._move()

    def _check(self) -> tuple[int, int]:
        """The attempts noted on both sides. Raises DeployRefused unless source writes, and both are as prepared."""
        try:
            source, target = fence.read(self.source), fence.read(self.target)
        except (TimedOut, Unreachable) as error:
            if self.tries == 1:
                raise
            raise _NotNow(str(error)) from error
        if target.writable and not source.writable and (source.phase, target.phase) == ("standby", "active"):
            raise DeployRefused(f"{self.target.colour} takes the writes already; nothing to do.")
        if (
            not source.writable
            or target.writable
            or source.phase != "active"
            or target.phase in ("fencing", "committing")
        ):
            raise DeployRefused(
                f"A switch was interrupted ({self.source.colour} is {source.phase}, {self.target.colour} is "
                f"{target.phase}). Run manage.py bluegreen recover."
            )
        self._check_tables()
        self.on_step("checked")
        return source.attempt, target.attempt

    def _check_tables(self) -> None:
        """Raises DeployRefused unless all tables are as prepared, and guarded."""
        for side in (self.source, self.target):
            if tables := [f"{schema}.{table}" for schema, table in fence.unguarded(side)]:
                raise DeployRefused(
                    f"Nothing stops writes to {', '.join(tables)} of the {side.colour} database. "
                    "Run manage.py bluegreen prepare."
                )
            if tables := fence.changed_tables(side):
                raise DeployRefused(
                    f"Tables of the {side.colour} database have changed since it was prepared: {', '.join(tables)}. "
                    "Run manage.py bluegreen prepare."
                )

    def _follow(self) -> None:
        """Brings the target's sequences up, and sees that it follows closely. Raises _NotNow."""
        try:
            sequences.advance(self.source, self.target, MARGIN)
            for _ in range(0 if self.lossy else HEARTBEATS):
                if (took := heartbeat.lag(self.source, self.target, ARRIVAL)) is None or took > self.lag:
                    shown = f"more than {ARRIVAL:g} s" if took is None else f"{took * 1000:.0f} ms"
                    raise _NotNow(
                        f"A change takes {shown} to reach {self.target.colour} (limit {self.lag * 1000:.0f} ms)."
                    )
            if (age := float(self.source.value(statements.OLDEST_WRITER))) > OLD:
                raise _NotNow(f"A transaction has been writing to {self.source.colour} for {age:.1f} s.")
        except (TimedOut, Unreachable) as error:
            raise _NotNow(str(error)) from error
        self.on_step("level")

    def _claim(self, source: int, target: int) -> None:
        """Notes the attempt on both sides. Of several commands one succeeds. Raises DeployRefused to the others."""
        attempt = max(source, target) + 1
        self.in_doubt = True
        won = self.source.run(statements.CLAIM_SOURCE, [attempt, source], timeout=ANSWER)
        self.in_doubt = False
        if won:
            self.attempt = attempt
            self.on_step("claimed source")
            won = self.target.run(statements.CLAIM_TARGET, [attempt, target], timeout=ANSWER)
        if not won:
            raise DeployRefused("Another switch or recovery has begun. Run manage.py bluegreen status.")
        self.on_step("claimed target")

    def _move(self) -> None:
        """One try. Raises _NotNow; after any other error the source may be fenced still."""
        deadline = self.target.value(statements.SET_DEADLINE, [COMMIT, self.attempt], timeout=ANSWER)
        if deadline is None:
            raise DatabaseError("The attempt was ended by a recovery.")
        with self.source.session(
            lock_timeout=f"{DRAIN * 1000:.0f}ms", idle_session_timeout=f"{ABANDONED * 1000:.0f}ms"
        ) as lock:
            ours, theirs = sequences.read(lock), sequences.read(self.target)
            version = self._rehearse(lock, ours)
            self._check_tables()
            marker = heartbeat.new_marker()
            message = self._fencing(self.attempt, deadline, marker, ours)
            self.began = time.monotonic()
            self._drain(lock)
            self.on_step("locked")
            ((fenced, found, values),) = lock.run(message, timeout=ANSWER)
            if not fenced:
                raise DatabaseError("The attempt was ended by a recovery.")
            self.on_step("fenced")
            if found != version:
                self._unfence(lock, f"A table of the {self.source.colour} database was changed at this moment.")
            if not self.lossy:
                self._await(lock, marker)
            self.on_step("arrived")
            ours = sequences.updated(ours, values or [])
            if not self._commit(self.attempt, sequences.moves(ours, theirs, 0, unused=True)):
                self._unfence(lock, f"{self.target.colour} did not take over in time.")
            self.on_step("committed")
            try:
                lock.run(statements.LEAVE, [self.attempt], timeout=ANSWER)
            except DatabaseError as error:  # it is fenced, so this is but its note
                self.say(f"{error} Run manage.py bluegreen recover.")

    def _rehearse(self, lock: Session, known: sequences.Sequences) -> str:
        """Sends what follows under no attempt's number, so that caches are warm. Returns the catalog's version."""
        ((_, version, _),) = lock.run(self._fencing(NOBODY, None, heartbeat.new_marker(), known))
        self._commit(NOBODY, [])
        return str(version)

    def _fencing(
        self, attempt: int, deadline: datetime | None, marker: str, known: sequences.Sequences
    ) -> sql.Composable:
        return sql.SQL(statements.FENCE).format(
            attempt=sql.Literal(attempt),
            deadline=sql.Literal(deadline),
            beat=heartbeat.beating(self.source.colour, marker),
            version=sql.SQL(statements.CATALOG_VERSION),
            sequences=sequences.reading(known),
        )

    def _drain(self, lock: Session) -> None:
        """Takes the lock that all writers share: those who have it finish, and new ones wait."""
        try:
            lock.run(statements.TAKE_LOCK, timeout=DRAIN + ANSWER)
        except DatabaseError as error:
            if error.code != statements.LOCK_TIMEOUT:
                raise
            raise _NotNow(f"Writes to {self.source.colour} have not finished within {DRAIN:g} s.") from error

    def _await(self, lock: Session, marker: str) -> None:
        """Waits until the target has all that was written."""
        try:
            arrived = heartbeat.arrives(self.target, self.source.colour, marker, ARRIVAL, answer=ANSWER)
        except (TimedOut, Unreachable) as error:
            self._unfence(lock, str(error))
        else:
            if not arrived:
                self._unfence(lock, f"The last write did not reach {self.target.colour} within {ARRIVAL:g} s.")

    def _commit(self, attempt: int, behind: list[tuple[sequences.Sequence, int]]) -> bool:
        """Whether the target has taken over. After any error nobody knows."""
        calls = sql.SQL("").join(sql.SQL("{}, ").format(call) for call in sequences.calls(behind))
        message = sql.SQL(statements.COMMIT).format(attempt=sql.Literal(attempt), sequences=calls)
        self.in_doubt = attempt == self.attempt
        committed = bool(self.target.run(message, timeout=ANSWER))
        self.in_doubt = committed  # once it has, nothing must return the writes to the source
        return committed

    def _unfence(self, lock: Session, reason: str) -> NoReturn:
        """Lets writers go on at the source. Raises _NotNow."""
        lock.run(statements.TRY_AGAIN, [self.attempt], timeout=ANSWER)
        raise _NotNow(reason)

    def _pause(self, reason: str, until: float) -> None:
        pause = PAUSES[min(self.tries, len(PAUSES)) - 1]
        if time.monotonic() + pause > until:
            text = f"{reason} Tried {self.tries} times. {self.source.colour} still takes the writes."
            raise DatabaseError(text) if self.attempt else DeployRefused(text)
        self.say(f"{reason} Trying again.")
        time.sleep(pause)

    def _took_over(self) -> bool:
        """Whether the target has taken over; else the writes are back at the source. Raises InDoubt if it is silent."""
        self.say(
            f"{self.target.colour} has not answered. Asking whether it has taken over; nobody can write meanwhile."
        )
        until = time.monotonic() + IN_DOUBT
        while True:
            try:
                return recover(self.source, self.target).writable == self.target.colour
            except DatabaseError as error:
                if time.monotonic() > until:
                    raise InDoubt(f"Nobody can write. {error}", in_doubt=True) from error
            time.sleep(PAUSES[0])

    def _gave_up(self) -> bool:
        """Returns the writes to the source, under a number that nothing sent so far has.

        Not if somebody's recovery has ended the attempt already.
        """
        until = time.monotonic() + IN_DOUBT
        while True:
            try:
                ours = bool(self.source.run(statements.GIVE_UP, [self.attempt], timeout=ANSWER))
                break
            except DatabaseError as error:
                if time.monotonic() > until:
                    raise InDoubt(f"{error} Run manage.py bluegreen recover.", in_doubt=True) from error
            time.sleep(PAUSES[0])
        try:
            self.target.run(statements.RELEASE, [self.attempt], timeout=ANSWER)
        except DatabaseError as error:  # its number is out of date, so this is but its note
            self.say(str(error))
        return ours

    def _returned(self) -> bool:
        """Whether the target's writes arrive at the source."""
        try:
            found = heartbeat.arrives(self.source, self.target.colour, heartbeat.beat(self.target), RETURNED)
        except DatabaseError as error:
            self.say(str(error))
            return False
        return found
