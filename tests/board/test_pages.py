"""What the pages say, and that they are ours. How they look and behave in a browser is in test_browser.py."""

import re
from datetime import UTC, datetime
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from django.conf import LazySettings
from django.contrib.auth.hashers import make_password
from django.contrib.sessions.exceptions import SessionInterrupted
from django.core import mail
from django.core.exceptions import PermissionDenied
from django.db import InternalError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.template.base import Origin
from django.test import Client
from django.urls import path, reverse

from accounts.models import User
from health import runner
from health.reasons import Reason
from health.runner import Report, Result
from tests.support.servers import ROOT

PASSWORD = "correct horse battery staple"
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))


def broken(_request: HttpRequest) -> HttpResponse:
    raise ValueError("secret-detail")


def away(_request: HttpRequest) -> HttpResponse:
    raise OperationalError("connection to server at secret-detail failed")


def read_only(_request: HttpRequest) -> HttpResponse:
    cause = psycopg2.errors.lookup("25006")()
    cause.__setstate__({"pgcode": "25006"})  # type: ignore[no-untyped-call]
    raise InternalError("cannot execute UPDATE in a read-only transaction") from cause


def not_stored(request: HttpRequest) -> HttpResponse:
    """What Django makes of a session that the database refuses to store: one that somebody has deleted, so 400."""
    try:
        return read_only(request)
    except InternalError:
        raise SessionInterrupted("secret-detail")  # noqa: B904  as Django does, without a cause


def denied(_request: HttpRequest) -> HttpResponse:
    raise PermissionDenied("secret-detail")


urlpatterns = [path("broken/", broken), path("away/", away), path("denied/", denied)]
urlpatterns += [path("read-only/", read_only), path("not-stored/", not_stored)]
handler400 = "backstagetest1.errors.bad_request"
handler500 = "backstagetest1.errors.server_error"


class Page(HTMLParser):
    """The elements of a page that carry meaning: what is named, what points where."""

    def __init__(self, response: Any) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(response.content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag in tags]

    @property
    def ids(self) -> list[str]:
        return [identifier for _, attrs in self.tags if (identifier := attrs.get("id"))]

    def field(self, name: str) -> dict[str, str | None]:
        return next(attrs for attrs in self.all("input") if attrs.get("name") == name)


hashed = cache(make_password)  # once: it is slow by design


@pytest.fixture(autouse=True)
def well(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("board.views.report", "statuspage.readings.report"):
        monkeypatch.setattr(name, lambda: report(database=None, cache=None))


@pytest.fixture
def member(db: None) -> User:
    user = User.objects.create(email="ada@example.com", password=hashed(PASSWORD), display_name="Ada")
    user.emailaddress_set.create(email=user.email, verified=True, primary=True)
    return user


@pytest.fixture
def member_client(client: Client, member: User) -> Client:
    client.force_login(member)
    return client


def report(**reasons: Reason | None) -> Report:
    return Report(
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), {name: Result(why, 0.001) for name, why in reasons.items()}
    )


# The home page: of this instance. Of the board on it is test_board.py.


@pytest.mark.django_db
def test_home_says_what_this_instance_is(client: Client, settings: LazySettings) -> None:
    settings.VERSION, settings.COMMIT, settings.ENVIRONMENT = "1.2.3", "0123456789abcdef", "staging"
    text = client.get("/").content.decode()
    assert "1.2.3" in text and "0123456789ab" in text and "staging" in text
    assert "Sign in</a> to see who deployed what" in text


def test_home_says_that_the_database_is_down_without_asking_it(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("board.views.report", lambda: report(database=Reason.REFUSED, cache=None))
    response = client.get("/")  # without the `db` fixture a query would raise
    text = response.content.decode()
    assert response.status_code == 503 and response["Retry-After"]
    assert "database is down" in text
    assert "This instance is unhealthy" in text
    assert "Database: refused" in text
    assert text.count(": healthy</span>") == 1
    assert "03:04:05 UTC" in text
    assert client.get("/?seen=x", headers={"hx-request": "true"}).status_code == 503


@pytest.mark.django_db
def test_home_tells_that_the_database_has_gone_since_it_was_last_well(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise OperationalError("connection to server at secret-detail failed")

    monkeypatch.setattr("board.cards.board_cards", gone)
    response = client.get("/")
    assert response.status_code == 503
    assert "database is down" in response.content.decode() and "secret-detail" not in response.content.decode()


@pytest.mark.django_db
def test_home_of_a_healthy_instance_says_so(client: Client) -> None:
    text = client.get("/").content.decode()
    assert "This instance is healthy" in text
    assert "instance is unhealthy" not in text


@pytest.mark.django_db
def test_home_tells_a_stranger_no_internals(
    client: Client, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("board.views.report", runner.report)
    text = client.get("/").content.decode()
    runner.stop()
    database = settings.DATABASES["default"]
    for internal in (database["HOST"], database["PORT"], database["PASSWORD"], "psycopg", ROOT):
        assert str(internal) not in text


def test_home_leads_the_signed_in_to_what_is_left_to_do(member_client: Client, member: User) -> None:
    text = member_client.get("/").content.decode()
    assert f'<a href="{reverse("accounts:profile")}">Add a picture</a>' in text
    assert ">Choose a display name</a>" not in text, "it is done"
    User.objects.filter(pk=member.pk).update(display_name="", avatar="avatars/x.webp")
    text = member_client.get("/").content.decode()
    assert ">Choose a display name</a>" in text
    assert ">Add a picture</a>" not in text
    member.emailaddress_set.update(verified=False)
    assert (
        f'<a href="{reverse("account_email")}">Verify your email address</a>' in member_client.get("/").content.decode()
    )


@pytest.mark.django_db
def test_home_is_never_kept_by_a_browser_or_a_proxy(client: Client) -> None:
    assert "no-store" in client.get("/")["Cache-Control"]


@pytest.mark.django_db
def test_only_staff_are_shown_the_way_to_the_admin(member_client: Client, member: User) -> None:
    link = f'href="{reverse("admin:index")}"'
    assert link not in member_client.get("/").content.decode()
    User.objects.filter(pk=member.pk).update(is_staff=True)
    assert link in member_client.get("/").content.decode()


def test_navigation_marks_the_page_one_is_on(member_client: Client) -> None:
    for url in (
        "/",
        "/deployments/",
        "/insights/",
        "/accounts/profile/",
        "/accounts/email/",
        "/accounts/password/change/",
    ):
        marked = [link["href"] for link in Page(member_client.get(url)).all("a") if link.get("aria-current") == "page"]
        assert marked and set(marked) == {url}


# The account pages

STRANGERS_PAGES = [
    "/accounts/login/",
    "/accounts/signup/",
    "/accounts/inactive/",
    "/accounts/confirm-email/",
    "/accounts/confirm-email/no-such-key/",
    "/accounts/password/reset/",
    "/accounts/password/reset/done/",
    "/accounts/password/reset/key/1-no-such-key/",
    "/accounts/password/reset/key/done/",
]
MEMBERS_PAGES = [
    "/accounts/profile/",
    "/accounts/sessions/",
    "/accounts/data/",
    "/accounts/email/",
    "/accounts/reauthenticate/",
    "/accounts/password/change/",
    "/accounts/password/reset/",
    "/accounts/logout/",
]


def is_ours(response: Any) -> bool:
    """Whether every template of the answer is from templates/; those of form widgets are Django's."""
    origins = [template.origin for template in response.templates if isinstance(template.origin, Origin)]
    names = [str(origin.name) for origin in origins if "/django/forms/" not in str(origin.name)]
    return bool(names) and all(name.startswith(str(ROOT / "templates")) for name in names)


@pytest.mark.django_db
@pytest.mark.parametrize("url", STRANGERS_PAGES)
def test_a_strangers_page_is_ours(client: Client, url: str) -> None:
    response = client.get(url)
    assert response.status_code == 200
    assert is_ours(response)


@pytest.mark.parametrize("url", MEMBERS_PAGES)
def test_a_members_page_is_ours(member_client: Client, url: str) -> None:
    response = member_client.get(url)
    assert response.status_code == 200
    assert is_ours(response)


def test_the_profile_shows_whose_it_is(member_client: Client) -> None:
    assert "ada@example.com" in member_client.get("/accounts/profile/").content.decode()


def test_every_account_page_is_among_those_tested() -> None:
    from accounts.mfa.urls import urlpatterns as second_factors  # whose pages are in tests/accounts/test_mfa.py
    from accounts.urls import urlpatterns as accounts

    tested = STRANGERS_PAGES + MEMBERS_PAGES
    # The page of manage.py sign_in_link is in tests/accounts/test_sso.py.
    pages = [each for each in accounts if each not in second_factors and getattr(each, "name", "") != "sign_in_link"]
    routes = [str(entry.pattern) for entry in pages if getattr(entry, "name", None)]
    assert routes
    for route in routes:
        route = route if route.startswith("^") else f"^{re.escape(route)}$"
        assert any(re.search(route, url[1:]) for url in tested), f"no page is tested for {route}"


@pytest.mark.django_db
def test_sign_up_closed_is_ours(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accounts.adapter.AccountAdapter.is_open_for_signup", lambda *_: False)
    response = client.get("/accounts/signup/")
    assert is_ours(response) and "Sign-up is closed" in response.content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize("url", [*STRANGERS_PAGES, *MEMBERS_PAGES])
def test_every_input_has_a_label_no_placeholder_and_a_purpose(client: Client, member: User, url: str) -> None:
    if url in MEMBERS_PAGES:
        client.force_login(member)
    page = Page(client.get(url))
    labelled = {label["for"] for label in page.all("label")}
    for field in page.all("input", "select", "textarea"):
        if field.get("type") == "hidden" or "hidden" in field:
            continue
        assert field["id"] in labelled
        assert "placeholder" not in field
        if field["type"] in ("email", "password"):
            assert field["autocomplete"] in ("email", "current-password", "new-password")
    assert len(page.ids) == len(set(page.ids)), "an id stands twice"


@pytest.mark.django_db
def test_an_error_is_tied_to_its_field_and_summed_up_on_top(client: Client) -> None:
    response = client.post("/accounts/signup/", {"email": "nobody", "password1": "short", "password2": ""})
    page = Page(response)
    summary = next(attrs for attrs in page.all("div") if attrs.get("class") == "summary")
    assert "autofocus" in summary and summary["tabindex"] == "-1"
    targets = {link["href"] for link in page.all("a") if (link["href"] or "").startswith("#id_")}
    assert targets == {"#id_email", "#id_password1", "#id_password2"}
    for name in ("email", "password1", "password2"):
        field = page.field(name)
        assert field["aria-invalid"] == "true"
        described = (field["aria-describedby"] or "").split()
        assert f"id_{name}_error" in described
        assert set(described) <= set(page.ids)
    assert page.field("email")["value"] == "nobody", "what was typed is kept"
    assert "value" not in page.field("password1"), "a password is never sent back"


@pytest.mark.django_db
def test_a_wrong_password_is_reported_once_and_without_the_part_that_was_wrong(client: Client) -> None:
    response = client.post("/accounts/login/", {"login": "nobody@example.com", "password": "wrong"})
    assert response.content.decode().count("email address and/or password") == 1


# The mail


def mails_of(client: Client, url: str, form: dict[str, str]) -> list[tuple[str, str]]:
    """Subjects and bodies of what was sent on posting the form; all of it must be written by us."""
    mail.outbox.clear()
    response = client.post(url, form)
    assert response.status_code == 302, response.content.decode()
    assert not response.templates or is_ours(response), [template.name for template in response.templates]
    return [(str(message.subject), str(message.body)) for message in mail.outbox]


@pytest.mark.django_db
def test_the_mails_to_a_newcomer_are_ours_and_lead_on(client: Client, member: User) -> None:
    form = {"email": "new@example.com", "password1": PASSWORD, "password2": PASSWORD}
    [(subject, body)] = mails_of(client, "/accounts/signup/", form)
    assert subject == "Welcome! Verify your email address"
    link = re.search(r"http://testserver(/\S+)", body)
    assert link
    assert "Verify that <strong>new@example.com</strong> is" in client.get(link[1]).content.decode()
    assert client.post(link[1]).status_code == 302
    assert "Invalid or expired link" in client.get(link[1]).content.decode(), "the link works once"

    [(subject, body)] = mails_of(client, "/accounts/signup/", form | {"email": member.email})
    assert subject == "You already have an account"
    assert "http://testserver/accounts/password/reset/" in body


@pytest.mark.django_db
def test_the_mails_about_a_password_are_ours_and_lead_on(client: Client, member: User) -> None:
    [(subject, body)] = mails_of(client, "/accounts/password/reset/", {"email": "nobody@example.com"})
    assert subject == "No account with this address"
    assert "http://testserver/accounts/signup/" in body
    [(subject, body)] = mails_of(client, "/accounts/password/reset/", {"email": member.email})
    assert subject == "Reset your password"
    link = re.search(r"http://testserver(/\S+)", body)
    assert link
    page = client.get(link[1], follow=True)
    assert is_ours(page) and "Choose a new password" in page.content.decode()
    new = {"password1": "another long password", "password2": "another long password"}
    [(subject, body)] = mails_of(client, page.redirect_chain[-1][0], new)
    assert subject == "Your password was reset"
    assert "http://testserver/accounts/password/reset/" in body
    assert "127.0.0.1" in body, "from where it was done"


def test_the_mails_about_an_address_are_ours(client: Client, member: User) -> None:
    client.force_login(member)
    client.post("/accounts/reauthenticate/", {"password": PASSWORD})
    url = "/accounts/email/"
    [(subject, body)] = mails_of(client, url, {"action_add": "", "email": "b@example.com"})
    assert subject == "Verify your email address"
    assert "http://testserver/accounts/confirm-email/" in body
    member.emailaddress_set.update(verified=True)
    mails = mails_of(client, url, {"action_primary": "", "email": "b@example.com"})
    assert {subject for subject, _ in mails} == {"Your email address was changed"}
    mails = mails_of(client, url, {"action_remove": "", "email": "ada@example.com"})
    assert {subject for subject, _ in mails} == {"An email address was removed"}


def test_a_mail_does_not_escape_what_is_not_html(member_client: Client) -> None:
    mail.outbox.clear()
    form = {"oldpassword": PASSWORD, "password1": "another long password", "password2": "another long password"}
    member_client.post("/accounts/password/change/", form, HTTP_USER_AGENT="A & B <c> 'd'")
    [message] = mail.outbox
    assert message.subject == "Your password was changed"
    assert "Browser:     A & B <c> 'd'" in str(message.body)


# The error pages: no database (there is no `db` fixture here), whatever the cookies are


def assert_error_page(response: Any, status: int, heading: str) -> None:
    text = response.content.decode()
    assert response.status_code == status
    assert f"<h1>{heading}</h1>" in text
    assert 'href="/static/style.css"' in text
    assert response["X-Request-ID"] in text
    assert "secret-detail" not in text and "Traceback" not in text
    assert is_ours(response)


def test_400_for_a_host_that_is_not_ours(client: Client) -> None:
    assert_error_page(client.get("/", HTTP_HOST="evil.example.com"), 400, "The request is malformed")


@pytest.mark.urls(__name__)
def test_403_for_what_is_not_allowed(client: Client) -> None:
    assert_error_page(client.get("/denied/"), 403, "You cannot access this page")


def test_403_for_a_form_without_its_token() -> None:
    assert_error_page(Client(enforce_csrf_checks=True).post("/accounts/login/"), 403, "This form has expired")


def test_404_for_an_unknown_address_even_with_a_session_and_no_database(client: Client) -> None:
    client.cookies["session"] = "x" * 32
    assert_error_page(client.get("/no/such/page/"), 404, "Page not found")


@pytest.mark.django_db
def test_429_from_the_rate_limit(client: Client, settings: LazySettings) -> None:
    settings.ACCOUNT_RATE_LIMITS = {"login": "1/7s/ip"}
    form = {"login": "nobody@example.com", "password": "wrong"}
    assert client.post("/accounts/login/", form).status_code == 200
    assert_error_page(client.post("/accounts/login/", form), 429, "Too many attempts in a short time")


@pytest.mark.urls(__name__)
@pytest.mark.parametrize(
    "url, status, heading",
    [
        ("/broken/", 500, "Something went wrong on our side"),
        ("/away/", 503, "The service is temporarily unavailable"),
        ("/read-only/", 503, "The service is temporarily unavailable"),
        ("/not-stored/", 503, "The service is temporarily unavailable"),
    ],
)
def test_500_and_503_say_what_to_do_and_nothing_else(client: Client, url: str, status: int, heading: str) -> None:
    client.raise_request_exception = False
    client.cookies["session"] = "x" * 32
    response = client.get(url)
    assert_error_page(response, status, heading)
    assert response.has_header("Retry-After") == (status == 503)


@pytest.mark.urls(__name__)
def test_an_error_page_stands_without_the_manifest_of_static_files(
    client: Client, settings: LazySettings, tmp_path: Path
) -> None:
    settings.STATIC_ROOT = tmp_path
    settings.STORAGES = settings.STORAGES | {
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"}
    }
    client.raise_request_exception = False
    assert_error_page(client.get("/broken/"), 500, "Something went wrong on our side")


# The sources


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda file: str(file.relative_to(ROOT / "templates")))
def test_a_template_holds_nothing_that_the_content_security_policy_refuses(template: Path) -> None:
    text = template.read_text()
    assert not re.search(
        r"<script(?! src=\"{% static '[^']+' %}\" defer></script>)|<style|\sstyle=|\son[a-z]+=|javascript:", text
    )
    assert not re.search(r"(?:src|href|action)=[\"']?(?:https?:)?//", text), "a request to another host"


def test_the_style_sheets_ask_for_nothing_else() -> None:
    for sheet in (ROOT / "static").glob("*.css"):
        assert not re.search(r"url\(|@import|@font-face", sheet.read_text())


def test_every_state_has_its_colours_in_light_and_dark() -> None:
    text = (ROOT / "static" / "style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\n\s*\}", text, re.DOTALL)[:2]
    names = {name for name in re.findall(r"(--[a-z-]+): (?:#)", light)}
    assert {"--ok", "--ok-tint", "--bad", "--warn", "--busy", "--idle"} <= names
    assert names == set(re.findall(r"(--[a-z-]+): (?:#)", dark))
