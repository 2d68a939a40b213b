"""Freezes: when no deployment to an environment may begin, apart from rollbacks and what breaks the glass.

A trigger holds the same (migrations/0008_freezes.py). It knows no time zones, so the windows of a weekly freeze
are rows, made for HORIZON ahead. If they run out, nothing begins until there are more: a freeze never ends by itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from django.core.exceptions import ValidationError
from django.db import connections, transaction
from django.db.models import Max, Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone

import audit
from audit.actions import Action
from ledger.models import Environment, Freeze, FreezeWindow
from ledger.weekly import Weekly

CHANGE = "ledger.change_freeze"
HORIZON = timedelta(days=2 * 365)  # for which a weekly freeze has windows
SOON = timedelta(hours=24)  # ahead of which a freeze is shown
NEAR = timedelta(days=8)  # within which each weekly freeze has a window
LONGEST = timedelta(days=366)  # of a freeze from one time to another
LOCK = 6_004_301_947_113_020_276  # of PostgreSQL's advisory lock, as in the trigger
LAPSED = "its weekly windows have run out; run manage.py migrate"


class InvalidFreeze(ValueError):
    """A freeze that makes no sense. `field` names the parameter."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Frozen:
    """A time in which an environment is frozen. `until` is None if the windows of a weekly freeze have run out."""

    freeze: Freeze
    since: datetime
    until: datetime | None

    def sentence(self, environment: str) -> str:
        """Returns what is refused, until when, and how to pass."""
        return sentence(environment, self.until, self.freeze.reason)


def sentence(environment: str, until: datetime | None, reason: str) -> str:
    """Returns what a freeze refuses, until when, and how to pass."""
    end = f"until {until.astimezone(UTC):%a %Y-%m-%d %H:%M}Z" if until else f"({LAPSED})"
    return (
        f"{environment} is frozen {end}: {reason}. Wait, or pass --break-glass --reason TEXT if it cannot wait. "
        "Rollbacks are not held up."
    )


@dataclass(frozen=True)
class State:
    """The freeze of an environment at a time, and the next one that starts within SOON; None without."""

    active: Frozen | None = None
    upcoming: Frozen | None = None


def states(environments: Iterable[Environment], at: datetime) -> dict[int, State]:
    """Returns the state of each environment by its primary key. One query, and a second if there are weekly freezes."""
    freezes = list(standing(at))
    weekly = [each.pk for each in freezes if each.starts is None]
    rows: dict[int, list[tuple[datetime, datetime]]] = {}
    if weekly:
        near = FreezeWindow.objects.filter(freeze__in=weekly, ends__gt=at, starts__lt=at + NEAR)
        for key, starts, ends in near.order_by("starts").values_list("freeze", "starts", "ends"):
            rows.setdefault(key, []).append((starts, ends))
    return {
        row.pk: state([each for each in freezes if each.environment_id in (None, row.pk)], rows, at)
        for row in environments
    }


def standing(at: datetime) -> QuerySet[Freeze]:
    """Returns the freezes that have not ended by then, those of all environments included."""
    return Freeze.objects.filter(ended_early=None).filter(Q(starts=None) | Q(ends__gt=at)).order_by("pk")


def state(freezes: list[Freeze], rows: dict[int, list[tuple[datetime, datetime]]], at: datetime) -> State:
    """Returns the state by the freezes of an environment and the next windows of the weekly ones."""
    found: list[tuple[Freeze, datetime, datetime]] = []
    for freeze in freezes:
        if freeze.starts and freeze.ends:
            found.append((freeze, freeze.starts, freeze.ends))
        elif freeze.pk in rows:
            found += [(freeze, starts, ends) for starts, ends in rows[freeze.pk]]
        else:
            return State(Frozen(freeze, at, None))
    later = [each for each in found if at < each[1] < at + SOON]
    upcoming = Frozen(*min(later, key=lambda each: each[1])) if later else None
    now = [each for each in found if each[1] <= at]
    if not now:
        return State(None, upcoming)
    freeze, since, until = max(now, key=lambda each: each[2])
    while more := [ends for _, starts, ends in found if starts <= until < ends]:
        until = max(more)
    return State(Frozen(freeze, since, until), upcoming)


def active(environment: Environment, at: datetime | None = None) -> Frozen | None:
    """Returns the freeze of the environment at that time, until the last of those that overlap ends; None if none."""
    return states([environment], at or timezone.now())[environment.pk].active


def upcoming(environment: Environment, at: datetime | None = None) -> Frozen | None:
    """Returns the next freeze of the environment that starts after that time, but within SOON; None if none."""
    return states([environment], at or timezone.now())[environment.pk].upcoming


def add(
    environment: Environment | None,
    reason: str,
    actor: str,
    *,
    starts: datetime | None = None,
    ends: datetime | None = None,
    weekly: Weekly | None = None,
    actor_id: int | None = None,
    request: HttpRequest | None = None,
) -> Freeze:
    """Freezes the environment (all for None) from `starts` (now for None) to `ends`, or weekly. Returns the freeze.

    What has begun goes on. Once it returns, nothing begins: it waits for transactions in which something just does.
    Raises InvalidFreeze.
    """
    with transaction.atomic():
        # In the order in which rules.create() locks, so that the two do not wait for each other.
        rows = Environment.objects.select_for_update(of=("self",)).order_by("pk")
        list(rows if environment is None else rows.filter(pk=environment.pk))
        lock_out()
        now = timezone.now()
        row = Freeze(environment=environment, reason=reason.strip(), actor=actor, created=now)
        if weekly:
            check_weekly(weekly)
            row.start_day, row.start_time, row.end_day = weekly.start_day, weekly.start_time, weekly.end_day
            row.end_time, row.zone = weekly.end_time, weekly.zone
        else:
            row.starts, row.ends = starts or now, ends
            check_once(row.starts, ends, now)
        try:
            row.clean_fields()
        except ValidationError as error:
            field, messages = next(iter(error.message_dict.items()))
            raise InvalidFreeze(field, messages[0]) from None
        row.save(force_insert=True)
        make_windows(row, now, "default")
        audit.record(
            Action.FREEZE_ADDED,
            actor=actor,
            actor_id=actor_id,
            environment=environment.name if environment else "",
            target=f"freeze {row.pk}",
            details={"when": row.when, "reason": row.reason},
            request=request,
        )
        return row


def lock_out() -> None:
    """Waits until no transaction is about to begin a deployment, and lets none do so before this one ends."""
    connection = connections["default"]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])


def check_once(starts: datetime, ends: datetime | None, now: datetime) -> None:
    """Raises InvalidFreeze unless the freeze ends, after now and its start, and is not too long."""
    if ends is None:
        raise InvalidFreeze("ends", "Expected when it ends.")
    if ends <= starts:
        raise InvalidFreeze("ends", "Ends before it starts. Swap the two times.")
    if ends <= now:
        raise InvalidFreeze("ends", "It would be over already. Expected an end in the future.")
    if ends - max(starts, now) > LONGEST or starts - now > LONGEST:
        raise InvalidFreeze("ends", f"Expected a freeze within {LONGEST.days} days. Check the year.")


def check_weekly(weekly: Weekly) -> None:
    """Raises InvalidFreeze unless the zone is known and the window shorter than a week."""
    if (weekly.start_day, weekly.start_time) == (weekly.end_day, weekly.end_time):
        raise InvalidFreeze("ends", "Starts and ends at the same time of the week. Expected another end.")
    try:
        ZoneInfo(weekly.zone)
    except (KeyError, ValueError, OSError):  # an unknown zone is a KeyError; an empty name or a path are the others
        raise InvalidFreeze(
            "zone", f"{weekly.zone!r} is not a time zone; expected one such as Europe/Berlin."
        ) from None


def end(key: int, actor: str, *, actor_id: int | None = None, request: HttpRequest | None = None) -> bool:
    """Ends a freeze before its time, and returns whether it had not ended yet. Raises Freeze.DoesNotExist."""
    with transaction.atomic():
        row = Freeze.objects.select_for_update(of=("self",)).select_related("environment").get(pk=key)
        now = timezone.now()
        if row.is_over(now):
            return False
        row.ended_early, row.ended_by = now, actor
        row.save(update_fields=["ended_early", "ended_by"])
        audit.record(
            Action.FREEZE_ENDED,
            actor=actor,
            actor_id=actor_id,
            environment=row.environment.name if row.environment else "",
            target=f"freeze {row.pk}",
            details={"when": row.when, "reason": row.reason},
            request=request,
        )
        return True


def extend(now: datetime | None = None, *, using: str = "default", ahead: timedelta = HORIZON) -> int:
    """Makes the windows of weekly freezes that have none for `ahead`, and returns how many there were.

    As new rules of a time zone may have come meanwhile, windows by them are added; the others stay.
    """
    now = now or timezone.now()
    weekly = Freeze.objects.using(using).filter(ended_early=None, starts=None).annotate(last=Max("windows__starts"))
    late = weekly.filter(Q(last=None) | Q(last__lt=now + ahead))
    return sum(make_windows(each, now, using) for each in late)


def make_windows(freeze: Freeze, now: datetime, using: str) -> int:
    """Makes the windows of a weekly freeze that it lacks, and returns how many there were."""
    if (weekly := freeze.weekly) is None:
        return 0
    rows = FreezeWindow.objects.using(using)
    known = set(rows.filter(freeze=freeze, ends__gt=now).values_list("starts", "ends"))
    new = [each for each in weekly.windows(now, now + HORIZON) if each not in known]
    rows.bulk_create((FreezeWindow(freeze=freeze, starts=a, ends=b) for a, b in new), ignore_conflicts=True)
    return len(new)
