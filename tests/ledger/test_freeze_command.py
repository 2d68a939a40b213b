"""manage.py freeze, and what a deployment says in a freeze."""

import json
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from deploy.ledger_client import DatabaseLedger
from ledger import freezes
from ledger.models import Environment, Freeze
from tests.support.people import member

pytestmark = pytest.mark.django_db


def freeze(*words: str) -> str:
    out = StringIO()
    call_command("freeze", *words, stdout=out)
    return out.getvalue()


def test_freezes_are_added_listed_and_ended() -> None:
    assert "No freezes" in freeze("list")
    assert "to" in freeze("add", "-e", "production", "--for", "2h", "--reason", "Maintenance")
    words = ("--weekly", "Fri 16:00", "Monday 08:00", "--zone", "Europe/Berlin", "--reason", "Weekend")
    added = json.loads(freeze("add", "--all", *words, "--json"))
    assert added["weekly"] == "Fri 16:00 to Mon 08:00 Europe/Berlin" and added["environment"] is None
    rows = [json.loads(line) for line in freeze("list", "--json").splitlines()]
    assert [row["reason"] for row in rows] == ["Maintenance", "Weekend"]
    assert "Maintenance" in freeze("list") and "Made 0 windows" in freeze("extend")
    for row in rows:
        assert "has ended" in freeze("end", str(row["id"]))
    assert "had ended already" in freeze("end", str(added["id"])) and "No freezes" in freeze("list")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--weekly", "Fri 25:00", "Mon 08:00"), "expected a weekday and a time"),
        (("--weekly", "Fry 16:00", "Mon 08:00"), "expected a weekday and a time"),
        (("--weekly", "Fri 16:00", "Mon 08:00", "--zone", "Mars"), "not a time zone"),
        (("--weekly", "Fri 16:00", "Mon 08:00", "--from", "2026-12-01"), "cannot be combined"),
        (("--to", "tomorrow"), "expected a time such as"),
        (("--to", "2020-01-01"), "Ends before it starts"),
        (("--for", "soon"), "--for"),
    ],
)
def test_what_makes_no_sense_is_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(CommandError, match=said) as error:
        freeze("add", "-e", "production", "--reason", "x", *words)
    assert error.value.returncode == 2 and not Freeze.objects.exists()
    with pytest.raises(CommandError, match="not found"):
        freeze("end", "1")


def test_the_board_and_the_api_show_a_freeze_and_the_reason_to_members_only(client: Client) -> None:
    freeze("add", "-e", "production", "--for", "90m", "--reason", "Maintenance")
    freeze("add", "-e", "staging", "--from", later(2), "--to", later(4), "--reason", "Load test")
    page = client.get("/").content.decode()
    assert "Frozen until" in page and "Freeze in 2 h" in page and "Maintenance" not in page
    client.force_login(member("viewer"))
    page = client.get("/").content.decode()
    assert "Maintenance" in page and "Load test" in page


def later(hours: int) -> str:
    return (datetime.now(UTC) + timedelta(hours=hours, minutes=1)).isoformat(timespec="minutes")


def test_the_deployer_is_told_until_when_and_how_to_pass() -> None:
    ledger: Any = DatabaseLedger()
    assert ledger.freeze("production") == ""
    freeze("add", "-e", "production", "--for", "90m", "--reason", "Maintenance")
    found = freezes.active(Environment.objects.get(name="production"))
    assert found and found.until
    said = ledger.freeze("production")
    assert f"frozen until {found.until:%a %Y-%m-%d %H:%M}Z: Maintenance" in said and "--break-glass --reason" in said
