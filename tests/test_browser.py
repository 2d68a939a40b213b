"""What a person does, in a real browser against gunicorn: each page on the way is checked by axe and by the console."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest
from django.template import loader
from PIL import Image
from playwright.sync_api import Browser, Page, Route

from tests.browser import MailServer, Window, chromium
from tests.servers import ROOT, Gunicorn, Redis

pytestmark = pytest.mark.browser

PASSWORD = "correct horse battery staple"
STAFF = "ada@example.com"
PREPARE = f"""
import django
django.setup()
from django.core.management import call_command
from accounts.models import User
call_command("migrate", verbosity=0)
User.objects.create_superuser({STAFF!r}, {PASSWORD!r}, display_name="Ada")
"""


@dataclass
class Site:
    """The app under gunicorn with a database and a mail server of its own, and one browser."""

    server: Gunicorn
    mail: MailServer
    browser: Browser

    @property
    def url(self) -> str:
        return self.server.url


@pytest.fixture(scope="module")
def site(own_redis: Redis) -> Iterator[Site]:
    base = os.environ["DATABASE_URL"]
    name = f"browser_{os.getpid()}"
    with chromium() as browser, MailServer() as mail:
        with closing(psycopg2.connect(base)) as connection:
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE {name}")
        env = {
            "DJANGO_SETTINGS_MODULE": "settings.testing",
            "DATABASE_URL": f"{base.rpartition('/')[0]}/{name}",
            "REDIS_URL": own_redis.url,
            "EMAIL_HOST": "127.0.0.1",
            "EMAIL_PORT": str(mail.port),
            "EMAIL_USE_TLS": "false",
        }
        subprocess.run([sys.executable, "-c", PREPARE], cwd=ROOT, env=os.environ | env, check=True, timeout=60)
        with Gunicorn(**env) as server:
            yield Site(server, mail, browser)


@pytest.fixture
def window(site: Site) -> Iterator[Window]:
    """A stranger's window."""
    with closing(Window(site.browser, site.url)) as window:
        yield window


@pytest.fixture(scope="module")
def cookies(site: Site) -> Path:
    """The cookies of one of the staff who has signed in."""
    with closing(Window(site.browser, site.url)) as window:
        sign_in(window)
        path = site.server.folder / "cookies.json"
        window.context.storage_state(path=path)
        return path


@pytest.fixture
def staff(site: Site, cookies: Path) -> Iterator[Window]:
    """A window in which one of the staff is signed in."""
    with closing(Window(site.browser, site.url, storage_state=cookies)) as window:
        yield window


def sign_in(window: Window, email: str = STAFF, password: str = PASSWORD) -> None:
    window.page.goto("/accounts/login/")
    window.fill(login=email, password=password)
    window.press("Sign in")
    window.page.wait_for_url("/")


def sign_out(window: Window) -> None:
    window.page.get_by_role("button", name="Sign out").click()
    window.page.get_by_text("You are signed out.").wait_for()


def test_a_newcomer_signs_up_confirms_signs_in_and_makes_a_profile(site: Site, window: Window, tmp_path: Path) -> None:
    page = window.page
    window.go("/", "This instance is healthy")
    window.main.get_by_role("link", name="Sign up").click()
    window.at("Sign up")
    window.fill(email="new@example.com", password1="short", password2="other")
    window.press("Sign up")
    page.get_by_role("heading", name="Please check what you entered").wait_for()
    assert page.evaluate("document.activeElement.className") == "summary", "the summary has the focus"
    window.inspect()
    page.get_by_role("link", name="Password: This password is too short").click()
    assert page.evaluate("document.activeElement.name") == "password1", "its links lead to the fields"

    window.fill(password1=PASSWORD, password2=PASSWORD)
    window.press("Sign up")
    window.at("Check your mail")
    page.goto(site.mail.link("new@example.com"))
    window.at("Confirm your email address")
    window.press("Confirm")
    page.get_by_text("new@example.com is confirmed.").wait_for()
    sign_in(window, "new@example.com")
    window.at("This instance is healthy")
    window.main.get_by_role("link", name="Choose a display name").click()
    window.at("Your profile")

    picture, text = tmp_path / "picture.png", tmp_path / "text.png"
    Image.effect_noise((300, 200), 50).save(picture)
    text.write_text("no picture")
    window.fill(display_name="Nova")
    page.set_input_files("[name=avatar]", text)
    window.press("Save")
    page.get_by_role("heading", name="Please check what you entered").wait_for()
    window.inspect()
    page.set_input_files("[name=avatar]", picture)
    window.press("Save")
    page.get_by_text("Your profile is saved.").wait_for()
    window.inspect()
    account = page.get_by_role("navigation", name="Account", exact=True)
    assert "Nova" in account.inner_text()
    assert account.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0

    page.get_by_label("Remove the picture").check()
    window.press("Save")
    page.get_by_text("Your profile is saved.").wait_for()
    assert account.locator("img").count() == 0
    sign_out(window)
    window.inspect()


def test_a_forgotten_password_is_replaced(site: Site, window: Window) -> None:
    page = window.page
    window.go("/accounts/login/", "Sign in")
    window.fill(login=STAFF, password="forgotten")
    window.press("Sign in")
    page.get_by_text("are not correct").wait_for()
    window.inspect()
    page.get_by_role("link", name="Forgotten your password?").click()
    window.at("Reset your password")
    window.fill(email=STAFF)
    window.press("Send the link")
    window.at("Check your mail")
    link = site.mail.link(STAFF)
    page.goto(link)
    window.at("Choose a new password")
    window.fill(password1=PASSWORD, password2=PASSWORD)
    window.press("Change password")
    window.at("Your password is changed")
    page.goto(link)
    window.at("This link no longer works")
    window.main.get_by_role("link", name="Send a new link").click()
    window.at("Reset your password")
    sign_in(window)


def test_addresses_are_managed_after_the_password_is_given_again(site: Site, window: Window) -> None:
    page = window.page
    sign_in(window)
    window.go("/accounts/email/", "Email addresses")
    page.get_by_role("textbox", name="Email").fill("second@example.com")
    window.press("Add address")
    window.at("Confirm that it is you")
    window.fill(password=PASSWORD)
    window.press("Confirm")
    page.get_by_text("A link to confirm second@example.com is on its way.").wait_for()
    window.inspect()
    page.get_by_label("second@example.com").check()
    window.press("Remove")
    page.get_by_text("second@example.com is removed.").wait_for()


def test_the_other_pages_are_sound(staff: Window, window: Window) -> None:
    staff.go("/accounts/password/change/", "Change your password")
    staff.go("/accounts/logout/", "Sign out?")
    window.go("/accounts/inactive/", "This account is switched off")
    window.go("/accounts/confirm-email/no-such-key/", "This link no longer works")


def test_the_admin_keeps_to_the_content_security_policy(staff: Window) -> None:
    for path in ("/admin/", "/admin/accounts/user/", "/admin/accounts/user/1/change/", "/admin/accounts/user/add/"):
        staff.page.goto(path)
        staff.page.get_by_role("link", name="backstagetest1 · testing").wait_for()


def test_the_error_pages_are_sound(window: Window) -> None:
    window.go("/no/such/page/", "There is no page here")
    for status in (400, 403, 413, 429, 500, 503):
        body = loader.get_template(f"{status}.html").render({"request_id": "0123456789abcdef0123456789abcdef"})

        def answer(route: Route, *, status: int = status, body: str = body) -> None:
            route.fulfill(status=status, body=body, content_type="text/html")

        window.page.route("**/shown/", answer)
        window.page.goto("/shown/")
        assert window.page.get_by_text("0123456789abcdef0123456789abcdef").is_visible()
        window.inspect()
        window.page.unroute("**/shown/")


def focused(page: Page) -> str:
    """The name of the element that has the focus; it must be seen to have it."""
    seen: list[str] = page.evaluate("""() => {
        const element = document.activeElement, box = element.getBoundingClientRect();
        const hit = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
        const { outlineStyle, outlineWidth } = getComputedStyle(element);
        const ring = outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
        const shown = ring && (element.contains(hit) || !hit);
        return [shown ? "" : "nothing shows the focus on ", element.name || element.innerText];
    }""")
    return "".join(seen)


def test_everything_is_done_by_keyboard_alone(window: Window) -> None:
    page = window.page
    page.goto("/")
    order = []
    for _ in range(6):
        page.keyboard.press("Tab")
        order.append(focused(page))
    assert order[:5] == ["Skip to the content", "backstagetest1", "Overview", "Sign in", "Sign up"]
    page.reload()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)"), "the skip link skips"

    page.goto("/accounts/login/")
    while focused(page) != "login":
        page.keyboard.press("Tab")
    page.keyboard.type(STAFF)
    page.keyboard.press("Tab")
    assert focused(page) == "Forgotten your password?"
    page.keyboard.press("Tab")
    assert focused(page) == "password"
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("[name=remember]").is_checked()
    page.keyboard.press("Enter")
    page.wait_for_url("/")
    while focused(page) != "Sign out":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("You are signed out.").wait_for()


def test_everything_works_without_javascript(site: Site) -> None:
    with closing(Window(site.browser, site.url, java_script_enabled=False)) as window:
        sign_in(window)
        window.page.goto("/accounts/profile/")
        window.fill(display_name="Ada L.")
        window.press("Save")
        window.page.get_by_text("Your profile is saved.").wait_for()
        assert "Ada L." in window.page.get_by_role("navigation", name="Account", exact=True).inner_text()
        sign_out(window)


def test_back_leads_back_and_shows_nothing_after_signing_out(window: Window) -> None:
    page = window.page
    page.goto("/")
    page.get_by_role("link", name="Sign in").first.click()
    window.fill(login=STAFF, password="wrong")
    window.press("Sign in")
    page.get_by_text("are not correct").wait_for()
    page.go_back()
    page.go_back()
    page.wait_for_url("/")
    page.get_by_role("heading", name="You are not signed in").wait_for()

    sign_in(window)
    page.goto("/accounts/profile/")
    sign_out(window)
    page.go_back()
    page.get_by_role("heading", name="Sign in", exact=True).wait_for()
    assert STAFF not in page.content()


def test_colours_chosen_by_the_system_leave_every_state_readable(site: Site) -> None:
    with closing(Window(site.browser, site.url, forced_colors="active")) as window:
        window.page.goto("/")
        status = window.page.locator(".status-ok").first
        assert status.inner_text() == "Healthy"
        paints = status.locator("svg").evaluate(
            "icon => [getComputedStyle(icon).color, getComputedStyle(document.body).backgroundColor]"
        )
        assert paints[0] != paints[1]
