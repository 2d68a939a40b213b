"""A freeze is added while a deployment begins, by two processes on PostgreSQL: 10 times, a hundred in the full form."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from ledger import freezes, rules
from ledger.models import Deployment, Freeze
from tests.support.ledgers import deployed
from tests.support.servers import PATIENCE, ROOT, eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

# Each line of the input is what to do; the answer is "done" or the refusal. `begin` writes without the rules.
PROGRAM = """
import sys
from datetime import timedelta
import django
django.setup()
from django.db import IntegrityError, connection, transaction
from django.utils import timezone
from ledger import freezes
from ledger.models import Deployment
connection.ensure_connection()
print("ready", flush=True)

def freeze():
    freezes.add(None, "Audit", "ann", ends=timezone.now() + timedelta(hours=1))

for line in sys.stdin:
    act, _, key = line.strip().partition(" ")
    try:
        if act == "begin":
            Deployment.objects.filter(pk=key).update(status="running", started=timezone.now())
        elif act == "hold":
            with transaction.atomic():
                freeze()
                print("held", flush=True)
                sys.stdin.readline()
        else:
            freeze()
        print("done", flush=True)
    except IntegrityError as error:
        print(str(error).partition(":")[0], flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


class Other:
    """Another process with the test's database."""

    def __init__(self) -> None:
        given = connection.settings_dict
        url = f"postgres://{given['USER']}:{given['PASSWORD']}@{given['HOST']}:{given['PORT']}/{given['NAME']}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT, env=os.environ | {"DATABASE_URL": url}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.answer() == "ready"

    def ask(self, words: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.communicate(timeout=PATIENCE)


@pytest.fixture
def two() -> Iterator[tuple[Other, Other]]:
    pair = Other(), Other()
    yield pair
    for each in pair:
        each.end()


def pending() -> Deployment:
    Deployment.objects.filter(status__in=("pending", "running")).update(status="failed", finished=timezone.now())
    for row in Freeze.objects.filter(ended_early=None):
        freezes.end(row.pk, "ann")
    return rules.create("development", "1.0", "rolling", "ci")


def advisory_waits() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return bool(cursor.fetchone()[0])


def test_what_begins_has_begun_before_the_freeze(two: tuple[Other, Other], request: pytest.FixtureRequest) -> None:
    deployed("development", "1.0")
    freezing, beginning = two
    seen: set[str] = set()
    for turn in range(100 if request.config.getoption("full") else 10):
        row = pending()
        for process, words in ((freezing, "freeze"), (beginning, f"begin {row.pk}"))[:: -1 if turn % 2 else 1]:
            process.ask(words)
        said: tuple[Any, Any] = freezing.answer(), beginning.answer()
        row.refresh_from_db()
        starts = Freeze.objects.get(ended_early=None).starts
        assert said[0] == "done" and starts
        if said[1] == "done":
            assert row.status == "running" and row.started and row.started <= starts, said
        else:
            assert said[1] == "ledger_frozen" and row.status == "pending", said
        seen.add(said[1])
    assert seen


def test_a_freeze_that_is_not_committed_yet_is_waited_for(two: tuple[Other, Other]) -> None:
    deployed("development", "1.0")
    freezing, beginning = two
    row = pending()
    freezing.ask("hold")
    assert freezing.answer() == "held"
    beginning.ask(f"begin {row.pk}")
    eventually(advisory_waits)
    freezing.ask("")
    assert (freezing.answer(), beginning.answer()) == ("done", "ledger_frozen")
