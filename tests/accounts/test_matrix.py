"""Every role, every action, in its own and another environment, by page and token: as docs/access.md's table says."""

from collections.abc import Callable

import pytest
from django.test import Client

from accounts import roles
from accounts.models import Invitation, User
from ledger import tokens
from ledger.models import ApiToken, Environment
from statuspage.models import Incident
from tests.support.ledgers import deployed, release
from tests.support.people import member
from tests.support.servers import ROOT

pytestmark = pytest.mark.django_db

HERE, ELSEWHERE = "testing", "staging"
WHO = ("stranger", "no role", "viewer", "deployer", "approver", "maintainer")
ACTOR = "grace@example.com"


def table() -> dict[str, dict[str, str]]:
    """The table of docs/access.md, by action and role: everywhere, there, or no."""
    text = (ROOT / "docs" / "access.md").read_text().partition("## Who may do what\n")[2].partition("\n## ")[0]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    assert tuple(head[1:]) == WHO
    return {row[0]: dict(zip(WHO, row[1:], strict=True)) for row in rows}


TABLE = table()


def page(client: Client, environment: str) -> str:
    key = deployed(environment, "1.0", actor=ACTOR).pk
    return client.get(f"/deployments/{key}/").content.decode()


def see_what_runs(client: Client, environment: str) -> bool:
    return "1.0" in page(client, environment)


def see_people(client: Client, environment: str) -> bool:
    return ACTOR in page(client, environment)


def filter_by_person(client: Client, environment: str) -> bool:
    key = deployed(environment, "1.0", actor=ACTOR).pk
    return f"/deployments/{key}/" in client.get("/deployments/", {"actor": ACTOR}).content.decode()


def make_a_token(client: Client, environment: str) -> bool:
    keys = [Environment.objects.get(name=environment).pk]
    client.post("/tokens/", {"name": "ci", "environments": keys, "may_request": "on", "days": "9"})
    return ApiToken.objects.exists()


def request_by_token(client: Client, environment: str) -> bool:
    """With a token that whoever it is may have made before: its owner's rights now are what counts."""
    release("1.0")
    owner = User.objects.filter(pk=client.session.get("_auth_user_id") or 0).first()
    if owner is None:
        return False  # a token of nobody is an operator's
    _, token = tokens.make("ci", Environment.objects.all(), owner=owner)
    body = {"environment": environment, "release": "1.0", "strategy": "rolling", "actor": "ada"}
    headers = {"Authorization": f"Bearer {token}"}
    return Client().post("/api/deployments", body, "application/json", headers=headers).status_code == 201


def revoke_a_token_of_another(client: Client, environment: str) -> bool:
    row, _ = tokens.make("ci", Environment.objects.filter(name=environment), owner=member("deployer"))
    client.post(f"/tokens/{row.pk}/revoke/")
    return ApiToken.objects.filter(pk=row.pk, revoked__isnull=False).exists()


def report_an_incident(client: Client, environment: str) -> bool:
    place = Environment.objects.get(name=environment).pk
    given = {"title": "Slow", "impact": "minor", "environment": place, "status": "investigating", "message": "Hello"}
    client.post("/status/incidents/new/", given)
    return Incident.objects.exists()


def invite(client: Client, environment: str) -> bool:
    client.post("/members/invite/", {"email": "new@example.com", "role": "viewer", "environment": environment})
    return Invitation.objects.exists()


def change_a_role(client: Client, environment: str) -> bool:
    other = member("viewer")
    client.post(f"/members/{other.pk}/role/", {"role": "deployer", "environment": environment})
    return environment in roles.held(User.objects.get(pk=other.pk))


def suspend_somebody(client: Client, environment: str) -> bool:
    other = member("viewer")
    client.post(f"/members/{other.pk}/suspend/")
    return not User.objects.get(pk=other.pk).is_active


def read_the_audit_log(client: Client, environment: str) -> bool:
    return client.get("/audit/").status_code == 200


ACTIONS: dict[str, Callable[[Client, str], bool]] = {
    "see what runs": see_what_runs,
    "see people, reasons and runs": see_people,
    "filter by person": filter_by_person,
    "make a token": make_a_token,
    "request a deployment by token": request_by_token,
    "revoke another's token": revoke_a_token_of_another,
    "report an incident": report_an_incident,
    "invite": invite,
    "change a role": change_a_role,
    "suspend somebody": suspend_somebody,
    "read the audit log": read_the_audit_log,
}


def test_the_table_has_every_action() -> None:
    assert list(TABLE) == list(ACTIONS)
    assert {cell for row in TABLE.values() for cell in row.values()} <= {"yes", "there", "everywhere", "no"}


def expected(cell: str, held: str | None, where: str) -> bool:
    """What the cell says of a role held in `held` (None: everywhere), for an action in the environment `where`."""
    return cell == "yes" or held is None and cell in ("there", "everywhere") or cell == "there" and held == where


@pytest.mark.parametrize("held", [None, HERE], ids=["everywhere", "in one"])
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("action", ACTIONS)
def test_who_may_do_what_is_as_documented(action: str, who: str, held: str | None) -> None:
    for where in (HERE, ELSEWHERE):
        client = Client()
        if who != "stranger":
            client.force_login(member(None if who == "no role" else who, held))
        assert ACTIONS[action](client, where) == expected(TABLE[action][who], held, where), (where, held)
        clear()


def clear() -> None:
    """Removes what the attempt has made, so that the next one is judged by what it makes itself."""

    ApiToken.objects.all().delete()
    Invitation.objects.all().delete()
    Incident.objects.all().delete()
