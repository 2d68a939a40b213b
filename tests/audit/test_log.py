"""The audit log: what record() writes, and that nobody changes it, ."""

import io
import json
from datetime import timedelta
from typing import Any

import pytest
from django.conf import LazySettings
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.test import RequestFactory
from django.utils import timezone

import audit
from accounts.models import User
from audit import retention
from audit.actions import Action
from audit.models import Entry


def entry(days: float = 0, **fields: Any) -> Entry:
    """Adds an entry of so many days ago."""
    return Entry.objects.create(time=timezone.now() - timedelta(days=days), **{"action": "signed_in"} | fields)


def printed(*words: str) -> str:
    out = io.StringIO()
    call_command("audit", *words, stdout=out, no_color=True)
    return out.getvalue()


@pytest.mark.django_db
def test_an_entry_has_the_actor_and_the_address_of_the_request() -> None:
    request = RequestFactory().get("/", REMOTE_ADDR="192.0.2.7")
    request.user = User.objects.create_user("ada@example.com")
    audit.record(Action.TOKEN_MADE, target="ci", details={"environments": "staging"}, request=request)
    found = Entry.objects.get()
    assert (found.action, found.actor, found.actor_id) == ("token_made", "ada@example.com", request.user.pk)
    assert (found.address, found.target, found.details) == ("192.0.2.7", "ci", {"environments": "staging"})


@pytest.mark.django_db
def test_an_actor_that_is_given_is_kept_and_text_is_cleaned() -> None:
    request = RequestFactory().get("/")
    audit.record(Action.TOKEN_MADE, actor="token ci", target="a\nb\u202e" + "c" * 500, request=request)
    found = Entry.objects.get()
    assert (found.actor, found.actor_id) == ("token ci", None)
    assert found.target.startswith("a bccc") and len(found.target) == 300


@pytest.mark.django_db
def test_an_unknown_action_is_refused() -> None:
    with pytest.raises(ValueError, match="audit.actions"):
        audit.record("sign_out")


@pytest.mark.django_db
def test_what_is_rolled_back_has_not_happened() -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        audit.record(Action.TOKEN_MADE, target="ci")
        raise ZeroDivisionError
    assert not Entry.objects.exists()


@pytest.mark.django_db
def test_a_database_that_takes_no_writes_fails_record_and_is_logged_by_record_or_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION READ ONLY")
        with pytest.raises(DatabaseError), transaction.atomic():
            audit.record(Action.TOKEN_MADE)
        audit.record_or_log(Action.SIGNED_OUT)
        cursor.execute("SELECT 1")  # the transaction of the caller goes on
    assert "Cannot record signed_out" in caplog.text


# The command


@pytest.mark.django_db
def test_the_purge_deletes_what_is_older_than_the_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    for days in (1, 364, 366, 367, 368):
        entry(days)
    assert "Deleted 3 entries" in printed("--purge")
    assert Entry.objects.count() == 2


@pytest.mark.django_db
def test_a_purge_with_a_setting_that_the_database_does_not_have_yet_says_so(settings: LazySettings) -> None:
    entry(100)
    settings.AUDIT_RETENTION_DAYS = 30
    said = io.StringIO()
    call_command("audit", "--purge", stdout=io.StringIO(), stderr=said)
    assert "keeps entries for 365 days" in said.getvalue() and "manage.py migrate" in said.getvalue()
    assert Entry.objects.count() == 1
    settings.AUDIT_RETENTION_DAYS = 0
    assert "kept" in printed("--purge")


@pytest.mark.django_db
def test_the_command_lists_by_age_action_actor_and_environment() -> None:
    entry(1, actor="ada@example.com", environment="staging", action="token_made", target="ci")
    entry(9, actor="bob@example.com")
    assert "ada@example.com" in printed() and "bob@example.com" not in printed()
    assert "bob@example.com" in printed("--since", "30d", "--until", "2d")
    assert [json.loads(line)["target"] for line in printed("--json", "--since", "4w").splitlines()] == ["ci", ""]
    assert "No matching entries" in printed("--action", "signed_out")
    assert "token created" in printed("--environment", "staging", "--actor", "ada@example.com")


@pytest.mark.django_db
def test_csv_has_no_cell_that_a_spreadsheet_runs() -> None:
    entry(actor='=HYPERLINK("http://example.com")', target="-2+3", details={"reason": "@SUM(1)"})
    head, line = printed("--csv").splitlines()
    assert head.startswith("time,action,actor")
    assert '"\'=HYPERLINK(""http://example.com"")"' in line and ",'-2+3," in line


@pytest.mark.parametrize("value", ["yesterday", "7", "1998-01-01", "2026-13-01"])
def test_a_time_that_is_none_is_a_usage_error(value: str) -> None:
    with pytest.raises(CommandError, match="expected an age") as error:
        printed("--since", value)
    assert error.value.returncode == 2


@pytest.mark.django_db
def test_every_filter_is_served_by_an_index() -> None:
    now = timezone.now()
    Entry.objects.bulk_create(
        Entry(time=now, action=f"a{n % 7}", actor=f"p{n % 50}", environment=f"e{n % 5}") for n in range(20_000)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE audit_entry")
    for filters, index in (
        ({}, "audit_by_time"),
        ({"action": "a1"}, "audit_by_action"),
        ({"actor": "p7"}, "audit_by_actor"),
        ({"environment": "e1"}, "audit_by_environment"),
        ({"since": timezone.now() - timedelta(days=1)}, "audit_by_time"),
    ):
        plan = Entry.objects.matching(**filters).order_by("-time", "-pk")[:26].explain()
        assert index in plan and "Sort" not in plan, (filters, plan)
