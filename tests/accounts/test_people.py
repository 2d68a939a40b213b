"""Who sees people on the pages of the ledger, and whom BOARD=members lets in."""

from collections.abc import Callable

import pytest
from django.conf import LazySettings
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from backstagetest1.closed import is_open
from tests.support.ledgers import deployed
from tests.support.people import member

pytestmark = pytest.mark.django_db

ACTOR, REASON, RUN = "grace@example.com", "Nobody could sign in", "https://ci.example.com/runs/7"
Visitor = Callable[[str | None, str | None], Client]


@pytest.fixture
def visitor() -> Visitor:
    """A client signed in with a role in an environment; a stranger for "stranger"."""

    def signed_in(role: str | None, environment: str | None = None) -> Client:
        client = Client()
        if role != "stranger":
            client.force_login(member(role, environment))
        return client

    return signed_in


def text_of(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200
    return response.content.decode()


@pytest.mark.parametrize("role", ["stranger", None])
def test_without_a_role_no_page_names_anybody(role: str | None, visitor: Visitor) -> None:
    row = deployed("production", "1.0", actor=ACTOR, hotfix=True, reason=REASON, run_url=RUN)
    client = visitor(role, None)
    for url in ("/", "/deployments/", f"/deployments/{row.pk}/", "/insights/"):
        text = text_of(client, url)
        secrets = (ACTOR, REASON, RUN, "scripts/rollback.sh 1", "Actor</th>")
        assert not [secret for secret in secrets if secret in text], url
    filtered = client.get("/deployments/", {"actor": ACTOR})
    assert filtered.status_code == (302 if role else 403)
    says = "Sign in</a> to see who" if role else "no role"
    assert says in text_of(client, "/") and says in text_of(client, f"/deployments/{row.pk}/")


def test_a_viewer_of_one_environment_sees_its_people_alone(visitor: Visitor) -> None:
    there = deployed("production", "1.0", actor=ACTOR, hotfix=True, reason=REASON, run_url=RUN)
    here = deployed("testing", "1.0", actor="ann@example.com")
    client = visitor("viewer", "testing")
    for url in ("/", "/deployments/"):
        text = text_of(client, url)
        assert "ann@example.com" in text and ACTOR not in text, url
    assert ACTOR not in text_of(client, f"/deployments/{there.pk}/")
    assert "ann@example.com" in text_of(client, f"/deployments/{here.pk}/")
    assert "No matching" in text_of(client, f"/deployments/?actor={ACTOR}"), "a filter does not tell either"
    assert f"/deployments/{here.pk}/" in text_of(client, "/deployments/?actor=ann@example.com")
    assert ACTOR in text_of(visitor("viewer", None), "/")


# BOARD=members


@pytest.fixture
def closed(settings: LazySettings) -> None:
    settings.BOARD = "members"


LEDGER = ("/", "/deployments/", "/insights/", "/api/", "/api/docs/", "/api/openapi.json")


def test_a_closed_board_is_for_members(closed: None, visitor: Visitor) -> None:
    pages = (*LEDGER, f"/deployments/{deployed('testing', '1.0').pk}/", "/deployments/999999/")
    stranger, roleless, viewer = visitor("stranger", None), visitor(None, None), visitor("viewer", "staging")
    for url in pages:
        answer = stranger.get(url)
        assert (answer.status_code, answer.get("Location")) == (302, f"/accounts/login/?next={url}"), url
        assert viewer.get(url).status_code in (200, 302, 404), url
    assert "/accounts/login/" not in viewer.get("/api/").get("Location", "")
    for url in pages:
        if not url.startswith("/api/"):
            assert roleless.get(url).status_code == 403, url
    assert roleless.get("/api/docs/").status_code == 403  # the last, as it closes the test's connection


def test_a_closed_board_leaves_the_public_pages_open(closed: None) -> None:
    client = Client()
    pages = ("/status/", "/status/status.json", "/status/feed.atom", "/health/", "/health/live/", "/accounts/login/")
    assert {url: client.get(url).status_code for url in pages} == dict.fromkeys(pages, 200)
    assert client.get("/api/environments").status_code == 401
    assert client.get("/nowhere/").status_code == 404


def test_a_new_page_is_closed_until_it_is_opened() -> None:
    def routes(patterns: list[URLPattern | URLResolver], prefix: str = "") -> list[str]:
        found = []
        for each in patterns:
            route = prefix + str(each.pattern).removeprefix("^")
            found += routes(each.url_patterns, route) if isinstance(each, URLResolver) else [route]
        return found

    there = routes(get_resolver().url_patterns)
    assert {"", "deployments/", "deployments/<int:key>/", "insights/", "api/docs/"} <= {
        route for route in there if not is_open(route)
    }
    assert not is_open("something-new/")
