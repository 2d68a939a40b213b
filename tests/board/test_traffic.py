"""The plots of the traffic and the error budgets: what they show, to whom, and that no page waits long for them."""

import math
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.conf import LazySettings
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from board import answers, cards, plots
from health.runner import Report, Result
from ledger import rules, steps
from ledger.environments import names
from ledger.models import Deployment, Environment
from metrics.budgets import REMAINING, Budget
from metrics.prometheus import Prometheus, PrometheusError, Series
from statuspage.readings import Reading
from tests.board.test_board import POLL, changed, fragments, text_of
from tests.support.browser import Window, chromium
from tests.support.ledgers import release
from tests.support.people import member as member_with
from tests.support.prometheus import PrometheusServer, constant
from tests.support.servers import Gunicorn
from tests.support.tools import needs

pytestmark = pytest.mark.django_db

SLACK = 4.0  # seconds that a page may take beyond its deadline on a busy machine
MINUTE = timedelta(minutes=1)
HERE = {"environment": "testing"}


@pytest.fixture(autouse=True)
def well(monkeypatch: pytest.MonkeyPatch, settings: LazySettings) -> Iterator[None]:
    """A healthy instance in testing. Nothing that Prometheus has answered is left over."""
    healthy = Report(datetime(2026, 1, 2, tzinfo=UTC), {"database": Result(None, 0.001)})
    monkeypatch.setattr("board.views.report", lambda: healthy)
    monkeypatch.setattr("board.cards.readings", lambda: {name: Reading(name) for name in names()})
    settings.ENVIRONMENT = "testing"
    answers.kept.clear()
    yield
    for thread in list(answers.asking.values()):
        thread.join(SLACK)
    answers.kept.clear()


@pytest.fixture
def member(client: Client) -> Client:
    client.force_login(member_with("viewer"))
    return client


def shipped(version: str, at: datetime, *, back: bool = False) -> Deployment:
    """A deployment to testing that switched after a minute; rolled back after another, or not."""
    release(version)
    row = rules.create("testing", version, "rolling", "ann", at=at)
    rules.start(row.pk, at=at)
    rules.step(row.pk, steps.SWITCH, "succeeded", at=at + MINUTE)
    if back:
        rules.step(row.pk, steps.ROLL_BACK, "succeeded", at=at + 2 * MINUTE)
    return rules.finish(row.pk, "rolled_back" if back else "succeeded", at=at + 3 * MINUTE)


def of(version: str, value: float, since: float, until: float = math.inf) -> list[tuple[str, dict[str, str], Any]]:
    """The series of a release between two times, with this share of errors."""
    labels = HERE | {"version": version}

    def within(value: float) -> Callable[[float], float]:
        return lambda at: value if since <= at < until else math.nan

    latencies = [(name, labels, within(0.1)) for name in plots.LATENCY.values()]
    return [(plots.REQUESTS, labels, within(8.0)), (plots.ERRORS, labels, within(value)), *latencies]


@pytest.fixture(scope="module")
def server() -> Iterator[PrometheusServer]:
    """A Prometheus in which release 2 followed release 1 20 minutes ago, with more errors, and the budget shrinks."""
    now = time.time()
    series = [
        *of("1", 0.002, now - 3000, now - 1200),
        *of("2", 0.12, now - 1200),
        (plots.IN_PROGRESS, HERE, constant(3.0)),
        (plots.CACHE_HITS, HERE, constant(0.9)),
        (REMAINING, HERE | {"slo": "availability"}, constant(0.724)),
        (REMAINING, HERE | {"slo": "latency"}, constant(0.081)),
        (REMAINING, {"environment": "production", "slo": "availability"}, constant(-0.34)),
    ]
    server = PrometheusServer()
    server.write(series, seconds=3600, step=15, until=now + 300)
    with server:
        yield server


@needs("prometheus")
def test_the_board_plots_the_traffic_with_each_release_on_the_time_axis(
    client: Client, server: PrometheusServer, settings: LazySettings
) -> None:
    settings.PROMETHEUS_URL = server.url
    now = timezone.now()
    shipped("1", now - 50 * MINUTE)
    second = shipped("2", now - 20 * MINUTE)
    text = text_of(client, "/")
    assert "Traffic in testing" in text and text.count('role="img"') == 5
    for told in ("8/s", "12%", "100 ms", ">3<", "90%", f'href="/deployments/{second.pk}/">2</a> deployed'):
        assert told in text, told
    found = [float(x) for x in re.findall(r'<line class="mark" x1="([0-9.]+)%"', text)][:2]
    assert found == pytest.approx([100 * 11 / 60, 100 * 41 / 60], abs=2)
    now_line, past = (re.search(rf'class="curve {style}" d="([^"]+)"', text) for style in ("now", "past"))
    assert now_line and past and "h0" in now_line[1]
    assert "Last 12%, highest 12%. The upper edge is 15%. 1 deployed at" in text
    assert "Availability</span> <strong>72% left" in text and "Latency</span> <strong>8% left" in text
    assert "spent (134%)" in text and "Deployments are on hold, except hotfixes" in text
    assert text.count("Unknown") == 2, "of development and staging nothing is known"
    # What has been answered is kept, and so an open page is sent nothing until something changes.
    assert changed(client, "/?period=1h", fragments(text_of(client, "/?period=1h"))) in ([], ["traffic"])
    text = text_of(client, "/?environment=staging&period=7d")
    assert "Prometheus has no data for staging in this period." in text


@needs("prometheus")
def test_a_deployments_page_plots_the_time_around_it(
    client: Client, server: PrometheusServer, settings: LazySettings
) -> None:
    settings.PROMETHEUS_URL = server.url
    now = timezone.now()
    shipped("1", now - 50 * MINUTE)
    second = shipped("2", now - 20 * MINUTE, back=True)
    text = text_of(client, f"/deployments/{second.pk}/")
    assert 'class="mark own"' in text and 'class="mark-label own"' in text
    assert ">2</a> deployed" in text and ">1</a> restored" in text and "of testing, 1 hour" in text
    long_ago = shipped("3", now - timedelta(days=9))
    assert "Prometheus has no data for testing in this period" in text_of(client, f"/deployments/{long_ago.pk}/")


def test_without_a_prometheus_nothing_is_asked_and_nothing_shown(client: Client) -> None:
    row = shipped("1", timezone.now() - 50 * MINUTE)
    for url in ("/", f"/deployments/{row.pk}/"):
        text = text_of(client, url)
        assert "Traffic" not in text and "Error budget" not in text and not answers.asking and not answers.kept


# Prometheus does not answer


@contextmanager
def hanging() -> Iterator[str]:
    """The address of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_no_page_waits_beyond_its_deadline_for_a_prometheus_that_hangs(
    client: Client, member: Client, settings: LazySettings
) -> None:
    row = shipped("1", timezone.now() - 50 * MINUTE)
    client.get(f"/deployments/{row.pk}/")  # so that nothing is loaded for the first time
    with hanging() as settings.PROMETHEUS_URL:
        for number, url in enumerate(("/", f"/deployments/{row.pk}/", "/?period=7d", "/")):
            began = time.monotonic()
            text = text_of(member, url)
            took = time.monotonic() - began
            assert took < answers.DEADLINE + SLACK and "Prometheus did not answer, so there are no plots." in text
            if number:
                assert took < answers.DEADLINE, "it has just failed, so it is not waited for again"
        answers.kept.clear()
        began = time.monotonic()
        client.get("/?seen=x", headers=POLL)
        assert time.monotonic() - began < answers.DEADLINE, "an open page's poll does not wait"


def test_members_alone_see_why(client: Client, settings: LazySettings) -> None:
    settings.PROMETHEUS_URL = "http://127.0.0.1:1"
    text = text_of(client, "/")
    assert "Prometheus did not answer" in text and "127.0.0.1" not in text and "Unknown" in text
    client.force_login(member_with("viewer"))
    assert "Prometheus (http://127.0.0.1:1): refused the connection" in text_of(client, "/")


def test_a_failure_is_kept_for_a_while_and_then_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    prometheus = Prometheus("http://prometheus")

    def ask() -> str:
        asked.append("")
        if len(asked) == 1:
            raise PrometheusError("It is down")
        return "well"

    def answer(what: str) -> answers.Answer:
        answers.begin((prometheus, what), ask)
        return answers.result((prometheus, what), time.monotonic() + SLACK)

    assert answer("a").why == "It is down." and answer("a").value is None and len(asked) == 1
    monkeypatch.setattr(answers, "FRESH", 0.0)
    answer("a")
    for thread in list(answers.asking.values()):
        thread.join(SLACK)
    monkeypatch.setattr(answers, "FRESH", 60.0)
    assert answer("a").value == "well" and len(asked) == 2
    monkeypatch.setattr(answers, "MANY", 2)
    assert [answer(each).value for each in "bcd"] == ["well"] * 3 and len(answers.kept) == 2


# What is drawn


def series(name: str, version: str, *points: tuple[float, float]) -> Series:
    return Series({"__name__": name, "version": version}, list(points))


HOUR = plots.PERIODS["1h"]


def drawn(*found: Series, period: plots.Period = HOUR, version: str = "") -> dict[str, plots.Plot]:
    return {each.name: each for each in plots.draw(found, 0, period.seconds, period, version)}


def test_a_line_ends_where_a_value_is_missing_and_one_value_alone_is_a_dot() -> None:
    found = series(plots.REQUESTS, "1", (0, 0), (30, 5), (60, math.inf), (90, 10), (1800, 5))
    (line,) = drawn(found)["requests"].lines
    assert line.path == "M0 100h0L8.3 50M25 0h0M500 50h0"
    assert drawn(series(plots.REQUESTS, "1", (0, math.inf))) == {} and drawn() == {}


def test_the_newest_release_stands_out_unless_the_page_is_about_another() -> None:
    bad = series(plots.ERRORS, "2", (600, 0.2), (900, 0.4))
    others = [series(plots.ERRORS, str(number), (0, 0.01), (3600 + number, 0.02)) for number in (1, 3, 4, 5)]
    found = drawn(bad, *others)["errors"]
    assert [(line.label, line.style) for line in found.lines][-1] == ("5", "now") and found.value == "2%"
    assert [key.label for key in found.keys] == ["5", "4", "3", "1"] and found.more == 1 and found.scale == "40%"
    assert drawn(bad, *others, version="2")["errors"].value == "40%"


def test_a_long_period_shows_the_worst_of_each_part_and_the_mean_of_the_traffic() -> None:
    week = plots.PERIODS["7d"]
    points = [(600.0 * number, float(number == 3)) for number in range(1, 7)]
    found = drawn(series(plots.ERRORS, "1", *points), series(plots.REQUESTS, "1", *points), period=week)
    assert found["errors"].value == "100%" and found["requests"].value == "0.167/s"


@pytest.mark.parametrize(
    ("value", "round_"), [(0.01, 0.01), (1, 1), (1.01, 1.5), (7, 8), (99, 100), (0.3, 0.3), (20.9, 25)]
)
def test_the_upper_edge_is_a_round_number(value: float, round_: float) -> None:
    assert plots.ceiling(value) == pytest.approx(round_)


def test_no_label_covers_another_and_the_number_of_queries_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    now = timezone.now()
    rows = [shipped(str(number), now - (60 - 3 * number) * MINUTE) for number in range(12)]
    place = Environment.objects.get(name="testing")
    with CaptureQueriesContext(
        connection,
    ) as queries:
        marks = plots.releases(place, now - 60 * MINUTE, now, rows[5].pk)
    assert len(queries) == 2 and [mark.version for mark in marks] == [str(number) for number in range(12)]
    labelled = [mark for mark in marks if mark.anchor]
    assert marks[5] in labelled and marks[5].own and [mark.own for mark in marks].count(True) == 1
    for one, other in zip(labelled, labelled[1:], strict=False):
        assert other.x - one.x >= plots.APART
    assert {marks[0].anchor, "middle"} <= {"start", "middle", ""}


@pytest.mark.parametrize(
    ("remaining", "words", "percent", "tone"),
    [
        (1.0, "100% left", 100, "ok"),
        (0.996, "99% left", 99.6, "ok"),
        (0.25, "25% left", 25, "warn"),
        (0.004, "less than 1% left", 0.4, "warn"),
        (0.0, "spent (100%)", 0, "bad"),
        (-1.5, "spent (250%)", 0, "bad"),
    ],
)
def test_a_budget_is_shown_in_words(remaining: float, words: str, percent: float, tone: str) -> None:
    assert cards.Meter.of(Budget("latency", remaining)) == cards.Meter("latency", words, percent, tone)


@pytest.mark.browser
@needs("prometheus")
@pytest.mark.django_db(transaction=True)
def test_the_plots_are_accessible_and_fit_a_phone(server: PrometheusServer) -> None:
    now = timezone.now()
    shipped("1.0.0-rc1", now - 50 * MINUTE)
    row = shipped("2.0.0", now - 20 * MINUTE, back=True)
    with (
        chromium() as browser,
        Gunicorn(1, PROMETHEUS_URL=server.url) as app,
        closing(Window(browser, app.url)) as window,
    ):
        window.go("/", "What runs where")
        window.page.set_viewport_size({"width": 320, "height": 800})
        assert window.page.evaluate("document.documentElement.scrollWidth - innerWidth") == 0
        window.main.get_by_role("link", name="24 hours").click()
        window.page.wait_for_url("**/?period=24h#traffic-plots")
        assert window.main.get_by_role("img", name="Error ratio of testing, 24 hours").count() == 1
        window.go(f"/deployments/{row.pk}/", "2.0.0 to testing")
