"""Migrates an empty database on each engine, and compares what it then enforces with tests/ledger/schema/.

Those files record what the migrations made before they were folded. Hashes in names, the names of foreign keys and the
words of messages are left out. A migration that is meant to change the schema changes them as well.
"""

import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from django.core.management import call_command
from django.db import connections
from pytest_django import DjangoDbBlocker

from ledger.models import ENVIRONMENTS, Environment
from tests.support.schema import facts

HERE = Path(__file__).parent
SCRATCH = "scratch"


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def scratch(
    request: pytest.FixtureRequest, django_db_blocker: DjangoDbBlocker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """The connection to a database of its own in which every migration has been applied."""
    given = connections.settings["default"]
    name = f"{SCRATCH}_{secrets.token_hex(4)}"
    if request.param == "sqlite":
        file = tmp_path_factory.mktemp(SCRATCH) / name
        given = given | {"ENGINE": "django.db.backends.sqlite3", "NAME": str(file), "OPTIONS": {}}
    else:
        administer(given, f"CREATE DATABASE {name}")
        given = given | {"NAME": name}
    connections.settings[SCRATCH] = given
    try:
        with django_db_blocker.unblock():
            migrate()
            yield connections[SCRATCH]
            connections[SCRATCH].close()
    finally:
        del connections[SCRATCH], connections.settings[SCRATCH]
        if request.param == "postgresql":
            administer(given, f"DROP DATABASE {name}")


def administer(server: dict[str, Any], statement: str) -> None:
    where = {name: server[key] for name, key in (("host", "HOST"), ("port", "PORT"), ("user", "USER"))}
    with closing(psycopg2.connect(dbname="postgres", password=server["PASSWORD"], **where)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)


def migrate(*words: str) -> None:
    call_command("migrate", *words, database=SCRATCH, verbosity=0)


def differences(scratch: Any) -> list[str]:
    """Returns what is enforced and not recorded (+), and what is recorded and not enforced (-)."""
    found, recorded = set(facts(scratch)), set((HERE / "schema" / f"{scratch.vendor}.txt").read_text().splitlines())
    return [*(f"+ {fact}" for fact in sorted(found - recorded)), *(f"- {fact}" for fact in sorted(recorded - found))]


def test_the_migrations_make_the_recorded_schema(scratch: Any) -> None:
    assert differences(scratch) == []


def test_the_ledgers_migrations_go_down_to_nothing_and_up_again(scratch: Any) -> None:
    migrate("ledger", "zero")
    assert not [fact for fact in facts(scratch) if "ledger_" in fact]
    migrate()
    assert differences(scratch) == []
    names = Environment.objects.using(SCRATCH).values_list("name", flat=True)
    assert list(names) == [name for _, name, *_ in ENVIRONMENTS]
