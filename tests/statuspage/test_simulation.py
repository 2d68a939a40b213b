"""Simulated environments: in development alone, of mock releases alone, and never without saying so."""

import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from django.db import OperationalError
from django.test import Client
from pytest_django import Settings

from accounts.models import User
from health.runner import Report, Result
from ledger import demo, queries, rules
from ledger.models import Environment
from statuspage import history, incidents, readings, uptime
from statuspage.models import Incident
from tests.support.approving import approved
from tests.packaging.test_settings import GOOD, load
from tests.support.ledgers import START, deployed


@pytest.fixture(autouse=True)
def development(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A development instance in which mock releases are live in staging and production, and nothing in testing."""
    settings.CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache", "LOCATION": uuid.uuid4().hex}}
    settings.ENVIRONMENT, settings.SIMULATE_ENVIRONMENTS, settings.WATCH_ENVIRONMENTS = "development", True, False
    settings.ENVIRONMENTS_FILE = tmp_path / f"{uuid.uuid4().hex}.toml"
    settings.ENVIRONMENTS_FILE.write_text(
        '[development]\n[testing]\n[staging]\nurl = "http://127.0.0.1:1"\n[production]\n'
    )
    monkeypatch.setattr(readings, "report", lambda: Report(datetime.now(UTC), {"cache": Result(None, 0)}))
    monkeypatch.setattr(history, "memory", [])
    readings.latest.clear()


@pytest.fixture
def mock_releases(db: None) -> None:
    for environment, version in (("staging", "1.0"), ("production", "1.0"), ("staging", "1.1")):
        rules.register(version, "c" * 39 + version[-1], START, "Mock", f"{demo.REGISTRY}/app:{version}", at=START)
        deployment = rules.create(environment, version, "rolling", "demo-pipeline", at=START)
        rules.start(approved(deployment).pk, at=START)
        rules.finish(deployment.pk, "succeeded", at=START)


def simulated() -> dict[str, str]:
    return {name: each.version for name, each in readings.readings().items() if each.simulated}


@pytest.mark.usefixtures("mock_releases")
def test_a_mock_environment_is_healthy_with_what_the_ledger_has_live() -> None:
    assert simulated() == {"staging": "1.1", "production": "1.0"}
    found = readings.readings()
    assert found["production"].state == "healthy" and (found["production"].latency_ms or 0) > 0
    assert found["testing"].state == "unknown" and not found["development"].simulated


@pytest.mark.usefixtures("mock_releases")
@pytest.mark.parametrize(
    ("name", "value"),
    [("SIMULATE_ENVIRONMENTS", False), *(("ENVIRONMENT", name) for name in ("testing", "staging", "production"))],
)
def test_nothing_is_simulated_outside_development(settings: Settings, name: str, value: object) -> None:
    setattr(settings, name, value)
    assert simulated() == {}


def test_only_the_settings_for_development_simulate() -> None:
    assert load("dev").SIMULATE_ENVIRONMENTS is True
    for module in ("testing", "staging", "production"):
        for environment in ("development", "production"):
            variables = GOOD | {
                "REDIS_URL": "redis://cache:6379/1",
                "ENVIRONMENT": environment,
                "SIMULATE_ENVIRONMENTS": "true",
            }
            assert load(module, **variables).SIMULATE_ENVIRONMENTS is False, module


@pytest.mark.django_db
def test_a_real_release_is_not_simulated() -> None:
    deployed("staging", "1.0")
    assert simulated() == {}


@pytest.mark.usefixtures("mock_releases")
def test_an_environment_with_an_address_is_asked_instead(settings: Settings) -> None:
    settings.WATCH_ENVIRONMENTS = True
    assert readings.readings()["staging"].state == "unreachable" and simulated() == {"production": "1.0"}


@pytest.mark.usefixtures("mock_releases")
def test_no_uptime_is_sampled_of_what_is_simulated() -> None:
    assert [name for name, _, _ in uptime.observe()] == ["development"]


def test_without_the_database_nothing_is_simulated(monkeypatch: pytest.MonkeyPatch, mock_releases: None) -> None:
    def fail(_: object) -> None:
        raise OperationalError

    monkeypatch.setattr(queries, "live", fail)
    assert simulated() == {}


@pytest.mark.usefixtures("mock_releases")
def test_the_pages_say_what_is_simulated(client: Client) -> None:
    page = client.get("/status/").content.decode()
    assert "<h1>Production is operational (simulated)</h1>" in page
    assert page.count("Operational (simulated)") == 2 and "Simulated: production, staging." in page
    assert "Not monitored: testing." in page and "Checked at" not in page
    said = client.get("/status/status.json").json()
    assert said["description"] == "Production is operational (simulated). Simulated: production, staging."
    assert {each["environment"]: each["simulated"] for each in said["now"]} == {
        "production": True,
        "staging": True,
        "development": False,
    }
    reported = Incident(environment=Environment.objects.get(name="production"), title="Slow", impact="minor")
    incidents.report(reported, "We look into it.", "Ada")
    assert "<h1>Incident in production (simulated)</h1>" in client.get("/status/").content.decode()
    client.force_login(User.objects.create(email="ada@example.com"))
    assert client.get("/").content.decode().count("Healthy (simulated)") == 2
