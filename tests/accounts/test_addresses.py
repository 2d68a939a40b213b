"""Whose an address is: what one that nobody has verified must not do, and what is left of an account after a reset."""

import re
import uuid
from typing import Any

import pytest
from allauth.account.models import EmailAddress, EmailConfirmationHMAC
from django.core import mail
from django.db import IntegrityError
from django.test import Client
from django.urls import get_resolver, reverse
from pytest_django import Settings

from accounts import addresses
from accounts.models import User

pytestmark = pytest.mark.django_db

PASSWORD, NEW = "correct horse battery staple", "a whole new secret"
OWN, TYPO = "k21@example.com", "typo21@example.com"
SIGN_UP, SIGN_IN, PROFILE = "/accounts/signup/", "/accounts/login/", "/accounts/profile/"
RESET, EMAIL = "/accounts/password/reset/", "/accounts/email/"
MODES = ("mandatory", "optional", "none")


@pytest.fixture(autouse=True)
def cheap(settings: Settings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache", "LOCATION": uuid.uuid4().hex}}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, settings: Settings) -> str:
    settings.ACCOUNT_EMAIL_VERIFICATION = request.param
    return str(request.param)


def person(address: str, *, verified: bool = True, **others: bool) -> User:
    """Somebody with `address` as the primary one; `others` are named before their @, and verified or not."""
    user = User.objects.create_user(address, PASSWORD)
    user.emailaddress_set.create(email=address, verified=verified, primary=True)
    for name, proven in others.items():
        user.emailaddress_set.create(email=f"{name}@example.com", verified=proven)
    return user


def ask(address: str) -> Any:
    """Asks for a reset; the message that goes to `address`, if it has a link."""
    before = len(mail.outbox)
    assert Client().post(RESET, {"email": address}).status_code == 302
    (message,) = mail.outbox[before:]
    assert message.to == [address]
    return message


def link(message: Any) -> str:
    """The path of the link with a key in `message`; "" if it has none."""
    found = re.search(r"http://testserver(/accounts/(?:confirm-email|password/reset/key)/\S+)", message.body)
    return found[1] if found else ""


def choose(path: str) -> bool:
    """Whether the link at `path` took a new password."""
    client = Client()
    form = client.get(path)
    if form.status_code != 302:
        assert "Invalid or expired link" in form.content.decode()
        return False
    done = client.post(form["Location"], {"password1": NEW, "password2": NEW})
    return done.status_code == 302


def sign_up(address: str, client: Client | None = None) -> Any:
    form = {"email": address, "password1": PASSWORD, "password2": PASSWORD}
    return (client or Client()).post(SIGN_UP, form)


def signs_in(address: str, password: str) -> bool:
    client = Client()
    client.post(SIGN_IN, {"login": address, "password": password})
    return is_signed_in(client)


def is_signed_in(client: Client) -> bool:
    return client.get(PROFILE).status_code == 200


def signed_in(user: User) -> Client:
    """A client of `user` who has just given the password once more."""
    client = Client()
    client.force_login(user)
    assert client.post("/accounts/reauthenticate/", {"password": PASSWORD}).status_code == 302
    return client


def held(user: User) -> set[tuple[str, bool, bool]]:
    return set(user.emailaddress_set.values_list("email", "verified", "primary"))


def test_an_address_that_is_not_verified_resets_nothing(mode: str) -> None:
    person(OWN, typo21=False)
    assert link(ask(TYPO)) == "", "whoever reads the mistyped address gets into the account"
    assert "No account exists with this address" in mail.outbox[-1].body


def test_the_primary_address_and_verified_ones_reset_the_password(mode: str) -> None:
    person("unproven@example.com", verified=False)
    person(OWN, second=True)
    for address in ("unproven@example.com", OWN, "second@example.com"):
        assert choose(link(ask(address))), address
        assert signs_in(address, NEW), address


def test_an_address_that_is_not_verified_signs_nobody_in(mode: str) -> None:
    person(OWN, typo21=False, second=True)
    assert not signs_in(TYPO, PASSWORD)
    assert not mail.outbox, "a link to verify was sent"
    assert signs_in("second@example.com", PASSWORD)


def test_an_address_that_is_added_elsewhere_does_not_keep_its_owner_from_signing_up(mode: str) -> None:
    squatter = person("k22@example.com", victim=False)
    parked = EmailConfirmationHMAC(squatter.emailaddress_set.get(primary=False)).key
    client = Client()
    assert sign_up("victim@example.com", client).status_code == 302
    victim = User.objects.get(email="victim@example.com")
    assert held(victim) == {("victim@example.com", False, True)}
    assert held(squatter) == {("k22@example.com", True, True)}
    assert Client().post(f"/accounts/confirm-email/{parked}/").status_code == 404, "the link still works"
    if mode != "mandatory":
        assert is_signed_in(client)
    if mode != "none":
        assert Client().post(link(mail.outbox[-1])).status_code == 302
        assert held(victim) == {("victim@example.com", True, True)}

    # Added again, it does as little.
    squatter.emailaddress_set.create(email="victim@example.com")
    assert choose(link(ask("victim@example.com")))
    assert signs_in("victim@example.com", NEW) and not signs_in("victim@example.com", PASSWORD)
    squatter.refresh_from_db()
    assert squatter.check_password(PASSWORD)


def test_an_address_goes_from_where_it_was_only_added_when_its_owner_verifies_it() -> None:
    squatter = person("k22@example.com", shared=False)
    owner = person("k23@example.com", shared=False)
    key = EmailConfirmationHMAC(owner.emailaddress_set.get(primary=False)).key
    Client().post(f"/accounts/confirm-email/{key}/")
    assert held(owner) == {("k23@example.com", True, True), ("shared@example.com", True, False)}
    assert held(squatter) == {("k22@example.com", True, True)}


def test_whoever_has_signed_up_with_anothers_address_is_out_for_good_after_the_owners_reset(mode: str) -> None:
    """The address was the victim's all along; what the attacker has verified since is the attacker's."""
    account = person("victim@example.com", verified=False, attacker=True, later=False)
    attacker = Client()
    attacker.force_login(account)
    later = EmailConfirmationHMAC(account.emailaddress_set.get(email="later@example.com")).key
    early = link(ask("attacker@example.com"))
    assert choose(link(ask("victim@example.com")))

    account.refresh_from_db()
    assert held(account) == {("victim@example.com", True, True)}
    assert not is_signed_in(attacker)
    assert not choose(early)
    assert Client().post(f"/accounts/confirm-email/{later}/").status_code == 404
    for address in ("attacker@example.com", "later@example.com"):
        assert not signs_in(address, PASSWORD) and not signs_in(address, NEW)
        assert link(ask(address)) == ""


def test_a_reset_drops_what_is_not_verified_and_keeps_what_is_of_an_account_whose_address_was() -> None:
    user = person(OWN, second=True, typo21=False)
    assert choose(link(ask(OWN)))
    assert held(user) == {(OWN, True, True), ("second@example.com", True, False)}


def test_a_reset_by_a_verified_address_takes_the_place_of_a_primary_one_that_is_not() -> None:
    user = person(OWN, verified=False, second=True)
    assert choose(link(ask("second@example.com")))
    user.refresh_from_db()
    assert user.email == "second@example.com"
    assert held(user) == {("second@example.com", True, True)}


def test_a_reset_leaves_the_primary_address_if_the_verified_one_is_anothers_primary() -> None:
    user = person(OWN, verified=False, second=True)
    person("second@example.com", verified=False)
    assert choose(link(ask("second@example.com")))
    user.refresh_from_db()
    assert user.email == OWN and user.check_password(NEW)


def test_a_reset_verifies_the_address_of_a_user_made_in_the_admin() -> None:
    user = User.objects.create_user(OWN)
    assert choose(link(ask(OWN)))
    assert held(user) == {(OWN, True, True)}
    assert signs_in(OWN, NEW)


def test_an_older_reset_link_ends_when_a_newer_one_is_asked_for() -> None:
    person(OWN, second=True)
    first = link(ask(OWN))
    opened = Client()
    form = opened.get(first)["Location"]
    second = link(ask("second@example.com"))
    assert opened.post(form, {"password1": NEW, "password2": NEW}).status_code == 200
    assert not choose(first)
    assert choose(second)
    assert not choose(second)


def test_a_reset_link_ends_with_the_address_that_it_was_sent_to() -> None:
    user = person(OWN, second=True)
    path = link(ask("second@example.com"))
    user.emailaddress_set.filter(email="second@example.com").delete()
    assert not choose(path)


def test_a_reset_that_was_refused_leaves_the_link_alone(settings: Settings) -> None:
    settings.ACCOUNT_RATE_LIMITS = {"reset_password": "1/m/key"}
    person(OWN)
    path = link(ask(OWN))
    assert Client().post(RESET, {"email": OWN}).status_code == 429
    assert choose(path)


def test_an_address_that_is_not_verified_does_not_become_the_primary_one(mode: str) -> None:
    user = person(OWN, verified=False, typo21=False)
    client = signed_in(user)
    assert client.post(EMAIL, {"action_primary": "", "email": TYPO}).status_code == 302
    assert held(user) == {(OWN, False, True), (TYPO, False, False)}
    user.refresh_from_db()
    assert user.email == OWN


def test_a_verified_address_that_is_anothers_primary_one_is_a_message_and_no_error() -> None:
    user = person(OWN, second=True)
    person("second@example.com", verified=False)
    client = signed_in(user)
    client.post(EMAIL, {"action_primary": "", "email": "second@example.com"})
    assert "is the primary address of another account" in client.get(EMAIL).content.decode()


def test_the_accounts_own_address_is_not_removed_where_allauth_has_not_marked_it() -> None:
    user = User.objects.create_user(OWN, PASSWORD)  # as after a change in the admin: no row of allauth's
    user.emailaddress_set.create(email=TYPO)
    client = signed_in(user)
    client.post(EMAIL, {"action_remove": "", "email": OWN})
    user.refresh_from_db()
    assert user.email == OWN, "an address that nobody has verified took its place"


def test_a_session_that_a_reset_has_ended_adds_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    user = person(OWN)
    client = signed_in(user)
    lock = User.objects.select_for_update

    def after_a_reset() -> Any:
        User.objects.filter(pk=user.pk).update(password="!changed meanwhile")
        return lock()

    monkeypatch.setattr(User.objects, "select_for_update", after_a_reset)
    assert client.post(EMAIL, {"action_add": "", "email": TYPO})["Location"] == SIGN_IN
    assert held(user) == {(OWN, True, True)}


def test_opening_a_link_of_somebody_elses_signs_nobody_out() -> None:
    visitor, other = person(OWN), person("other@example.com", second=False)
    client = Client()
    client.force_login(visitor)
    confirm = EmailConfirmationHMAC(other.emailaddress_set.get(verified=False)).key
    page = client.get(f"/accounts/confirm-email/{confirm}/")
    assert page.status_code == 200 and is_signed_in(client)

    form = client.get(link(ask("other@example.com")), follow=True)
    assert f"You are signed in as {OWN}" in form.content.decode() and is_signed_in(client)
    assert client.post(form.request["PATH_INFO"], {"password1": NEW, "password2": NEW}).status_code == 302
    assert not is_signed_in(client)
    other.refresh_from_db()
    visitor.refresh_from_db()
    assert other.check_password(NEW) and visitor.check_password(PASSWORD)


@pytest.mark.parametrize("path", [RESET, SIGN_UP])
def test_an_address_is_sent_only_so_much_mail_in_a_day_by_strangers(path: str, monkeypatch: Any) -> None:
    """Known or not; the next day there is some again."""
    person("known@example.com")
    start = 1_800_000_000.0
    for address in ("known@example.com", "unknown@example.com"):
        for day in range(2):
            mail.outbox.clear()
            for minute in range(0, 80, 4):
                now = start + day * 90_000 + minute * 60
                monkeypatch.setattr("time.time", lambda now=now: now)
                sign_up(address) if path == SIGN_UP else Client().post(RESET, {"email": address})
            User.objects.filter(email="unknown@example.com").delete()
            assert 1 <= len(mail.outbox) <= 10, (address, day)
            assert {message.to[0] for message in mail.outbox} == {address}


def test_no_page_about_accounts_is_kept_by_a_browser_or_a_proxy() -> None:
    user = person(OWN, second=False)
    keys = {"key": EmailConfirmationHMAC(user.emailaddress_set.get(verified=False)).key}
    reset = dict(re.fullmatch(r".*/key/(?P<uidb36>\w+)-(?P<key>.+)/", link(ask(OWN))).groupdict())  # type: ignore
    names = [str(name) for name in get_resolver().reverse_dict if str(name).startswith("account_")]
    assert len(names) > 10
    member = Client()
    member.force_login(user)
    for name in names:
        values = reset if name.endswith("from_key") else keys if name == "account_confirm_email" else {}
        for client in (Client(), member):
            for key in ({}, {"key": "x"}):
                path = reverse(name, kwargs=values | key if values else {})
                for answer in (client.get(path), client.post(path)):
                    if answer.status_code != 404:
                        assert "no-store" in answer["Cache-Control"], (path, answer.status_code)


def test_an_address_is_in_no_more_than_one_verified_row() -> None:
    """What accounts.addresses relies on."""
    person(OWN)
    other = person("other@example.com")
    assert list(addresses.owners(OWN.upper())) == [User.objects.get(email=OWN)]
    with pytest.raises(IntegrityError):
        EmailAddress.objects.create(user=other, email=OWN, verified=True)
