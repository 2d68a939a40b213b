"""Times that come again each week by the clocks of a time zone, as concrete times, across their changes."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")  # by datetime.weekday()
MINUTE, WEEK = timedelta(minutes=1), timedelta(weeks=1)


@dataclass(frozen=True)
class Weekly:
    """From a weekday and time to a weekday and time, in a time zone. From Mon 08:00 to Mon 08:00 is not valid."""

    start_day: int
    start_time: time
    end_day: int
    end_time: time
    zone: str

    def __str__(self) -> str:
        start, end = f"{DAYS[self.start_day]} {self.start_time:%H:%M}", f"{DAYS[self.end_day]} {self.end_time:%H:%M}"
        return f"{start} to {end} {self.zone}"

    def windows(self, since: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Yields start and end, in UTC, of each week whose window ends after `since` and starts before `until`.

        Where the clocks show a time twice, it starts at the first and ends at the second; a time that they skip is the
        moment at which they do.
        """
        zone = ZoneInfo(self.zone)
        day = since.astimezone(zone).date() - 2 * WEEK
        day += timedelta(days=(self.start_day - day.weekday()) % 7)
        days = (self.end_day - self.start_day) % 7 or (0 if self.end_time > self.start_time else 7)
        while True:
            start = instant(datetime.combine(day, self.start_time), zone, last=False)
            end = instant(datetime.combine(day + timedelta(days=days), self.end_time), zone, last=True)
            if start >= until:
                return
            if end > max(since, start):
                yield start, end
            day += WEEK


def instant(local: datetime, zone: ZoneInfo, *, last: bool) -> datetime:
    """Returns when the clocks of `zone` show `local`, in UTC: the first or the last time; if never, when they skip it.

    https://peps.python.org/pep-0495/ explains `fold`.
    """
    first, second = sorted(local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if first.astimezone(zone).replace(tzinfo=None) == local:
        return second if last else first
    while first.astimezone(zone).replace(tzinfo=None) < local:
        first += MINUTE
    return first
