"""Second factors: authenticator apps, recovery codes, passkeys' edges, and the roles that require one of them."""

import base64
import hmac
import json
import re
import struct
import time
import uuid
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from allauth.mfa.models import Authenticator
from django.contrib.auth.models import Group
from django.core import mail
from django.test import Client
from django.utils.html import escape
from pytest_django import Settings

from accounts.mfa import middleware, sealing
from accounts.models import User
from accounts.roles import Role
from audit.models import Entry
from settings import env
from tests.board.test_pages import is_ours

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery staple"
FACTORS, APP, CODES = "/accounts/2fa/", "/accounts/2fa/app/", "/accounts/2fa/codes/"
SIGN_IN, SECOND, PASSKEY = "/accounts/login/", "/accounts/2fa/authenticate/", "/accounts/2fa/passkeys/sign-in/"


@pytest.fixture(autouse=True)
def cheap(settings: Settings) -> None:
    """Cheap hashes, and a cache of the test's own: rate limits and used codes count from nothing."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache", "LOCATION": uuid.uuid4().hex}}


@pytest.fixture(autouse=True)
def commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows a commit follows at once, while its request lasts; here the commit itself never comes."""
    monkeypatch.setattr("django.db.transaction.on_commit", lambda then, **_: then())


@pytest.fixture
def user() -> User:
    user = User.objects.create_user("member@example.com", PASSWORD, display_name="Member")
    user.emailaddress_set.create(email=user.email, verified=True, primary=True)
    return user


def code(secret: str, at: float | None = None) -> str:
    """The code of an app at a time (RFC 6238), made without the code that is tested."""
    counter = struct.pack(">Q", int(time.time() if at is None else at) // 30)
    digest = hmac.new(base64.b32decode(secret), counter, "sha1").digest()
    offset = digest[-1] & 15
    return f"{(int.from_bytes(digest[offset:offset + 4], 'big') & 0x7FFFFFFF) % 1_000_000:06}"


def sign_in(client: Client, **extra: Any) -> Any:
    return client.post(SIGN_IN, {"login": "member@example.com", "password": PASSWORD}, **extra)


def set_up_app(client: Client) -> str:
    """Sets up an app as a person does who has signed in with the password; returns the secret."""
    response = client.get(APP, follow=True)
    if response.redirect_chain:
        response = client.post(f"/accounts/reauthenticate/?next={APP}", {"password": PASSWORD}, follow=True)
    found = re.search('class="command mono"[^>]*>([A-Z2-7]{32})<', response.content.decode())
    assert found, response.content.decode()
    assert client.post(APP, {"code": code(found[1])})["Location"] == CODES
    return found[1]


@pytest.fixture
def secret(user: User) -> str:
    """The secret of the app that the user has set up elsewhere, whose current code is still unused."""
    client = Client()
    sign_in(client)
    return set_up_app(client)


def signed_in(client: Client) -> bool:
    return "_auth_user_id" in client.session


def test_an_app_is_set_up_and_asked_for_at_the_next_sign_in(client: Client, user: User) -> None:
    sign_in(client)
    assert signed_in(client)
    secret = set_up_app(client)
    assert mail.outbox[-1].subject == "An authenticator app was added" and mail.outbox[-1].to == [user.email]
    assert Entry.objects.filter(action="factor_added", actor=user.email, target="TOTP Authenticator").exists()
    assert len(re.findall(r"<li>\d{8}</li>", client.get(CODES).content.decode())) == 10
    assert (
        client.get(f"{CODES}download/").content.decode().split()
        == Authenticator.objects.get(type="recovery_codes").wrap().get_unused_codes()
    )

    later = Client()
    assert sign_in(later)["Location"] == SECOND
    assert not signed_in(later) and later.get("/accounts/profile/").status_code == 302
    assert "is not correct" in later.post(SECOND, {"code": "000000"}).content.decode()
    later.post(SECOND, {"code": code(secret)})
    assert signed_in(later)


def test_the_picture_holds_the_same_secret_as_the_text(client: Client, user: User) -> None:
    sign_in(client)
    client.get(APP)
    page = client.post(f"/accounts/reauthenticate/?next={APP}", {"password": PASSWORD}, follow=True)
    link = urlsplit(page.context["totp_url"])
    assert parse_qs(link.query) == {"secret": [page.context["form"].secret], "issuer": ["backstagetest1"]}
    assert escape(page.context["totp_url"]) in page.content.decode()


def test_a_code_signs_in_once_for_as_long_as_it_would_be_accepted(user: User, secret: str, settings: Settings) -> None:
    now = code(secret)
    first, second = Client(), Client()
    sign_in(first)
    first.post(SECOND, {"code": now})
    assert signed_in(first)
    from django.core.cache import cache

    cache.delete(f"allauth.mfa.totp.used?user={user.pk}&code={now}")  # allauth forgets it after 30 s
    sign_in(second)
    second.post(SECOND, {"code": f"{now[:3]} {now[3:]}"})
    assert not signed_in(second)


def test_a_code_of_the_minute_before_is_refused_and_that_of_the_step_before_is_not(user: User, secret: str) -> None:
    client = Client()
    sign_in(client)
    client.post(SECOND, {"code": code(secret, time.time() - 75)})
    assert not signed_in(client)
    client.post(SECOND, {"code": code(secret, time.time() - 29)})
    assert signed_in(client)


def test_a_recovery_code_signs_in_once(user: User, secret: str) -> None:
    spare = Authenticator.objects.get(user=user, type="recovery_codes").wrap().get_unused_codes()[0]
    for expected in (True, False):
        client = Client()
        sign_in(client)
        client.post(SECOND, {"code": spare})
        assert signed_in(client) is expected


def test_guessing_codes_is_limited_for_the_account_from_anywhere(user: User, secret: str) -> None:
    for n in range(6):
        client = Client(REMOTE_ADDR=f"192.0.2.{n}")
        sign_in(client)
        answer = client.post(SECOND, {"code": "000000"}).content.decode()
    assert "Too many" in answer
    client.post(SECOND, {"code": code(secret)})
    assert not signed_in(client), "the right code does not count either"


def test_setting_up_and_removing_ask_for_the_password_again(client: Client, user: User) -> None:
    client.force_login(user)
    for address in (APP, "/accounts/2fa/passkeys/add/"):
        assert client.get(address)["Location"] == f"/accounts/reauthenticate/?{urlencode({'next': address})}"
        assert client.post(address, {"code": "1"}).status_code == 302
    assert not Authenticator.objects.exists()


def test_an_unverified_address_is_no_ground_for_a_second_factor(client: Client, user: User) -> None:
    user.emailaddress_set.update(verified=False)
    client.force_login(user)
    assert "Verify or remove your unverified" in client.get(APP, follow=True).content.decode()


def test_every_page_is_ours(client: Client, user: User) -> None:
    sign_in(client)
    client.get(APP)
    pages = [client.post(f"/accounts/reauthenticate/?next={APP}", {"password": PASSWORD}, follow=True)]
    secret = set_up_app(client)
    data = {"name": "Mine", "credential": {}}
    passkey = Authenticator.objects.create(user=user, type="webauthn", data=data)
    later = Client()
    sign_in(later)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("allauth.mfa.webauthn.internal.auth.get_credentials", lambda *_: [])
        pages.append(later.get(SECOND))
        later.post(SECOND, {"code": code(secret)})
        pages += [later.get(f"/accounts/2fa/{page}reauthenticate/") for page in ("", "passkeys/")]
        pages += [client.get(f"/accounts/2fa/{page}") for page in ("", "app/remove/", "codes/", "codes/new/")]
        pages += [client.get(f"/accounts/2fa/passkeys/{page}") for page in ("add/", f"{passkey.pk}/remove/")]
    for page in pages:
        assert page.status_code == 200 and is_ours(page), page.request["PATH_INFO"]
        assert "no-store" in page["Cache-Control"]


# Secrets at rest


def test_neither_the_secret_nor_the_seed_is_in_the_database(user: User, secret: str) -> None:
    stored = json.dumps(list(Authenticator.objects.values_list("data", flat=True)))
    assert secret not in stored and stored.count("gAAAA") == 2


def test_secrets_are_readable_after_the_key_is_changed_with_a_fallback(
    user: User, secret: str, settings: Settings
) -> None:
    settings.SECRET_KEY_FALLBACKS, settings.SECRET_KEY = [settings.SECRET_KEY], "x" * 50
    client = Client()
    sign_in(client)
    client.post(SECOND, {"code": code(secret)})
    assert signed_in(client)


def test_without_a_fallback_the_sign_in_says_why_and_no_code_is_right(
    user: User, secret: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client()
    settings.SECRET_KEY = "x" * 50
    sign_in(client)
    for guess in (code(secret), code(base64.b32encode(bytes(20)).decode())):
        response = client.post(SECOND, {"code": guess})
        assert response.status_code == 503 and "cannot be checked" in response.content.decode()
    assert not signed_in(client)
    assert "SECRET_KEY was changed without a fallback" in caplog.text and secret not in caplog.text


def test_what_was_sealed_is_changed_by_nobody(settings: Settings) -> None:
    sealed = sealing.seal("secret")
    assert sealed != sealing.seal("secret") and sealing.unseal(sealed) == "secret"
    with pytest.raises(sealing.Unreadable):
        sealing.unseal(sealed[:-4] + "AAAA")


# Passkeys: what a browser does not do is tried here; what it does, in test_mfa_browser.py


@pytest.mark.parametrize(
    "credential",
    ["", "null", "[]", '"x"', "{}", '{"id": "x"}', "{", '{"response": {"userHandle": "MQ"}}']
    + [
        json.dumps(
            {"id": word, "rawId": word, "type": "public-key", "response": response, "clientExtensionResults": {}}
        )
        for word in ("AAAA", "?", "")
        for response in (
            {},
            {"clientDataJSON": "AAAA", "authenticatorData": "AAAA", "signature": "AAAA", "userHandle": "MQ"},
            {"clientDataJSON": "e30", "authenticatorData": "A" * 60, "signature": "", "userHandle": None},
            {"clientDataJSON": "AAAA", "attestationObject": "AAAA"},
        )
    ],
)
def test_a_made_up_passkey_is_refused_and_is_no_error(client: Client, user: User, credential: str) -> None:
    assert client.get(PASSKEY).json()["request_options"]["publicKey"]["userVerification"] == "required"
    response = client.post(PASSKEY, {"credential": credential})
    assert response["Location"] == SIGN_IN
    assert not signed_in(client)
    assert "could not be verified" in client.get(SIGN_IN).content.decode()
    sign_in(client)
    client.post(f"/accounts/reauthenticate/?next={FACTORS}", {"password": PASSWORD})
    response = client.post("/accounts/2fa/passkeys/add/", {"name": "Mine", "credential": credential})
    assert response.status_code == 200 and not Authenticator.objects.exists()


def test_nobody_reaches_the_passkey_of_another(client: Client, user: User, secret: str) -> None:
    other = User.objects.create_user("other@example.com", PASSWORD)
    theirs = Authenticator.objects.create(user=other, type="webauthn", data={"name": "Theirs", "credential": {}})
    sign_in(client)
    client.post(SECOND, {"code": code(secret)})
    client.post(f"/accounts/reauthenticate/?next={FACTORS}", {"password": PASSWORD})
    for ask in (client.get, client.post):
        assert ask(f"/accounts/2fa/passkeys/{theirs.pk}/remove/").status_code == 404
    assert Authenticator.objects.filter(pk=theirs.pk).exists()


def test_the_admin_does_not_edit_second_factors(admin_client: Client) -> None:
    assert admin_client.get("/admin/mfa/authenticator/").status_code == 404


# REQUIRE_MFA


@pytest.fixture
def required(settings: Settings) -> None:
    settings.REQUIRE_MFA = ["approver", "maintainer"]


def test_the_roles_that_the_setting_knows_are_all_roles() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUIRE_MFA", ",".join(Role.values))
        assert env.subset("REQUIRE_MFA", env.ROLES) == Role.values == list(env.ROLES)


def give(user: User, group: str) -> None:
    user.groups.add(Group.objects.get_or_create(name=group)[0])


@pytest.mark.usefixtures("required")
@pytest.mark.parametrize(
    ("group", "superuser", "led"),
    [
        ("approver", False, True),
        ("approver:production", False, True),
        ("maintainer", False, True),
        ("deployer", False, False),
        ("approvers", False, False),
        ("", False, False),
        ("", True, True),
    ],
)
def test_whoever_has_such_a_role_is_led_to_set_one_up(
    client: Client, user: User, group: str, superuser: bool, led: bool
) -> None:
    if group:
        give(user, group)
    User.objects.update(is_superuser=superuser, is_staff=superuser)
    sign_in(client)
    for address in ("/", "/deployments/", "/accounts/profile/", "/admin/"):
        response = client.get(address)
        assert (response.headers.get("Location") == FACTORS) is led, address
    assert (client.post("/accounts/password/change/").headers.get("Location") == FACTORS) is led
    page = client.get(FACTORS)
    assert page.status_code == 200 and ("Your role requires" in page.content.decode()) is led
    assert client.get("/api/openapi.json").status_code == 200
    assert client.post("/accounts/logout/").status_code == 302 and not signed_in(client)


@pytest.mark.usefixtures("required")
def test_after_setting_one_up_everything_is_open_and_the_last_one_stays(client: Client, user: User) -> None:
    give(user, "approver")
    sign_in(client)
    secret = set_up_app(client)
    assert client.get(CODES).status_code == 200 and client.get("/accounts/profile/").status_code == 200
    page = client.get("/accounts/2fa/app/remove/").content.decode()
    assert "disabled" in page
    client.post("/accounts/2fa/app/remove/")
    assert Authenticator.objects.filter(type="totp").exists()

    later = Client()
    sign_in(later)
    later.post(SECOND, {"code": code(secret)})
    assert later.get("/accounts/profile/").status_code == 200


@pytest.mark.usefixtures("required")
def test_the_last_passkey_stays(client: Client, user: User) -> None:
    give(user, "approver")
    sign_in(client)
    set_up_app(client)
    Authenticator.objects.filter(type="totp").delete()
    last = Authenticator.objects.create(user=user, type="webauthn", data={"name": "Mine", "credential": {}})
    response = client.post(f"/accounts/2fa/passkeys/{last.pk}/remove/", follow=True)
    assert "Add another one before" in response.content.decode()
    assert Authenticator.objects.filter(pk=last.pk).exists()


@pytest.mark.usefixtures("required")
def test_a_session_that_began_with_the_password_alone_gains_nothing_from_a_factor_set_up_elsewhere(user: User) -> None:
    give(user, "approver")
    stolen, own = Client(), Client()
    sign_in(stolen)
    sign_in(own)
    set_up_app(own)
    assert own.get("/accounts/profile/").status_code == 200
    assert stolen.get("/accounts/profile/")["Location"] == FACTORS
    assert "sign in with yours" in stolen.get(FACTORS).content.decode()


@pytest.mark.usefixtures("required")
def test_an_open_page_that_updates_itself_leaves(client: Client, user: User) -> None:
    give(user, "approver")
    sign_in(client)
    response = client.get("/", headers={"HX-Request": "true"})
    assert response.status_code == 204 and response["HX-Redirect"] == FACTORS


@pytest.mark.usefixtures("required")
def test_strangers_and_shown_factors_cost_no_query(client: Client, user: User, django_assert_num_queries: Any) -> None:
    give(user, "approver")
    sign_in(client)
    set_up_app(client)
    client.get(FACTORS)
    with django_assert_num_queries(3):  # the user and, for the menu, the permissions; the session is in the cache
        assert client.get("/accounts/logout/").status_code == 200
    with django_assert_num_queries(0):
        assert Client().get("/accounts/password/reset/done/").status_code == 200


def test_the_open_names_exist() -> None:
    from django.urls import get_resolver

    names = {str(name) for name in get_resolver().reverse_dict if isinstance(name, str)} | {"accounts:avatar"}
    assert middleware.OPEN <= names
