"""A freeze is added while a deployment begins, by two processes on PostgreSQL: 10 times, a hundred in the full form."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from ledger import freezes, rules
from ledger.models import Deployment, Freeze
from tests.support.ledgers import deployed
from tests.support.processes import Process
from tests.support.servers import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

# Each line of the input is what to do; the answer is "done" or the refusal. `begin` writes without the rules.
PROGRAM = """
import json, sys
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
    act, *key = json.loads(line)
    try:
        if act == "begin":
            Deployment.objects.filter(pk=key[0]).update(status="running", started=timezone.now())
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


@pytest.fixture
def two() -> Iterator[tuple[Process, Process]]:
    pair = Process(PROGRAM), Process(PROGRAM)
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


def test_what_begins_has_begun_before_the_freeze(two: tuple[Process, Process], request: pytest.FixtureRequest) -> None:
    deployed("development", "1.0")
    freezing, beginning = two
    seen: set[str] = set()
    for turn in range(100 if request.config.getoption("full") else 10):
        row = pending()
        for process, words in ((freezing, ("freeze",)), (beginning, ("begin", row.pk)))[:: -1 if turn % 2 else 1]:
            process.ask(*words)
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


def test_a_freeze_that_is_not_committed_yet_is_waited_for(two: tuple[Process, Process]) -> None:
    deployed("development", "1.0")
    freezing, beginning = two
    row = pending()
    freezing.ask("hold")
    assert freezing.answer() == "held"
    beginning.ask("begin", row.pk)
    eventually(advisory_waits)
    freezing.ask()
    assert (freezing.answer(), beginning.answer()) == ("done", "ledger_frozen")
