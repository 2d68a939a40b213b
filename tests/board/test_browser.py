"""What a person does, in a real browser against gunicorn: each page on the way is checked by axe and by the console."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import psycopg2
import pytest
from django.template import loader
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route

from ledger.humanize import age, took
from tests.board.test_pages import MEMBERS_PAGES, STRANGERS_PAGES
from tests.support.browser import MailServer, Window, chromium
from tests.support.servers import PATIENCE, ROOT, Gunicorn, Redis

pytestmark = pytest.mark.browser

PASSWORD = "correct horse battery staple"
STAFF = "ada@example.com"
PREPARE = f"""
import django
django.setup()
from django.core.management import call_command
from accounts.models import User
from ledger import demo
from ledger import tokens
from ledger.models import Environment
call_command("migrate", verbosity=0)
User.objects.create_superuser({STAFF!r}, {PASSWORD!r}, display_name="Ada")
demo.load("mock")
print(tokens.make("pipeline", Environment.objects.all(), may_register=True, may_take_over=True)[1])
"""


@dataclass
class Site:
    """The app under gunicorn with a database and a mail server of its own, and one browser."""

    server: Gunicorn
    mail: MailServer
    browser: Browser
    token: str

    @property
    def url(self) -> str:
        return self.server.url

    def api(self, path: str, **body: str) -> Any:
        """What the API answers to a pipeline: to a POST, if there is a body."""
        request = Request(
            f"{self.url}/api/{path}",
            json.dumps(body).encode() if body else None,
            {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)


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
        program = [sys.executable, "-c", PREPARE]
        prepared = subprocess.run(
            program, cwd=ROOT, env=os.environ | env, check=True, timeout=PATIENCE, stdout=subprocess.PIPE, text=True
        )
        with Gunicorn(**env) as server:
            yield Site(server, mail, browser, prepared.stdout.strip())


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
    window.page.get_by_text("Signed out.").wait_for()


def test_a_newcomer_signs_up_confirms_signs_in_and_makes_a_profile(site: Site, window: Window, tmp_path: Path) -> None:
    page = window.page
    window.go("/", "What runs where")
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
    window.at("Check your email")
    page.goto(site.mail.link("new@example.com"))
    window.at("Verify your email address")
    window.press("Verify")
    page.get_by_text("new@example.com is verified.").wait_for()
    sign_in(window, "new@example.com")
    window.at("What runs where")
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
    page.get_by_text("Profile saved.").wait_for()
    window.inspect()
    account = page.get_by_role("navigation", name="Account", exact=True)
    assert "Nova" in account.inner_text()
    assert account.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0

    page.get_by_label("Remove profile picture").check()
    window.press("Save")
    page.get_by_text("Profile saved.").wait_for()
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
    page.get_by_role("link", name="Forgot your password?").click()
    window.at("Reset your password")
    window.fill(email=STAFF)
    window.press("Send the link")
    window.at("Check your email")
    link = site.mail.link(STAFF)
    page.goto(link)
    window.at("Choose a new password")
    window.fill(password1=PASSWORD, password2=PASSWORD)
    window.press("Change password")
    window.at("Password changed")
    page.goto(link)
    window.at("Invalid or expired link")
    window.main.get_by_role("link", name="Send a new link").click()
    window.at("Reset your password")
    sign_in(window)


def test_addresses_are_managed_after_the_password_is_given_again(site: Site, window: Window) -> None:
    page = window.page
    sign_in(window)
    window.go("/accounts/email/", "Email addresses")
    page.get_by_role("textbox", name="Email").fill("second@example.com")
    window.press("Add address")
    window.at("Confirm it's you")
    window.fill(password=PASSWORD)
    window.press("Confirm")
    page.get_by_text("Verification email sent to second@example.com.").wait_for()
    window.inspect()
    page.get_by_label("second@example.com").check()
    window.press("Remove")
    page.get_by_text("second@example.com removed.").wait_for()


def test_the_audit_log_is_sound(staff: Window) -> None:
    staff.go("/audit/", "Audit log")
    assert "Signed in" in staff.main.get_by_role("table").inner_text()
    staff.page.get_by_label("Actor").fill("nobody@example.com")
    staff.press("Apply")
    staff.page.get_by_text("No matching entries.").wait_for()
    staff.inspect()


def test_a_freeze_is_added_and_ended(staff: Window) -> None:
    staff.go("/freezes/", "Freezes")
    form = staff.main.get_by_role("region", name="Freeze each week")
    form.get_by_label("Environment").select_option("testing")
    form.get_by_label("Reason").fill("Weekend")
    form.get_by_label("Start time").fill("16:00")
    form.get_by_label("End time").fill("08:00")
    staff.press("Freeze each week")
    staff.page.get_by_text("Freeze added").wait_for()
    staff.inspect()
    staff.press("End the freeze Weekend")
    staff.page.get_by_text("No freezes.").wait_for()


def test_the_other_pages_are_sound(staff: Window, window: Window) -> None:
    staff.go("/accounts/password/change/", "Change your password")
    staff.go("/accounts/logout/", "Sign out?")
    window.go("/accounts/inactive/", "This account is deactivated")
    window.go("/accounts/confirm-email/no-such-key/", "Invalid or expired link")


def running(site: Site) -> Any:
    """The deployment to production that the mock data leave running, or one begun since."""
    found = site.api("deployments?environment=production&status=running")["items"]
    return found[0] if found else None


def test_the_board_brings_itself_up_to_date_and_keeps_the_focus(site: Site, staff: Window) -> None:
    page = staff.page
    staff.go("/", "What runs where")
    card = page.locator("#environment-production")
    assert "Running: 1.18.0" in re.sub(r"\s+", " ", card.inner_text())
    assert "scripts/rollback.sh" in card.inner_text()
    page.evaluate("window.same = true")
    untouched = page.locator("#now-development").element_handle()
    card.locator("#current-production").focus()
    site.api(f"deployments/{running(site)['id']}/finish", result="succeeded")
    card.get_by_role("progressbar").wait_for(state="detached")
    assert card.locator("#current-production").inner_text().endswith("1.18.0")
    assert page.evaluate("window.same && document.activeElement.id") == "current-production"
    assert untouched.evaluate("element => element.isConnected"), "what has not changed is not drawn again"
    staff.inspect()


def polls(page: Page, count: int) -> None:
    """Lets the open page ask so often what has changed, as it does every three seconds, and waits for the answers."""
    for _ in range(count):
        with page.expect_response(lambda answer: "seen=" in answer.url):
            page.evaluate("htmx.trigger('#live', 'poll')")
    page.evaluate("new Promise(requestAnimationFrame)")


def ticks(time: Locator) -> None:
    """Waits until the text is another one."""
    before = time.inner_text()
    time.page.wait_for_function(
        "([time, before]) => time.innerText !== before", arg=[time.element_handle(), before], timeout=10_000
    )


def begin(site: Site, environment: str, version: str, actor: str = "ci", message: str = "A change") -> str:
    """The address of a deployment that runs, of a release that is new."""
    site.api("releases", version=version, commit="4f2a9c1", built_at="2026-01-02T03:04:05Z", message=message)
    key = site.api("deployments", environment=environment, release=version, strategy="rolling", actor=actor)["id"]
    site.api(f"deployments/{key}/start", **{"at": datetime.now(UTC).isoformat()})
    return f"deployments/{key}/"


SELECTED = "getSelection().toString().trim()"


def test_a_selection_outlives_what_changes_around_it_and_time_ticks(site: Site, staff: Window) -> None:
    """The command to roll back was deselected within three seconds, as the whole card was replaced."""
    page = staff.page
    page.set_viewport_size({"width": 360, "height": 500})
    page.goto("/")
    deployment = begin(site, "staging", "7.0")
    in_flight = page.locator("#in-flight-staging")
    in_flight.get_by_text("Running:").wait_for()
    command = page.locator("#rollback-staging code")
    command.scroll_into_view_if_needed()
    command.click()  # chosen as a whole, by its style
    chosen, scroll = page.evaluate(SELECTED), page.evaluate("scrollY")
    assert chosen == command.inner_text() and scroll > 0
    elapsed, element = in_flight.locator("time"), in_flight.element_handle()
    ticks(elapsed)
    polls(page, 3)
    ticks(elapsed)
    assert element.evaluate("element => element.isConnected"), "and nothing is drawn again for that"
    assert page.evaluate(SELECTED) == chosen

    site.api(f"{deployment}steps", name="migrate", outcome="running")
    in_flight.get_by_text("migrate").wait_for()
    other = begin(site, "testing", "7.1")
    page.locator("#in-flight-testing").get_by_text("7.1").wait_for(state="attached")
    polls(page, 2)
    assert page.evaluate(SELECTED) == chosen
    top = command.bounding_box()
    assert top and 0 <= top["y"] < 500, "and it is still in sight"
    assert page.locator("#held").is_hidden()
    for each in (deployment, other):
        site.api(f"{each}finish", result="failed")


def test_what_has_changed_below_a_selection_waits_until_it_is_cleared(site: Site, staff: Window) -> None:
    page = staff.page
    page.goto("/")
    deployment = begin(site, "development", "7.2")
    in_flight = page.locator("#in-flight-development")
    in_flight.get_by_text("Running:").wait_for()
    in_flight.locator("a").evaluate("link => getSelection().selectAllChildren(link)")
    site.api(f"{deployment}finish", result="failed")
    held = page.get_by_text("Clear the selection to see them")
    held.wait_for()
    page.locator("#past-development").get_by_text("7.2 failed").first.wait_for(state="attached")
    assert page.evaluate(SELECTED) == "7.2" and in_flight.get_by_text("Running:").is_visible()
    staff.inspect()
    page.evaluate("getSelection().removeAllRanges()")
    in_flight.get_by_text("Running:").wait_for(state="detached")
    held.wait_for(state="hidden")


def test_a_deployments_page_and_the_list_follow_a_deployment(site: Site, staff: Window, window: Window) -> None:
    page, rows = staff.page, window.page
    deployment = begin(site, "development", "7.3")
    page.goto(f"/{deployment}")
    rows.goto("/deployments/?environment=development")
    row = rows.locator("tr", has_text="7.3")
    row.get_by_text("Running").wait_for()
    page.get_by_text("Running for").first.wait_for()
    commit = page.locator("dt:text('Commit') + dd")
    commit.evaluate("value => getSelection().selectAllChildren(value)")
    page.locator("#previous").focus()
    site.api(f"{deployment}steps", name="smoke test", outcome="running")
    page.locator("#steps-list").get_by_text("smoke test").wait_for()
    width, text = page.locator("#steps-list rect").last, page.locator("#steps-list time").last
    ticks(text)
    polls(page, 2)
    assert float(width.get_attribute("width") or 0) > 1
    assert page.evaluate(SELECTED) == "4f2a9c1" and page.evaluate("document.activeElement.id") == "previous"
    staff.inspect()
    page.evaluate("getSelection().removeAllRanges()")
    site.api(f"{deployment}finish", result="succeeded")
    page.get_by_text("Succeeded after").wait_for()
    row.get_by_text("Succeeded").wait_for()
    newer = begin(site, "development", "7.4")
    rows.locator("tr", has_text="7.4").wait_for()
    site.api(f"{newer}finish", result="failed")


def test_a_browser_words_time_as_the_server_does(window: Window) -> None:
    page = window.page
    page.goto("/")
    now = datetime.now(UTC)
    spans = [0, 1, 59, 60, 61, 119, 3599, 3600, 3661, 86_399, 86_400, 6 * 86_400 + 5]
    expected = [[age(now, now - timedelta(seconds=each)), took(timedelta(seconds=each))] for each in spans]
    assert page.evaluate("spans => spans.map((each) => [age(each), duration(each)])", spans) == expected


def test_a_readers_clock_may_be_wrong(site: Site, window: Window) -> None:
    deployment = begin(site, "testing", "7.5")
    window.page.add_init_script("const right = Date.now; Date.now = () => right() + 3600e3")
    window.page.goto("/")
    elapsed = window.page.locator("#in-flight-testing time").first
    assert re.fullmatch(r"\d+ s", elapsed.inner_text()), "neither an hour ago nor in an hour"
    site.api(f"{deployment}finish", result="failed")


def test_nobody_asks_for_the_board_while_nobody_looks(window: Window) -> None:
    page = window.page
    page.goto("/")
    page.wait_for_function("window.htmx")
    page.evaluate("Object.defineProperty(document, 'hidden', { get: () => window.away, configurable: true })")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("window.away = true; htmx.trigger('#live', 'poll')")
    assert not asked
    with page.expect_response(lambda answer: "seen=" in answer.url) as answer:
        page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    assert answer.value.status in (200, 204)
    assert "<h1" not in (answer.value.text() if answer.value.status == 200 else ""), "only what has changed"


@pytest.mark.parametrize("path", ["/", "/deployments/", "/deployments/1/"])
def test_an_open_page_says_when_it_gets_no_answer(window: Window, path: str) -> None:
    page = window.page
    page.goto(path)
    notice = page.get_by_text("Showing the last known state.")
    assert notice.is_hidden()
    page.route("**/*seen=*", lambda route: route.abort())
    page.get_by_text("Can’t reach the server.").wait_for()
    page.unroute("**/*seen=*")
    notice.wait_for(state="hidden")
    page.route("**/*seen=*", lambda route: route.fulfill(status=503))
    page.get_by_text("The server returned an error (503).").wait_for()
    window.troubles.clear()  # the browser itself told of what was aborted


def test_deployments_are_found_paged_and_read(site: Site, staff: Window, window: Window) -> None:
    page = staff.page
    staff.go("/deployments/", "Deployments")
    first = page.locator("tbody tr").count()
    page.get_by_role("link", name="Older").click()
    page.get_by_role("link", name="Newer").wait_for()
    page.go_back()
    page.get_by_role("link", name="Newer").wait_for(state="detached")
    assert page.locator("tbody tr").count() == first == 25
    page.get_by_label("Status", exact=True).select_option("rolled_back")
    staff.press("Apply")
    page.get_by_role("link", name="Clear", exact=True).wait_for()
    assert page.locator("tbody tr").count() == 1
    page.locator("tbody tr").get_by_role("link").click()
    staff.at("1.11.0 to production")
    staff.main.get_by_text("roll back", exact=True).wait_for()
    page.go_back()
    page.get_by_label("Status", exact=True).wait_for()
    assert page.get_by_label("Status", exact=True).input_value() == "rolled_back", "Back leads to what was asked"
    page.get_by_label("From").fill("2026-02-01")
    page.get_by_label("To", exact=True).fill("2026-01-01")
    staff.press("Apply")
    page.get_by_text("Swap the two").wait_for()
    thickness = "field => getComputedStyle(field).borderTopWidth"
    assert page.get_by_label("To", exact=True).evaluate(thickness) == "2px", "the invalid filter is highlighted"
    assert page.get_by_label("From").evaluate(thickness) == "1px"
    staff.troubles = [trouble for trouble in staff.troubles if "400" not in trouble]  # as it should be
    staff.inspect()
    staff.go("/deployments/?search=nothing", "Deployments")
    newest = site.api("deployments?environment=production&limit=1")["items"][0]
    window.go(f"/deployments/{newest['id']}/", "1.18.0 to production")


def test_the_insights_are_sound(window: Window) -> None:
    window.go("/insights/?days=90", "Insights")
    window.main.get_by_text("Figures").first.click()
    window.inspect()
    window.main.get_by_role("link", name="7 days").click()
    window.page.wait_for_url("**days=7*")
    window.page.go_back()
    window.main.locator("[aria-current]", has_text="90 days").wait_for()


def test_everybody_sees_the_status_and_staff_write_incidents(staff: Window, window: Window) -> None:
    window.go("/status/", "Production is not monitored")
    assert window.main.get_by_role("link", name="Report an incident").count() == 0
    staff.page.goto("/status/")
    staff.main.get_by_role("link", name="Report an incident").click()
    staff.page.get_by_label("Title").wait_for()
    staff.inspect()
    staff.fill(title="Pictures load slowly", message="We are looking into it.")
    staff.press("Publish incident")
    staff.page.get_by_text("We are looking into it.").wait_for()
    staff.inspect()
    window.page.reload()
    window.page.get_by_role("heading", level=1, name="Incident in production", exact=True).wait_for()
    window.inspect()
    window.main.get_by_role("link", name="Pictures load slowly").click()
    window.at("Pictures load slowly")
    assert window.main.get_by_role("button").count() == 0, "updates are for staff"


def test_an_incident_is_mended_updated_and_resolved_on_its_page(staff: Window, window: Window) -> None:
    staff.page.goto("/status/incidents/new/")
    staff.fill(title="Mail is late\u202e", message="Some mail takes an hour.")
    staff.press("Publish incident")
    staff.page.get_by_role("group", name="Please check what you entered").get_by_text("U+202E").wait_for()
    staff.troubles = [trouble for trouble in staff.troubles if "422" not in trouble]  # as it should be
    staff.inspect()
    assert staff.page.locator("[name=message]").input_value() == "Some mail takes an hour.", "nothing typed is lost"
    staff.fill(title="Mail is late")
    staff.press("Publish incident")
    staff.at("Mail is late")
    for status in ("identified", "resolved"):
        staff.page.get_by_label("Status", exact=True).select_option(status)
        staff.fill(message=f"Now it is\n{status} <b>for sure</b>.")
        staff.press("Publish update")
        staff.page.get_by_text(f"{status} <b>for sure</b>.").wait_for()
    staff.inspect()
    updates = staff.main.locator(".updates > li strong")
    assert updates.all_inner_texts() == ["Resolved", "Identified", "Investigating"], "the last one first"
    window.page.goto("/status/")
    past = window.main.get_by_role("article", name="Mail is late")
    assert past.get_by_text("Resolved", exact=True).count() == 2 and STAFF not in window.page.content()
    window.inspect()


def test_an_open_status_page_follows_and_leaves_the_reader_what_is_selected(staff: Window, window: Window) -> None:
    page = window.page
    page.goto("/status/")
    page.evaluate("window.same = true; getSelection().selectAllChildren(document.getElementById('env-testing'))")
    before = page.evaluate("window.kept = document.getElementById('env-testing'), getSelection().toString()")
    staff.page.goto("/status/incidents/new/")
    staff.page.get_by_label("Environment").select_option(label="staging")
    staff.fill(title="Sign-in is slow", message="We are looking into it.")
    staff.press("Publish incident")
    staff.at("Sign-in is slow")
    page.get_by_text("Incident in staging.").wait_for()
    page.get_by_role("article", name="Sign-in is slow").wait_for()
    assert page.evaluate("window.same && window.kept.isConnected && getSelection().toString()") == before == "Testing"
    window.inspect()
    page.goto(staff.page.url)
    page.evaluate("window.same = true")
    staff.page.get_by_label("Status", exact=True).select_option("resolved")
    staff.fill(message="Fast again.")
    staff.press("Publish update")
    page.get_by_text("Fast again.").wait_for()
    page.get_by_text("Minor, staging. Resolved.").wait_for()
    assert page.evaluate("window.same")


def test_the_status_page_needs_no_script(site: Site) -> None:
    with closing(Window(site.browser, site.url, java_script_enabled=False)) as window:
        window.page.goto("/status/")
        assert window.main.get_by_role("heading", level=1).is_visible()
        assert window.main.get_by_role("heading", name="Past incidents").is_visible()
        assert window.main.get_by_role("article", name="Testing").is_visible()


def test_times_are_in_the_readers_zone_and_in_utc_on_hover_and_a_page_prints(site: Site) -> None:
    with closing(Window(site.browser, site.url, timezone_id="Asia/Tokyo", locale="en-GB")) as window:
        page = window.page
        page.goto("/deployments/1/")
        time = page.locator("dt:text('Requested') + dd time")
        exact = datetime.fromisoformat(time.get_attribute("datetime") or "")
        shown = exact.astimezone(timezone(timedelta(hours=9)))
        assert time.inner_text() == f"{shown:%Y-%m-%d %H:%M} GMT+9", "at the first visit, by the browser"
        assert page.locator("[data-zone-name]").inner_text() == "Asia/Tokyo"
        assert time.get_attribute("title") == f"{exact:%Y-%m-%d %H:%M:%S} UTC"
        page.goto("/deployments/1/")
        assert time.inner_text() == f"{shown:%Y-%m-%d %H:%M} JST", "from then on, by the server"
        for day, there in ((shown.date(), True), (shown.date() + timedelta(days=1), False)):
            page.goto(f"/deployments/?since={day}&until={day}")
            assert bool(page.locator("#row-1").count()) == there
        page.goto("/deployments/1/")
        page.emulate_media(media="print")
        assert page.get_by_role("heading", level=1).is_visible()
        assert page.get_by_role("navigation", name="Main").is_hidden()


def test_the_admin_keeps_to_the_content_security_policy(staff: Window) -> None:
    for path in ("/admin/", "/admin/accounts/user/", "/admin/accounts/user/1/change/", "/admin/accounts/user/add/"):
        staff.page.goto(path)
        staff.page.get_by_role("link", name="backstagetest1 · testing").wait_for()


LONG = "x" * 100  # what somebody may enter without a space in it


def test_no_page_scrolls_sideways_on_the_narrowest_phone(site: Site, staff: Window, window: Window) -> None:
    """At 320 px (WCAG 1.4.10), with the longest words that fit. The insights and the API's page did."""
    deployment = begin(site, "development", f"8.{LONG[:50]}", actor=LONG, message=LONG)
    site.api(f"{deployment}steps", name=LONG, outcome="running")
    everybody = ["/", "/deployments/", f"/{deployment}", "/insights/", "/api/docs/", "/status/", "/no/such/page/"]
    lists = [f"/admin/{name}/" for name in ("ledger/deployment", "ledger/apitoken", "accounts/user")]
    staff.page.goto("/status/incidents/new/")
    staff.fill(title=LONG, message=LONG)
    staff.press("Publish incident")
    staff.page.get_by_role("heading", level=1, name=LONG).wait_for()
    everybody += ["/deployments/?search=nothing", "/deployments/?status=nonsense", urlsplit(staff.page.url).path]
    for each, paths in (
        (window, [*everybody, *STRANGERS_PAGES]),
        (staff, [*everybody, *MEMBERS_PAGES, "/status/incidents/new/", "/admin/", *lists]),
    ):
        each.page.set_viewport_size({"width": 320, "height": 600})
        for path in paths:
            each.page.goto(path)
            wide = each.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{path}: {wide} px"
            cut = each.page.evaluate(
                "Math.max(0, ...Array.from(document.querySelectorAll('.menu'), it => it.scrollWidth - it.clientWidth))"
            )
            assert cut == 0, f"{path}: {cut} px of a menu are cut off"
    site.api(f"{deployment}finish", result="failed")
    staff.page.goto(everybody[-1])
    staff.page.get_by_label("Status").select_option("resolved")
    staff.fill(message="Over")
    staff.press("Publish update")
    staff.page.get_by_text("Over").wait_for()


def test_the_admin_shows_no_as_a_dash_and_not_as_an_error(staff: Window) -> None:
    page = staff.page
    page.goto("/admin/ledger/deployment/")
    cells = page.locator("td.field-hotfix")
    assert cells.count() > 10 and cells.locator("img[alt=False]").count() > 10
    for path in ("/admin/ledger/deployment/", "/admin/ledger/deployment/1/change/"):
        page.goto(path)
        crosses = page.locator("img[alt=False]")
        assert all(not cross.is_visible() for cross in crosses.all()), path
        assert crosses.first.evaluate("cross => getComputedStyle(cross.parentElement, '::before').content[1]") == "–"


def test_no_button_of_the_filters_is_alone_in_a_row(staff: Window, window: Window) -> None:
    for each, path in ((window, "/deployments/"), (staff, "/deployments/"), (staff, "/deployments/?search=1.")):
        for width in (360, 800, 1024, 1280):
            each.page.set_viewport_size({"width": width, "height": 800})
            each.page.goto(path)
            beside = each.page.evaluate("""() => {
                const cells = [...document.querySelector(".filters").children];
                const boxes = cells.map((cell) => cell.getBoundingClientRect());
                const last = boxes.at(-1);
                return boxes.filter((box) => box.bottom > last.top && box.top < last.bottom).length;
            }""")
            assert beside > 1, f"{path}, {width} px"


def test_the_error_pages_are_sound(window: Window) -> None:
    window.go("/no/such/page/", "Page not found")
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
    for _ in range(10):
        page.keyboard.press("Tab")
        order.append(focused(page))
    menu = [name for name in order if name != "Status"]
    start = ["Skip to content", "backstagetest1", "Board", "Deployments", "Insights", "API", "Sign in", "Sign up"]
    assert menu[: len(start)] == start
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
    assert focused(page) == "Forgot your password?"
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
    page.get_by_text("Signed out.").wait_for()


def test_everything_works_without_javascript(site: Site) -> None:
    with closing(Window(site.browser, site.url, java_script_enabled=False)) as window:
        window.page.goto("/")
        testing = window.page.locator("#environment-testing")
        assert testing.get_by_role("link", name="1.18.0", exact=False).first.is_visible()
        window.page.goto("/deployments/")
        window.page.get_by_label("Environment", exact=True).select_option("staging")
        window.press("Apply")
        assert set(window.page.locator("tbody tr td:nth-child(2)").all_inner_texts()) == {"staging"}
        sign_in(window)
        window.page.goto("/accounts/profile/")
        window.fill(display_name="Ada L.")
        window.press("Save")
        window.page.get_by_text("Profile saved.").wait_for()
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
    window.main.get_by_role("link", name="Sign in").wait_for()

    sign_in(window)
    page.goto("/accounts/profile/")
    sign_out(window)
    page.go_back()
    page.get_by_role("heading", name="Sign in", exact=True).wait_for()
    assert STAFF not in page.content()


def test_colours_chosen_by_the_system_leave_every_state_readable(site: Site) -> None:
    with closing(Window(site.browser, site.url, forced_colors="active")) as window:
        window.page.goto("/")
        status = window.page.locator(".instance .status-ok").first
        assert "healthy" in status.inner_text()
        paints = status.locator("svg").evaluate(
            "icon => [getComputedStyle(icon).color, getComputedStyle(document.body).backgroundColor]"
        )
        assert paints[0] != paints[1]


def test_a_maintainer_invites_somebody_who_signs_up(staff: Window, window: Window) -> None:
    staff.go("/members/", "Members")
    staff.main.get_by_role("link", name="Invite").click()
    staff.at("Invite somebody")
    staff.fill(email="not an address")
    staff.press("Invite")
    staff.at("Invite somebody")
    staff.fill(email="grace@example.com")
    staff.page.get_by_role("combobox", name="Role").select_option("deployer")
    staff.page.get_by_role("combobox", name="Where").select_option("staging")
    staff.press("Invite")
    staff.at("grace@example.com is invited")
    link = staff.main.locator(".command").inner_text()
    window.go(urlsplit(link).path, "You are invited")
    window.press("Sign up")
    window.at("Sign up")
    window.fill(password1=PASSWORD, password2=PASSWORD)
    window.press("Sign up")
    window.page.wait_for_url("**/confirm-email/")
    window.go(urlsplit(link).path, "This invitation cannot be used")
    staff.go("/members/?search=grace", "Members")
    staff.main.get_by_role("link", name="grace@example.com").click()
    staff.at("grace")
    staff.page.get_by_role("combobox", name="Role").select_option("approver")
    staff.press("Change role")
    staff.at("grace")
    staff.main.get_by_text("Approver, Deployer in staging").wait_for()
    staff.press("Suspend")
    staff.at("grace")
    staff.main.get_by_text("Suspended", exact=True).wait_for()
