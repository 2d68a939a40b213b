"""manage.py record_release: what docker compose or kubectl started is in the ledger, once, as what it is."""

from io import StringIO

import pytest
from django.conf import LazySettings
from django.core.management import CommandError, call_command

from ledger import rules
from ledger.models import Deployment
from tests.support.ledgers import START

pytestmark = pytest.mark.django_db
COMMIT = "4f2a9c1" + "0" * 33


def record(*words: str) -> str:
    out = StringIO()
    call_command("record_release", "--actor", "ada@laptop", *words, stdout=out)
    return out.getvalue()


def test_the_first_release_is_live_in_the_ledger_and_recorded_once(settings: LazySettings) -> None:
    settings.ENVIRONMENT, settings.VERSION, settings.COMMIT = "development", "1.0", COMMIT
    assert "recorded as live in development" in record("--built-at", "2026-01-31T09:15:00+00:00")
    row = Deployment.objects.select_related("release").get()
    assert (row.status, row.kind, row.hotfix, row.actor) == ("succeeded", "deploy", False, "ada@laptop")
    assert row.release.commit == COMMIT and row.release.built_at.year == 2026
    assert [(each.name, each.outcome) for each in row.steps.all()] and row.reason.startswith("First release")
    assert "already recorded" in record()
    assert Deployment.objects.count() == 1

    settings.VERSION = "1.1"
    rules.register("1.1", COMMIT, START, image="backstagetest1:1.1")  # as the deployer does; the times differ
    record("--built-at", "")
    assert Deployment.objects.latest("pk").reason == "Not started by manage.py deploy; recorded afterwards."


def test_a_first_release_of_production_is_a_hotfix_as_it_skipped_staging(settings: LazySettings) -> None:
    settings.ENVIRONMENT, settings.VERSION, settings.COMMIT = "production", "1.0", COMMIT
    record()
    row = Deployment.objects.get()
    assert row.hotfix and row.reason and row.status == "succeeded"


def test_a_build_without_a_commit_is_not_recorded_and_says_why(settings: LazySettings) -> None:
    settings.ENVIRONMENT, settings.VERSION, settings.COMMIT = "development", "1.0", "unknown"
    with pytest.raises(CommandError, match="Not recorded: .*hex digits"):
        record()
    assert not Deployment.objects.exists()


@pytest.mark.parametrize("value", ["yesterday", "2026-01-31T09:15:00"])
def test_a_time_without_its_zone_is_wrong_usage(value: str) -> None:
    with pytest.raises(CommandError, match="with its zone"):
        record("--built-at", value)
