"""Two processes decide at once, on PostgreSQL: ten times, a hundred in the full form."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from ledger import rules
from ledger.models import Approval, Deployment, Environment
from tests.support.ledgers import deployed
from tests.support.people import member
from tests.support.processes import Process

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

DIGEST, OTHER = (f"sha256:{letter * 64}" for letter in "ab")
# Each line of the input is what to do; the answer is "done" or the code of the refusal.
PROGRAM = """
import json, sys
import django
django.setup()
from django.db import connection
from accounts.models import User
from ledger import approvals, rules
from ledger.models import Deployment
connection.ensure_connection()
print("ready", flush=True)
for line in sys.stdin:
    act, key, *more = json.loads(line)
    try:
        if act == "start":
            rules.start(key)
        elif act == "change":
            Deployment.objects.filter(pk=key).update(digest=more[0])
        else:
            approvals.decide(key, User.objects.get(pk=more[0]), act, more[1])
        print("done", flush=True)
    except rules.RuleViolation as error:
        print(error.code, flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


@pytest.fixture
def two() -> Iterator[tuple[Process, Process]]:
    pair = Process(PROGRAM), Process(PROGRAM)
    yield pair
    for each in pair:
        each.end()


def test_whoever_is_first_decides_and_nothing_runs_that_was_not_approved(
    two: tuple[Process, Process], request: pytest.FixtureRequest
) -> None:
    deployed("staging", "1.0", at=timezone.now() - timedelta(hours=3))
    ann, bob = member("approver"), member("approver")
    seen: set[tuple[str, ...]] = set()

    def both(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[str, str]:
        for process, words in zip(two, (first, second), strict=True):
            process.ask(*words)
        return two[0].answer(), two[1].answer()

    def waiting() -> Deployment:
        Deployment.objects.filter(status="running").update(status="failed", finished=timezone.now())
        for each in Deployment.objects.filter(status="waiting"):
            Deployment.objects.filter(pk=each.pk).update(status="expired", finished=timezone.now())
        return rules.create("production", "1.0", "rolling", "ci", digest=DIGEST)

    def verdicts(row: Deployment) -> list[str]:
        return sorted(row.approvals.values_list("verdict", flat=True))

    for _ in range(100 if request.config.getoption("full") else 10):
        row = waiting()  # two approvers at once count once
        said = both(("approved", row.pk, ann.pk, DIGEST), ("approved", row.pk, bob.pk, DIGEST))
        assert sorted(said) == ["already-approved", "done"] and verdicts(row) == ["approved"], said

        row = waiting()  # approve and reject: rejected in any order, and it never runs
        said = both(("approved", row.pk, ann.pk, DIGEST), ("rejected", row.pk, bob.pk, DIGEST))
        row.refresh_from_db()
        assert said[1] == "done" and row.status == "rejected" and said[0] in ("done", "wrong-state"), said
        seen.add(("reject", said[0]))

        row = waiting()  # approved while it begins: it runs only if the approval was first
        said = both(("approved", row.pk, ann.pk, DIGEST), ("start", row.pk))
        row.refresh_from_db()
        assert said[0] == "done" and (said[1], row.status) in (("done", "running"), ("not-approved", "waiting")), said
        seen.add(("start", said[1]))

        row = waiting()  # the digest never changes, whenever somebody tries
        said = both(("approved", row.pk, ann.pk, DIGEST), ("change", row.pk, OTHER))
        row.refresh_from_db()
        assert said == ("done", "IntegrityError") and row.digest == DIGEST, said

        row = waiting()  # approved while the approval before it expires: what begins has a valid one
        life = Environment.objects.get(name="production").approval_seconds
        old = timezone.now() - timedelta(seconds=life) + timedelta(milliseconds=5)
        Approval.objects.create(
            deployment=row, approver=ann, name=ann.email, verdict="approved", digest=DIGEST, time=old
        )
        said = both(("approved", row.pk, bob.pk, DIGEST), ("start", row.pk))
        row.refresh_from_db()
        assert (said[1] == "done") == (row.status == "running"), said
        assert said[0] in ("done", "already-approved", "wrong-state"), said
    assert seen, "some order was seen"
