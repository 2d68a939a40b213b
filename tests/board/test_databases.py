"""The two databases on the board: what is said of them, of which environment, and that no page waits long for them."""

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from django.conf import LazySettings
from django.test import Client

from board import answers, databases
from board.databases import Databases
from deploy.databases.links import Link
from deploy.databases.status import Direction, Status
from health.runner import Report, Result
from ledger.environments import config_of, names
from statuspage.readings import Reading
from tests.board.test_board import POLL, text_of

pytestmark = pytest.mark.django_db

SLACK = 4.0  # seconds that a page may take beyond its deadline on a busy machine
THEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
SINCE = "A rollback loses nothing since 2026-01-02 03:04 UTC"
LOST = "A rollback would lose rows that blue does not have yet."
LINK = Link("0", "blue", "green", "2.0", ready=True)
BOTH = {"blue": "standby", "green": "active"}
BACK = Direction("green", "blue", "bg_0_r", True, 0, 0.0, "reserved", 10**9)
FORTH = Direction("blue", "green", "bg_0_f", True, 0, 0.0, "reserved", 10**9)
# Green took over a moment ago, and blue follows.
SWITCHED = Status("green", (), BOTH, LINK, (FORTH, BACK), {}, True, THEN, None, (), writable_colours=("green",))
PREPARED = replace(SWITCHED, writable="blue", since=None, writable_colours=("blue",))
ALONE = Status("green", (), BOTH, None, (), {}, False, None, None, (), writable_colours=("green",))


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, settings: LazySettings) -> Iterator[LazySettings]:
    """A healthy instance in testing, which has a database per colour; nothing was read yet."""
    healthy = Report(datetime(2026, 1, 2, tzinfo=UTC), {"database": Result(None, 0.001)})
    monkeypatch.setattr("board.views.report", lambda: healthy)
    monkeypatch.setattr("board.cards.readings", lambda: {name: Reading(name) for name in names()})
    settings.ENVIRONMENT = "testing"
    settings.DATABASE_URLS = {"blue": "postgresql://blue", "green": "postgresql://green"}
    configure(monkeypatch, "per-colour")
    answers.kept.clear()
    yield settings
    for thread in list(answers.asking.values()):
        thread.join(SLACK)
    answers.kept.clear()


def configure(monkeypatch: pytest.MonkeyPatch, database: Literal["shared", "per-colour"]) -> None:
    """Sets what environments.toml says of testing."""
    config = replace(config_of("testing"), database=database)
    monkeypatch.setattr("board.cards.config_of", lambda name: config if name == "testing" else config_of(name))


def panels(client: Client) -> dict[str, str]:
    """The text of each card's panel, by environment; without those that are empty."""
    parts = re.findall(r'<div id="databases-(\w+)"[^>]*>(.*?)</div>', text_of(client, "/"), re.DOTALL)
    texts = {name: plain(part) for name, part in parts}
    return {name: text for name, text in texts.items() if text}


def plain(part: str) -> str:
    """The text of HTML."""
    text = re.sub("</?(?:code|strong|time|span)[^>]*>", "", re.sub("<svg.*?</svg>", "", part, flags=re.DOTALL))
    return " ".join(re.sub("<[^>]*>", " ", text).split())


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            SWITCHED,
            f"Green takes the writes. Blue is less than 1 s behind. {SINCE}, until finalize.",
        ),
        (
            replace(SWITCHED, until=THEN + timedelta(hours=2), directions=(FORTH, replace(BACK, lag_seconds=72.4))),
            f"Green takes the writes. Blue is 1 min 12 s behind. {SINCE}, until 2026-01-02 05:04 UTC.",
        ),
        (PREPARED, "Blue takes the writes. Green is less than 1 s behind. A switch loses nothing, until finalize."),
        (
            replace(
                SWITCHED, lossless=False, since=None, directions=(FORTH, replace(BACK, running=False, lag_seconds=None))
            ),
            f"Green takes the writes. Blue is behind by an unknown amount. {LOST}",
        ),
        (ALONE, "Green takes the writes. It is not linked to another database."),
        (
            replace(SWITCHED, unreachable=("blue",), lossless=False, phases={"green": "active"}),
            "Green takes the writes. Blue does not answer.",
        ),
        (
            replace(ALONE, writable="", unreachable=("green",), phases={"blue": "standby"}, writable_colours=()),
            "Green does not answer: unknown which database takes the writes.",
        ),
        (
            replace(ALONE, writable="", writable_colours=()),
            "No database takes the writes. Run manage.py bluegreen recover.",
        ),
        (
            replace(ALONE, writable_colours=("blue", "green")),
            "Both databases take the writes. Run manage.py bluegreen recover.",
        ),
        (replace(ALONE, writable="", phases={}, writable_colours=()), "Not prepared."),
    ],
)
def test_the_card_tells_which_database_takes_the_writes_and_whether_a_rollback_loses_anything(
    client: Client, monkeypatch: pytest.MonkeyPatch, found: Status, text: str
) -> None:
    monkeypatch.setattr(databases, "read", lambda urls: Databases.of(found))
    assert panels(client) == {"testing": f"Databases {text}"}


def test_only_the_instance_s_own_environment_has_a_panel_and_only_with_two_databases(
    client: Client, monkeypatch: pytest.MonkeyPatch, here: LazySettings
) -> None:
    asked = []

    def read(urls: dict[str, str]) -> Databases:
        asked.append(urls)
        return Databases.of(found)

    monkeypatch.setattr(databases, "read", read)
    found = ALONE
    configure(monkeypatch, "shared")
    assert panels(client) == {}, "neither the file nor the databases speak of two"
    answers.kept.clear()
    found = SWITCHED
    assert panels(client).keys() == {"testing"}, "deployed with --database per-colour"
    here.ENVIRONMENT = "staging"
    assert panels(client).keys() == {"staging"}
    here.ENVIRONMENT = "elsewhere"
    assert panels(client) == {}
    asked.clear()
    answers.kept.clear()
    here.ENVIRONMENT, here.DATABASE_URLS = "testing", {}
    assert panels(client) == {} and asked == []


def test_a_database_that_hangs_neither_holds_nor_breaks_the_page(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def read(urls: dict[str, str]) -> Databases:
        release.wait(60)
        return Databases.of(SWITCHED)

    monkeypatch.setattr(databases, "read", read)
    began = time.monotonic()
    assert panels(client) == {"testing": "Databases Not read yet."}
    assert time.monotonic() - began < answers.DEADLINE + SLACK
    began = time.monotonic()
    for _ in range(3):
        assert client.get("/", headers=POLL).status_code == 200
    assert len([each for each in threading.enumerate() if each.name == "ask for a page"]) == 1
    assert time.monotonic() - began < SLACK
    release.set()
    answers.asking[databases.KEY].join(SLACK)
    assert "Green takes the writes" in panels(client)["testing"]
