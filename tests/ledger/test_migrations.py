"""Migrates an empty database on each engine, and compares what it then enforces with tests/ledger/schema/.

Those files record what the migrations made before they were folded. Hashes in names, the names of foreign keys and the
words of messages are left out. A migration that is meant to change the schema changes them as well.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_django import DjangoDbBlocker

from ledger.models import ENVIRONMENTS, Environment
from tests.support.schema import facts
from tests.support.scratch import SCRATCH, migrate, scratch_database

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def scratch(
    request: pytest.FixtureRequest, django_db_blocker: DjangoDbBlocker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """The connection to a database of its own in which every migration has been applied."""
    with scratch_database(request.param, django_db_blocker, tmp_path_factory.mktemp("scratch")) as connection:
        yield connection


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
