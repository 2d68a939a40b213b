"""The board, the deployments and the insights: what they show, to whom, and what they cost."""

import re
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from django.conf import LazySettings
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import User
from accounts.roles import Scope
from board import cards
from board.charts import bar_chart
from health.reasons import Reason
from health.runner import Report, Result
from ledger import dora, queries, rules
from ledger.environments import names
from ledger.models import Deployment, Environment, Release
from statuspage.readings import Reading
from tests.support.approving import approved
from tests.support.ledgers import START, begun, deployed, release
from tests.support.people import member as member_with

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)
POLL = {"hx-request": "true"}


@pytest.fixture(autouse=True)
def well(monkeypatch: pytest.MonkeyPatch) -> dict[str, Reading]:
    """A healthy instance, and environments that nobody watches; what they say can be changed."""
    healthy = Report(datetime(2026, 1, 2, tzinfo=UTC), {"database": Result(None, 0.001)})
    monkeypatch.setattr("board.views.report", lambda: healthy)
    heard = {name: reading(name) for name in names()}
    monkeypatch.setattr("board.cards.readings", lambda: heard)
    return heard


def reading(name: str, state: Any = "unknown", version: str = "") -> Reading:
    return Reading(name, state, version, {}, None, None)


@pytest.fixture
def member(client: Client) -> Client:
    client.force_login(member_with("viewer"))
    return client


def text_of(client: Client, url: str, status: int = 200) -> str:
    response = client.get(url)
    assert response.status_code == status
    return response.content.decode()


def shown(people: Scope = Scope(None)) -> dict[str, cards.Card]:
    return {card.environment.name: card for card in cards.board_cards(timezone.now(), people=people)}


# The board


def test_a_card_shows_what_runs_since_when_by_whom_and_how_to_roll_back(member: Client) -> None:
    deployed("staging", "1.0", at=timezone.now() - 3 * HOUR)
    deployed("staging", "1.1", at=timezone.now() - 2 * HOUR, strategy="blue-green")
    text = text_of(member, "/")
    for part in (">1.1</a>", "Build 1.1", "1 h ago", "pipeline", "blue-green", "Roll back to", "Not monitored"):
        assert part in text
    assert "scripts/rollback.sh 1.0 backstagetest1-staging" in text
    assert text.count("No deployments yet.") == 3


@pytest.mark.parametrize(
    ("reason", "seconds", "status"),
    [
        (Reason.TIMEOUT, 0.9, 200),
        (Reason.TIMEOUT, 3.5, 503),
        (Reason.REFUSED, 0.1, 503),
        (Reason.AUTHENTICATION, 0.1, 503),
        (Reason.ERROR, 0.1, 200),
    ],
)
def test_the_board_is_refused_only_for_a_database_that_is_known_to_be_down(
    client: Client, monkeypatch: pytest.MonkeyPatch, reason: Reason, seconds: float, status: int
) -> None:
    """One check that is late, on a busy machine, was 503 for every visitor of that second."""
    found = Report(datetime(2026, 1, 2, tzinfo=UTC), {"database": Result(reason, seconds)})
    monkeypatch.setattr("board.views.report", lambda: found)
    for response in (client.get("/"), client.get("/?seen=x", headers=POLL)):
        assert response.status_code == status
        assert response.headers.get("Retry-After") == ("30" if status == 503 else None)


def test_a_stranger_sees_no_names_no_commands_and_no_reasons() -> None:
    deployed("staging", "1.0", at=START)
    row = deployed("staging", "1.1", at=START + HOUR)
    hotfix = deployed("production", "1.2", hotfix=True, reason="secret-reason", run_url="https://ci.example.com/secret")
    rules.step(begun("testing", "1.3").pk, "watch", "running", note="secret")
    stranger = Client()
    for url in ("/", "/deployments/", "/insights/", f"/deployments/{row.pk}/", f"/deployments/{hotfix.pk}/"):
        text = text_of(stranger, url)
        for hidden in ("pipeline", "rollback.sh", "manage.py", "secret"):
            assert hidden not in text.replace("scripts/rollback.sh</code>, which needs", ""), (url, hidden)
    response = stranger.get("/deployments/?actor=pipeline")
    assert response.status_code == 302 and response["Location"].startswith("/accounts/login/?next="), "nor by asking"


def test_members_see_the_token_beside_the_actor(member: Client) -> None:
    release("1.0")
    row = rules.create("testing", "1.0", "rolling", "ann@example.com", token="ci-token")
    rules.start(row.pk)
    rules.step(row.pk, "migrate", "succeeded", token="other-token", note="2 migrations applied.")
    for _ in range(2):
        for url in ("/", "/deployments/"):
            assert "ann@example.com" in text_of(member, url) and "via ci-token" in text_of(member, url)
            assert "ci-token" not in text_of(Client(), url)
        page, stranger = text_of(member, f"/deployments/{row.pk}/"), text_of(Client(), f"/deployments/{row.pk}/")
        assert "ci-token" in page and "reported via other-token" in page and "token" not in stranger
        assert "2 migrations applied." in page and "applied" not in stranger
        if not row.is_finished:
            row = rules.finish(row.pk, "succeeded", token="rescue-token")
    assert "finished via rescue-token" in page


def test_a_running_deployment_shows_its_steps_and_how_far_it_is() -> None:
    now = timezone.now()
    for number in range(3):
        deployed("testing", f"1.{number}", at=now - (9 - number) * HOUR)  # a minute each
    release("2.0")
    key = rules.create("testing", "2.0", "rolling", "ci", at=now - timedelta(seconds=30)).pk
    assert shown()["testing"].progress is None, "it is pending"
    rules.start(key, at=now - timedelta(seconds=30))
    rules.step(key, "migrate", "succeeded", at=now)
    rules.step(key, "smoke test", "running", at=now)
    progress = shown()["testing"].progress
    assert progress and progress.percent in (50, 51) and not progress.overdue
    text = text_of(Client(), "/")
    assert re.search(r'<progress max="100" value="5[01]"', text)
    assert "of about 1 min 0 s" in text and "migrate" in text and "smoke test" in text
    assert "Deploying 2.0 to testing." in text
    overdue = cards.progress(Deployment.objects.get(pk=key), now + HOUR)
    assert overdue and overdue.percent == 99 and overdue.overdue


def test_what_is_overdue_says_so(member: Client) -> None:
    now = timezone.now()
    for number in range(3):
        deployed("production", f"1.{number}", at=now - (9 - number) * HOUR, hotfix=True, reason="r")  # a minute each
    release("2.0")
    row = rules.create("production", "2.0", "rolling", "ci", hotfix=True, reason="r", at=now - timedelta(minutes=3))
    key = approved(row).pk
    rules.start(key, at=now - timedelta(minutes=3))
    text = text_of(member, "/")
    assert "Deploying 2.0 to production, <strong>overdue</strong>." in text
    assert "<span>Overdue:</span>" in text and 'class="in-flight overdue"' in text
    assert "<strong>Overdue</strong>" in text_of(member, f"/deployments/{key}/")


def advice(environment: str = "production") -> tuple[str, str, str]:
    """The title and version that the board advises, and the command."""
    found = shown()[environment].advice
    return (found.title, found.version, found.command) if found else ("", "", "")


def test_in_flight_the_board_says_how_to_stay_and_never_how_to_go_further_back(member: Client) -> None:
    for number, version in enumerate(("1.14.0", "1.17.0")):
        live = deployed("production", version, at=START + number * HOUR, hotfix=True, reason="r")
    script = "scripts/rollback.sh {} backstagetest1-production"
    assert advice() == ("Roll back to", "1.14.0", script.format("1.14.0"))

    glass: Any = {"hotfix": True, "break_glass": True, "reason": "r"}
    flying = rules.create("production", release("1.18.0").version, "blue-green", "ci", **glass)
    pages = ["/", f"/deployments/{flying.pk}/", f"/deployments/{live.pk}/"]
    assert advice() == ("Not started yet:", "1.18.0", "")
    assert not any("rollback.sh" in text_of(member, page) for page in pages)

    rules.start(flying.pk)
    assert advice() == ("Abort and stay on", "1.17.0", script.format("1.17.0"))
    texts = [text_of(member, page) for page in pages]
    assert all("rollback.sh 1.14.0" not in text for text in texts)
    assert "press Ctrl+C in its terminal" in texts[0] and script.format("1.17.0") in texts[1]
    assert f"Deployment {flying.pk} to production is in progress" in texts[2] and "rollback.sh" not in texts[2]

    rules.finish(flying.pk, "succeeded")
    assert advice() == ("Roll back to", "1.17.0", script.format("1.17.0"))
    back = rules.start(rules.create("production", "1.17.0", "rolling", "ci", kind="rollback").pk)
    assert advice() == ("Rollback in progress to", "1.17.0", "")
    assert "Rolling production back to 1.17.0." in text_of(member, "/")
    rules.finish(back.pk, "succeeded")

    first = begun("testing", "1.18.0")
    assert advice("testing") == ("Deploying", "1.18.0", "")
    assert "no release to stay on" in text_of(member, f"/deployments/{first.pk}/")


@pytest.mark.parametrize(
    ("zone", "day", "shown"),
    [
        ("", "2026-11-19", "2026-11-19 07:30 UTC"),
        ("America/Los_Angeles", "2026-11-18", "2026-11-18 23:30 PST"),
        ("Asia/Tokyo", "2026-11-19", "2026-11-19 16:30 JST"),
        ("Mars/Olympus", "2026-11-19", "2026-11-19 07:30 UTC"),
        ("../../etc/passwd", "2026-11-19", "2026-11-19 07:30 UTC"),
    ],
)
def test_a_deployment_is_found_by_the_day_that_the_reader_sees_beside_it(zone: str, day: str, shown: str) -> None:
    row = deployed("testing", "1.0", at=datetime(2026, 11, 19, 7, 30, tzinfo=UTC))
    reader = Client()
    if zone:
        reader.cookies["tz"] = zone
    at = datetime.fromisoformat(day)
    for number in (-1, 0, 1):
        other = (at + timedelta(days=number)).date()
        text = text_of(reader, f"/deployments/?since={other}&until={other}")
        assert (f">{shown}</time>" in text) == (number == 0), other
        assert f"Times in <span data-zone-name>{shown.endswith('UTC') and 'UTC' or zone}</span>" in text
    assert f">{shown}</time>" in text_of(reader, f"/deployments/{row.pk}/")
    assert timezone.get_current_timezone_name() == "UTC", "the next request begins anew"


def test_days_of_the_insights_are_the_same_for_every_reader() -> None:
    deployed("production", "1.0", at=timezone.now() - HOUR, hotfix=True, reason="r")
    reader = Client()
    reader.cookies["tz"] = "America/Los_Angeles"
    rows = re.compile(r"<tr><td>.*?</tr>")
    assert rows.findall(text_of(reader, "/insights/")) == rows.findall(text_of(Client(), "/insights/"))


def test_what_failed_last_is_named_with_its_step_however_long_ago() -> None:
    release("1.0")
    key = rules.create("testing", "1.0", "rolling", "ci", at=START).pk
    rules.start(key, at=START)
    rules.step(key, "smoke test", "running", at=START)
    rules.finish(key, "rolled_back", at=START + HOUR)
    for number in range(6):
        deployed("testing", f"2.{number}", at=START + (number + 2) * HOUR)
    text = text_of(Client(), "/")
    assert "Last failure:" in text and "in “smoke test”" in text
    assert text.count("rolled back") == 0, "it is not among the last five"
    deployed("testing", "3.0", "failed", at=START + 9 * HOUR)
    failed = shown()["testing"].environment.failed
    assert failed and failed.release.version == "3.0"
    assert 'title="3.0 failed"' in text_of(Client(), "/")


def test_the_rollback_target_is_what_nobody_has_rolled_back_from() -> None:
    staging = Environment.objects.get(name="staging")
    assert queries.previous_good(staging) is None
    for number, version in enumerate(("1.0", "1.1", "1.2")):
        deployed("staging", version, at=START + number * HOUR)
    deployed("staging", "1.2", at=START + 3 * HOUR)
    assert queries.previous_good(staging) == "1.1", "not what runs, deployed twice"
    deployed("staging", "1.1", at=START + 4 * HOUR, kind="rollback")
    assert queries.previous_good(staging) == "1.0", "not to what was just found bad"
    deployed("staging", "1.3", at=START + 5 * HOUR)
    assert queries.previous_good(staging) == "1.1"


def test_the_command_is_the_one_for_the_target_and_safe_to_paste(settings: LazySettings, tmp_path: Path) -> None:
    assert cards.rollback_command("production", "1.0") == "scripts/rollback.sh 1.0 backstagetest1-production"
    assert cards.rollback_command("development", "1.0") == "./run rollback 1.0"
    assert (
        cards.rollback_command("production", "1;reboot") == "scripts/rollback.sh '1;reboot' backstagetest1-production"
    )
    settings.ENVIRONMENTS_FILE = tmp_path / "environments.toml"
    settings.ENVIRONMENTS_FILE.write_text(
        '[staging]\ntarget = "kubernetes"\nnamespace = "here"\ncontext = "our cluster"\n'
    )
    assert cards.rollback_command("staging", "1.0") == "scripts/rollback.sh 1.0 here --context 'our cluster'"


def test_an_environment_that_says_it_runs_something_else_is_marked(well: dict[str, Reading]) -> None:
    deployed("staging", "1.0")
    well["staging"] = reading("staging", "healthy", "1.0")
    assert "Reports version" not in text_of(Client(), "/")
    well["staging"] = reading("staging", "unreachable", "0.9")
    text = text_of(Client(), "/")
    assert "Reports version 0.9" in text and "Staging is unreachable." in text


def fragments(text: str) -> dict[str, str]:
    """The digests of a page's fragments, by id."""
    return dict(re.findall(r'id="([^"]+)" data-fragment="([^"]+)"', text))


def changed(client: Client, url: str, has: dict[str, str]) -> list[str]:
    """The ids of what an open page that has these fragments is sent."""
    path, _, query = url.partition("?")
    answer = client.get(f"{path}?{query}&{urlencode({'seen': list(has.values())}, doseq=True)}", headers=POLL)
    text = answer.content.decode()
    assert answer.status_code == (200 if text else 204) and "<html" not in text
    found = re.findall(r'<template><\w+ id="([^"]+)" data-fragment="[^"]+"[^>]* hx-swap-oob="true">', text)
    assert len(found) == text.count("hx-swap-oob") == text.count("<template>"), "none within another"
    return found


def test_an_open_board_is_sent_what_has_changed_and_nothing_else(client: Client) -> None:
    deployed("testing", "1.0")
    has = fragments(text_of(client, "/"))
    parts = ("health", "freeze", "now", "in-flight", "undecided", "past", "rollback")
    per_environment = [f"{part}-{name}" for name in names() for part in parts]
    assert list(has) == ["summary", *per_environment, "checks", "checked"]
    assert changed(client, "/", has) == []
    release("1.1")
    row = rules.create("testing", "1.1", "rolling", "ci")
    assert changed(client, "/", has) == ["summary", "in-flight-testing", "past-testing"]
    rules.start(row.pk)
    rules.finish(row.pk, "succeeded")
    assert changed(client, "/", has) == ["now-testing", "past-testing"], "the summary has not changed"
    assert changed(client, "/", {"a": "nonsense", "b": ""}) == list(has)
    assert "<html" in text_of(client, "/?seen=x"), "who is not htmx gets a page"


def test_time_alone_changes_no_fragment(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A selection in a card was lost every three seconds, as the card said for how long a deployment runs."""
    now = timezone.now()
    deployed("testing", "1.0", at=now - HOUR)
    row = begun("testing", "1.1", at=now)
    rules.step(row.pk, "migrate", "succeeded", at=now + timedelta(seconds=1))
    rules.step(row.pk, "smoke test", "running", at=now + timedelta(seconds=2))
    for url in ("/", "/deployments/", f"/deployments/{row.pk}/"):
        page = text_of(client, url)
        for seconds in (3, 30, 55):
            monkeypatch.setattr("django.utils.timezone.now", lambda s=seconds: now + timedelta(seconds=s))
            assert text_of(client, url) != page, "it is right as it is loaded"
            assert changed(client, url, fragments(page)) == [], (url, seconds)
        monkeypatch.setattr("django.utils.timezone.now", lambda: now + timedelta(seconds=121))
        found = changed(client, url, fragments(page))
        expected = {"/": ["summary", "in-flight-testing"], "/deployments/": []}.get(url, ["duration-figures"])
        assert found == expected, "now it is late"
        monkeypatch.undo()


def test_the_list_and_a_deployments_page_are_sent_what_has_changed(client: Client) -> None:
    deployed("testing", "1.0")
    row = begun("testing", "1.1")
    url = f"/deployments/{row.pk}/"
    page, rows = fragments(text_of(client, url)), fragments(text_of(client, "/deployments/?environment=testing"))
    key = rules.step(row.pk, "migrate", "running")[0].pk
    assert changed(client, url, page) == ["steps-list"]
    page = fragments(text_of(client, url))
    rules.step(row.pk, "migrate", "succeeded")
    assert changed(client, url, page) == [f"step-{key}"], "and not the whole list of steps"
    assert changed(client, "/deployments/?environment=testing", rows) == []
    rules.finish(row.pk, "succeeded")
    assert set(changed(client, url, page)) >= {"summary", "duration-figures"}
    assert changed(client, "/deployments/?environment=testing", rows) == [f"row-{row.pk}"]
    deployed("testing", "1.2")
    assert changed(client, "/deployments/?environment=testing", rows) == ["list"]
    deployed("staging", "1.2")
    rows = fragments(text_of(client, "/deployments/?environment=testing"))
    assert changed(client, "/deployments/?environment=testing", rows) == [], "what the filter leaves out"


def test_a_poll_uses_up_no_message_and_costs_no_session(client: Client) -> None:
    member = User.objects.create(email="ada@example.com")
    client.force_login(member)
    assert client.post("/accounts/profile/", {"display_name": "Ada"}).status_code == 302
    answer = client.get("/", {"seen": "x"}, headers=POLL)
    assert answer.status_code == 200 and not answer.cookies
    assert "Profile saved." in text_of(client, "/")


# The deployments


def test_the_list_is_filtered_and_says_when_nothing_fits(member: Client) -> None:
    deployed("testing", "1.0", at=START)
    deployed("staging", "2.0", "failed", at=START + 24 * HOUR, strategy="blue-green")
    rows = re.compile(r'<th scope="row"><a[^>]*>([^<]+)</a>')
    for query, found in {
        "": ["2.0", "1.0"],
        "environment=testing": ["1.0"],
        "status=failed": ["2.0"],
        "strategy=blue-green": ["2.0"],
        "actor=pipeline": ["2.0", "1.0"],
        "search=1.": ["1.0"],
        f"search={Release.objects.get(version='2.0').commit[:8]}": ["2.0"],
        f"since={START + 24 * HOUR:%Y-%m-%d}": ["2.0"],
        f"until={START:%Y-%m-%d}": ["1.0"],
        "environment=&status=&strategy=&actor=&since=&until=&search=": ["2.0", "1.0"],
    }.items():
        assert rows.findall(text_of(member, f"/deployments/?{query}")) == found, query
    assert "No matching deployments." in text_of(member, "/deployments/?search=9")


def test_an_empty_ledger_says_how_it_is_filled() -> None:
    text = text_of(Client(), "/deployments/")
    assert "No deployments yet." in text and "/api/docs/" in text


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("status=nonsense", "nonsense is not one of the available choices"),
        ("since=yesterday", "Enter a valid date"),
        ("since=2026-02-01&until=2026-01-01", "Swap the two dates"),
        ("since=9999-12-31&until=9999-12-31", "from 2000 to 2100"),
        ("search=%00", "Null characters are not allowed"),
        (f"search={'x' * 65}", "at most 64 characters"),
    ],
)
def test_an_invalid_filter_is_reported_beside_it(client: Client, query: str, says: str) -> None:
    assert says in text_of(client, f"/deployments/?{query}", 400)


def test_one_pages_through_the_list_and_back(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("board.views.PAGE", 3)
    for number in range(8):
        deployed("testing", f"1.{number}", at=START + (number // 2) * HOUR)
    link = re.compile(r'<a class="button button-quiet" rel="(\w+)" href="([^"]+)"')
    rows = re.compile(r'<th scope="row"><a[^>]*>([^<]+)</a>')

    def walk(query: str, way: str) -> tuple[list[list[str]], str]:
        """What the pages show, and the query of the last of them."""
        pages: list[list[str]] = []
        while True:
            assert len(pages) < 9, "it goes round in circles"
            text = text_of(client, f"/deployments/{query}")
            pages.append(rows.findall(text))
            links = {name: unescape(url) for name, url in link.findall(text)}
            if way not in links:
                return pages, query
            query = links[way]
            assert "environment=testing" in query, "the filter stays"

    pages, last = walk("?environment=testing", "next")
    assert pages == [["1.7", "1.6", "1.5"], ["1.4", "1.3", "1.2"], ["1.1", "1.0"]]
    assert walk(last, "prev")[0] == pages[::-1]
    assert client.get("/deployments/?older=nonsense&environment=testing")["Location"] == (
        "/deployments/?environment=testing"
    )


def test_a_deployments_page_tells_all_of_it(member: Client, settings: LazySettings) -> None:
    settings.COMPARE_URL = "https://example.com/compare/{old}...{new}"
    first = deployed("production", "1.0", at=START, hotfix=True, reason="First")
    release("1.1")
    run = "https://ci.example.com/7"
    row = rules.create("production", "1.1", "rolling", "ada", hotfix=True, reason="Cannot wait", run_url=run)
    key = approved(row).pk
    began = rules.start(key).started
    assert began
    rules.step(key, "migrate", "running", at=began)
    rules.step(key, "migrate", "succeeded", at=began + timedelta(seconds=30))
    rules.step(key, "smoke test", "running", at=began + timedelta(seconds=30))
    rules.finish(key, "succeeded", at=began + timedelta(seconds=120))
    text = text_of(member, f"/deployments/{key}/")
    old, new = (Release.objects.get(version=version).commit for version in ("1.0", "1.1"))
    for part in (
        "<h1>1.1 to production</h1>",
        "Succeeded after 2 min 0 s; live now",
        "Cannot wait",
        f'href="{run}"',
        f'href="https://example.com/compare/{old}...{new}"',
        f'href="/deployments/{first.pk}/" id="previous">1.0</a>',
        "scripts/rollback.sh 1.0 backstagetest1-production",
        '<rect x="0.0" width="25.0" height="4"/>',
        '<rect x="25.0" width="75.0" height="4"/>',
        "Median of successful deployments",
        f'title="{began:%Y-%m-%d %H:%M:%S} UTC"',
    ):
        assert part in text, part
    assert "Changes since" not in text_of(member, f"/deployments/{first.pk}/")


def test_what_was_live_can_be_brought_back_and_what_failed_cannot(member: Client) -> None:
    old = deployed("staging", "1.0", at=START)
    failed = deployed("staging", "1.1", "failed", at=START + HOUR)
    only = text_of(member, f"/deployments/{old.pk}/")
    assert "live now" in only and "rollback.sh" not in only, "there is nothing to roll back to"
    deployed("staging", "1.2", at=START + 2 * HOUR)
    assert "scripts/rollback.sh 1.0 backstagetest1-staging" in text_of(member, f"/deployments/{old.pk}/")
    assert "rollback.sh" not in text_of(member, f"/deployments/{failed.pk}/")


@pytest.mark.parametrize("key", ["7", str(10**30)])
def test_a_deployment_that_is_not_there_is_not_found(client: Client, key: str) -> None:
    assert client.get(f"/deployments/{key}/").status_code == 404


# The insights


def test_the_four_measures_are_dora_s() -> None:
    now = timezone.now()
    production = Environment.objects.get(name="production")

    def at(days: float) -> datetime:
        return now - timedelta(days=days)

    def go(version: str, result: str, days: float, **options: Any) -> None:
        if not Release.objects.filter(version=version).exists():
            rules.register(version, "4f2a9c1", at(days) - 2 * HOUR, at=at(days))
        if "kind" not in options:
            options |= {"hotfix": True, "reason": "For the test"} if options.pop("hotfix", False) else {}
            if not options:
                deployed_to_staging(version, at(days) - HOUR)
        row = rules.create("production", version, "rolling", "ci", at=at(days), **options)
        rules.start(approved(row).pk, at=at(days))
        rules.finish(row.pk, result, at=at(days) + timedelta(minutes=1))

    def deployed_to_staging(version: str, when: datetime) -> None:
        row = rules.create("staging", version, "rolling", "ci", at=when)
        rules.start(row.pk, at=when)
        rules.finish(row.pk, "succeeded", at=when)

    go("0.9", "succeeded", 50)  # before the period
    go("1.0", "succeeded", 20)
    go("1.1", "failed", 19)  # restored a day later
    go("1.2", "succeeded", 18)  # withdrawn a day later
    go("1.0", "succeeded", 17, kind="rollback")
    go("1.3", "rolled_back", 16)  # took itself back within its minute
    go("1.4", "succeeded", 15)  # mended by a hotfix two days later
    go("1.5", "succeeded", 13, hotfix=True)
    found = dora.by_environment(30, now)[production.pk]
    assert (found.changes, found.live, found.failing) == (6, 4, 4)
    assert found.failure_rate == pytest.approx(4 / 6)
    assert found.lead == pytest.approx(2 * 3600 + 60), "the rollback is no first time"
    # A day, a day, a minute, two days: the median of four is the mean of the two in the middle.
    assert found.restore == pytest.approx(86_400)
    bars = dora.by_bar(production.pk, 30, now)
    assert len(bars) == 30 and sum(each.live for _, each in bars) == 4 and sum(each.failing for _, each in bars) == 4
    assert [each.live for start, each in bars if start.date() == at(18).date()] == [1]
    assert [each.restore for start, each in bars if start.date() == at(16).date()] == [pytest.approx(60)]
    assert dora.by_environment(90, now)[production.pk].live == 5
    assert production.pk not in dora.by_environment(7, now)


def test_the_insights_show_charts_with_words_and_figures(client: Client) -> None:
    deployed("production", "1.0", at=timezone.now() - HOUR, hotfix=True, reason="First")
    text = text_of(client, "/insights/?days=7")
    assert text.count("<svg viewBox=") == text.count("<desc id=") == text.count("<summary>Figures") == 4
    assert "1 went live in 7 days" in text and "The tallest of 7 bars is 1." in text
    assert "The tallest of 18 bars" in text_of(client, "/insights/?days=90&environment=production")
    nothing = text_of(client, "/insights/?environment=staging")
    assert "none yet" in nothing and "No data in this period." in nothing
    for query in ("days=8", "days=x", "environment=mars"):
        assert client.get(f"/insights/?{query}").status_code == 404


def test_a_bar_is_as_tall_as_its_value_and_never_unseen() -> None:
    values = [(START, 100.0), (START, 50.0), (START, 0.1), (START, 0.0), (START, None)]
    bars = bar_chart("n", "t", "v", "m", "ok", values, str).bars
    assert [(bar.height, bar.y) for bar in bars] == [
        (100.0, 0.0),
        (50.0, 50.0),
        (2.0, 98.0),
        (0.0, 100.0),
        (0.0, 100.0),
    ]
    assert [bar.text for bar in bars][3:] == ["0.0", "none"]
    assert bars[-1].x + bars[-1].width <= 300


# What it costs


def fill(count: int) -> None:
    """So many more deployments, the newest an hour ago: of four environments in turn, some of which failed."""
    begin = timezone.now() - timedelta(minutes=count + 60)
    number = Release.objects.count()
    releases = Release.objects.bulk_create(
        Release(version=f"1.{n}", commit=f"{n:040x}", message=f"Change {n}", built_at=begin - HOUR)
        for n in range(number, number + count // 4)
    )
    Environment.objects.update(approvals=0)
    for environment in (1, 2, 3, 4):  # staging before production, as the gate wants it
        Deployment.objects.bulk_create(
            Deployment(
                environment_id=environment,
                release=each,
                strategy="rolling",
                status="failed" if n % 7 == 3 and environment != 3 else "succeeded",
                actor=f"person-{n % 20}",
                created=(at := begin + timedelta(minutes=4 * n + environment)),
                started=at,
                finished=at + timedelta(minutes=1),
            )
            for n, each in enumerate(releases)
        )
    Environment.objects.filter(pk=4).update(approvals=1)


@pytest.mark.slow
def test_no_page_takes_more_queries_or_more_room_when_there_are_more_rows(client: Client) -> None:
    client.force_login(member_with("viewer"))
    visitors = {"member": client, "stranger": Client()}
    costs: list[dict[tuple[str, str], int]] = []
    for count in (12, 2_000):
        fill(count)
        running = begun("testing", f"{count}.run")
        rules.step(running.pk, "migrate", "running")
        live = Deployment.objects.filter(status="succeeded", environment=4).newest_first()[0]
        urls = {
            "board": "/",
            "poll": "/?seen=x",
            "list": "/deployments/?environment=staging&status=succeeded&search=1.",
            "detail": f"/deployments/{live.pk}/",
            "insights": "/insights/?days=90",
        }
        cost = {}
        for name, url in urls.items():
            for who, visitor in visitors.items():
                with CaptureQueriesContext(connection) as queries:
                    response = visitor.get(url, headers=POLL if name == "poll" else {})
                assert response.status_code == 200
                assert len(response.content) < 60_000, name
                cost[name, who] = len(queries)
        costs.append(cost)
        rules.finish(running.pk, "succeeded")
    assert costs[0] == costs[1]
    stranger = {name: cost for (name, who), cost in costs[1].items() if who == "stranger"}
    assert stranger == {"board": 8, "poll": 8, "list": 2, "detail": 3, "insights": 3}
    assert (
        costs[1]["board", "member"] == 15
    ), "the account, its permissions, and the rollback target of each where nothing is in flight"
