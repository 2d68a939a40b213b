"""The public history: the uptime of each environment by day, and the incidents, as /status/status.json has them.

The status page is read most when something is wrong. So the history is collected once for everybody, every FRESH
seconds. While the database is down, the last known one is served with its age, from the cache or this process's memory.
"""

import time
import uuid
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.core.cache import cache
from django.db import Error
from django.db.models import Max, Q, QuerySet
from django.db.models.functions import Coalesce
from django.utils import timezone

from ledger.environments import production_first
from ledger.models import Environment
from settings import text
from statuspage import uptime
from statuspage.models import Incident

FRESH = 30.0  # seconds during which a collected history is served without another look at the database
DAYS = 90
RESOLVED = 20  # resolved incidents that are listed, by their last update; open ones always are
KEY = "status:3"  # increment it when the shape of collect() changes, because two releases can share one cache
CHANGED = "status:changed"  # gets a new value with each write, which outdates whatever was collected before it

# The time.time() at which the history was collected, the value of CHANGED at that time, and the history. A plain tuple:
# it is pickled into a cache that the previous release reads as well.
Snapshot = tuple[float, str | None, dict[str, Any]]
memory: list[Snapshot] = []  # at most one, for when both the cache and the database are down


def last_known() -> tuple[dict[str, Any] | None, float]:
    """Returns the history and its age in seconds, 0 if it is current.

    The history is None if the database is down and neither the cache nor this process has a copy.
    """
    cached = cache.get_many([KEY, CHANGED])
    changed: str | None = cached.get(CHANGED)  # None if nothing was written lately, or if the cache is down
    last = max([*memory, *([cached[KEY]] if KEY in cached else [])], key=lambda each: each[0], default=None)
    if last and time.time() - last[0] < FRESH and changed in (None, last[1]):
        return last[2], 0.0
    try:
        collected = collect()
    except Error:  # the base class, since a lost connection raises InterfaceError, which is not a DatabaseError
        return (last[2], time.time() - last[0]) if last else (None, 0.0)
    memory[:] = [(time.time(), changed, collected)]
    cache.set(KEY, memory[0], 86_400)
    return collected, 0.0


def invalidate() -> None:
    """Makes every process collect the history again, including one that is collecting it right now."""
    memory.clear()
    cache.set(CHANGED, uuid.uuid4().hex, 86_400)


def collect(today: date | None = None) -> dict[str, Any]:
    """Reads the `environments` with their last DAYS days, and the `incidents`, in the shape of status.json.

    `today` is a day in UTC. Takes five queries, however much there is. Raises django.db.Error.
    """
    today = today or timezone.now().astimezone(UTC).date()
    first = today - timedelta(days=DAYS - 1)
    minutes = uptime.minutes_by_day(first)
    keys = dict(Environment.objects.values_list("name", "pk"))
    environments = []
    for name in production_first():
        if keys.get(name) not in minutes:
            continue
        days = [minutes[keys[name]].get(first + timedelta(days=number), (0, 0)) for number in range(DAYS)]
        up, down = sum(day[0] for day in days), sum(day[1] for day in days)
        environments.append(
            {
                "environment": name,
                "uptime_percent": percent(up, down),
                "days_with_data": sum(any(day) for day in days),
                "days": [
                    {"date": (first + timedelta(days=number)).isoformat(), "uptime_percent": percent(*day)}
                    for number, day in enumerate(days)
                ],
            }
        )
    return {"environments": environments, "incidents": [published(each) for each in listed()]}


def percent(up: int, down: int) -> float | None:
    """Returns the uptime in per cent, to two decimals, of so many minutes up and down; None without any.

    It is never rounded up to 100: that means no minute was missed.
    """
    if not up + down:
        return None
    return min(round(100 * up / (up + down), 2), 100.0 if not down else 99.99)


def listed() -> QuerySet[Incident]:
    """The open incidents, and the RESOLVED ones updated last; newest first, with what published() needs."""
    resolved = (
        Incident.objects.filter(status=Incident.Status.RESOLVED)
        .annotate(updated=Coalesce(Max("updates__at"), "started"))
        .order_by("-updated", "-pk")
    )
    wanted = ~Q(status=Incident.Status.RESOLVED) | Q(pk__in=resolved.values("pk")[:RESOLVED])
    return Incident.objects.filter(wanted).select_related("environment").prefetch_related("updates")


def published(incident: Incident) -> dict[str, Any]:
    """Returns what the public sees of an incident, with times in ISO 8601: everything but the authors.

    Texts stored before there was a rule for them (settings/text.py) are cleaned, because one control character breaks
    the feed for everybody.
    """
    return {
        "id": incident.pk,
        "title": text.clean(incident.title, Incident.TITLE),
        "environment": incident.environment.name,
        "impact": incident.impact,
        "status": incident.status,
        "started": incident.started.isoformat(),
        "resolved": incident.resolved.isoformat() if incident.resolved else None,
        "updates": [
            {"at": each.at.isoformat(), "status": each.status, "message": text.FORBIDDEN.sub(" ", each.message)}
            for each in incident.updates.all()
        ],
    }


def with_datetimes(incident: dict[str, Any]) -> dict[str, Any]:
    """Returns a published incident with its times as datetimes, for pages and the feed."""
    resolved = incident["resolved"]
    return incident | {
        "started": datetime.fromisoformat(incident["started"]),
        "resolved": datetime.fromisoformat(resolved) if resolved else None,
        "updates": [each | {"at": datetime.fromisoformat(each["at"])} for each in incident["updates"]],
    }
