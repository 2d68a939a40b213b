"""The page of the freezes: who sees them, adds and ends them."""

from datetime import UTC, datetime, timedelta

import pytest
from django.test import Client

from audit.models import Entry
from ledger import freezes
from ledger.models import Environment, Freeze
from tests.support.people import member

pytestmark = pytest.mark.django_db

WEEKLY = {"kind": "weekly", "reason": "Weekend", "zone": "Europe/Berlin"} | {
    "start_day": "4", "start_time": "16:00", "end_day": "0", "end_time": "08:00",
}  # fmt: skip


def local(hours: float) -> str:
    return f"{datetime.now(UTC) + timedelta(hours=hours):%Y-%m-%dT%H:%M}"


def add(name: str | None) -> Freeze:
    where = Environment.objects.get(name=name) if name else None
    return freezes.add(where, "Audit week", "ann", ends=datetime.now(UTC) + timedelta(hours=1))


def test_strangers_sign_in_members_see_and_maintainers_add(client: Client) -> None:
    add("production")
    assert client.get("/freezes/")["Location"].startswith("/accounts/login/")
    for role, status, adds in (
        (None, 403, False),
        ("viewer", 200, False),
        ("approver", 200, False),
        ("maintainer", 200, True),
    ):
        client.force_login(member(role))
        answer = client.get("/freezes/")
        assert answer.status_code == status, role
        assert ("Audit week" in answer.content.decode()) == (status == 200)
        assert ("Freeze each week" in answer.content.decode()) == adds
        assert client.post("/freezes/", WEEKLY | {"environment": ""}).status_code == (302 if adds else 403)
    assert Freeze.objects.filter(environment=None).count() == 1


def test_a_freeze_is_added_once_or_weekly_and_ended(client: Client) -> None:
    who = member("maintainer")
    client.force_login(who)
    key = Environment.objects.get(name="production").pk
    given = {"kind": "once", "environment": key, "reason": "Maintenance", "starts": "", "ends": local(2)}
    page = client.post("/freezes/", given, follow=True).content.decode()
    assert "Freeze added" in page and "Maintenance" in page
    assert (
        "weekly, Fri 16:00 to Mon 08:00 Europe/Berlin"
        in client.post("/freezes/", WEEKLY | {"environment": ""}, follow=True).content.decode()
    )
    once = Freeze.objects.get(environment=key)
    assert once.actor == who.email
    client.post(f"/freezes/{once.pk}/end/")
    once.refresh_from_db()
    assert once.ended_by == who.email and "Maintenance" not in client.get("/freezes/").content.decode()
    entry = Entry.objects.get(action="freeze_ended")
    assert (entry.actor, entry.actor_id, entry.environment) == (who.email, who.pk, "production")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ends": local(-2), "starts": local(-4)}, "over already"),
        ({"ends": local(1), "starts": local(3)}, "Ends before it starts"),
        ({"ends": "tomorrow"}, "valid date"),
        ({"ends": local(3), "reason": " "}, "required"),
        (WEEKLY | {"zone": "Mars"}, "not a time zone"),
        (WEEKLY | {"end_day": "4", "end_time": "16:00"}, "same time of the week"),
    ],
)
def test_a_wrong_value_is_named_at_its_field(client: Client, change: dict[str, str], said: str) -> None:
    client.force_login(member("maintainer"))
    answer = client.post("/freezes/", {"kind": "once", "reason": "x", "ends": local(2)} | change)
    assert answer.status_code == 422 and said in answer.content.decode() and not Freeze.objects.exists()


def test_a_maintainer_of_one_environment_freezes_and_ends_there_only(client: Client) -> None:
    client.force_login(member("maintainer", "staging"))
    all_of_them, other, own = add(None), add("production"), add("staging")
    for row, status in ((all_of_them, 404), (other, 404), (own, 302)):
        assert client.post(f"/freezes/{row.pk}/end/").status_code == status
    assert client.post("/freezes/999999/end/").status_code == 404
    keys = {name: Environment.objects.get(name=name).pk for name in ("staging", "production")}
    for environment, status in (("", 422), (keys["production"], 422), (keys["staging"], 302)):
        assert client.post("/freezes/", WEEKLY | {"environment": environment}).status_code == status
    client.force_login(member("approver"))
    assert client.post(f"/freezes/{other.pk}/end/").status_code == 403
