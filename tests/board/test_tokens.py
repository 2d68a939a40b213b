"""The tokens page, and that a token may no more than its owner."""

import re

import pytest
from django.test import Client

from accounts import members, roles
from accounts.models import User
from accounts.roles import Role
from ledger.models import ApiToken, Environment
from tests.support.ledgers import release
from tests.support.people import member

pytestmark = pytest.mark.django_db


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def make(client: Client, name: str, *environments: str, **given: str) -> str:
    """Makes a token on the page, and returns it."""
    keys = [str(key) for key in Environment.objects.filter(name__in=environments).values_list("pk", flat=True)]
    given = {"may_request": "on", "may_record": "on", "days": "30"} | given
    page = client.post("/tokens/", {"name": name, "environments": keys, **given})
    assert page.status_code == 200
    found = re.search(r"bst1_[\w-]{43}", page.content.decode())
    assert found and found[0] not in client.get("/tokens/").content.decode()
    return found[0]


def create(token: str, environment: str = "testing") -> int:
    release("1.0")
    body = {"environment": environment, "release": "1.0", "strategy": "rolling", "actor": "ada"}
    headers = {"Authorization": f"Bearer {token}"}
    return Client().post("/api/deployments", body, "application/json", headers=headers).status_code


@pytest.mark.parametrize("role", ["stranger", None, "viewer"])
def test_the_page_is_for_deployers_and_up(role: str | None) -> None:
    client = Client() if role == "stranger" else client_of(member(role))
    assert client.get("/tokens/").status_code == (302 if role == "stranger" else 403)
    assert client.post("/tokens/", {"name": "x"}).status_code == (302 if role == "stranger" else 403)
    assert not ApiToken.objects.exists()


def test_a_token_is_for_environments_in_which_its_maker_may_deploy() -> None:
    ada = member("viewer")
    roles.assign(ada, Role.DEPLOYER, "testing")
    client = client_of(ada)
    production = Environment.objects.get(name="production")
    bad = client.post("/tokens/", {"name": "x", "environments": [production.pk], "may_request": "on", "days": "30"})
    assert bad.status_code == 422 and not ApiToken.objects.exists()
    token = make(client, "ci", "testing", may_register="on", may_take_over="on", owner="1")
    row = ApiToken.objects.get()
    assert (row.owner, row.may_register, row.may_take_over) == (ada, False, False)
    assert create(token) == 201 and create(token, "staging") == 403
    row.refresh_from_db()
    assert row.last_address == "127.0.0.1"
    assert client_of(member("deployer", "testing")).get("/tokens/").status_code == 403, "it would read what they cannot"


@pytest.mark.parametrize("how", ["suspended", "demoted", "without a role", "deleted"])
def test_a_token_may_no_more_than_its_owner(how: str) -> None:
    member("maintainer")
    ada = member("deployer")
    token = make(client_of(ada), "ci", "testing")
    if how == "suspended":
        members.suspend(ada)
    elif how == "deleted":
        ada.delete()
    else:
        members.set_role(ada, Role.VIEWER if how == "demoted" else None)
    assert create(token) == (403 if how == "demoted" else 401)
    assert ApiToken.objects.get().revoked or how != "deleted"


def test_what_a_token_may_not_is_refused() -> None:
    client = client_of(member("deployer"))
    record, request = make(client, "recorder", "testing", may_request=""), make(
        client, "asker", "testing", may_record=""
    )
    assert create(record) == 403 and create(request) == 201
    headers = {"Authorization": f"Bearer {request}"}
    key = Client().get("/api/deployments", headers=headers).json()["items"][0]["id"]
    assert Client().post(f"/api/deployments/{key}/start", headers=headers).status_code == 403


def test_tokens_of_others_are_for_maintainers() -> None:
    ada, eve, root = member("deployer"), client_of(member("deployer")), client_of(member("maintainer"))
    token = make(client_of(ada), "ci", "testing")
    key = ApiToken.objects.get().pk
    assert "ci</th>" not in eve.get("/tokens/").content.decode() and "ci</th>" in root.get("/tokens/").content.decode()
    assert eve.post(f"/tokens/{key}/revoke/").status_code == eve.post("/tokens/999999/revoke/").status_code == 404
    assert create(token) == 201
    assert root.post(f"/tokens/{key}/revoke/").status_code == 302 and create(token) == 401


@pytest.mark.parametrize(
    ("role", "elsewhere", "shown"), [("viewer", "deployer", True), ("viewer", "", False), ("", "deployer", False)]
)
def test_the_menu_links_to_it_for_who_may_make_tokens_in_some_environment(
    role: str, elsewhere: str, shown: bool
) -> None:
    ada = member(role or None)
    if elsewhere:
        roles.assign(ada, Role(elsewhere), "testing")
    client = client_of(ada)
    assert ('href="/tokens/"' in client.get("/").content.decode()) == shown
    assert (client.get("/tokens/").status_code == 200) == shown
