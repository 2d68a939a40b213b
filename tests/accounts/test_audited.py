"""What people do with their accounts is in the audit log, and no secret with it."""

import json
import re
import uuid
from typing import Any

import pytest
from django.core import mail
from django.core.management import call_command
from django.db import DatabaseError
from django.test import Client
from pytest_django import Settings

from accounts.models import User
from audit.models import Entry
from tests.accounts.test_sign_in import CHANGE, EMAIL, RESET, SIGN_IN, SIGN_OUT, SIGN_UP

pytestmark = pytest.mark.django_db

PASSWORD, OTHER, ADDRESS = "correct horse battery staple", "another stapled battery", "member@example.com"


@pytest.fixture(autouse=True)
def cheap(settings: Settings) -> None:
    """Cheap hashes, and a cache of the test's own: rate limits count from nothing."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache", "LOCATION": uuid.uuid4().hex}}


@pytest.fixture
def member() -> User:
    user = User.objects.create_user(ADDRESS, PASSWORD)
    user.emailaddress_set.create(email=ADDRESS, verified=True, primary=True)
    return user


def sign_in(client: Client, password: str = PASSWORD, address: str = ADDRESS) -> Any:
    return client.post(SIGN_IN, {"login": address, "password": password}, REMOTE_ADDR="192.0.2.7")


def recorded() -> list[str]:
    """The actions, the oldest first."""
    return list(Entry.objects.order_by("pk").values_list("action", flat=True))


def test_a_sign_in_and_a_sign_out_say_who_and_from_where(client: Client, member: User) -> None:
    sign_in(client)
    client.post(SIGN_OUT)
    assert recorded() == ["signed_in", "signed_out"]
    found = Entry.objects.get(action="signed_in")
    assert (found.actor, found.actor_id, found.address) == (ADDRESS, member.pk, "192.0.2.7")
    assert Entry.objects.get(action="signed_out").actor == ADDRESS


def test_a_failed_sign_in_names_the_account_but_nobody_as_the_actor(client: Client, member: User) -> None:
    sign_in(client, "wrong password")
    found = Entry.objects.get()
    assert (found.action, found.actor, found.actor_id) == ("sign_in_failed", "", None)
    assert (found.target, found.address, found.details) == (ADDRESS, "192.0.2.7", {})


def test_what_is_no_accounts_address_is_kept_as_a_digest(client: Client, member: User) -> None:
    """As people type passwords into the wrong field."""
    for word in ("hunter2@example.com", "Hunter2@Example.com", "other@example.com"):
        sign_in(client, PASSWORD, word)
    first, second, third = (entry.details["unknown address"] for entry in Entry.objects.order_by("pk"))
    assert first == second != third
    assert "hunter2" not in json.dumps(list(Entry.objects.values("target", "details", "actor"))).lower()


def test_an_address_that_nobody_has_verified_is_a_failed_sign_in(client: Client, member: User) -> None:
    member.emailaddress_set.create(email="added@example.com", verified=False)
    sign_in(client, PASSWORD, "added@example.com")
    assert recorded() == ["sign_in_failed"]


def test_signing_up_and_verifying_the_address_are_recorded(client: Client) -> None:
    client.post(SIGN_UP, {"email": ADDRESS, "password1": PASSWORD, "password2": PASSWORD})
    link = re.search(r"https?://[^/]+(/accounts/confirm-email/\S+)", str(mail.outbox[0].body))
    assert link
    client.post(link[1])
    assert recorded() == ["signed_up", "address_verified"]


def test_changes_of_the_password_and_the_addresses_are_recorded(client: Client, member: User) -> None:
    sign_in(client)
    client.post(CHANGE, {"oldpassword": PASSWORD, "password1": OTHER, "password2": OTHER})
    asked = client.post(EMAIL, {"action_add": "", "email": "second@example.com"})["Location"]
    client.post(asked, {"password": OTHER}, follow=True)
    member.emailaddress_set.filter(email="second@example.com").update(verified=True)
    client.post(EMAIL, {"action_primary": "", "email": "second@example.com"})
    client.post(EMAIL, {"action_remove": "", "email": ADDRESS})
    changes = ["password_changed", "address_added", "address_changed", "address_removed"]
    assert recorded() == ["signed_in", *changes]
    changed = Entry.objects.get(action="address_changed")
    assert (changed.target, changed.details) == ("second@example.com", {"before": ADDRESS})


def test_a_reset_of_the_password_is_recorded_without_its_link(client: Client, member: User) -> None:
    client.post(RESET, {"email": ADDRESS})
    link = re.search(r"https?://[^/]+(/accounts/password/reset/key/\S+)", str(mail.outbox[0].body))
    assert link
    page = client.get(link[1], follow=True)
    client.post(page.request["PATH_INFO"], {"password1": OTHER, "password2": OTHER})
    assert "password_reset" in recorded()
    everything = json.dumps(list(Entry.objects.values("target", "details", "actor")))
    assert not [secret for secret in (PASSWORD, OTHER, link[1].split("/")[-2]) if secret in everything]


def refuse(*_: object, **__: object) -> None:
    raise DatabaseError("cannot execute INSERT in a read-only transaction")


def test_people_sign_in_and_out_while_nothing_can_be_recorded(
    client: Client, member: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Entry, "save", refuse)
    assert sign_in(client, "wrong password").status_code == 200
    assert sign_in(client).status_code == 302 and "_auth_user_id" in client.session
    client.post(SIGN_OUT)
    assert "_auth_user_id" not in client.session
    assert [each for each in ("sign_in_failed", "signed_in", "signed_out") if each not in caplog.text] == []


def test_a_password_is_not_changed_while_that_cannot_be_recorded(
    client: Client, member: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(client)
    monkeypatch.setattr(Entry, "save", refuse)
    with pytest.raises(DatabaseError):
        client.post(CHANGE, {"oldpassword": PASSWORD, "password1": OTHER, "password2": OTHER})
    member.refresh_from_db()
    assert member.check_password(PASSWORD)


def test_tokens_that_are_made_and_revoked_are_recorded_without_their_secret(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("api_token", "create", "ci", "--environment", "staging", "--register")
    call_command("api_token", "rotate", "ci")
    call_command("api_token", "revoke", "ci")
    call_command("api_token", "revoke", "ci")
    secrets = [line for line in capsys.readouterr().out.splitlines() if line.startswith("bst1_")]
    assert len(secrets) == 2 and recorded() == ["token_made", "token_rotated", "token_revoked"]
    made = Entry.objects.get(action="token_made")
    assert "@" in made.actor and made.target == "ci" and made.details["environments"] == "staging"
    everything = json.dumps(list(Entry.objects.values("target", "details", "actor")))
    assert not [secret for secret in secrets if secret[5:] in everything]
