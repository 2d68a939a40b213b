"""What the database itself refuses, on each engine, whoever writes: the rows are written without ledger.rules."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from ledger.models import Deployment, Environment, Release
from tests.support.scratch import SCRATCH

MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def rolled_back(scratch: Any) -> Any:
    """Leaves nothing behind."""
    with transaction.atomic(using=SCRATCH):
        yield
        transaction.set_rollback(True, using=SCRATCH)


def environment(name: str) -> Environment:
    return Environment.objects.using(SCRATCH).get(name=name)


def write(name: str, version: str, *, at: datetime, status: str = "pending", **more: Any) -> Deployment:
    """Writes a deployment; one with an end took a minute."""
    releases = Release.objects.using(SCRATCH)
    release, _ = releases.get_or_create(version=version, defaults={"commit": "4f2a9c1", "built_at": at})
    ended = (
        {}
        if status in ("pending", "waiting")
        else {"started": at, "finished": at + MINUTE if status != "running" else None}
    )
    fields = {"environment": environment(name), "release": release, "strategy": "rolling", "actor": "x"} | ended | more
    with transaction.atomic(using=SCRATCH):
        return Deployment.objects.using(SCRATCH).create(status=status, created=at, **fields)


def ago(minutes: int) -> datetime:
    return datetime.now(UTC) - minutes * MINUTE


def denied(name: str) -> Any:
    return pytest.raises(IntegrityError, match=name)


def test_a_release_is_promoted_only_after_its_soak() -> None:
    with denied("ledger_promotion"):
        write("production", "1.0", at=ago(0), status="waiting")
    write("staging", "1.0", at=ago(20), status="succeeded")
    write("production", "1.0", at=ago(0), status="waiting")
    Environment.objects.using(SCRATCH).filter(name="production").update(soak=1800)
    for claimed in (ago(0), ago(-60), ago(5)):
        with denied("ledger_promotion"):
            write("production", "1.0", at=claimed, status="waiting")
    write("staging", "2.0", at=ago(15), status="succeeded")
    Environment.objects.using(SCRATCH).filter(name="production").update(soak=600)
    with denied("ledger_promotion"):
        write("production", "1.0", at=ago(0), status="waiting")
    write("production", "2.0", at=ago(0), status="waiting")


def test_a_release_stays_live_through_another_deployment_of_it() -> None:
    for minutes in (40, 20):
        write("staging", "1.0", at=ago(minutes), status="succeeded")
    write("staging", "1.1", at=ago(10), status="failed")
    Environment.objects.using(SCRATCH).filter(name="production").update(soak=1800)
    write("production", "1.0", at=ago(0), status="waiting")
