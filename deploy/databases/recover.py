"""What to do after an interrupted switch: by anyone, from anywhere, as often as one likes.

Whatever still runs of the attempt can do no harm afterwards: its compare-and-sets find another number.
"""

from dataclasses import dataclass
from datetime import timedelta

from deploy.databases import fence, statements
from deploy.databases.errors import DatabaseError, TimedOut, Unreachable
from deploy.databases.fence import FenceState
from deploy.databases.side import Side

ANSWER = 2.0  # seconds for each statement
CLOCKS = timedelta(seconds=1)  # twice what preflight lets two clocks differ


@dataclass(frozen=True)
class Recovered:
    """The colour that takes the writes now. `direction` is forward if an interrupted switch was completed, back if it
    was undone, none if there was none. `unreachable` is the colour that did not answer, if any."""

    writable: str
    direction: str
    unreachable: str | None = None


def recover(blue: Side, green: Side, *, force_back: bool = False) -> Recovered:
    """Completes or undoes what a switch left undone, so that one colour takes the writes.

    With `force_back` the writes return to the source although the target does not answer and may have taken over: what
    was written there, if it did, is lost. Raises DatabaseError if it cannot be decided; then neither side was opened.
    """
    found = {side: _state(side) for side in (blue, green)}
    known = {side: state for side, state in found.items() if state}
    if not known:
        raise Unreachable("Neither database answers. Start them, and run manage.py bluegreen recover.")
    giving = [side for side, state in known.items() if state.phase in ("fencing", "committing")]
    if len(known) == 2 and all(state.writable for state in known.values()):
        raise DatabaseError(
            "Both databases accept writes. Stop the app, compare their rows, and prepare the one to give up anew."
        )
    if len(giving) == 2:
        raise DatabaseError("Both databases are giving up the writes. Check bg.state in both; set bg.fence by hand.")
    if not giving:
        return _settled(blue, green, found)
    source = giving[0]
    target = green if source is blue else blue
    source.run(statements.END_HOLDERS, timeout=ANSWER)
    if found[target] is None:
        return _without(target, source, known[source], force_back)
    # Only now, as the attempt can no longer be committed, does its fence tell how it ended.
    target.run(statements.BAR, timeout=ANSWER)
    if fence.read(target, timeout=ANSWER).writable:
        forward(source, target)
        return Recovered(target.colour, "forward")
    back(source)
    return Recovered(source.colour, "back")


def forward(source: Side, target: Side) -> None:
    """Notes on both sides that the target has taken over. Raises DatabaseError."""
    target.run(statements.TAKEN_OVER, timeout=ANSWER)
    source.run(statements.HANDED_OVER, timeout=ANSWER)


def back(source: Side) -> None:
    """Makes the source writable again, under a number that no late statement of the attempt has."""
    source.run(statements.TAKE_BACK, timeout=ANSWER)


def _state(side: Side) -> FenceState | None:
    """None if it does not answer."""
    try:
        return fence.read(side, timeout=ANSWER)
    except (Unreachable, TimedOut):
        return None


def _settled(blue: Side, green: Side, found: dict[Side, FenceState | None]) -> Recovered:
    """No side that answers is giving up the writes."""
    writable = [side for side, state in found.items() if state and state.writable]
    silent = [side.colour for side, state in found.items() if state is None]
    if not writable and silent:
        raise Unreachable(
            f"The {silent[0]} database does not answer, and the other one takes no writes. Start it, and run manage.py "
            "bluegreen recover."
        )
    if not writable:
        raise DatabaseError(
            "Neither database accepts writes, nor was giving them up. Check bg.state in both; set bg.fence by hand."
        )
    for side in (blue, green):
        state = found[side]
        if state and state.phase == "target" and not state.writable:
            side.run(statements.BAR, timeout=ANSWER)
    return Recovered(writable[0].colour, "none", silent[0] if silent else None)


def _without(target: Side, source: Side, state: FenceState, force: bool) -> Recovered:
    """The target does not answer. Before `committing` was noted, nothing had been sent to it that could commit."""
    if state.phase == "committing":
        if not force:
            raise Unreachable(
                f"The {target.colour} database does not answer, and may have taken over. Start it, and run manage.py "
                f"bluegreen recover. If it is lost, --force-back makes {source.colour} writable; what was written to "
                f"{target.colour} is then lost."
            )
        now = source.value("select clock_timestamp()", timeout=ANSWER)
        if state.deadline and (left := state.deadline + CLOCKS - now) > timedelta(0):
            raise DatabaseError(
                f"The {target.colour} database may still take over for {left.total_seconds():.1f} s. Then run it again."
            )
    back(source)
    return Recovered(source.colour, "back", target.colour)
