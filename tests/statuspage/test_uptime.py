"""The samples of the status page on the real database, and the page while it is down."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from django.db import Error, InterfaceError, OperationalError, connection
from django.test import Client
from pytest_django import Settings

from ledger.models import Environment
from statuspage import history, incidents, uptime
from statuspage.models import Day, Incident, Sample
from statuspage.readings import Reading
from tests.support.servers import PATIENCE


@pytest.mark.django_db(transaction=True)
def test_eight_at_once_write_one_sample_a_minute() -> None:
    minute = datetime(2026, 1, 1, tzinfo=UTC)
    together = threading.Barrier(8)
    written: list[int] = []

    def write(up: bool) -> None:
        together.wait(PATIENCE)
        written.append(uptime.write([("production", minute, up), ("staging", minute, up)]))
        connection.close()

    threads = [threading.Thread(target=write, args=(number % 2 == 0,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE)
    assert written == [2] * 8
    assert Sample.objects.count() == 2


NOW = datetime(2026, 3, 20, 12, 30, tzinfo=UTC)
BORDER = datetime(2026, 3, 13, tzinfo=UTC)  # seven whole days are kept one by one


def sampled(environment: str, first: datetime, ups: int, downs: int) -> None:
    """A sample a minute from `first` on."""
    uptime.write([(environment, first + timedelta(minutes=n), n < ups) for n in range(ups + downs)])


def days() -> list[tuple[str, str, int, int]]:
    rows = Day.objects.order_by("day", "environment").values_list("environment__name", "day", "up", "down")
    return [(name, f"{day:%m-%d}", up, down) for name, day, up, down in rows]


@pytest.mark.django_db
def test_samples_older_than_seven_days_become_a_row_a_day_and_go() -> None:
    sampled("production", BORDER - timedelta(days=2), 5, 2)
    sampled("production", BORDER - timedelta(minutes=4), 3, 1)  # its last minute is the day's last
    sampled("staging", BORDER - timedelta(minutes=4), 0, 4)
    sampled("production", BORDER, 2, 1)
    seen = uptime.minutes_by_day(BORDER.date() - timedelta(days=30))
    assert uptime.rollup(NOW) == 15
    expected = [("production", "03-11", 5, 2), ("staging", "03-12", 0, 4), ("production", "03-12", 3, 1)]
    assert days() == expected
    assert list(Sample.objects.order_by("minute").values_list("minute", flat=True)) == [
        BORDER + timedelta(minutes=n) for n in range(3)
    ]
    assert uptime.minutes_by_day(BORDER.date() - timedelta(days=30)) == seen, "a rollup changes nothing that is shown"
    assert uptime.rollup(NOW) == 0 and days() == expected, "once more changes nothing"


@pytest.mark.django_db
def test_a_sample_that_comes_late_is_added_to_its_day() -> None:
    sampled("production", BORDER - timedelta(hours=5), 3, 1)
    uptime.rollup(NOW)
    sampled("production", BORDER - timedelta(hours=1), 1, 2)
    assert uptime.rollup(NOW) == 3
    assert days() == [("production", "03-12", 4, 3)] and not Sample.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_four_that_roll_up_at_once_count_each_sample_once() -> None:
    for name in ("staging", "production"):
        sampled(name, BORDER - timedelta(days=1), 1000, 440)
    together = threading.Barrier(4)
    rolled_up: list[int] = []

    def roll_up() -> None:
        together.wait(PATIENCE)
        rolled_up.append(uptime.rollup(NOW))
        connection.close()

    threads = [threading.Thread(target=roll_up) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE)
    assert sorted(rolled_up) == [0, 0, 0, 2880]
    assert days() == [("staging", "03-12", 1000, 440), ("production", "03-12", 1000, 440)]
    assert not Sample.objects.exists()


def last_samples() -> dict[str, float]:
    (family,) = uptime.uptime_samples()
    return {each.labels["environment"]: each.value for each in family.samples}


@pytest.mark.django_db
def test_the_last_sample_of_each_monitored_environment_is_a_metric(
    settings: Settings, tmp_path: Path, django_assert_num_queries: Any
) -> None:
    settings.WATCH_ENVIRONMENTS, settings.ENVIRONMENTS_FILE = True, tmp_path / "environments.toml"
    settings.ENVIRONMENTS_FILE.write_text(
        '[development]\n[testing]\n[staging]\n[production]\nurl = "https://a.example"\n'
    )
    assert last_samples() == {}
    sampled("production", BORDER, 0, 3)
    sampled("testing", BORDER, 1, 0)
    sampled("development", BORDER, 1, 0)
    with django_assert_num_queries(1):
        assert last_samples() == {"testing": BORDER.timestamp(), "production": BORDER.timestamp() + 120}
    settings.WATCH_ENVIRONMENTS = False
    assert last_samples() == {"testing": BORDER.timestamp()}, "nobody samples the others now"


@pytest.mark.parametrize(
    ("checks", "up"),
    [
        ({"database": "healthy", "cache": "unhealthy: refused"}, True),
        ({"database": "unhealthy: read-only", "cache": "healthy"}, False),
        ({"database": "unhealthy: disk full", "cache": "healthy"}, False),
        ({"database": "healthy", "migrations": "unhealthy: pending migrations"}, False),
    ],
)
def test_an_environment_that_cannot_write_is_down_and_one_without_its_cache_is_up(
    checks: dict[str, str], up: bool
) -> None:
    assert uptime.is_up(Reading("production", "unhealthy", "1.0", checks)) is up


@pytest.mark.parametrize("error", [OperationalError, InterfaceError])
def test_the_page_is_there_without_the_database(
    client: Client, monkeypatch: pytest.MonkeyPatch, error: type[Error]
) -> None:
    def fail() -> None:
        raise error("connection already closed")

    cache.clear()
    history.memory.clear()
    monkeypatch.setattr(history, "collect", fail)
    response = client.get("/status/")
    assert response.status_code == 200 and "The database is unavailable" in response.content.decode()
    assert client.get("/status/feed.atom").status_code == 503


@pytest.mark.django_db
def test_every_process_shows_an_incident_as_soon_as_it_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def titles() -> list[str]:
        return [each["title"] for each in (history.last_known()[0] or {})["incidents"]]

    def report(title: str) -> None:
        incidents.report(
            Incident(title=title, environment=Environment.objects.get(name="staging")), "We look.", "someone"
        )

    assert titles() == []
    elsewhere = list(history.memory)  # what another process remembers
    report("First")
    history.memory[:] = elsewhere
    assert titles() == ["First"]

    real = history.collect

    def overtaken() -> dict[str, Any]:
        found = real()
        report("Second")  # another process, while this one reads
        return found

    monkeypatch.setattr(history, "collect", overtaken)
    history.invalidate()
    titles()
    monkeypatch.undo()
    assert sorted(titles()) == ["First", "Second"]
