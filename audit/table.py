"""Entries as rows of a table: for people, and as CSV for a spreadsheet."""

from collections.abc import Iterator
from datetime import UTC

from django.db.models import QuerySet

from audit.actions import Action
from audit.models import Entry
from audit.pagination import paginate

CHUNK = 1_000  # entries read at once
COLUMNS = ("time", "action", "actor", "actor_id", "address", "environment", "target", "details")
# A spreadsheet runs a cell that begins with one of these: https://owasp.org/www-community/attacks/CSV_Injection
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def label(entry: Entry) -> str:
    """Returns what was done, in words; the stored value if a release that knew more actions wrote it."""
    return str(Action(entry.action).label) if entry.action in Action.values else entry.action


def details(entry: Entry) -> str:
    """Returns the details that are not empty, on one line."""
    return ", ".join(f"{name}: {value}" for name, value in entry.details.items() if value)


def row(entry: Entry) -> list[str]:
    """Returns the cells of a CSV row, in the order of COLUMNS. None of them is a formula."""
    time = f"{entry.time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    texts = (entry.actor, str(entry.actor_id or ""), entry.address, entry.environment, entry.target, details(entry))
    return [time, entry.action, *(f"'{each}" if each.startswith(FORMULA) else each for each in texts)]


def each(found: QuerySet[Entry], limit: int | None = None) -> Iterator[Entry]:
    """Yields the entries, newest first, at most `limit`. Reads them in chunks, without a cursor of the database."""
    cursor: str | None = None
    count = 0
    while limit is None or count < limit:
        page = paginate(found, CHUNK if limit is None else min(CHUNK, limit - count), cursor, by="time")
        yield from page.rows
        count += len(page.rows)
        cursor = page.next
        if cursor is None:
            return
