"""Times that are given to a command."""

from datetime import UTC, datetime


def moment(value: str) -> datetime:
    """Returns the date or time `value` (ISO 8601), in UTC unless it says otherwise.

    Raises ValueError if it is none, or not in the years from 2000 to 2100.
    """
    found = datetime.fromisoformat(value)
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    try:
        if not 2000 <= found.astimezone(UTC).year <= 2100:
            raise ValueError(f"{value} is not in the years from 2000 to 2100")
    except OverflowError as error:
        raise ValueError(str(error)) from None
    return found
