"""Second factors in a real browser against gunicorn; Chromium's virtual authenticator stands for a person's device."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg2
import pytest
from playwright.sync_api import Browser

from tests.accounts.test_mfa import code
from tests.support.browser import Window, chromium
from tests.support.servers import PATIENCE, ROOT, Gunicorn, Redis

pytestmark = pytest.mark.browser

PASSWORD = "correct horse battery staple"
PEOPLE = ("app@example.com", "passkey@example.com")
PREPARE = f"""
import django
django.setup()
from django.core.management import call_command
from accounts.models import User
call_command("migrate", verbosity=0)
for address in {PEOPLE!r}:
    User.objects.create_superuser(address, {PASSWORD!r}, is_staff=False)
"""


@dataclass
class Site:
    """The app under gunicorn, at a host name, as passkeys require one; and one browser."""

    url: str
    browser: Browser


@pytest.fixture(scope="module")
def site(own_redis: Redis) -> Iterator[Site]:
    base, name = os.environ["DATABASE_URL"], f"people_{os.getpid()}"
    with chromium() as browser:
        with closing(psycopg2.connect(base)) as connection:
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE {name}")
        env = {
            "DJANGO_SETTINGS_MODULE": "settings.testing",
            "DATABASE_URL": f"{base.rpartition('/')[0]}/{name}",
            "REDIS_URL": own_redis.url,
            "REQUIRE_MFA": "maintainer",
            "EMAIL_VERIFICATION": "none",
        }
        program = [sys.executable, "-c", PREPARE]
        subprocess.run(program, cwd=ROOT, env=os.environ | env, check=True, timeout=PATIENCE)
        with Gunicorn(**env) as server:
            yield Site(server.url.replace("127.0.0.1", "localhost"), browser)


@pytest.fixture
def window(site: Site) -> Iterator[Window]:
    with closing(Window(site.browser, site.url)) as window:
        yield window


def device(window: Window) -> Any:
    """Gives the window a device that has a screen lock and keeps passkeys; returns its connection.

    https://chromedevtools.github.io/devtools-protocol/tot/WebAuthn/
    """
    connection = window.context.new_cdp_session(window.page)
    connection.send("WebAuthn.enable")
    options = {"protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True}
    made = connection.send(
        "WebAuthn.addVirtualAuthenticator",
        {"options": options | {"isUserVerified": True, "automaticPresenceSimulation": True}},
    )
    return connection, made["authenticatorId"]


def there(window: Window, heading: str) -> None:
    """Waits for a page that was looked at before."""
    window.page.get_by_role("heading", level=1, name=heading, exact=True).wait_for()


def sign_in(window: Window, email: str) -> None:
    window.page.goto("/accounts/login/")
    window.fill(login=email, password=PASSWORD)
    window.press("Sign in")


def sign_out(window: Window) -> None:
    window.page.get_by_role("button", name="Sign out").click()
    window.page.get_by_text("Signed out.").wait_for()


def confirm(window: Window) -> None:
    window.at("Confirm it's you")
    window.fill(password=PASSWORD)
    window.press("Confirm")


def test_who_has_to_sets_up_a_passkey_and_signs_in_with_it(window: Window) -> None:
    page = window.page
    connection, authenticator = device(window)
    sign_in(window, "passkey@example.com")
    window.at("Two-factor authentication")
    page.get_by_text("Your role requires a second factor.").wait_for()
    page.get_by_role("link", name="Add passkey").click()
    confirm(window)
    window.at("Add a passkey")

    connection.send("WebAuthn.setUserVerified", {"authenticatorId": authenticator, "isUserVerified": False})
    window.press("Add passkey")
    page.get_by_text("No passkey was used").wait_for()
    connection.send("WebAuthn.setUserVerified", {"authenticatorId": authenticator, "isUserVerified": True})
    window.press("Add passkey")
    window.at("Recovery codes")
    page.get_by_role("link", name="Done").click()
    window.at("Two-factor authentication")
    assert page.get_by_text("Your role requires").count() == 0
    sign_out(window)

    window.go("/accounts/login/?next=/accounts/profile/", "Sign in")
    window.press("Sign in with a passkey")
    there(window, "Your profile")
    sign_out(window)

    sign_in(window, "passkey@example.com")
    window.at("Enter your second factor")
    window.press("Use a passkey")
    there(window, "What runs where")

    page.goto("/accounts/2fa/")
    page.get_by_role("link", name="Remove Passkey", exact=True).click()
    there(window, "Confirm it's you")
    page.get_by_role("link", name="Use a passkey").click()
    window.at("Confirm it's you")
    window.press("Use a passkey")
    window.at("Remove Passkey")
    window.press("Remove passkey")
    page.get_by_text("Add another one before you remove this.").wait_for()


def test_an_app_is_set_up_and_asked_for_without_javascript(site: Site) -> None:
    with closing(Window(site.browser, site.url, java_script_enabled=False)) as window:
        page = window.page
        sign_in(window, "app@example.com")
        page.get_by_text("Your role requires a second factor.").wait_for()
        page.get_by_role("link", name="Add passkey").click()
        window.fill(password=PASSWORD)
        window.press("Confirm")
        page.get_by_text("Passkeys require JavaScript.").wait_for()
        assert page.get_by_role("button", name="Add passkey").count() == 0
        page.get_by_role("link", name="Set up an authenticator app instead").click()
        secret = window.main.locator(".command").inner_text()
        window.fill(code=code(secret))
        window.press("Turn on")
        spare = window.main.locator(".codes li").first.inner_text()
        sign_out(window)
        page.goto("/accounts/login/")
        assert page.get_by_role("button", name="Sign in with a passkey").count() == 0
        sign_in(window, "app@example.com")
        window.fill(code=spare)
        window.press("Sign in")
        page.get_by_role("heading", name="What runs where").wait_for()


def test_the_pages_of_an_app_are_accessible(window: Window, site: Site) -> None:
    page = window.page
    sign_in(window, "app@example.com")
    there(window, "Enter your second factor")
    window.fill(code="000000")
    window.press("Sign in")
    page.get_by_text("This code is not correct.").first.wait_for()
    window.inspect()
    window.press("Cancel")
    there(window, "Sign in")
