"""Times and durations for people, in pages and commands."""

from datetime import datetime, timedelta


def took(duration: timedelta | None) -> str:
    """Returns a duration such as 42 s, 3 min 5 s or 1 h 4 min; empty for None."""
    if duration is None:
        return ""
    minutes, seconds = divmod(round(duration.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def age(now: datetime, then: datetime) -> str:
    """Returns the age of `then`, such as 5 min ago; after a week its date and time, in UTC."""
    seconds = (now - then).total_seconds()
    if seconds < 60:
        return "just now"
    for limit, unit, name in ((3600, 60, "min"), (86_400, 3600, "h"), (7 * 86_400, 86_400, "d")):
        if seconds < limit:
            return f"{int(seconds // unit)} {name} ago"
    return f"{then:%Y-%m-%d %H:%M}Z"


def took_seconds(seconds: float) -> str:
    """Returns the duration like took(); two days or more in days, such as 2.5 d."""
    if seconds >= 2 * 86_400:
        return f"{seconds / 86_400:.1f} d"
    return took(timedelta(seconds=seconds))
