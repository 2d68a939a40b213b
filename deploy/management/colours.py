"""How `manage.py bluegreen` shows two databases: what preflight has found, and how they are."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from deploy.console import Output
from deploy.databases.copying import size, spell
from deploy.databases.findings import Finding
from deploy.databases.rehearsal import Rehearsal
from deploy.databases.side import Side
from deploy.databases.status import Direction, Status

SIGNS = {"allow": "-", "refuse": "x"}  # without colour, too
COLOURS = {"allow": "dim", "refuse": "red"}


def show_findings(output: Output, found: Sequence[Finding], sides: dict[str, Side]) -> None:
    """Prints a table of what was found, the refused first, then the SQL of their cures; or an event for each.

    `sides` are source and target.
    """
    for each in found:
        output.event("finding", **as_dict(each, sides))
    if not found or output.as_json:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "Table", "Column", "Reason", "Cure"):
        table.add_column(name, overflow="fold")
    for each in sorted(found, key=lambda each: not each.refused):
        cells = SIGNS[each.verdict], each.table or "-", each.column or "-", each.reason, each.cure
        table.add_row(*(Text(cell, COLOURS[each.verdict]) for cell in cells))
    output.console.print(table)
    for each in refused(found):
        cure = as_dict(each, sides)
        for statement in cure["cure_sql"]:
            output.console.print(Text(f"On {cure['cure_colour']}: {statement};"), soft_wrap=True)
    output.stream.flush()


def as_dict(found: Finding, sides: dict[str, Side]) -> dict[str, Any]:
    """A finding as JSON takes it, with the SQL of its cure as text, which takes a connection to write."""
    side = sides.get(found.cure_side)
    cures: list[str] = []
    if side:
        with closing(Rehearsal(side, lambda text: None)) as written:
            cures = [written.text(statement, None) for statement in found.cure_sql]
    return {
        "verdict": found.verdict,
        "code": found.code,
        "table": found.table or None,
        "column": found.column or None,
        "reason": found.reason,
        "cure": found.cure or None,
        "cure_sql": cures,
        "cure_colour": side.colour if side else None,
    }


def status_lines(found: Status, now: datetime) -> Iterator[tuple[str, str]]:
    """How the two databases are, in lines for people, each with a style of rich."""
    silent = " and ".join(found.unreachable)
    if found.writable:
        yield f"{found.writable} takes the writes.", "bold"
    elif silent:
        yield f"Unknown which colour takes the writes: {silent} does not answer.", "red"
    elif found.phases:
        yield "No colour takes the writes.", "red"
    else:
        yield "Not prepared: neither database has a fence. Run manage.py bluegreen prepare.", ""
    for colour, phase in sorted(found.phases.items()):
        yield f"  {colour:<6} {phase}", ""
    for colour in found.unreachable:
        yield f"  {colour:<6} unknown: does not answer", "red"
    if found.link:
        ready = "" if found.link.ready else ", which is not finished"
        yield f"Prepared for release {found.link.release or '(unnamed)'}, from {found.link.source} to " + (
            f"{found.link.target}{ready}."
        ), ""
    for each in found.directions:
        yield f"  {direction_line(each, found, now)}", "red" if each.fault else ""
    if found.link and found.writable:
        yield rollback_line(found, now), "" if found.lossless else "yellow"
    for fault in found.faults:
        yield fault, "red"


def direction_line(each: Direction, found: Status, now: datetime) -> str:
    """One direction: its worker, how far it is behind, and its slot."""
    parts = ["running" if each.running else "unknown" if found.unreachable else "not running"]
    behind = [] if each.lag_bytes is None else [size(each.lag_bytes)]
    behind += [] if each.lag_seconds is None else [time_of(each.lag_seconds)]
    parts.append(f"{' and '.join(behind)} behind" if behind else "lag unknown")
    left = "" if each.safe_wal_size is None else f" ({size(each.safe_wal_size)} left)"
    parts.append(f"slot {each.wal_status or 'unknown'}{left}")
    if beat := found.heartbeats.get(each.sender):
        parts.append(f"last heartbeat {spell(max(0.0, (now - beat).total_seconds()))} ago")
    if each.errors:
        parts.append(f"{each.errors} errors so far")
    return f"{each.sender} -> {each.receiver}: {', '.join(parts)}"


def rollback_line(found: Status, now: datetime) -> str:
    """Whether, since when and until when the other colour could take over without loss."""
    assert found.link
    other = found.link.source if found.writable == found.link.target else found.link.target
    what = f"A rollback to {other}" if found.writable == found.link.target else f"A switch to {other}"
    if not found.lossless:
        return f"{what} would lose rows, or wait for them: not all that {found.writable} wrote is there."
    since = f" since {moment(found.since)}" if found.since else ""
    until = f" until {moment(found.until)}, unless {other} catches up" if found.until else ", until finalize"
    return f"{what} loses nothing{since}{until}."


def status_dict(found: Status, now: datetime) -> dict[str, Any]:
    """How the two databases are, as JSON takes it; what is unknown is null."""
    return {
        "writable": found.writable or None,
        "unreachable": list(found.unreachable),
        "phases": found.phases,
        "release": found.link.release if found.link else None,
        "source": found.link.source if found.link else None,
        "target": found.link.target if found.link else None,
        "ready": bool(found.link and found.link.ready),
        "directions": [
            {name: iso(value) for name, value in asdict(each).items()}
            | {
                "heartbeat_age_seconds": age(found.heartbeats.get(each.sender), now),
                "fault": each.fault or None,
            }
            for each in found.directions
        ],
        "lossless": found.lossless,
        "lossless_since": iso(found.since),
        "lossless_until": iso(found.until),
        "faults": list(found.faults),
    }


def age(at: datetime | None, now: datetime) -> float | None:
    """The seconds since then."""
    return None if at is None else round(max(0.0, (now - at).total_seconds()), 3)


def iso(value: Any) -> Any:
    """Times as ISO 8601 in UTC, anything else as it is."""
    return value.astimezone(UTC).isoformat(timespec="milliseconds") if isinstance(value, datetime) else value


def moment(at: datetime) -> str:
    """A time for people, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def time_of(seconds: float) -> str:
    """A short duration for people."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else spell(seconds)


def refused(found: Iterable[Finding]) -> list[Finding]:
    """Those that forbid it."""
    return [each for each in found if each.refused]
