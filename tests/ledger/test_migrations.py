"""Migrates an empty database on each engine, and compares what it then enforces with tests/ledger/schema/.

Those files record what the migrations made before they were folded. Hashes in names, the names of foreign keys and the
words of messages are left out. A migration that is meant to change the schema changes them as well.
"""

from pathlib import Path
from typing import Any

from ledger.environments import names as environment_names
from ledger.models import Environment
from tests.support.schema import facts
from tests.support.scratch import SCRATCH, migrate

HERE = Path(__file__).parent


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
    assert list(names) == list(environment_names())
