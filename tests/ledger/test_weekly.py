"""Weekly windows across the changes of the clocks."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from ledger.weekly import Weekly

FRI, SAT, SUN, MON = 4, 5, 6, 0
YEAR = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))


def windows(weekly: Weekly) -> list[str]:
    """The windows of 2026, in UTC."""
    return [f"{start:%m-%d %H:%M} {end:%m-%d %H:%M}" for start, end in weekly.windows(*YEAR)]


def test_a_weekend_is_an_hour_shorter_in_spring_and_longer_in_autumn() -> None:
    found = windows(Weekly(FRI, time(16), MON, time(8), "Europe/Berlin"))
    assert len(found) == 52  # the last of 2025 has ended, the first of 2027 has not begun
    for window in ("03-20 15:00 03-23 07:00", "03-27 15:00 03-30 06:00", "10-23 14:00 10-26 07:00"):
        assert window in found
    lengths = {end - start for start, end in Weekly(FRI, time(16), MON, time(8), "Europe/Berlin").windows(*YEAR)}
    assert lengths == {timedelta(hours=hours) for hours in (63, 64, 65)}


@pytest.mark.parametrize(
    ("weekly", "window"),
    [
        # 29 March: from 02:00 CET to 03:00 CEST at 01:00 UTC. 25 October: from 03:00 CEST to 02:00 CET at 01:00 UTC.
        (Weekly(SUN, time(2, 30), SUN, time(6), "Europe/Berlin"), "03-29 01:00 03-29 04:00"),
        (Weekly(SAT, time(22), SUN, time(2, 30), "Europe/Berlin"), "03-28 21:00 03-29 01:00"),
        (Weekly(SUN, time(2, 30), SUN, time(6), "Europe/Berlin"), "10-25 00:30 10-25 05:00"),
        (Weekly(SAT, time(22), SUN, time(2, 30), "Europe/Berlin"), "10-24 20:00 10-25 01:30"),
        # Lord Howe Island moves by half an hour, at 02:00: 4 October to 02:30, 5 April to 01:30.
        (Weekly(SUN, time(2, 15), SUN, time(6), "Australia/Lord_Howe"), "10-03 15:30 10-03 19:00"),
        (Weekly(SUN, time(1, 45), SUN, time(6), "Australia/Lord_Howe"), "04-04 14:45 04-04 19:30"),
    ],
)
def test_times_that_clocks_skip_or_show_twice(weekly: Weekly, window: str) -> None:
    assert window in windows(weekly)


def test_a_window_may_be_almost_a_week_and_begin_before_the_period() -> None:
    weekly = Weekly(MON, time(8), MON, time(7, 59), "UTC")
    assert windows(weekly)[0] == "12-29 08:00 01-05 07:59"
    assert windows(Weekly(MON, time(8), MON, time(9), "UTC"))[0] == "01-05 08:00 01-05 09:00"


def test_a_window_that_the_clocks_skip_as_a_whole_does_not_exist() -> None:
    weekly = Weekly(SUN, time(2, 10), SUN, time(2, 50), "Europe/Berlin")
    day = datetime(2026, 3, 29, tzinfo=ZoneInfo("Europe/Berlin"))
    assert list(weekly.windows(day, day + timedelta(days=1))) == []
    assert len(windows(weekly)) == 51
