"""Freezes: what may begin in one, by the rules, and by the database whoever writes."""

from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from audit.models import Entry
from ledger import freezes, rules
from ledger.models import Deployment, Environment, Freeze, FreezeWindow, Release
from ledger.weekly import Weekly
from tests.support.scratch import SCRATCH

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
GLASS: dict[str, Any] = {"hotfix": True, "break_glass": True, "reason": "Nobody can sign in"}


def environment(name: str = "development") -> Environment:
    return Environment.objects.get(name=name)


def release(version: str = "1.0") -> Release:
    return Release.objects.get_or_create(version=version, defaults={"commit": "4f2a9c1", "built_at": now()})[0]


def now() -> datetime:
    return datetime.now(UTC)


def around(at: datetime, before: timedelta = DAY, after: timedelta = DAY) -> Weekly:
    """A weekly freeze from `before` that time until `after` it, in UTC."""
    start, end = at - before, at + after
    return Weekly(start.weekday(), start.time().replace(microsecond=0), end.weekday(), end.time(), "UTC")


def add(name: str | None = "development", **times: Any) -> Freeze:
    return freezes.add(environment(name) if name else None, "Audit week", "ann@example.com", **times)


def create(**more: Any) -> Deployment:
    release()
    return rules.create("development", "1.0", "rolling", "ann", **more)


def frozen(match: str = "development is frozen until") -> Any:
    return pytest.raises(rules.RuleViolation, match=match)


@pytest.mark.django_db
def test_nothing_begins_in_a_freeze_but_what_must() -> None:
    pending = create()
    freeze = add(ends=now() + HOUR)
    with frozen() as error:
        rules.start(pending.pk)
    assert error.value.code == "frozen" and "--break-glass" in str(error.value)
    rules.finish(pending.pk, "failed")
    with frozen():
        create()
    with frozen():
        create(hotfix=True, reason="Nobody can sign in")
    rules.start(create(**GLASS).pk)
    rules.finish(Deployment.objects.get(status="running").pk, "succeeded")
    rules.start(create(kind="rollback", revision="abc").pk)
    rules.finish(Deployment.objects.get(status="running").pk, "succeeded")
    assert freezes.end(freeze.pk, "bob@example.com") and not freezes.end(freeze.pk, "eve@example.com")
    create()
    assert Freeze.objects.get().ended_by == "bob@example.com"
    said = list(Entry.objects.filter(action__startswith="freeze_").order_by("pk").values_list("action", "actor"))
    assert said == [("freeze_added", "ann@example.com"), ("freeze_ended", "bob@example.com")]


@pytest.mark.django_db
def test_what_has_begun_ends() -> None:
    running = rules.start(create().pk)
    add(None, ends=now() + HOUR)
    rules.step(running.pk, "switch", "succeeded")
    assert rules.finish(running.pk, "succeeded").status == "succeeded"


@pytest.mark.django_db
def test_a_freeze_is_of_its_environment_or_of_all() -> None:
    add("testing", ends=now() + HOUR)
    create()
    assert freezes.active(environment("testing")) and not freezes.active(environment())
    add(None, weekly=around(now()))
    assert freezes.active(environment()) and freezes.active(environment("production"))


@pytest.mark.django_db
def test_freezes_that_touch_are_one_and_the_next_is_shown_a_day_ahead() -> None:
    at = now().replace(second=0, microsecond=0)
    assert freezes.active(environment()) is None and freezes.upcoming(environment()) is None
    add(starts=at + 2 * HOUR, ends=at + 3 * HOUR)
    found = freezes.upcoming(environment(), at)
    assert found and found.since == at + 2 * HOUR and freezes.active(environment(), at) is None
    assert freezes.upcoming(environment(), at - DAY) is None
    add(weekly=around(at + 4 * HOUR, HOUR, HOUR))
    active = freezes.active(environment(), at + 2 * HOUR)
    assert active and active.until == at + 5 * HOUR
    assert freezes.active(environment(), at + 5 * HOUR) is None
    assert freezes.active(environment(), at + 5 * HOUR + 7 * DAY - timedelta(minutes=1))


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("times", "field"),
    [
        ({}, "ends"),
        ({"ends": now() - HOUR, "starts": now() - 2 * HOUR}, "ends"),
        ({"ends": now() + HOUR, "starts": now() + 2 * HOUR}, "ends"),
        ({"ends": now() + 400 * DAY}, "ends"),
        ({"weekly": Weekly(1, time(8), 1, time(8), "UTC")}, "ends"),
        ({"weekly": Weekly(1, time(8), 2, time(8), "Mars/Olympus")}, "zone"),
        ({"weekly": Weekly(1, time(8), 2, time(8), "../etc/passwd")}, "zone"),
        ({"weekly": Weekly(1, time(8), 2, time(8), "")}, "zone"),
    ],
)
def test_a_freeze_that_makes_no_sense_is_refused(times: dict[str, Any], field: str) -> None:
    with pytest.raises(freezes.InvalidFreeze) as error:
        add(**times)
    assert error.value.field == field and not Freeze.objects.exists()


@pytest.mark.django_db
def test_windows_are_made_two_years_ahead_and_again_before_they_run_out() -> None:
    freeze = add(weekly=Weekly(4, time(16), 0, time(8), "Europe/Berlin"))
    assert 103 <= FreezeWindow.objects.count() <= 106
    assert freezes.extend() <= 1
    assert 25 <= freezes.extend(now() + 182 * DAY) <= 28
    freezes.end(freeze.pk, "ann")
    assert freezes.extend(now() + 365 * DAY) == 0


# Written without the rules, on each engine


@pytest.fixture
def direct(scratch: Any) -> Any:
    """Leaves nothing behind."""
    with transaction.atomic(using=SCRATCH):
        yield
        transaction.set_rollback(True, using=SCRATCH)


def write(status: str = "pending", name: str = "development", **more: Any) -> Deployment:
    at = now()
    there = Environment.objects.using(SCRATCH).get(name=name)
    given = {"commit": "4f2a9c1", "built_at": at}
    wanted, _ = Release.objects.using(SCRATCH).get_or_create(version="1.0", defaults=given)
    times: dict[str, Any] = {} if status in ("pending", "waiting") else {"started": at, "finished": at}
    times |= {"finished": None} if status == "running" else {}
    fields = {"environment": there, "release": wanted, "strategy": "rolling", "actor": "x", "created": at}
    with transaction.atomic(using=SCRATCH):
        return Deployment.objects.using(SCRATCH).create(status=status, **fields | times | more)


def freeze_row(**more: Any) -> Freeze:
    there = Environment.objects.using(SCRATCH).get(name="development")
    fields = {"environment": there, "reason": "Audit", "actor": "x", "created": now() - DAY}
    return Freeze.objects.using(SCRATCH).create(**fields | more)


def denied(name: str) -> Any:
    return pytest.raises(IntegrityError, match=name)


def start(row: Deployment) -> None:
    with transaction.atomic(using=SCRATCH):
        Deployment.objects.using(SCRATCH).filter(pk=row.pk).update(status="running", started=now())


def end_in_flight() -> None:
    rows = Deployment.objects.using(SCRATCH).filter(status__in=("pending", "running"))
    rows.update(status="failed", finished=now())


@pytest.mark.usefixtures("direct")
def test_the_database_lets_nothing_begin_in_a_freeze() -> None:
    pending = write()
    freeze = freeze_row(starts=now() - HOUR, ends=now() + HOUR)
    with denied("ledger_frozen"):
        start(pending)
    end_in_flight()
    for status in ("pending", "running", "succeeded"):
        for claimed in (now(), now() - 2 * HOUR):
            with denied("ledger_frozen"):
                write(status, created=claimed)
    with denied("ledger_frozen"):
        write(hotfix=True, reason="x")
    waiting = write("waiting")
    with denied("ledger_frozen"):
        start(waiting)
    start(write(**GLASS))
    end_in_flight()
    write(name="testing")
    with transaction.atomic(using=SCRATCH):
        freeze.ended_early, freeze.ended_by = now(), "x"
        freeze.save()
    start(waiting)


@pytest.mark.usefixtures("direct")
def test_a_weekly_freeze_without_windows_to_come_holds_everything() -> None:
    rule: dict[str, Any] = {"start_day": 4, "start_time": time(16), "end_day": 0, "end_time": time(8), "zone": "UTC"}
    freeze = freeze_row(environment=None, **rule)
    windows = FreezeWindow.objects.using(SCRATCH)
    with denied("ledger_freeze_lapsed"):
        write()
    windows.create(freeze=freeze, starts=now() - 2 * DAY, ends=now() - DAY)
    with denied("ledger_freeze_lapsed"):
        write()
    windows.create(freeze=freeze, starts=now() + DAY, ends=now() + 2 * DAY)
    pending = write()
    windows.create(freeze=freeze, starts=now() - HOUR, ends=now() + HOUR)
    with denied("ledger_frozen"):
        start(pending)


@pytest.mark.usefixtures("direct")
def test_freezes_and_windows_stay_as_they_are() -> None:
    once: dict[str, Any] = {"starts": now() - HOUR, "ends": now() + HOUR}
    rule: dict[str, Any] = {"start_day": 4, "start_time": time(16), "end_day": 0, "end_time": time(8), "zone": "UTC"}
    for wrong in ({}, once | rule, once | {"zone": "UTC"}, rule | {"zone": ""}, once | {"ended_by": "x"}):
        with pytest.raises(IntegrityError), transaction.atomic(using=SCRATCH):
            freeze_row(**wrong)
    freeze = freeze_row(**rule)
    window = FreezeWindow.objects.using(SCRATCH).create(freeze=freeze, starts=now(), ends=now() + HOUR)
    rows, windows = Freeze.objects.using(SCRATCH).filter(pk=freeze.pk), FreezeWindow.objects.using(SCRATCH)
    changes = (
        lambda: rows.update(reason="y"), lambda: rows.update(zone="Asia/Tokyo"),
        lambda: windows.filter(pk=window.pk).update(ends=now() + 2 * HOUR),
        lambda: windows.filter(pk=window.pk).delete(), lambda: rows._raw_delete(SCRATCH),
    )  # fmt: skip
    for change in changes:
        with denied("ledger_freeze_fixed"), transaction.atomic(using=SCRATCH):
            change()
    rows.update(ended_early=now(), ended_by="x")
    with denied("ledger_freeze_fixed"), transaction.atomic(using=SCRATCH):
        rows.update(ended_early=None, ended_by="")


@pytest.mark.django_db
def test_a_lapsed_weekly_freeze_holds_until_its_windows_are_made() -> None:
    row = Freeze.objects.create(
        reason="x", actor="x", created=now(), start_day=4, start_time=time(16), end_day=0, end_time=time(8), zone="UTC"
    )
    found = freezes.active(environment())
    assert found and found.until is None and "manage.py migrate" in found.sentence("development")
    assert freezes.extend() > 100 and row.windows.exists()
    state = freezes.states([environment()], datetime(2027, 1, 5, 12, tzinfo=UTC))[environment().pk]
    assert state == freezes.State(None, None)
