"""Pagination by cursor: every page costs the same, and new rows neither repeat nor hide any.

https://use-the-index-luke.com/no-offset explains why an offset cannot do that. It is here because audit is the lowest
room with long lists, and knows no other.
"""

import base64
import binascii
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from django.db.models import Q, QuerySet

Row = TypeVar("Row", bound=Any)


@dataclass(frozen=True)
class Page(Generic[Row]):
    """Some rows, newest first, and the cursors of the pages after (older) and before (newer).

    A cursor is None if that page does not exist. `previous` is also None on the first page, which needs no cursor.
    """

    rows: list[Row]
    next: str | None
    previous: str | None = None


def paginate(
    found: QuerySet[Row], limit: int, cursor: str | None = None, *, newer: bool = False, by: str = "created"
) -> Page[Row]:
    """Returns the newest `limit` rows, or those that follow `cursor` (with `newer`, those before it).

    The model has a time in the field `by`, and `pk`. A cursor identifies a row, not an offset. Raises ValueError if
    `cursor` does not come from paginate().
    """
    if cursor and newer:
        time, key = read_cursor(cursor)
        after = Q(**{f"{by}__gt": time}) | Q(**{by: time, "pk__gt": key})
        rows = list(found.filter(after, **{f"{by}__gte": time}).order_by(by, "pk")[: limit + 1])
        more, rows = len(rows) > limit, rows[:limit][::-1]
        if not more:
            return paginate(found, limit, by=by)  # the newest page, and full
        return Page(rows, write_cursor(rows[-1], by), write_cursor(rows[0], by))
    found = found.order_by(f"-{by}", "-pk")
    if cursor:
        time, key = read_cursor(cursor)
        before = Q(**{f"{by}__lt": time}) | Q(**{by: time, "pk__lt": key})
        found = found.filter(before, **{f"{by}__lte": time})
    rows = list(found[: limit + 1])
    more, rows = len(rows) > limit, rows[:limit]
    return Page(
        rows, write_cursor(rows[-1], by) if more else None, write_cursor(rows[0], by) if cursor and rows else None
    )


def write_cursor(row: Any, by: str) -> str:
    """Returns the cursor of `row`: its time in microseconds and its key, in URL-safe base64."""
    words = f"{int(getattr(row, by).timestamp() * 1_000_000)}.{row.pk}"
    return base64.urlsafe_b64encode(words.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[datetime, int]:
    """Returns the time and the key that `cursor` holds. Raises ValueError if it is not a valid cursor."""
    try:
        words = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)).decode("ascii")
        created, _, key = words.partition(".")
        if not (created.isascii() and created.isdigit() and key.isascii() and key.isdigit()):
            raise ValueError
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(created)), int(key)
    except (binascii.Error, ValueError, OverflowError):
        raise ValueError("Invalid cursor; start without one.") from None
