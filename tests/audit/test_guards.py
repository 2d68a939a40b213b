"""What keeps the audit log append-only, on PostgreSQL and on SQLite."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone
from pytest_django import DjangoDbBlocker

from audit import retention
from audit.models import Entry
from tests.support.scratch import SCRATCH, scratch_database


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def scratch(
    request: pytest.FixtureRequest, django_db_blocker: DjangoDbBlocker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """The connection to a migrated database of each engine."""
    with scratch_database(request.param, django_db_blocker, tmp_path_factory.mktemp("scratch")) as connection:
        yield connection


@pytest.fixture
def engine(scratch: Any) -> Iterator[Any]:
    """The connection, with an entry of today, and one of 300 and of 400 days ago; nothing stays."""
    with transaction.atomic(using=SCRATCH):
        for days in (0, 300, 400):
            add(days)
        yield scratch
        transaction.set_rollback(True, using=SCRATCH)


def add(days: float) -> Entry:
    """Adds an entry of so many days ago."""
    row = Entry(time=timezone.now() - timedelta(days=days), action="signed_in")
    row.save(using=SCRATCH)
    return row


def refused(engine: Any, statement: str) -> None:
    with pytest.raises(IntegrityError, match="audit_append_only"):
        with transaction.atomic(using=SCRATCH), engine.cursor() as cursor:
            cursor.execute(statement)


def deleted(engine: Any, days: float) -> int:
    """Deletes what is older, and returns how many there were."""
    with engine.cursor() as cursor:
        cursor.execute("DELETE FROM audit_entry WHERE time < %s", [timezone.now() - timedelta(days=days)])
        return int(cursor.rowcount)


def test_an_entry_never_changes(engine: Any) -> None:
    refused(engine, "UPDATE audit_entry SET actor = 'nobody'")
    refused(engine, "UPDATE audit_entry SET time = '2020-01-01 00:00:00'")


def test_entries_are_deleted_only_when_they_are_older_than_the_retention(engine: Any) -> None:
    assert retention.days(engine) == 365
    refused(engine, "DELETE FROM audit_entry")
    assert deleted(engine, 366) == 1


@pytest.mark.parametrize("hours", [1, -1])
def test_the_border_is_the_same_moment_on_each_engine(engine: Any, hours: int) -> None:
    row = add(365 + hours / 24)
    if hours > 0:
        assert Entry.objects.using(SCRATCH).filter(pk=row.pk).delete()[0] == 1
    else:
        refused(engine, f"DELETE FROM audit_entry WHERE id = {row.pk}")


def test_the_retention_follows_the_setting_and_zero_keeps_for_ever(engine: Any) -> None:
    retention.enforce(engine, 30)
    assert retention.days(engine) == 30
    refused(engine, "DELETE FROM audit_entry")
    assert deleted(engine, 31) == 2
    retention.enforce(engine, 0)
    add(10_000)
    refused(engine, "DELETE FROM audit_entry WHERE time < '2010-01-01'")


def test_a_truncate_is_refused(engine: Any) -> None:
    if engine.vendor == "sqlite":
        return  # which has none
    with engine.cursor() as cursor:
        cursor.execute("SET LOCAL audit.truncate = 'no'")
    refused(engine, "TRUNCATE audit_entry")
