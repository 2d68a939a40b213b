"""Environments of a team's own: the core of the ledger, its API and its pages with five of other names."""

import json
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import IntegrityError, transaction
from django.test import Client

from pytest_django import Settings

from accounts.models import User
from ledger import demo, queries, rules

from ledger.api.schemas import EnvironmentList
from audit.models import Entry
from ledger.environment_rows import follow_file
from ledger.models import Deployment, Environment
from ledger.rules import RuleViolation
from statuspage import demo as status_demo
from statuspage import verdict
from statuspage.models import Day
from statuspage.readings import Reading
from tests.support.environments import FIVE, environments
from tests.support.ledgers import begun, deployed, release, token
from tests.support.servers import ROOT

pytestmark = pytest.mark.django_db

NAMES = ["qa", "uat", "eu", "us", "dr"]
MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def five(db: None, tmp_path: Path) -> Iterator[Path]:
    with environments(tmp_path) as file:
        yield file


def ago(minutes: int) -> datetime:
    return datetime.now(UTC) - minutes * MINUTE


def refused(code: str, text: str | None = None) -> Any:
    return pytest.raises(RuleViolation, match=text, check=lambda error: error.code == code)


# The rows


def test_the_rows_follow_the_file_and_history_stays() -> None:
    assert [row.name for row in Environment.objects.on_board()] == NAMES
    former = Environment.objects.filter(order=None)
    assert [row.name for row in former] == ["development", "production", "staging", "testing"]
    production = former.get(name="production")
    assert [row.name for row in production.promotes_from.all()] == ["staging"], "nothing becomes less strict by leaving"
    release("1.0")
    with refused("environment-gone", "development is no longer in environments.toml"):
        rules.create("development", "1.0", "rolling", "ci")


def test_an_environment_that_leaves_comes_back_with_its_history(five: Path, tmp_path: Path) -> None:
    row = deployed("qa", "1.0")
    with environments(tmp_path, FIVE.replace("[qa]", "[lab]").replace('"qa"', '"lab"')):
        assert [each.name for each in queries.board()] == ["lab", *NAMES[1:]]
        assert Deployment.objects.get(pk=row.pk).environment.order is None
        page = Client().get("/deployments/?environment=qa").content.decode()
        assert "Qa (former)" in page and f"/deployments/{row.pk}/" in page
        assert Client().get(f"/deployments/{row.pk}/").status_code == 200
    assert follow_file() == ["lab", "qa", "uat"]
    assert [each.name for each in queries.board()] == NAMES
    current = queries.board()[0].current
    assert current == row and follow_file() == [], "nothing has changed, so nothing is written"


def test_what_changes_of_an_environment_is_in_the_audit_log(db: None, tmp_path: Path) -> None:
    with environments(tmp_path, "[a]\n[b]\npromotes_from = 'a'\nsoak = '30m'\n"):
        before = Entry.objects.latest("pk").pk
        with environments(tmp_path, "[a]\n[b]\n"):
            found = {each.environment: each for each in Entry.objects.filter(pk__gt=before)}
            assert list(found) == ["b"] and found["b"].action == "environment_changed" and "@" in found["b"].actor
            assert found["b"].details == {"soak": "1800 -> 0", "promotes_from": "a -> none"}


def test_two_environments_change_places(five: Path, tmp_path: Path) -> None:
    swapped = "[a]\n[b]\n"
    with environments(tmp_path, swapped), environments(tmp_path, "[b]\n[a]\n"):
        assert [row.name for row in Environment.objects.on_board()] == ["b", "a"]


# The rules, by ledger.rules and by the database itself


def insert(environment: str, version: str, created: datetime) -> None:
    """Writes a deployment behind the back of ledger.rules."""
    with transaction.atomic():
        Deployment.objects.bulk_create(
            [
                Deployment(
                    environment=Environment.objects.get(name=environment),
                    release=release(version),
                    strategy="rolling",
                    actor="somebody",
                    created=created,
                )
            ]
        )
        transaction.set_rollback(True)


def test_a_release_comes_from_any_of_those_before() -> None:
    release("1.0")
    for name in NAMES[1:]:
        with refused("not-promotable"):
            rules.create(name, "1.0", "rolling", "ci")
        with pytest.raises(IntegrityError, match="ledger_promotion"):
            insert(name, "1.0", ago(0))
    deployed("qa", "1.0", at=ago(90))
    deployed("uat", "1.0", at=ago(60))
    deployed("us", "1.0", at=ago(20))
    insert("dr", "1.0", ago(0))
    assert rules.promotion(Environment.objects.get(name="dr"), "1.0").text == "1.0 has succeeded in us"
    assert deployed("dr", "1.0", at=ago(5)).status == "succeeded", "from us; it never was in eu"


def test_a_release_soaks_before_it_is_promoted() -> None:
    eu = Environment.objects.get(name="eu")
    deployed("qa", "1.0", at=ago(90))
    deployed("uat", "1.0", at=ago(25))
    text = r"live in uat for 2[34] min \d+ s; eu requires 30 min 0 s without a break\. Wait until 20.*Z\."
    with refused("not-promotable", text):
        rules.create("eu", "1.0", "rolling", "ci")
    assert queries.promotable(eu) == [] and queries.promotable(Environment.objects.get(name="us"))
    for claimed in (ago(0), ago(-600), ago(10)):
        with pytest.raises(IntegrityError, match="ledger_promotion"):
            insert("eu", "1.0", claimed)
    deployed("qa", "2.0", at=ago(89))
    deployed("uat", "2.0", at=ago(10))
    with refused("not-promotable", "Deploy it there again"):
        rules.create("eu", "1.0", "rolling", "ci", at=ago(-60))
    with pytest.raises(IntegrityError, match="ledger_promotion"):
        insert("eu", "1.0", ago(-60))
    rules.create("eu", "2.0", "rolling", "ci", hotfix=True, reason="cannot wait")


def test_what_has_soaked_once_may_come_later_though_another_is_live_now() -> None:
    for version, at in (("1.0", 300), ("2.0", 100)):
        deployed("qa", version, at=ago(at + 1))
        deployed("uat", version, at=ago(at))
    found = queries.promotable(Environment.objects.get(name="eu"))
    assert [each.release.version for each in found] == ["2.0", "1.0"]
    insert("eu", "1.0", ago(0))
    assert rules.create("eu", "1.0", "rolling", "ci").status == "pending"


# API, pages, commands


def test_the_api_knows_the_names() -> None:
    secret = token("qa", "eu")
    client = Client(headers={"Authorization": f"Bearer {secret}"})
    found = EnvironmentList(**client.get("/api/environments").json()).items
    assert [(each.name, each.promotes_from, each.soak_seconds) for each in found] == [
        ("qa", [], 0), ("uat", ["qa"], 0), ("eu", ["uat"], 1800), ("us", ["uat"], 0), ("dr", ["eu", "us"], 0),
    ]  # fmt: skip
    release("1.0")
    body = {"release": "1.0", "strategy": "rolling"}

    def post(environment: str) -> Any:
        return client.post("/api/deployments", body | {"environment": environment}, "application/json")

    assert post("qa").status_code == 201
    assert post("eu").json()["type"].endswith("not-promotable")
    assert post("us").json()["type"].endswith("out-of-scope")
    assert post("production").status_code == 422
    assert client.get("/api/environments/production").status_code == 404
    assert client.get("/api/deployments?environment=production").json()["items"] == []
    assert client.get("/api/environments/eu/promotable/1.0").json()["allowed"] is False


def test_the_schema_is_made_with_the_names_of_the_file() -> None:
    """In a process of its own, as the schema is made once, at the start."""
    done = subprocess.run(
        [ROOT / ".venv/bin/python", "-c", NAMES_IN_SCHEMA],
        cwd=ROOT, env=variables(), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == NAMES


NAMES_IN_SCHEMA = """
import django, json
django.setup()
from ledger.api.operations import api
found = api.get_openapi_schema()["components"]["schemas"]["NewDeployment"]["properties"]["environment"]
print(json.dumps(found["enum"]))
"""


def variables(**more: str) -> dict[str, str]:
    import os

    from django.conf import settings

    given = {"DJANGO_SETTINGS_MODULE": "settings.dev", "ENVIRONMENTS_FILE": str(settings.ENVIRONMENTS_FILE)}
    return {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | given | more


@pytest.fixture
def member(db: None) -> User:
    return User.objects.create(email="ada@example.com", display_name="Ada")


def test_the_pages_show_them(member: User, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, at in (("qa", 90), ("uat", 60), ("us", 20)):
        deployed(name, "1.0", at=ago(at))
    release("1.1")
    begun("qa", "1.1")
    client = Client()
    client.force_login(member)
    board = client.get("/").content.decode()
    assert re.findall(r'id="environment-(\w+)"', board) == NAMES
    assert "Us runs <strong>1.0</strong>" in board and "Nothing has been deployed to eu yet" in board
    assert "Deploying 1.1 to qa" in board and "swatch-black" in board
    assert "from uat after 30 min 0 s" in board and "from eu or us" in board
    for page in (
        "/deployments/",
        "/deployments/?environment=us",
        "/insights/",
        "/insights/?environment=dr",
        "/status/",
    ):
        assert client.get(page).status_code == 200, page
    assert "over 30 days" in client.get("/insights/").content.decode()
    assert client.get("/insights/?environment=production").status_code == 404


def test_the_status_page_is_about_what_is_production(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.WATCH_ENVIRONMENTS = True
    now = datetime.now(UTC)

    def headline(**states: Any) -> verdict.Headline:
        found = {name: Reading(name, states.get(name, "healthy"), "1.0", at=now) for name in NAMES}
        monkeypatch.setattr(verdict, "readings", lambda: found)
        current = verdict.current_readings()
        assert list(current) == ["eu", "us", "dr", "uat", "qa"]
        return verdict.headline(current, [])

    assert headline().sentence == "All systems operational"
    assert headline(us="unreachable") == verdict.Headline("down", "Us is down")
    assert headline(eu="unreachable", us="unreachable").sentence == "Eu is down. Us is down"
    assert headline(uat="unreachable") == verdict.Headline("up", "Eu and us are operational", ("Uat is down",))
    shown = Client().get("/status/status.json").json()["now"]
    assert [each["environment"] for each in shown][:2] == ["eu", "us"]


def test_the_demonstration_tells_its_story_with_them() -> None:
    assert demo.load("mock")
    status_demo.load("mock")
    live = {row.name: row.current for row in queries.board()}
    assert all(live[name] for name in NAMES)
    assert queries.board()[2].in_flight
    assert set(Day.objects.values_list("environment__name", flat=True)) == {"uat", "eu"}


def test_the_commands_and_the_metrics_take_them() -> None:
    from ledger import metrics

    row = deployed("us", "1.0", hotfix=True, reason="first")
    metrics.count(row, True)
    out = StringIO()
    call_command("deployments", environment="us", json=True, stdout=out)
    assert json.loads(out.getvalue())["environment"] == "us"
    out = StringIO()
    call_command("api_token", "create", "uat-pipeline", "--environment", "uat", stdout=out, stderr=StringIO())
    assert out.getvalue().startswith("bst1_")
