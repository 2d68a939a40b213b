"""What the status page, its JSON and its feed say is true: of now, of the past, and of what people report."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import feedparser
import pytest
from django.core.exceptions import ValidationError
from django.db import OperationalError
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from accounts.models import User
from audit.models import Entry
from ledger.environments import names
from ledger.models import Environment
from statuspage import history, incidents, uptime, verdict
from statuspage.models import Day, Incident, IncidentUpdate
from statuspage.readings import KEPT, Reading
from statuspage.rows import format_percent
from tests.support.people import member

HEALTHY = ("healthy", {"database": "healthy", "cache": "healthy"})
DEGRADED = ("unhealthy", {"database": "healthy", "cache": "unhealthy: timeout"})
DOWN = ("unhealthy", {"database": "unhealthy: timeout", "cache": "healthy"})
UNREACHABLE: tuple[str, dict[str, str]] = ("unreachable", {})
Seen = Callable[..., None]


@pytest.fixture(autouse=True)
def alone(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, nothing in memory, and an environments.toml of which staging and production have a url."""
    settings.CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache", "LOCATION": uuid.uuid4().hex}}
    settings.WATCH_ENVIRONMENTS = True
    settings.ENVIRONMENTS_FILE = tmp_path / "environments.toml"
    settings.ENVIRONMENTS_FILE.write_text(
        '[development]\n[testing]\n[staging]\nurl = "http://s"\n[production]\nurl = "http://p"\n'
    )
    monkeypatch.setattr(history, "memory", [])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Makes the environments look like this to the status page; one that is not given is unknown."""

    def see(age: float = 0, **states: tuple[Any, dict[str, str]]) -> None:
        at = datetime.now(UTC) - timedelta(seconds=age)
        found = {name: Reading(name) for name in names()}
        found |= {name: Reading(name, said, "1.2", checks, 5.0, at) for name, (said, checks) in states.items()}
        monkeypatch.setattr(verdict, "readings", lambda: found)

    see(testing=HEALTHY)
    return see


def open_one(environment: str, impact: str = "minor", **more: Any) -> dict[str, Any]:
    return {"environment": environment, "impact": impact, "status": "investigating"} | more


ALL = {"testing": HEALTHY, "staging": HEALTHY, "production": HEALTHY}
CRITICAL, MINOR = open_one("production", "critical"), open_one("production")


@pytest.mark.parametrize(
    ("states", "published", "state", "sentence", "notes"),
    [
        (ALL, [], "up", "All systems operational", ()),
        (ALL | {"production": DEGRADED}, [], "degraded", "Production is degraded", ()),
        (ALL | {"production": DOWN}, [], "down", "Production is down", ()),
        (ALL | {"production": UNREACHABLE}, [CRITICAL], "down", "Production is down", ()),
        (ALL, [CRITICAL], "down", "Incident in production", ()),
        (ALL, [open_one("production", "major")], "degraded", "Incident in production", ()),
        (ALL | {"production": DEGRADED}, [CRITICAL, MINOR], "down", "Incident in production", ()),
        ({"testing": HEALTHY, "staging": HEALTHY}, [MINOR], "degraded", "Incident in production", ()),
        (ALL, [CRITICAL | {"status": "resolved"}], "up", "All systems operational", ()),
        (ALL | {"staging": DOWN}, [], "up", "Production is operational", ("Staging is down",)),
        (ALL | {"staging": DEGRADED}, [], "up", "Production is operational", ("Staging is degraded",)),
        (ALL, [open_one("staging", "critical")], "up", "Production is operational", ("Incident in staging",)),
        (
            {"testing": HEALTHY, "production": HEALTHY},
            [],
            "up",
            "Production is operational",
            ("Staging status is unknown",),
        ),
        (ALL | {"production": DOWN, "staging": DOWN}, [], "down", "Production is down", ("Staging is down",)),
        ({"testing": HEALTHY, "staging": HEALTHY}, [], "unknown", "Production status is unknown", ()),
        (ALL, None, "up", "Production is operational", ("Incidents are unavailable",)),
    ],
)
def test_production_decides_the_headline(
    seen: Seen, states: dict[str, Any], published: list[dict[str, Any]] | None, state: str, sentence: str, notes: Any
) -> None:
    seen(**states)
    found = verdict.headline(verdict.current_readings(), published)
    assert (found.state, found.sentence, found.notes) == (state, sentence, notes)


@pytest.mark.django_db
@pytest.mark.parametrize("own", ["development", "testing", "staging"])
def test_production_that_nobody_monitors_is_neither_up_nor_down(
    client: Client, settings: Settings, seen: Seen, own: str
) -> None:
    settings.WATCH_ENVIRONMENTS, settings.ENVIRONMENT = False, own
    seen(**{own: HEALTHY})
    said = client.get("/status/status.json").json()
    assert (said["status"], said["description"]) == ("unknown", "Production is not monitored")
    assert [(each["environment"], each["state"]) for each in said["now"]] == [
        ("production", "unknown"),
        (own, "healthy"),
    ]
    page = client.get("/status/").content.decode()
    assert "<h1>Production is not monitored</h1>" in page and "stage-idle" in page and "Not monitored" in page
    assert "operational" not in page.partition('id="env-')[0]


@pytest.mark.django_db
def test_a_reading_that_has_grown_old_says_nothing(client: Client, seen: Seen) -> None:
    seen(age=KEPT + 1, **ALL)
    said = client.get("/status/status.json").json()
    assert (said["status"], said["description"].partition(".")[0]) == ("unknown", "Production status is unknown")


@pytest.mark.django_db
def test_status_json_has_the_documented_shape_with_production_first(client: Client, seen: Seen) -> None:
    seen(**ALL | {"staging": DOWN})
    today = datetime.now(UTC).date()
    for name, up, down in (("testing", 10, 0), ("staging", 5, 5), ("production", 2999, 1)):
        Day.objects.create(environment=place(name), day=today - timedelta(days=1), up=up, down=down)
    Day.objects.create(environment=place("production"), day=today - timedelta(days=89), up=1440, down=0)
    Day.objects.create(environment=place("production"), day=today - timedelta(days=90), up=0, down=1440)
    incident = told("Pictures load slowly", "staging")
    answer = client.get("/status/status.json")
    assert answer.status_code == 200 and answer["Content-Type"] == "application/json"
    said = answer.json()
    assert {name: said[name] for name in ("status", "description", "history_age_seconds")} == {
        "status": "up",
        "description": "Production is operational. Staging is down. Incident in staging.",
        "history_age_seconds": 0,
    }
    assert datetime.fromisoformat(said["timestamp"]).tzinfo
    assert [each["environment"] for each in said["now"]] == ["production", "staging", "testing"]
    assert set(said["now"][0]) == {"environment", "state", "version", "checks", "simulated", "at"}
    past = {each["environment"]: each for each in said["environments"]}
    assert list(past) == ["production", "staging", "testing"]
    figures = {name: (each["uptime_percent"], each["days_with_data"], len(each["days"])) for name, each in past.items()}
    assert figures == {"production": (99.98, 2, 90), "staging": (50.0, 1, 90), "testing": (100.0, 1, 90)}
    assert past["testing"]["days"][-2:] == [
        {"date": f"{today - timedelta(days=1)}", "uptime_percent": 100.0},
        {"date": f"{today}", "uptime_percent": None},
    ]
    update = incident.updates.get()
    assert said["incidents"] == [
        {
            "id": incident.pk,
            "title": "Pictures load slowly",
            "environment": "staging",
            "impact": "minor",
            "status": "investigating",
            "started": incident.started.isoformat(),
            "resolved": None,
            "updates": [{"at": update.at.isoformat(), "status": "investigating", "message": "We are looking into it."}],
        }
    ]


@pytest.mark.django_db
def test_a_percentage_is_never_shown_without_its_days(client: Client, seen: Seen) -> None:
    minute = uptime.minute_of(timezone.now())
    uptime.write(
        [("testing", minute, True), ("production", minute, True), ("production", minute - timedelta(days=1), False)]
    )
    page = client.get("/status/").content.decode()
    assert "100% over 1 day</span>" in page and '<desc id="d-testing">100% over 1 day.' in page
    assert "50.00% over 2 days" in page and page.index("env-production") < page.index("env-testing")


@pytest.mark.parametrize(
    ("value", "text"), [(None, "no data"), (100.0, "100%"), (99.9, "99.90%"), (99.99, "99.99%"), (0.0, "0.00%")]
)
def test_percentages_have_one_format(value: float | None, text: str) -> None:
    assert format_percent(value) == text


# Incidents


def place(name: str) -> Environment:
    return Environment.objects.get(name=name)


def told(title: str, environment: str = "production", at: datetime | None = None, **more: Any) -> Incident:
    """A new incident."""
    incident = Incident(title=title, environment=place(environment), **more)
    return incidents.report(incident, "We are looking into it.", "ada@example.com", at)


@pytest.mark.django_db
def test_what_is_done_to_an_incident_is_in_the_audit_log() -> None:
    incident = told("Slow")
    incidents.update(incident.pk, "monitoring", "It is back.", "ada@example.com")
    incidents.update(incident.pk, "resolved", "Gone.", "ada@example.com")
    entries = list(Entry.objects.order_by("pk"))
    assert [each.action for each in entries] == ["incident_opened", "incident_updated", "incident_resolved"]
    assert {(each.actor, each.target) for each in entries} == {("ada@example.com", f"incident {incident.pk}")}


def parsed(client: Client) -> Any:
    """The feed as a reader's library has it."""
    answer = client.get("/status/feed.atom")
    assert answer.status_code == 200 and answer["Content-Type"] == "application/atom+xml; charset=utf-8"
    feed = feedparser.parse(answer.content)
    assert not feed.bozo, feed.get("bozo_exception")
    return feed


@pytest.mark.django_db
def test_an_open_incident_is_shown_however_many_newer_ones_are_resolved(client: Client, seen: Seen) -> None:
    seen(**ALL)
    began = timezone.now() - timedelta(days=30)
    told("Nothing works", impact="critical", at=began)
    for number in range(history.RESOLVED + 5):
        told(f"Newer {number}", status="resolved", at=began + timedelta(hours=number + 1))
    said = client.get("/status/status.json").json()
    assert (said["status"], said["description"]) == ("down", "Incident in production")
    assert [each["title"] for each in said["incidents"] if each["status"] != "resolved"] == ["Nothing works"]
    assert len(said["incidents"]) == history.RESOLVED + 1
    page = client.get("/status/").content.decode()
    assert "<h1>Incident in production</h1>" in page and "1 open incident." in page and "Nothing works" in page
    assert "Investigating: Nothing works" in [entry.title for entry in parsed(client).entries]


@pytest.mark.django_db
def test_an_update_of_an_old_incident_reaches_the_feed(client: Client, seen: Seen) -> None:
    began = timezone.now() - timedelta(days=30)
    old = told("The oldest", at=began)
    incidents.update(old.pk, "resolved", "It works again.", "ada@example.com", began + timedelta(hours=1))
    for number in range(history.RESOLVED):
        told(f"Newer {number}", status="resolved", at=began + timedelta(hours=number + 2))
    assert "Resolved: The oldest" not in [entry.title for entry in parsed(client).entries]
    incidents.update(old.pk, "resolved", "What happened, and what we changed.", "ada@example.com")
    feed = parsed(client)
    entry = next(entry for entry in feed.entries if entry.title == "Resolved: The oldest")
    assert "What happened" in entry.summary and feed.feed.updated == entry.updated
    assert feed.entries[-1] == entry, "in its place by when it began"


@pytest.mark.django_db
def test_an_update_after_the_end_does_not_move_the_end() -> None:
    began = timezone.now() - timedelta(days=3)
    incident = told("Slow", at=began)
    for hours, said in ((1, "resolved"), (2, "resolved")):
        incident = incidents.update(incident.pk, said, "So it is.", "ada@example.com", began + timedelta(hours=hours))
    assert incident.resolved == began + timedelta(hours=1)
    again = incidents.update(incident.pk, "monitoring", "It is back.", "ada@example.com", began + timedelta(hours=3))
    assert again.resolved is None
    again = incidents.update(incident.pk, "resolved", "Gone.", "ada@example.com", began + timedelta(hours=4))
    assert again.resolved == began + timedelta(hours=4)


@pytest.mark.django_db
def test_the_feed_is_valid_and_its_text_reads_as_it_was_written(client: Client, seen: Seen) -> None:
    began = timezone.now() - timedelta(hours=1)
    incident = told("Requests to <host> & more fail", at=began, impact="major")
    incidents.update(incident.pk, "identified", "Nur <b>Zürich</b>:\n1 < 2 & 3", "ada@example.com")
    feed = parsed(client)
    assert feed.version == "atom10" and feed.feed.author == "backstagetest1"
    assert feed.feed.id.startswith("urn:uuid:") and feed.feed.title and feed.feed.updated
    links = {link.rel: link.href for link in feed.feed.links}
    assert links == {"alternate": "http://testserver/status/", "self": "http://testserver/status/feed.atom"}
    (entry,) = feed.entries
    assert (entry.title, entry.title_detail.type) == ("Identified: Requests to <host> & more fail", "text/plain")
    assert entry.summary_detail.type == "text/plain"
    assert "identified: Nur <b>Zürich</b>:\n1 < 2 & 3" in entry.summary and "ada@example.com" not in entry.summary
    assert entry.id.startswith("urn:uuid:") and entry.id != feed.feed.id
    assert entry.link == f"http://testserver/status/incidents/{incident.pk}/"
    assert entry.published_parsed < entry.updated_parsed == feed.feed.updated_parsed
    assert [tag.term for tag in entry.tags] == ["production", "major"]
    incidents.update(incident.pk, "resolved", "Done.", "ada@example.com")
    (again,) = parsed(client).entries
    assert again.id == entry.id and again.updated >= entry.updated


@pytest.mark.django_db
def test_the_feed_is_503_and_not_empty_while_the_incidents_are_not_known(
    client: Client, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(history, "collect", fail)
    answer = client.get("/status/feed.atom")
    assert (answer.status_code, answer["Retry-After"]) == (503, "30")


@pytest.mark.django_db
@pytest.mark.parametrize("character", ["\x0c", "\x1b", "\ufffe", "\u202e"])
def test_an_incident_stored_with_a_bad_character_breaks_no_reader(client: Client, seen: Seen, character: str) -> None:
    bad = Incident.objects.create(title=f"a{character}b", environment=place("production"), started=timezone.now())
    IncidentUpdate.objects.create(
        incident=bad, at=bad.started, status=bad.status, message=f"one{character}\ntwo", author="x"
    )
    Incident.objects.create(title="No update", environment=place("production"), started=timezone.now())
    feed = parsed(client)
    assert len(feed.entries) == 2
    for path in ("/status/", "/status/status.json", f"/status/incidents/{bad.pk}/", "/status/feed.atom"):
        body = client.get(path).content.decode()
        assert character not in body and character.encode("unicode_escape").decode() not in body, path


@pytest.mark.django_db
@pytest.mark.parametrize("character", ["\x0c", "\ufffe", "\u202e"])
def test_text_that_a_feed_cannot_carry_is_refused_with_its_code_point(root: Client, character: str) -> None:
    given = {"title": "Slow", "impact": "minor", "environment": place("production").pk, "status": "investigating"}
    named = f"U+{ord(character):04X}"
    for values in ({"title": f"a{character}b", "message": "Fine."}, {"message": f"a{character}b"}):
        answer = root.post("/status/incidents/new/", given | values)
        assert answer.status_code == 422 and named in answer.content.decode()
    assert root.post("/status/incidents/new/", given | {"title": "a\nb", "message": "Fine."}).status_code == 422
    assert not Incident.objects.exists()
    incident = told("Fine")
    answer = root.post(f"/status/incidents/{incident.pk}/", {"status": "resolved", "message": f"a{character}b"})
    assert answer.status_code == 422 and named in answer.content.decode() and incident.updates.count() == 1
    with pytest.raises(ValidationError, match="not allowed"):
        told(f"a{character}b")
    with pytest.raises(ValidationError, match="not allowed"):
        incidents.update(incident.pk, "resolved", f"a{character}b", "ada@example.com")
    incident.refresh_from_db()
    assert (incident.status, incident.updates.count()) == ("investigating", 1), "refused as a whole"


@pytest.mark.django_db
def test_the_limits_of_the_forms_are_those_of_the_models(root: Client) -> None:
    given = {"title": "t" * 120, "impact": "minor", "environment": place("production").pk, "status": "investigating"}
    lines = "\r\n".join(["x" * 99] * 20)  # 2,000 characters less one, as a browser counts them, and 19 more on the wire
    assert root.post("/status/incidents/new/", given | {"message": lines}).status_code == 302
    incident = Incident.objects.get()
    assert incident.updates.get().message == lines.replace("\r\n", "\n")
    for values in (given | {"message": "x" * 2001}, given | {"title": "t" * 121, "message": "Fine."}):
        assert root.post("/status/incidents/new/", values).status_code == 422
    page = f"/status/incidents/{incident.pk}/"
    assert root.post(page, {"status": "resolved", "message": "x" * 2001}).status_code == 422
    with pytest.raises(ValidationError, match="at most 2000"):
        incidents.update(incident.pk, "resolved", "x" * 2001, "ada@example.com")
    with pytest.raises(ValidationError, match="at most 120"):
        told("t" * 121)
    assert Incident.objects.get().updates.count() == 1


# Who may


@pytest.fixture
def root() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root@example.com", "x"))
    return client


@pytest.mark.django_db
@pytest.mark.parametrize("signed_in", [False, True])
def test_nobody_but_a_maintainer_reports_or_updates(client: Client, signed_in: bool) -> None:
    if signed_in:
        client.force_login(member("approver"))
    incident = told("Slow")
    given = {"title": "Mine", "impact": "minor", "environment": place("production").pk, "status": "resolved"}
    answer = client.post("/status/incidents/new/", given | {"message": "Hello"})
    assert answer.status_code == (403 if signed_in else 302) and answer.get("Location", "/accounts/login/").startswith(
        "/accounts/login/"
    )
    assert client.post(f"/status/incidents/{incident.pk}/", given | {"message": "Hello"}).status_code == 403
    page = client.get(f"/status/incidents/{incident.pk}/")
    assert page.status_code == 200 and "<textarea" not in page.content.decode()
    incident.refresh_from_db()
    assert Incident.objects.count() == incident.updates.count() == 1 and incident.status == "investigating"


@pytest.mark.django_db
def test_a_maintainer_of_one_environment_manages_its_incidents_alone(client: Client) -> None:
    client.force_login(member("maintainer", "staging"))
    elsewhere = told("Slow")
    here = told("Slow", environment="staging")
    given = {"title": "Mine", "impact": "minor", "status": "resolved", "message": "Hello"}
    assert client.post("/status/incidents/new/", given | {"environment": place("production").pk}).status_code == 422
    assert client.post("/status/incidents/new/", given | {"environment": place("staging").pk}).status_code == 302
    assert client.post(f"/status/incidents/{elsewhere.pk}/", given).status_code == 403
    assert client.post(f"/status/incidents/{here.pk}/", given).status_code == 302
    assert "<textarea" not in client.get(f"/status/incidents/{elsewhere.pk}/").content.decode()
    assert "Report an incident" in client.get("/status/").content.decode()


@pytest.mark.django_db
def test_an_incident_that_is_not_there_is_404(root: Client) -> None:
    for key in ("1", "99999999999999999999"):
        assert root.get(f"/status/incidents/{key}/").status_code == 404
        assert root.post(f"/status/incidents/{key}/", {"status": "resolved", "message": "Hello"}).status_code == 404


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PUT", "PATCH", "DELETE", "POST"])
def test_the_pages_for_reading_take_no_other_method(client: Client, method: str) -> None:
    for path in ("/status/", "/status/status.json", "/status/feed.atom"):
        answer = client.generic(method, path)
        assert answer.status_code == 405 and answer["Allow"] == "GET, HEAD", path
    assert client.head("/status/feed.atom").status_code == 200
