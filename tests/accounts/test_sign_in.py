"""Signing up, in and out, passwords and addresses, as people meet them."""

import re
import threading
import uuid
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from django.contrib.auth.hashers import MD5PasswordHasher, identify_hasher
from django.core import mail
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.db.models.signals import pre_save
from django.test import Client
from django.urls import get_resolver, reverse
from django.utils import timezone
from pytest_django import DjangoCaptureOnCommitCallbacks, Settings

from accounts.models import User
from metrics.registry import USER_REGISTRATIONS
from tests.support.servers import PATIENCE, free_port

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery staple"
ADDRESS = "member@example.com"

SIGN_UP, SIGN_IN, SIGN_OUT = "/accounts/signup/", "/accounts/login/", "/accounts/logout/"
PROFILE, RESET, CHANGE, EMAIL = (
    "/accounts/profile/",
    "/accounts/password/reset/",
    "/accounts/password/change/",
    "/accounts/email/",
)


class CountingHasher(MD5PasswordHasher):
    """Cheap, and counts what would be dear."""

    count = 0

    def encode(self, *args: Any, **kwargs: Any) -> str:
        CountingHasher.count += 1
        return str(super().encode(*args, **kwargs))


@pytest.fixture(autouse=True)
def cheap(settings: Settings) -> None:
    """Cheap hashes, and a cache of the test's own: rate limits count from nothing."""
    settings.PASSWORD_HASHERS = [f"{__name__}.CountingHasher", settings.PASSWORD_HASHERS[0]]
    settings.CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache", "LOCATION": uuid.uuid4().hex}}


@pytest.fixture
def member() -> User:
    user = User.objects.create_user(ADDRESS, PASSWORD, display_name="Member")
    user.emailaddress_set.create(email=ADDRESS, verified=True, primary=True)
    return user


@pytest.fixture
def no_mail_server(settings: Settings) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", free_port()


def sign_up(client: Client, address: str = ADDRESS) -> Any:
    return client.post(SIGN_UP, {"email": address, "password1": PASSWORD, "password2": PASSWORD})


def sign_in(client: Client, password: str = PASSWORD, address: str = ADDRESS, **more: str) -> Any:
    return client.post(SIGN_IN, {"login": address, "password": password, **more})


def signed_in(client: Client) -> bool:
    status = client.get(PROFILE).status_code
    assert status in (200, 302)
    return status == 200


def link(message: Any) -> str:
    """The path of the one link to a page with a key."""
    found = re.findall(r"http://testserver(/accounts/(?:confirm-email|password/reset/key)/\S+)", message.body)
    assert len(found) == 1, message.body
    return str(found[0])


def page(response: Any) -> str:
    """The body without what differs from answer to answer."""
    body = re.sub(r'(csrfmiddlewaretoken" value=")[^"]*', r"\1", response.content.decode())
    return re.sub(r"[\w.+-]+@example\.com", "ADDRESS", body)


def test_a_newcomer_signs_up_verifies_the_address_and_signs_in(client: Client) -> None:
    assert sign_up(client)["Location"] == "/accounts/confirm-email/"
    assert not signed_in(client)
    assert sign_in(client)["Location"] == "/accounts/confirm-email/", "signed in before the address was verified"
    assert [message.to for message in mail.outbox] == [[ADDRESS]], "held back: one was sent a moment ago"

    path = link(mail.outbox[0])
    assert client.get(path).status_code == 200
    assert not EmailAddress.objects.get().verified, "a link that a mail scanner opens must not verify"
    assert client.post(path).status_code == 302
    assert sign_in(client)["Location"] == "/"
    assert signed_in(client)


@pytest.mark.parametrize(("verification", "mails"), [("optional", 1), ("none", 0)])
def test_without_mandatory_verification_one_is_signed_in_at_once(
    client: Client, settings: Settings, verification: str, mails: int
) -> None:
    settings.ACCOUNT_EMAIL_VERIFICATION = verification
    assert sign_up(client)["Location"] == "/"
    assert signed_in(client)
    assert len(mail.outbox) == mails


def test_a_used_a_forged_and_an_old_verification_link_verify_nothing(client: Client, monkeypatch: Any) -> None:
    sign_up(client)
    path = link(mail.outbox[0])
    forged = path[:-6] + ("AAAAA/" if path[-6:] != "AAAAA/" else "BBBBB/")
    assert client.post(forged).status_code == 404
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: (timezone.now() + timedelta(days=4)).timestamp())
        assert client.post(path).status_code == 404
    assert not EmailAddress.objects.get().verified
    assert client.post(path).status_code == 302
    assert client.post(path).status_code == 404


def test_signing_up_does_not_tell_whether_an_address_is_known(client: Client, member: User) -> None:
    CountingHasher.count = 0
    unknown, unknown_cost = sign_up(Client(), "newcomer@example.com"), CountingHasher.count
    CountingHasher.count = 0
    known, known_cost = sign_up(Client(), ADDRESS), CountingHasher.count
    assert (unknown.status_code, unknown["Location"]) == (known.status_code, known["Location"])
    assert page(client.get(known["Location"])) == page(Client().get(unknown["Location"]))
    assert unknown_cost == known_cost == 1, "the time taken tells"
    assert [message.to for message in mail.outbox] == [["newcomer@example.com"], [ADDRESS]]
    assert "/accounts/password/reset/" in mail.outbox[1].body, "the owner is told what to do"


def test_signing_in_does_not_tell_whether_an_address_is_known(member: User) -> None:
    CountingHasher.count = 0
    unknown, unknown_cost = sign_in(Client(), address="nobody@example.com"), CountingHasher.count
    CountingHasher.count = 0
    known, known_cost = sign_in(Client(), "wrong " + PASSWORD), CountingHasher.count
    assert unknown.status_code == known.status_code == 200
    assert page(unknown) == page(known)
    assert unknown_cost == known_cost == 1, "the time taken tells"


def test_a_password_reset_does_not_tell_whether_an_address_is_known(member: User) -> None:
    known, unknown = (Client().post(RESET, {"email": one}) for one in (ADDRESS, "nobody@example.com"))
    assert known["Location"] == unknown["Location"] == "/accounts/password/reset/done/"
    assert [message.to for message in mail.outbox] == [[ADDRESS], ["nobody@example.com"]]


def test_a_forgotten_password_is_reset_by_a_link_that_works_once(client: Client, member: User) -> None:
    elsewhere = Client()
    sign_in(elsewhere)
    client.post(RESET, {"email": ADDRESS})
    path = link(mail.outbox[0])
    form = client.get(path)
    assert "set-password" in form["Location"], "the key must not stay in the address, from where Referer would tell it"
    assert client.get(form["Location"]).status_code == 200
    done = client.post(form["Location"], {"password1": "a whole new secret", "password2": "a whole new secret"})
    assert done["Location"] == "/accounts/password/reset/key/done/"

    assert not signed_in(elsewhere), "a session from before the reset still works"
    assert sign_in(client).status_code == 200
    assert sign_in(client, "a whole new secret").status_code == 302
    assert [message.to for message in mail.outbox] == [[ADDRESS], [ADDRESS]], "the owner is not told"
    again = Client().get(path)
    assert again.status_code == 200 and "password1" not in again.content.decode()


def test_a_changed_password_needs_the_old_one_and_ends_other_sessions(client: Client, member: User) -> None:
    elsewhere = Client()
    sign_in(client), sign_in(elsewhere)
    new = {"password1": "a whole new secret", "password2": "a whole new secret"}
    assert client.post(CHANGE, {"oldpassword": "guessed", **new}).status_code == 200
    assert signed_in(elsewhere)
    assert client.post(CHANGE, {"oldpassword": PASSWORD, **new}).status_code == 302
    assert signed_in(client)
    assert not signed_in(elsewhere)
    assert [message.to for message in mail.outbox] == [[ADDRESS]], "the owner is not told"


@pytest.mark.parametrize("password", ["short", "12345678901", "password1", "member@example.com"])
def test_a_weak_password_is_refused(client: Client, password: str) -> None:
    response = client.post(SIGN_UP, {"email": ADDRESS, "password1": password, "password2": password})
    assert response.status_code == 200
    assert response.context["form"].errors["password1"]
    assert not User.objects.exists()


def test_signing_out_takes_a_post_with_a_token(member: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(member)
    assert client.get(SIGN_OUT).status_code == 200
    assert client.post(SIGN_OUT).status_code == 403
    assert signed_in(client)
    token = re.findall(r'csrfmiddlewaretoken" value="([^"]+)', client.get(SIGN_OUT).content.decode())[0]
    cookie = client.cookies["session"].value
    assert client.post(SIGN_OUT, {"csrfmiddlewaretoken": token})["Location"] == "/"
    client.cookies["session"] = cookie
    assert not signed_in(client), "the session lives on at the server"


UNSAFE = [
    "https://evil.example/",
    "//evil.example/",
    "///evil.example/",
    "/\\evil.example/",
    "\\\\evil.example/",
    "http:///evil.example/",
    "https:evil.example",
    "javascript:alert(1)",
    "data:text/html,x",
    "https://testserver@evil.example/",
    "\x08//evil.example/",
    " https://evil.example/",
]


@pytest.mark.parametrize("target", UNSAFE)
def test_next_leads_to_no_other_site(client: Client, member: User, target: str) -> None:
    assert sign_in(client, next=target)["Location"] == "/"
    assert client.get(SIGN_IN, {"next": target})["Location"] == "/"
    assert client.post(SIGN_OUT, {"next": target})["Location"] == "/"


def test_next_leads_to_the_page_that_was_asked_for(client: Client, member: User) -> None:
    asked = client.get(PROFILE)["Location"]
    assert asked == f"{SIGN_IN}?next={PROFILE}"
    assert f'value="{PROFILE}"' in client.get(asked).content.decode(), "the form forgets it"
    assert sign_in(client, next=PROFILE)["Location"] == PROFILE


def test_an_address_is_the_same_in_any_case(client: Client, member: User) -> None:
    assert sign_in(client, address="MEMBER@Example.COM").status_code == 302
    sign_up(Client(), "Member@EXAMPLE.com")
    assert User.objects.count() == 1
    with pytest.raises(IntegrityError), transaction.atomic():
        User.objects.bulk_create([User(email="MEMBER@example.com")])
    with pytest.raises(ValidationError):
        User(email="MEMBER@example.com", password="!").full_clean()


def test_a_user_who_is_switched_off_cannot_sign_in(client: Client, member: User) -> None:
    User.objects.update(is_active=False)
    assert sign_in(client)["Location"] == "/accounts/inactive/"
    assert client.get("/accounts/inactive/").status_code == 200
    assert not signed_in(client)


@pytest.mark.parametrize(
    ("verification", "target"), [("mandatory", "/accounts/confirm-email/"), ("none", "/accounts/login/")]
)
def test_a_sign_up_button_pressed_twice_makes_one_account(
    client: Client, settings: Settings, verification: str, target: str
) -> None:
    settings.ACCOUNT_EMAIL_VERIFICATION = verification
    first_press = partial(User.objects.bulk_create, [User(email=ADDRESS)], ignore_conflicts=True)

    def between_check_and_save(**_: Any) -> None:
        elsewhere(first_press)

    pre_save.connect(between_check_and_save, sender=User)
    try:
        assert sign_up(client)["Location"] == target
        assert User.objects.count() == 1
    finally:
        pre_save.disconnect(between_check_and_save, sender=User)
        elsewhere(User.objects.all().delete)


def elsewhere(work: Callable[[], Any]) -> None:
    """Does `work` on a connection of its own, and so outside the test's transaction."""

    def body() -> None:
        try:
            work()
        finally:
            connection.close()

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(PATIENCE)


def test_without_a_mail_server_signing_up_changes_nothing_and_may_be_tried_again(
    client: Client, no_mail_server: None, settings: Settings, django_capture_on_commit_callbacks: Any
) -> None:
    response = sign_up(client)
    assert response.status_code == 503 and response["Retry-After"]
    assert not User.objects.exists() and not EmailAddress.objects.exists()
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    assert sign_up(client).status_code == 302
    assert [message.to for message in mail.outbox] == [[ADDRESS]], "held back as if it had been sent"


def test_without_a_mail_server_a_reset_is_503_and_a_changed_password_holds(
    client: Client, member: User, no_mail_server: None
) -> None:
    assert client.post(RESET, {"email": ADDRESS}).status_code == 503
    sign_in(client)
    new = {"password1": "a whole new secret", "password2": "a whole new secret"}
    assert client.post(CHANGE, {"oldpassword": PASSWORD, **new}).status_code == 302
    assert sign_in(Client(), "a whole new secret").status_code == 302


def test_changing_an_address_takes_the_password_and_a_verification(client: Client, member: User) -> None:
    sign_in(client)
    asked = client.post(EMAIL, {"action_add": "", "email": "second@example.com"})["Location"]
    assert asked.startswith("/accounts/reauthenticate/")
    assert client.post(asked, {"password": "guessed"}).status_code == 200
    assert member.emailaddress_set.count() == 1
    assert client.post(asked, {"password": PASSWORD})["Location"] == EMAIL
    assert member.emailaddress_set.count() == 2
    client.post(EMAIL, {"action_add": "", "email": "third@example.com"})
    assert client.post(EMAIL, {"action_add": "", "email": "fourth@example.com"}).status_code == 200
    assert member.emailaddress_set.count() == 3, "addresses without end, each of which is sent a mail"
    assert client.post(EMAIL, {"action_primary": "", "email": "second@example.com"}).status_code == 302
    member.refresh_from_db()
    assert member.email == ADDRESS, "an address that is not verified became the primary one"
    client.post(link(mail.outbox[0]))
    client.post(EMAIL, {"action_primary": "", "email": "second@example.com"})
    member.refresh_from_db()
    assert member.email == "second@example.com"
    assert mail.outbox[-1].to == [ADDRESS], "the old address is notified"
    assert sign_in(Client(), address="second@example.com").status_code == 302


def test_a_registration_is_counted_once_and_when_it_holds(
    client: Client, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    before = registrations()
    with django_capture_on_commit_callbacks(execute=True):
        sign_up(client)
    assert registrations() == before + 1
    with django_capture_on_commit_callbacks(execute=True):
        sign_up(Client())
    assert registrations() == before + 1


def test_a_registration_that_is_undone_is_not_counted(
    client: Client, no_mail_server: None, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    before = registrations()
    with django_capture_on_commit_callbacks(execute=True):
        sign_up(client)
    assert registrations() == before


def registrations() -> float:
    return sum(
        sample.value
        for metric in USER_REGISTRATIONS.collect()
        for sample in metric.samples
        if sample.name == "user_registrations_total"
    )


def test_passwords_are_hashed_as_django_does_by_default(settings: Settings) -> None:
    settings.PASSWORD_HASHERS = settings.PASSWORD_HASHERS[1:]
    user = User.objects.create_user(ADDRESS, PASSWORD)
    hasher = identify_hasher(user.password)
    assert hasher.algorithm == "pbkdf2_sha256"
    assert not hasher.must_update(user.password)
    assert PASSWORD not in user.password and user.check_password(PASSWORD)


def test_whoever_was_made_on_the_command_line_signs_in_without_a_mail(client: Client, monkeypatch: Any) -> None:
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", PASSWORD)
    call_command("createsuperuser", "--noinput", "--email=Root@Example.com", verbosity=0)
    assert sign_in(client, address="root@example.com")["Location"] == "/"
    assert User.objects.get().email == "root@example.com"
    assert not mail.outbox


def test_a_user_needs_an_address() -> None:
    with pytest.raises(ValueError, match="address"):
        User.objects.create_user("")


def test_the_profile_takes_a_display_name(client: Client, member: User) -> None:
    client.force_login(member)
    assert client.post(PROFILE, {"display_name": "  Zoë O'Hara-Müller 王 👩‍🚀 "})["Location"] == PROFILE
    member.refresh_from_db()
    assert str(member) == "Zoë O'Hara-Müller 王 👩‍🚀"
    assert client.post(PROFILE, {"display_name": ""}).status_code == 302
    member.refresh_from_db()
    assert str(member) == "member"


@pytest.mark.parametrize("name", ["x" * 81, "evil\u202eeman", "two\nlines", "nul\0", "tab\t.", "zero\u200bwidth"])
def test_a_display_name_that_would_break_a_page_is_refused_and_not_shown(
    client: Client, member: User, name: str
) -> None:
    client.force_login(member)
    response = client.post(PROFILE, {"display_name": name})
    assert response.status_code == 200 and response.context["form"].errors["display_name"]
    assert str(response.context["user"]) == "Member"
    member.refresh_from_db()
    assert member.display_name == "Member"


def test_a_display_name_is_escaped_in_the_page(client: Client, member: User) -> None:
    client.force_login(member)
    client.post(PROFILE, {"display_name": "<script>alert(1)</script>"})
    body = client.get(PROFILE).content.decode()
    assert "<script>alert" not in body and "&lt;script&gt;alert" in body


def test_the_profile_is_for_who_is_signed_in_and_is_not_kept_by_caches(client: Client, member: User) -> None:
    assert client.get(PROFILE).status_code == 302
    client.force_login(member)
    assert "no-store" in client.get(PROFILE)["Cache-Control"]
    assert client.put(PROFILE).status_code == 405


def test_only_the_pages_that_are_supported_are_there() -> None:
    names = {str(name) for name in get_resolver().reverse_dict if str(name).startswith("account_")}
    assert names == {
        "account_change_password",
        "account_confirm_email",
        "account_email",
        "account_email_verification_sent",
        "account_inactive",
        "account_login",
        "account_logout",
        "account_reauthenticate",
        "account_reset_password",
        "account_reset_password_done",
        "account_reset_password_from_key",
        "account_reset_password_from_key_done",
        "account_signup",
    }


@pytest.mark.parametrize("name", ["account_login", "account_signup", "account_reset_password"])
def test_a_client_that_claims_to_be_a_script_gets_the_page_as_well(client: Client, name: str) -> None:
    response = client.get(reverse(name), headers={"accept": "application/json", "x-requested-with": "XMLHttpRequest"})
    assert response["Content-Type"].startswith("text/html")
