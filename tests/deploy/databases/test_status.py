"""What can be told of two databases: by a role that only uses them, and while one of them does not answer."""

import secrets
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from psycopg2 import sql
from pytest_django import Settings

from deploy.databases import links
from deploy.databases.preparation import Options
from deploy.databases.replication import prepare
from deploy.databases.side import Side
from deploy.databases.status import note_lossless, status
from metrics import collectors
from tests.support.servers import Postgres, eventually, frozen

Sides = tuple[Side, Side]


@pytest.fixture(scope="module")
def linked(clusters: tuple[Postgres, Postgres]) -> Iterator[Sides]:
    """Blue, which serves, and green, which is prepared; each in a server of its own."""
    blue, green = (Side(colour, server.create("status")) for colour, server in zip(("blue", "green"), clusters))
    blue.run("create table item (id int primary key)")
    options = Options(pg_dump=str(clusters[0].bin / "pg_dump"))
    prepare(blue, green, migrate=lambda: None, say=lambda text: None, options=options)
    yield blue, green
    links.clear(blue, green)
    blue.close()
    green.close()


@pytest.fixture
def as_app(linked: Sides) -> Iterator[Sides]:
    """The two as the app's role sees them, which owns nothing."""
    role, sides = f"app_{secrets.token_hex(4)}", []
    for side in linked:
        side.run(sql.SQL("create role {} login password 'secret'").format(sql.Identifier(role)))
        url = urlsplit(side.url)
        sides.append(Side(side.colour, f"postgresql://{role}:secret@{url.hostname}:{url.port}{url.path}"))
    blue, green = sides
    yield blue, green
    for side in (blue, green):
        side.close()
    for side in linked:
        side.run(sql.SQL("drop role {}").format(sql.Identifier(role)))


@pytest.mark.parametrize("wait", [1.0, None])
def test_the_app_s_role_reads_everything_and_writes_nothing(linked: Sides, as_app: Sides, wait: float | None) -> None:
    eventually(lambda: status(*linked, wait=5.0).lossless)  # with the heartbeats that the owner writes
    before = [side.run("select colour, at from bg.heartbeat order by 1") for side in linked]
    found = status(*as_app, wait=wait)
    assert (found.writable, found.unreachable, found.faults) == ("blue", (), ())
    assert found.link and found.link.target == "green" and found.linked_at and found.lossless
    assert {(each.sender, each.running, each.wal_status, each.lag_seconds) for each in found.directions} == {
        ("blue", True, "reserved", 0.0),
        ("green", True, "reserved", 0.0),
    }
    assert [side.run("select colour, at from bg.heartbeat order by 1") for side in linked] == before
    assert found.moved_at is None
    note_lossless(linked[0])
    found = status(*as_app, wait=wait)
    assert found.moved_at and found.moved_at == found.since
    links.forget(linked[0], "lossless")


def test_a_lag_is_the_age_of_what_has_not_arrived(linked: Sides, as_app: Sides) -> None:
    ((name,),) = linked[1].run("select subname from pg_subscription where subname ~ '_f$'")
    links.enable(linked[1], name, False)
    eventually(lambda: not status(*as_app, wait=None).directions[0].running)
    status(*linked, wait=0.0)
    eventually(lambda: (status(*as_app, wait=None).directions[0].lag_seconds or 0) > 0)
    links.enable(linked[1], name, True)
    eventually(lambda: status(*as_app, wait=None).directions[0].lag_seconds == 0)


@pytest.mark.parametrize("silent", [0, 1])
def test_a_scrape_while_one_database_is_frozen_tells_of_the_other_one(
    clusters: tuple[Postgres, Postgres], linked: Sides, settings: Settings, silent: int
) -> None:
    settings.DATABASE_URLS = {side.colour: side.url for side in linked}
    settings.METRICS_COLLECTORS = ["deploy.metrics.databases"]
    settings.METRICS_COLLECTOR_TIMEOUT = 3.0
    collectors.close()  # whose threads may know other databases
    assert scraped()["bluegreen_up", "blue"] == scraped()["bluegreen_up", "green"] == 1
    awake, asleep = linked[1 - silent].colour, linked[silent].colour
    with frozen(clusters[silent]):
        found = scraped()
        assert found["bluegreen_up", awake] == 1 and found["bluegreen_up", asleep] == 0
        assert found["bluegreen_writable", awake] == (awake == "blue")
        assert ("bluegreen_writable", asleep) not in found
        assert (("bluegreen_lossless", "") in found) == (awake == "blue"), "unknown, unless the writer answers"
        assert ("bluegreen_lag_bytes", f"{awake} {asleep}") in found
    eventually(lambda: scraped()["bluegreen_up", asleep] == 1)
    collectors.close()


def scraped() -> dict[tuple[str, str], float]:
    """What the collectors return in time, by metric and values of the labels."""
    return {
        (sample.name, " ".join(sample.labels.values())): sample.value
        for family in collectors.collect()
        for sample in family.samples
    }
