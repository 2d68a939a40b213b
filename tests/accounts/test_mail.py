"""Where the links in mail lead: to the site, whatever Host a client has sent."""

import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from django.core import mail
from django.test import Client
from pytest_django import Settings

from accounts import roles
from accounts.models import User
from accounts.roles import Role

pytestmark = pytest.mark.django_db

PASSWORD, NEW = "correct horse battery staple", "a whole new secret"
OWN = "member@example.com"


@pytest.fixture(autouse=True)
def cheap(settings: Settings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache", "LOCATION": uuid.uuid4().hex}}


def member(client: Client) -> User:
    user = User.objects.create_user(OWN, PASSWORD)
    user.emailaddress_set.create(email=OWN, verified=True, primary=True)
    user.emailaddress_set.create(email="second@example.com", verified=True)
    user.emailaddress_set.create(email="third@example.com")
    client.force_login(user)
    client.post("/accounts/reauthenticate/", {"password": PASSWORD})
    return user


def reset(client: Client) -> None:
    client.post("/accounts/password/reset/", {"email": OWN})
    found = re.search(r"/accounts/password/reset/key/\S+", str(mail.outbox[-1].body))
    assert found
    form = client.get(found[0])["Location"]
    assert client.post(form, {"password1": NEW, "password2": NEW}).status_code == 302


def invite(client: Client) -> Any:
    roles.assign(User.objects.get(email=OWN), Role.MAINTAINER)
    given = {"email": "new@example.com", "role": "viewer", "environment": "", "send": "on"}
    return client.post("/members/invite/", given)


def sign_up(client: Client, address: str) -> Any:
    client.logout()
    return client.post("/accounts/signup/", {"email": address, "password1": PASSWORD, "password2": PASSWORD})


# What sends each message; together they are all that there are.
CAUSES: dict[str, Callable[[Client], Any]] = {
    "account_already_exists": lambda client: sign_up(client, OWN),
    "email_confirmation_signup": lambda client: sign_up(client, "new@example.com"),
    "email_confirmation": lambda client: client.post(
        "/accounts/email/", {"action_send": "", "email": "third@example.com"}
    ),
    "email_changed": lambda client: client.post(
        "/accounts/email/", {"action_primary": "", "email": "second@example.com"}
    ),
    "email_deleted": lambda client: client.post(
        "/accounts/email/", {"action_remove": "", "email": "third@example.com"}
    ),
    "password_changed": lambda client: client.post(
        "/accounts/password/change/", {"oldpassword": PASSWORD, "password1": NEW, "password2": NEW}
    ),
    "password_reset_key": lambda client: client.post("/accounts/password/reset/", {"email": OWN}),
    "password_reset": reset,
    "invitation": invite,
    "unknown_account": lambda client: client.post("/accounts/password/reset/", {"email": "nobody@example.com"}),
}


def test_every_message_has_a_cause_here(settings: Settings) -> None:
    folder = settings.BASE_DIR / "templates" / "account" / "email"
    assert {path.name.removesuffix("_subject.txt") for path in folder.glob("*_subject.txt")} == set(CAUSES)


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize(
    ("host", "site", "links"),
    [
        ("testserver", "", "http://testserver"),
        ("testserver:1337", "", "http://testserver"),
        ("testserver.", "", "http://testserver"),
        ("TESTSERVER.:8080", "", "http://testserver"),
        ("[::1]:1337", "", "http://[::1]"),
        ("testserver:1337", "https://example.com:8443", "https://example.com:8443"),
    ],
)
def test_links_in_mail_lead_to_the_site(settings: Settings, cause: str, host: str, site: str, links: str) -> None:
    settings.SITE_URL, settings.ALLOWED_HOSTS = site, ["testserver", "[::1]"]
    client = Client(headers={"host": host})
    member(client)
    mail.outbox.clear()
    CAUSES[cause](client)
    body = str(mail.outbox[-1].body)
    found = re.findall(r"\w+://[^/\s]+(?=/accounts/)", body)
    assert found and set(found) == {links}
    assert "1337" not in body and "testserver." not in body.lower()
    assert body.rstrip().endswith(f"backstagetest1, {links.partition('//')[2]}")


@pytest.mark.parametrize(
    ("host", "forwarded", "links"),
    [
        ("testserver:8000", {}, "http://testserver:8000"),
        ("testserver:8001", {}, "http://testserver"),
        ("testserver:8000", {"x-forwarded-for": "198.51.100.7"}, "http://testserver"),
    ],
)
def test_a_client_that_comes_straight_to_the_server_gets_links_with_its_port(
    host: str, forwarded: dict[str, str], links: str
) -> None:
    client = Client(headers={"host": host} | forwarded)
    client.post("/accounts/password/reset/", {"email": OWN}, SERVER_PORT="8000")
    assert f"{links}/accounts/" in mail.outbox[0].body


def test_a_host_that_is_not_ours_gets_no_mail_sent() -> None:
    User.objects.create_user(OWN, PASSWORD)
    for host in ("evil.example", "testserver@evil.example", "testserver:1337/x"):
        answer = Client(headers={"host": host}).post("/accounts/password/reset/", {"email": OWN})
        assert answer.status_code == 400, host
    assert not mail.outbox and not EmailAddress.objects.exists()
