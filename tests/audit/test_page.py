"""The audit log's page and export: who may see them, filters, pages."""

import csv
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from audit import views
from audit.models import Entry
from tests.support.people import member

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.fixture
def maintainer(client: Client) -> Client:
    client.force_login(member("maintainer"))
    return client


def add(count: int = 1, **fields: Any) -> None:
    first = fields.pop("time", NOON)
    given: Any = {"action": "token_made", "actor": "ada@example.com", "environment": "staging"} | fields
    Entry.objects.bulk_create(Entry(time=first + timedelta(seconds=n), target=f"t{n}", **given) for n in range(count))


def targets(response: Any) -> list[str]:
    """The targets on the page or in the file, from the top down."""
    return re.findall(r"\bt[0-9]+\b", b"".join(response).decode())


@pytest.mark.parametrize("path", ["/audit/", "/audit/export.csv"])
def test_only_a_maintainer_of_the_whole_sees_the_log(client: Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 302 and answer["Location"].startswith("/accounts/login/?next=/audit/")
    for role, environment, status in (
        (None, None, 403), ("approver", None, 403), ("maintainer", "staging", 403), ("maintainer", None, 200),
    ):  # fmt: skip
        client.force_login(member(role, environment))
        assert client.get(path).status_code == status, (role, environment)
        assert ('href="/audit/"' in client.get("/").content.decode()) == (status == 200)


def test_the_page_shows_what_was_done_and_nothing_else_can_be_done_to_it(maintainer: Client) -> None:
    add(details={"rights": "<b>register</b>"}, address="192.0.2.7")
    page = maintainer.get("/audit/").content.decode()
    for text in ("Token created", "ada@example.com", "staging", "t0", "192.0.2.7", "rights: &lt;b&gt;register"):
        assert text in page, text
    assert "2026-03-10 12:00 UTC" in page
    assert maintainer.post("/audit/").status_code == 405


def test_filters_apply_to_the_page_and_to_the_file(maintainer: Client) -> None:
    add(1)
    add(2, actor="bob@example.com", environment="production", time=NOON + timedelta(days=1))
    for query, count in (
        ("actor=bob@example.com", 2),
        ("environment=staging", 1),
        ("action=token_made&actor=ada@example.com", 1),
        ("action=signed_out", 0),
        ("since=2026-03-11&until=2026-03-11", 2),
        ("until=2026-03-10", 1),
    ):
        for path in ("/audit/", "/audit/export.csv"):
            assert len(targets(maintainer.get(f"{path}?{query}"))) == count, (path, query)


def test_an_invalid_filter_is_named_and_an_invalid_cursor_dropped(maintainer: Client) -> None:
    for path in ("/audit/", "/audit/export.csv"):
        answer = maintainer.get(f"{path}?since=2026-03-11&until=2026-03-01")
        assert answer.status_code == 400 and "Swap the two dates" in answer.content.decode()
    assert maintainer.get("/audit/?older=x&actor=a")["Location"] == "/audit/?actor=a"


def test_pages_neither_repeat_nor_hide_what_comes_meanwhile(
    maintainer: Client, monkeypatch: pytest.MonkeyPatch, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    monkeypatch.setattr(views, "PAGE", 3)
    add(7)
    seen, url = [], "/audit/?actor=ada@example.com"
    for _ in range(3):
        with django_assert_max_num_queries(8):
            page = maintainer.get(url)
        seen.append(targets(page))
        add(1, time=timezone.now(), actor="bob@example.com")
        found = re.search(r'rel="next" href="([^"]+)"', page.content.decode())
        url = f"/audit/{found[1].replace('&amp;', '&')}" if found else ""
    assert seen == [["t6", "t5", "t4"], ["t3", "t2", "t1"], ["t0"]] and not url
    assert 'rel="prev"' in page.content.decode()


def test_the_file_is_read_in_chunks_and_says_where_it_ends(maintainer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.table.CHUNK", 4)
    add(11, actor="=1+1")
    rows = list(csv.reader(b"".join(maintainer.get("/audit/export.csv?actor==1%2B1")).decode().splitlines()))
    assert [row[6] for row in rows[1:]] == [f"t{n}" for n in reversed(range(11))]
    assert {row[2] for row in rows[1:]} == {"'=1+1"}
    monkeypatch.setattr(views, "EXPORT", 10)
    answer = maintainer.get("/audit/export.csv?actor==1%2B1")
    assert answer["Content-Disposition"].startswith("attachment;") and answer["Cache-Control"].startswith("max-age=0")
    lines = b"".join(answer).decode().splitlines()
    assert len(lines) == 12 and lines[-1].startswith("Only the newest 10 entries")
