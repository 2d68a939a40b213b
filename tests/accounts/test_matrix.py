"""Every role, every action, in its own and another environment, by page, session API and token: as docs/access.md's
table says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from http.cookies import SimpleCookie
from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from accounts import roles
from accounts.models import Invitation, User
from ledger import freezes, rules, tokens
from ledger.models import ApiToken, Deployment, Environment, Freeze, Lock, Release
from statuspage import incidents
from statuspage.models import Incident
from tests.support.ledgers import deployed, release
from tests.support.people import member
from tests.support.servers import ROOT

pytestmark = pytest.mark.django_db

HERE, ELSEWHERE = "testing", "staging"
WHO = ("stranger", "no role", "viewer", "deployer", "approver", "maintainer")
ACTOR = "grace@example.com"
DIGEST = f"sha256:{'a' * 64}"


def table() -> dict[str, dict[str, str]]:
    """The table of docs/access.md, by action and role: everywhere, there, or no."""
    text = (ROOT / "docs" / "access.md").read_text().partition("## Who may do what\n")[2].partition("\n## ")[0]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    assert tuple(head[1:]) == WHO
    return {row[0]: dict(zip(WHO, row[1:], strict=True)) for row in rows}


TABLE = table()


@dataclass
class Visitor:
    """Somebody with a browser, and perhaps with a token that they made when they still could."""

    client: Client
    user: User | None  # None for a stranger

    def get(self, path: str, **query: str) -> str:
        return self.client.get(path, query).content.decode()

    def post(self, path: str, **form: Any) -> int:
        return int(self.client.post(path, form).status_code)

    def ask(self, path: str, **body: Any) -> int:
        """To the API, in the session. Returns the status."""
        return int(self.client.post(f"/api/{path}", body, "application/json").status_code)

    def by_token(self, method: str, path: str, **body: Any) -> int:
        """The API's status, by a token for everything: its owner's rights now are what counts. 0 without an account,
        since a token of nobody is an operator's.
        """
        if self.user is None:
            return 0
        rights: dict[str, Any] = {"may_register": True, "may_take_over": True}
        _, token = tokens.make("ci", Environment.objects.all(), owner=self.user, **rights)
        headers = {"Authorization": f"Bearer {token}"}
        answer = getattr(self.client, method)(f"/api/{path}", body, "application/json", headers=headers)
        return int(answer.status_code)


def place(environment: str) -> Environment:
    return Environment.objects.get(name=environment)


# What runs, and who


def page(visitor: Visitor, environment: str) -> str:
    key = deployed(environment, "1.0", actor=ACTOR).pk
    return visitor.get(f"/deployments/{key}/")


def see_what_runs(visitor: Visitor, environment: str) -> bool:
    return "1.0" in page(visitor, environment)


def see_people(visitor: Visitor, environment: str) -> bool:
    return ACTOR in page(visitor, environment)


def filter_by_person(visitor: Visitor, environment: str) -> bool:
    key = deployed(environment, "1.0", actor=ACTOR).pk
    return f"/deployments/{key}/" in visitor.get("/deployments/", actor=ACTOR)


# Tokens


def make_a_token(visitor: Visitor, environment: str) -> bool:
    visitor.post("/tokens/", name="ci", environments=[place(environment).pk], may_request="on", days="9")
    return ApiToken.objects.exists()


def token_of_another(environment: str) -> ApiToken:
    return tokens.make("other", Environment.objects.filter(name=environment), owner=member("deployer"))[0]


def see_a_token_of_another(visitor: Visitor, environment: str) -> bool:
    key = token_of_another(environment).pk
    return f"/tokens/{key}/revoke/" in visitor.get("/tokens/")


def revoke_a_token_of_another(visitor: Visitor, environment: str) -> bool:
    key = token_of_another(environment).pk
    visitor.post(f"/tokens/{key}/revoke/")
    return ApiToken.objects.filter(pk=key, revoked__isnull=False).exists()


# Deployments


def request(visitor: Visitor, environment: str, **more: Any) -> bool:
    body = {"environment": environment, "release": "1.0", "strategy": "rolling", "actor": "ada"} | more
    return visitor.by_token("post", "deployments", **body) == 201


def request_by_token(visitor: Visitor, environment: str) -> bool:
    release("1.0")
    return request(visitor, environment)


def roll_back_by_token(visitor: Visitor, environment: str) -> bool:
    deployed(environment, "1.0")
    deployed(environment, "1.1", at=timezone.now() - timedelta(hours=1))
    return request(visitor, environment, kind="rollback")


def break_the_glass_by_token(visitor: Visitor, environment: str) -> bool:
    release("1.0")
    done = request(visitor, environment, hotfix=True, break_glass=True, reason="Nobody is awake")
    return done and Deployment.objects.filter(break_glass=True).exists()


def register_by_token(visitor: Visitor, environment: str) -> bool:
    visitor.by_token("post", "releases", version="1.0", commit="4f2a9c1", built_at="2026-03-01T12:00:00Z")
    return Release.objects.filter(version="1.0").exists()


def lock_by_token(visitor: Visitor, environment: str) -> bool:
    since = timezone.now().isoformat()
    visitor.by_token("put", f"environments/{environment}/lock", holder="ada", reason="Work", since=since)
    return Lock.objects.exists()


# Decisions


def waiting(environment: str) -> Deployment:
    """A deployment of somebody else that waits for approval there."""
    Environment.objects.filter(name=environment).update(approvals=1)
    release("1.0")
    return rules.create(environment, "1.0", "rolling", ACTOR, hotfix=True, reason="Slow", digest=DIGEST)


def broken(environment: str) -> Deployment:
    """A deployment of somebody else that broke the glass there."""
    release("1.0")
    given: Any = {"hotfix": True, "break_glass": True, "digest": DIGEST}
    return rules.create(environment, "1.0", "rolling", ACTOR, reason="Nobody is awake", **given)


def by_page(verdict: str, make: Callable[[str], Deployment]) -> Callable[[Visitor, str], bool]:
    def decide(visitor: Visitor, environment: str) -> bool:
        key = make(environment).pk
        visitor.post(f"/deployments/{key}/decide/", **{"verdict": verdict, f"digest-{key}": DIGEST})
        return Deployment.objects.filter(pk=key, approvals__verdict=verdict).exists()

    return decide


def by_session(verb: str, make: Callable[[str], Deployment]) -> Callable[[Visitor, str], bool]:
    def decide(visitor: Visitor, environment: str) -> bool:
        key = make(environment).pk
        assert visitor.ask(f"deployments/{key}/{verb}", digest=DIGEST) in (200, 401, 403)
        return Deployment.objects.filter(pk=key, approvals__isnull=False).exists()

    return decide


def by_token(verb: str, make: Callable[[str], Deployment]) -> Callable[[Visitor, str], bool]:
    def decide(visitor: Visitor, environment: str) -> bool:
        key = make(environment).pk
        status = visitor.by_token("post", f"deployments/{key}/{verb}", digest=DIGEST)
        return status not in (0, 401, 403) or Deployment.objects.filter(pk=key, approvals__isnull=False).exists()

    return decide


# Freezes and incidents


def frozen(environment: str | None) -> Freeze:
    ends = timezone.now() + timedelta(hours=1)
    return freezes.add(place(environment) if environment else None, "Audit week", ACTOR, ends=ends)


def see_a_freeze(visitor: Visitor, environment: str) -> bool:
    frozen(environment)
    return "Audit week" in visitor.get("/freezes/")


def see_its_reason_on_the_board(visitor: Visitor, environment: str) -> bool:
    frozen(environment)
    return "Audit week" in visitor.get("/")


def add_a_freeze(visitor: Visitor, environment: str) -> bool:
    return freeze(visitor, str(place(environment).pk))


def freeze_everything(visitor: Visitor, environment: str) -> bool:
    return freeze(visitor, "")


def freeze(visitor: Visitor, key: str) -> bool:
    ends = f"{timezone.now() + timedelta(days=2):%Y-%m-%dT%H:%M}"
    visitor.post("/freezes/", kind="once", environment=key, reason="Audit week", starts="", ends=ends)
    return Freeze.objects.exists()


def end_a_freeze(visitor: Visitor, environment: str | None) -> bool:
    key = frozen(environment).pk
    visitor.post(f"/freezes/{key}/end/")
    return Freeze.objects.filter(pk=key, ended_early__isnull=False).exists()


def end_a_freeze_of_everything(visitor: Visitor, environment: str) -> bool:
    return end_a_freeze(visitor, None)


def report_an_incident(visitor: Visitor, environment: str) -> bool:
    given = {"title": "Slow", "impact": "minor", "status": "investigating", "message": "Hello"}
    visitor.post("/status/incidents/new/", environment=place(environment).pk, **given)
    return Incident.objects.exists()


def update_an_incident(visitor: Visitor, environment: str) -> bool:
    known = Incident(title="Slow", impact="minor", environment=place(environment), status="investigating")
    key = incidents.report(known, "Hello", ACTOR).pk
    visitor.post(f"/status/incidents/{key}/", status="resolved", message="Over")
    return Incident.objects.filter(pk=key, status="resolved").exists()


# People


def see_the_members(visitor: Visitor, environment: str) -> bool:
    return member("viewer", environment).email in visitor.get("/members/")


def invite(visitor: Visitor, environment: str) -> bool:
    visitor.post("/members/invite/", email="new@example.com", role="viewer", environment=environment)
    return Invitation.objects.exists()


def change_a_role(visitor: Visitor, environment: str) -> bool:
    other = member("viewer")
    visitor.post(f"/members/{other.pk}/role/", role="deployer", environment=environment)
    return environment in roles.held(User.objects.get(pk=other.pk))


def suspend_somebody(visitor: Visitor, environment: str) -> bool:
    other = member("viewer")
    visitor.post(f"/members/{other.pk}/suspend/")
    return not User.objects.get(pk=other.pk).is_active


def read_the_audit_log(visitor: Visitor, environment: str) -> bool:
    return visitor.client.get("/audit/").status_code == 200


def export_the_audit_log(visitor: Visitor, environment: str) -> bool:
    return visitor.client.get("/audit/export.csv").status_code == 200


ACTIONS: dict[str, tuple[Callable[[Visitor, str], bool], ...]] = {
    "see what runs": (see_what_runs,),
    "see people, reasons and runs": (see_people,),
    "filter by person": (filter_by_person,),
    "make a token": (make_a_token,),
    "see and revoke another's token": (see_a_token_of_another, revoke_a_token_of_another),
    "register a release by token": (register_by_token,),
    "request a deployment by token": (request_by_token,),
    "roll back by token": (roll_back_by_token,),
    "report a lock by token": (lock_by_token,),
    "approve": (by_page("approved", waiting), by_session("approve", waiting)),
    "reject": (by_page("rejected", waiting), by_session("reject", waiting)),
    "break the glass by token": (break_the_glass_by_token,),
    "review what broke the glass": (by_page("reviewed", broken), by_session("review", broken)),
    "approve, reject or review by token": (
        by_token("approve", waiting),
        by_token("reject", waiting),
        by_token("review", broken),
    ),
    "see why it is frozen": (see_a_freeze, see_its_reason_on_the_board),
    "add or end a freeze": (add_a_freeze, end_a_freeze),
    "add or end a freeze of all environments": (freeze_everything, end_a_freeze_of_everything),
    "report or update an incident": (report_an_incident, update_an_incident),
    "see the members": (see_the_members,),
    "invite": (invite,),
    "change a role": (change_a_role,),
    "suspend somebody": (suspend_somebody,),
    "read the audit log": (read_the_audit_log, export_the_audit_log),
}


def test_the_table_has_every_action() -> None:
    assert list(TABLE) == list(ACTIONS)
    assert {cell for row in TABLE.values() for cell in row.values()} <= {"yes", "there", "everywhere", "no"}


def expected(cell: str, held: str | None, where: str) -> bool:
    """What the cell says of a role held in `held` (None: everywhere), for an action in the environment `where`."""
    return cell == "yes" or held is None and cell in ("there", "everywhere") or cell == "there" and held == where


@pytest.mark.parametrize(
    ("who", "held"),
    [(who, None) for who in WHO] + [(who, HERE) for who in WHO[2:]],
    ids=lambda value: value or "everywhere",
)
def test_who_may_do_what_is_as_documented(who: str, held: str | None, settings: Settings) -> None:
    settings.API_RATE_PER_ADDRESS = 10_000
    client = Client()
    user = None if who == "stranger" else member(None if who == "no role" else who, held)
    if user:
        client.force_login(user)
    cookies, wrong = client.cookies.output(), []
    for action, ways in ACTIONS.items():
        for way in ways:
            for where in (HERE, ELSEWHERE):
                client.cookies = SimpleCookie(cookies.replace("Set-Cookie: ", ""))
                if user:
                    user = User.objects.get(pk=user.pk)
                # The next attempt is judged by what it makes itself.
                with transaction.atomic():
                    done = way(Visitor(client, user), where)
                    transaction.set_rollback(True)
                if done != expected(TABLE[action][who], held, where):
                    wrong.append((action, way.__name__, where, "allowed" if done else "refused"))
    assert wrong == []
