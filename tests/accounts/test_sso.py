"""Sign-on by OpenID Connect: the app under gunicorn, against a real provider that can also lie."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import requests

from settings import env
from tests.support.openid_provider import LIES
from tests.support.servers import PATIENCE, ROOT, Redis, free_port
from tests.support.site import Site, served

PASSWORD = "correct horse battery staple"
START, CALLBACK = "/accounts/sso/", "/accounts/sso/callback/"
PREPARE = f"""
from accounts.models import User
for name, verified in (("owner", True), ("squatter", False), ("reused", True), ("suspended", True)):
    user = User.objects.create_user(f"{{name}}@example.com", {PASSWORD!r}, is_active=name != "suspended")
    user.emailaddress_set.create(email=user.email, verified=verified, primary=True)
"""


class Provider:
    """The provider's process."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://localhost:{self.port}"
        self.start()

    def start(self) -> None:
        program = [sys.executable, "-m", "tests.support.openid_provider", str(self.port)]
        self.process = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                requests.get(f"{self.url}/jwks", timeout=5)
                return
            except requests.ConnectionError:
                assert time.monotonic() < deadline and self.process.poll() is None
                time.sleep(0.05)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def person(self, sub: str, **claims: Any) -> None:
        requests.put(f"{self.url}/users/{sub}", json=claims, timeout=5).raise_for_status()


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.stop()


@contextmanager
def site_of(provider: Provider, redis: Redis, name: str, **more: str) -> Iterator[Site]:
    client = {"OIDC_ISSUER": provider.url, "OIDC_CLIENT_ID": "app", "OIDC_CLIENT_SECRET": "secret", "OIDC_NAME": "Acme"}
    roles = {"OIDC_ROLES": "groups:sre=maintainer,groups:dev=deployer@staging,groups:dev=viewer"}
    with served(redis, name, PREPARE, **client, **roles, **more) as site:
        yield site


@pytest.fixture(scope="module")
def site(provider: Provider, own_redis: Redis) -> Iterator[Site]:
    with site_of(provider, own_redis, "sso") as site:
        yield site


class Visitor(requests.Session):
    """A browser without scripts."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site

    def at(self, path: str, **options: Any) -> requests.Response:
        return self.get(self.site.url + path, timeout=PATIENCE, **options)

    def to_provider(self, path: str = START) -> str:
        """Starts to sign on; returns the address at the provider that the app leads to."""
        response = self.at(path, allow_redirects=False)
        assert response.status_code == 302, response.text
        return response.headers["Location"]

    def back(self, address: str, sub: str) -> str:
        """Signs in at the provider; returns the address at the app that the provider leads to."""
        response = self.post(address, {"sub": sub}, timeout=PATIENCE, allow_redirects=False)
        assert response.status_code == 302, response.text
        return response.headers["Location"]

    def sign_on(self, sub: str) -> requests.Response:
        return self.get(self.back(self.to_provider(), sub), timeout=PATIENCE)

    def email(self) -> str | None:
        """Whose account is signed in."""
        response = self.at("/accounts/profile/", allow_redirects=False)
        found = re.search(r'<p class="soft">([^<]+@[^<]+)</p>', response.text)
        return found[1] if response.status_code == 200 and found else None


def roles_of(site: Site, email: str) -> set[str]:
    query = """SELECT g.name FROM auth_group g JOIN accounts_user_groups m ON m.group_id = g.id
        JOIN accounts_user u ON u.id = m.user_id WHERE u.email = %s"""
    return {name for (name,) in site.rows(query, email)}


def test_a_newcomer_signs_on_and_the_roles_follow_the_claims(site: Site, provider: Provider) -> None:
    claims = {"email": "New@example.com", "email_verified": True, "name": "Nova"}
    provider.person("new", **claims, groups=["dev", "other"])
    visitor = Visitor(site)
    assert "Sign in with Acme" in visitor.at("/accounts/login/").text
    assert visitor.sign_on("new").status_code == 200
    assert visitor.email() == "new@example.com" and "Nova" in visitor.at("/").text
    assert roles_of(site, "new@example.com") == {"viewer", "deployer:staging"}

    provider.person("new", **claims, groups=["sre"])
    Visitor(site).sign_on("new")
    assert roles_of(site, "new@example.com") == {"maintainer"}
    provider.person("new", **claims)
    Visitor(site).sign_on("new")
    assert roles_of(site, "new@example.com") == set()
    changes = site.rows("SELECT environment, details FROM audit_entry WHERE action = 'role_changed' ORDER BY id")
    assert ("staging", {"from": "deployer", "to": "none"}) in changes and len(changes) == 5


def test_the_flow_has_state_nonce_and_pkce_and_takes_nothing_from_the_link(site: Site) -> None:
    dangerous = {
        "auth_params": "redirect_uri=https://evil.example.com&nonce=1&state=1",
        "scope": "admin",
        "process": "connect",
    }
    asked = parse_qs(urlsplit(Visitor(site).to_provider(f"{START}?{urlencode(dangerous)}")).query)
    assert asked["redirect_uri"] == [site.url + CALLBACK]
    assert asked["code_challenge_method"] == ["S256"] and len(asked["code_challenge"][0]) == 43
    assert len(asked["nonce"][0]) == 64 and len(asked["state"][0]) == 16
    assert set(asked["scope"][0].split()) == {"openid", "profile", "email"}


def test_it_leads_to_where_one_was_going_and_never_elsewhere(site: Site, provider: Provider) -> None:
    provider.person("next", email="next@example.com", email_verified=True)
    for target, leads in (("/status/", "/status/"), ("https://evil.example.com/", "/"), ("//evil.example.com", "/")):
        visitor = Visitor(site)
        back = visitor.back(visitor.to_provider(f"{START}?{urlencode({'next': target})}"), "next")
        assert visitor.get(back, timeout=PATIENCE, allow_redirects=False).headers["Location"] == leads


@pytest.mark.parametrize("sub", LIES)
def test_a_token_that_cannot_be_believed_is_refused(site: Site, provider: Provider, sub: str) -> None:
    provider.person(sub, email="owner@example.com", email_verified=True)
    visitor = Visitor(site)
    response = visitor.sign_on(sub)
    assert response.status_code == 403 and "could not be signed in" in response.text
    assert visitor.email() is None
    assert site.rows("SELECT 1 FROM socialaccount_socialaccount WHERE extra_data->>'sub' = %s", sub) == []


def test_another_state_and_one_of_another_browser_are_refused(site: Site, provider: Provider) -> None:
    provider.person("state", email="state@example.com", email_verified=True)
    visitor, victim = Visitor(site), Visitor(site)
    back = visitor.back(visitor.to_provider(), "state")
    victim.to_provider()
    assert victim.get(back, timeout=PATIENCE).status_code == 403 and victim.email() is None
    assert visitor.get(re.sub("state=[^&]+", "state=x", back), timeout=PATIENCE).status_code == 403
    assert visitor.at(CALLBACK).status_code == 403
    assert visitor.get(back, timeout=PATIENCE).status_code == 200 and visitor.email()
    again = Visitor(site)
    again.to_provider()
    assert again.get(back, timeout=PATIENCE).status_code == 403, "and a code is used once"


@pytest.mark.parametrize("verified", [False, None, "true", "false", 1])
def test_an_address_that_is_not_verified_opens_no_account(site: Site, provider: Provider, verified: Any) -> None:
    claims = {} if verified is None else {"email_verified": verified}
    for address in ("owner@example.com", "unknown@example.com"):
        provider.person(f"unverified {verified!r}", email=address, **claims)
        visitor = Visitor(site)
        assert "Acme has not verified your email address" in visitor.sign_on(f"unverified {verified!r}").text
        assert visitor.email() is None
    assert site.rows("SELECT 1 FROM accounts_user WHERE email = 'unknown@example.com'") == []


@pytest.mark.parametrize("address", [None, "", 7, "no address", "a@b\n.example", f"{'a' * 250}@example.com"])
def test_without_a_valid_address_nobody_enters(site: Site, provider: Provider, address: Any) -> None:
    provider.person("invalid", email_verified=True, **({} if address is None else {"email": address}))
    assert Visitor(site).sign_on("invalid").status_code == 403


def test_the_owner_of_a_verified_address_is_linked_and_keeps_the_password(site: Site, provider: Provider) -> None:
    before = site.rows("SELECT id, password FROM accounts_user WHERE email = 'owner@example.com'")
    provider.person("owner", email="OWNER@example.com", email_verified=True)
    visitor = Visitor(site)
    visitor.sign_on("owner")
    assert visitor.email() == "owner@example.com"
    assert site.rows("SELECT id, password FROM accounts_user WHERE email = 'owner@example.com'") == before

    provider.person("owner", email="elsewhere@example.com", email_verified=False)
    visitor = Visitor(site)
    visitor.sign_on("owner")
    assert visitor.email() == "owner@example.com", "who is linked is known by issuer and subject"


def test_whoever_squats_on_an_address_loses_it_to_its_owner(site: Site, provider: Provider) -> None:
    provider.person("true-owner", email="squatter@example.com", email_verified=True)
    visitor = Visitor(site)
    visitor.sign_on("true-owner")
    assert visitor.email() == "squatter@example.com"
    ((password,),) = site.rows("SELECT password FROM accounts_user WHERE email = 'squatter@example.com'")
    assert password.startswith("!")


def test_an_address_that_the_provider_gave_to_another_person_does_not_enter(site: Site, provider: Provider) -> None:
    provider.person("former", email="reused@example.com", email_verified=True)
    Visitor(site).sign_on("former")
    provider.person("successor", email="reused@example.com", email_verified=True)
    visitor = Visitor(site)
    assert "belongs to somebody else" in visitor.sign_on("successor").text and visitor.email() is None


def test_a_suspended_person_does_not_enter(site: Site, provider: Provider) -> None:
    provider.person("suspended", email="suspended@example.com", email_verified=True)
    visitor = Visitor(site)
    assert visitor.sign_on("suspended").url.endswith("/accounts/inactive/")
    assert visitor.email() is None


def test_who_cancels_is_back_at_the_sign_in(site: Site) -> None:
    visitor = Visitor(site)
    state = parse_qs(urlsplit(visitor.to_provider()).query)["state"][0]
    denied = visitor.at(f"{CALLBACK}?error=access_denied&state={state}")  # the mock itself leaves the state out
    assert denied.url == site.url + "/accounts/login/" and "Sign-in cancelled." in denied.text


def test_with_sso_only_there_is_no_other_way_in_but_a_link_and_a_provider_that_is_down_is_told(
    provider: Provider, own_redis: Redis
) -> None:
    with site_of(provider, own_redis, "sso_only", SSO_ONLY="true") as site:
        visitor = Visitor(site)
        page = visitor.at("/accounts/login/").text
        assert "Sign in with Acme" in page and "password" not in page and "passkey" not in page
        form = {
            "login": "owner@example.com",
            "password": PASSWORD,
            "csrfmiddlewaretoken": visitor.cookies.get("csrf", ""),
        }
        visitor.post(site.url + "/accounts/login/", form, timeout=PATIENCE)
        assert visitor.email() is None
        for closed in ("signup/", "password/reset/", "password/reset/key/1-x/", "2fa/passkeys/sign-in/"):
            assert visitor.at(f"/accounts/{closed}").url == site.url + "/accounts/login/"

        back = visitor.back(visitor.to_provider(), "owner")
        provider.stop()
        try:
            down = [visitor.get(back, timeout=PATIENCE)]
            own_redis.client().flushall()  # what the provider told before is kept for five minutes
            down.append(visitor.at(START))
            for response in down:
                assert response.status_code == 503 and "Acme is unavailable" in response.text
                assert response.headers["Retry-After"]
        finally:
            provider.start()
        assert visitor.email() is None

        command = [sys.executable, "manage.py", "sign_in_link", "owner@example.com"]
        link = subprocess.run(
            command, cwd=ROOT, env=site.env, check=True, capture_output=True, text=True
        ).stdout.strip()
        assert "Sign in as owner@example.com" in visitor.at(link).text and visitor.email() is None
        form = {"csrfmiddlewaretoken": visitor.cookies["csrf"]}
        visitor.post(site.url + link, form, timeout=PATIENCE)
        assert visitor.email() == "owner@example.com"
        assert "Invalid or expired link" in Visitor(site).at(link).text, "it works once"


# Settings


def test_roles_by_claims_are_read_strictly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OIDC_ROLES", "groups:sre=maintainer, https://acme/roles:a:b=c=deployer@eu-1")
    assert [tuple(each) for each in env.claim_roles("OIDC_ROLES")] == [
        ("groups", "sre", "maintainer", ""),
        ("https", "//acme/roles:a:b=c", "deployer", "eu-1"),
    ]
    for wrong in ("groups=maintainer", "groups:sre", "groups:sre=root", "groups:sre=viewer@", ":a=viewer", "a:=viewer"):
        monkeypatch.setenv("OIDC_ROLES", wrong)
        with pytest.raises(env.ConfigError, match="OIDC_ROLES is invalid"):
            env.claim_roles("OIDC_ROLES")


def test_no_code_for_sign_on_is_imported_without_an_issuer() -> None:
    program = """
import django, sys
django.setup()
from django.urls import get_resolver
get_resolver().url_patterns
print(sorted(name for name in sys.modules if name.startswith(("allauth.socialaccount.", "accounts.sso", "oauthlib"))))
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert run.stdout == "[]\n", run.stdout + run.stderr
