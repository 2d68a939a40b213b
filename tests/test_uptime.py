"""The samples of the status page on the real database, and the page while it is away."""

import threading
from datetime import UTC, datetime
from tests.servers import PATIENCE
from typing import Any

import pytest
from django.core.cache import cache
from django.db import Error, InterfaceError, OperationalError, connection
from django.test import Client

from deploy import status, uptime
from deploy.models import Environment
from deploy.status_models import Incident, Sample


@pytest.mark.django_db(transaction=True)
def test_eight_at_once_write_one_sample_a_minute() -> None:
    minute = datetime(2026, 1, 1, tzinfo=UTC)
    together = threading.Barrier(8)
    written: list[int] = []

    def write(up: bool) -> None:
        together.wait(PATIENCE)
        written.append(uptime.write([("production", minute, up), ("staging", minute, up)]))
        connection.close()

    threads = [threading.Thread(target=write, args=(number % 2 == 0,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE)
    assert written == [2] * 8
    assert Sample.objects.count() == 2


@pytest.mark.parametrize("error", [OperationalError, InterfaceError])
def test_the_page_is_there_without_the_database(
    client: Client, monkeypatch: pytest.MonkeyPatch, error: type[Error]
) -> None:
    def fail() -> None:
        raise error("connection already closed")

    cache.clear()
    status.memory.clear()
    monkeypatch.setattr(status, "history", fail)
    response = client.get("/status/")
    assert response.status_code == 200 and "The database is away" in response.content.decode()
    assert client.get("/status/feed.atom").status_code == 503


@pytest.mark.django_db
def test_every_process_shows_an_incident_as_soon_as_it_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def titles() -> list[str]:
        return [each["title"] for each in (status.known()[0] or {})["incidents"]]

    def report(title: str) -> None:
        status.report(Incident(title=title, environment=Environment.objects.get(name="staging")), "We look.", "someone")

    assert titles() == []
    elsewhere = list(status.memory)  # what another process remembers
    report("First")
    status.memory[:] = elsewhere
    assert titles() == ["First"]

    real = status.history

    def overtaken() -> dict[str, Any]:
        found = real()
        report("Second")  # another process, while this one reads
        return found

    monkeypatch.setattr(status, "history", overtaken)
    status.forget()
    titles()
    monkeypatch.undo()
    assert sorted(titles()) == ["First", "Second"]
