"""The list of one's sessions, and how they end: at once, in the database and in the cache."""

import time
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.test import Client
from pytest_django import Settings

from accounts import sessions
from accounts.models import User
from audit.models import Entry

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery staple"
SESSIONS, PROFILE = "/accounts/sessions/", "/accounts/profile/"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
SAFARI = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148 Safari/604.1"


@pytest.fixture(autouse=True)
def cheap(settings: Settings) -> None:
    """Cheap hashes; the cache is Redis, as the sessions are in it."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    cache.clear()


@pytest.fixture
def user() -> User:
    return member("member@example.com")


def member(email: str) -> User:
    user = User.objects.create_user(email, PASSWORD)
    user.emailaddress_set.create(email=email, verified=True, primary=True)
    return user


def signed_in(user: User, agent: str = FIREFOX, address: str = "192.0.2.1") -> Client:
    client = Client(HTTP_USER_AGENT=agent, REMOTE_ADDR=address)
    assert client.post("/accounts/login/", {"login": user.email, "password": PASSWORD}).status_code == 302
    return client


def is_in(client: Client) -> bool:
    return client.get(PROFILE).status_code == 200


def id_of(client: Client) -> int:
    return int(UserSession.objects.get(session_key=client.session.session_key).pk)


def test_the_list_names_device_address_and_which_is_this(user: User) -> None:
    own, phone = signed_in(user), signed_in(user, SAFARI, "2001:db8::7")
    page = own.get(SESSIONS).content.decode()
    for text in ("Firefox on Linux", "Safari on iPhone", "192.0.2.1", "2001:db8::7"):
        assert text in page
    assert page.count("This session") == 1 and page.count('name="end"') == 2
    assert not any(str(client.session.session_key) in page for client in (own, phone))


def test_one_is_ended_at_once_also_in_the_cache(user: User) -> None:
    own, phone = signed_in(user), signed_in(user, SAFARI)
    assert is_in(phone)
    key = f"django.contrib.sessions.cached_db{phone.session.session_key}"
    assert cache.get(key)
    own.post(SESSIONS, {"end": id_of(phone)})
    assert cache.get(key) is None
    assert not is_in(phone) and is_in(own)
    assert Entry.objects.get(action="sessions_ended").actor == user.email


def test_all_others_are_ended(user: User) -> None:
    own, others = signed_in(user), [signed_in(user, SAFARI) for _ in range(2)]
    assert "2 sessions ended" in own.post(SESSIONS, {"end": "others"}, follow=True).content.decode()
    assert is_in(own) and not any(map(is_in, others))
    assert "Sign out everywhere else" not in own.get(SESSIONS).content.decode()


@pytest.mark.parametrize("which", [lambda own, theirs: id_of(theirs), lambda own, theirs: id_of(own)])
def test_neither_anothers_nor_this_one_is_ended(user: User, which: Callable[[Client, Client], int]) -> None:
    own, theirs = signed_in(user), signed_in(member("other@example.com"))
    assert "0 sessions ended" in own.post(SESSIONS, {"end": which(own, theirs)}, follow=True).content.decode()
    assert is_in(own) and is_in(theirs)


@pytest.mark.parametrize("junk", ["", "0", "-1", "²", "x", "9" * 30, "1 OR 1=1"])
def test_junk_ends_nothing(user: User, junk: str) -> None:
    own, phone = signed_in(user), signed_in(user)
    assert own.post(SESSIONS, {"end": junk}).status_code == 302
    assert is_in(own) and is_in(phone)


def test_a_form_without_its_token_ends_nothing(user: User) -> None:
    own = Client(enforce_csrf_checks=True)
    own.force_login(user)
    assert own.post(SESSIONS, {"end": "others"}).status_code == 403


def test_a_changed_password_ends_the_others_and_the_list_follows(user: User) -> None:
    own, phone = signed_in(user), signed_in(user, SAFARI)
    new = "another horse battery staple"
    own.post("/accounts/password/change/", {"oldpassword": PASSWORD, "password1": new, "password2": new})
    assert is_in(own) and not is_in(phone)
    page = own.get(SESSIONS).content.decode()
    assert "This session" in page and "Safari" not in page


def test_the_last_use_is_written_down_every_quarter_of_an_hour(
    user: User, django_assert_num_queries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = signed_in(user)
    page = "/accounts/logout/"
    client.get(page)
    with django_assert_num_queries(3):  # the user and their roles: nothing is written
        client.get(page)
    now = time.time()
    monkeypatch.setattr(sessions, "time", lambda: now + 16 * 60)
    before = UserSession.objects.get().last_seen_at
    client.get(page, REMOTE_ADDR="198.51.100.9")
    row = UserSession.objects.get()
    assert row.last_seen_at > before and row.ip == "198.51.100.9"
    with django_assert_num_queries(3):
        client.get(page)


@pytest.mark.parametrize(
    ("agent", "says"),
    [
        (FIREFOX, "Firefox on Linux"),
        (SAFARI, "Safari on iPhone"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/140.0 Safari/537.36 Edg/140.0", "Edge on Windows"),
        ("Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 Chrome/140.0 Mobile Safari/537.36", "Chrome on Android"),
        ("curl/8.1", "curl"),
        ("", "Unknown device"),
    ],
)
def test_a_device_is_called_as_people_call_it(agent: str, says: str) -> None:
    assert sessions.device(agent) == says


def test_a_lost_device_is_reset_by_command(user: User) -> None:
    client = signed_in(user)
    Authenticator.objects.create(user=user, type="totp", data={"secret": "x"})
    out = StringIO()
    call_command("second_factor", "reset", "Member@Example.com", stdout=out)
    assert out.getvalue() == "Second factors removed: 1. Sessions ended: 1.\n"
    assert not Authenticator.objects.exists() and not is_in(client)
    assert Entry.objects.get(action="factors_reset").target == user.email
    with pytest.raises(CommandError, match="No account"):
        call_command("second_factor", "reset", "nobody@example.com")
