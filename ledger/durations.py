"""Durations as people write them in files and options: 90s, 30m, 24h, 7d."""

import re
from datetime import timedelta

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
EXPECTED = "a duration such as 90s, 30m, 24h or 7d"
LONGEST = timedelta(days=90)


def parse(text: str) -> timedelta:
    """Returns the duration. Raises ValueError, with what was expected, if it is not valid or longer than LONGEST."""
    found = re.fullmatch(r"([0-9]{1,7})([smhd])", text)
    if not found:
        raise ValueError(f"{text[:100]!r} is not a valid duration; expected {EXPECTED}.")
    duration = timedelta(**{UNITS[found[2]]: int(found[1])})
    if duration > LONGEST:
        raise ValueError(f"{text} is too long; expected at most {LONGEST.days}d.")
    return duration
