"""What the status page says, put together from the uptime samples and the incidents.

It is public, and asked for most when something is wrong: so it is made once for all, every FRESH seconds, and while the
database is away the last that is known is shown, from the cache or from this process's memory, with its age.
"""

import time
import uuid
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.core.cache import cache
from django.db import Error, transaction
from django.utils import timezone

from deploy import uptime
from deploy.models import Environment
from deploy.status_models import Incident, IncidentUpdate
from deploy.watch import Reading, readings

FRESH = 30.0  # seconds for which the past is good enough for the next who asks
DAYS = 90
INCIDENTS = 20
KEY = "status:2"  # the number goes up when what history() gives changes: two releases share one cache
CHANGED = "status:changed"  # another value after each write: what any process put together before it is no longer fresh
NAMESPACE = uuid.UUID("5c6a2a1e-6f0b-4e65-9a45-1b8e6d0f2c77")  # of the feed's ids, so that they are the same for ever

Known = tuple[float, str | None, dict[str, Any]]  # time.time() when it was put together, CHANGED by then, and what
memory: list[Known] = []  # at most one: for when cache and database are away


def known() -> tuple[dict[str, Any] | None, float]:
    """The past (history()), and its age in seconds; None if neither the database nor anybody's memory has it."""
    cached = cache.get_many([KEY, CHANGED])
    changed: str | None = cached.get(CHANGED)  # None: nothing was written lately, or the cache is away
    last = max([*memory, *([cached[KEY]] if KEY in cached else [])], key=lambda each: each[0], default=None)
    if last and time.time() - last[0] < FRESH and changed in (None, last[1]):
        return last[2], 0.0
    try:
        found = history()
    except Error:  # also InterfaceError, of a connection that has gone
        return (last[2], time.time() - last[0]) if last else (None, 0.0)
    memory[:] = [(time.time(), changed, found)]
    cache.set(KEY, memory[0], 86_400)
    return found, 0.0


def forget() -> None:
    """The next who asks sees what has just been written, whichever process answers, even one that is reading now."""
    memory.clear()
    cache.set(CHANGED, uuid.uuid4().hex, 86_400)


def history(today: date | None = None) -> dict[str, Any]:
    """The environments with their days, and the incidents, as status.json has them. Five queries, whatever there is."""
    today = today or timezone.now().astimezone(UTC).date()
    first = today - timedelta(days=DAYS - 1)
    days = uptime.days_of(first)
    places = []
    for place in Environment.objects.order_by("order"):
        if place.pk not in days:
            continue
        found = [days[place.pk].get(first + timedelta(days=number), (0, 0)) for number in range(DAYS)]
        up, down = sum(day[0] for day in found), sum(day[1] for day in found)
        places.append(
            {
                "environment": place.name,
                "uptime_percent": percent(up, down),
                "days": [
                    {"date": (first + timedelta(days=number)).isoformat(), "uptime_percent": percent(*day)}
                    for number, day in enumerate(found)
                ],
            }
        )
    incidents = Incident.objects.select_related("environment").prefetch_related("updates")[:INCIDENTS]
    return {"environments": places, "incidents": [told(each) for each in incidents]}


def percent(up: int, down: int) -> float | None:
    """Of the minutes that were sampled, those in which it served, to a hundredth; None if none was. Never 100 if one
    was missed.
    """
    if not up + down:
        return None
    return min(round(100 * up / (up + down), 2), 100.0 if not down else 99.99)


def told(incident: Incident) -> dict[str, Any]:
    """What everybody may know of it: not who wrote it."""
    return {
        "id": incident.pk,
        "title": incident.title,
        "environment": incident.environment.name,
        "impact": incident.impact,
        "status": incident.status,
        "started": incident.started.isoformat(),
        "resolved": incident.resolved.isoformat() if incident.resolved else None,
        "updates": [
            {"at": each.at.isoformat(), "status": each.status, "message": each.message}
            for each in incident.updates.all()
        ],
    }


def summary(now: dict[str, Reading], incidents: list[dict[str, Any]]) -> tuple[str, str]:
    """(tone, sentence) of the whole: what is seen now goes before what people say."""
    seen = [each for each in now.values() if each.state != "unknown"]
    down = [each.environment for each in seen if not uptime.is_up(each)]
    ailing = [each.environment for each in seen if uptime.is_up(each) and each.state != "healthy"]
    open_ones = [each for each in incidents if each["status"] != "resolved"]
    if down:
        return "bad", f"{listed(down)} {'is' if len(down) == 1 else 'are'} down"
    if open_ones:
        tone = "warn" if all(each["impact"] == "minor" for each in open_ones) else "bad"
        return tone, f"There is trouble in {listed(sorted({each['environment'] for each in open_ones}))}"
    if ailing:
        return "warn", f"{listed(ailing)} is up, and not everything there is well"
    return ("ok", "Everything that is watched is up") if seen else ("idle", "Nothing is watched at present")


def listed(names: list[str]) -> str:
    text = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return text[0].upper() + text[1:]


def now() -> dict[str, Reading]:
    """The readings of what is watched."""
    return {name: each for name, each in readings().items() if each.state != "unknown"}


def identifier(*words: object) -> str:
    """A name for the feed that never changes (RFC 4287, section 4.2.6)."""
    return f"urn:uuid:{uuid.uuid5(NAMESPACE, '/'.join(map(str, words)))}"


# What staff write


def report(incident: Incident, message: str, author: str, at: datetime | None = None) -> Incident:
    """Opens the incident with its first update."""
    incident.started = at or timezone.now()
    if incident.status == Incident.Status.RESOLVED:
        incident.resolved = incident.started
    with transaction.atomic():
        incident.save()
        IncidentUpdate.objects.create(
            incident=incident, at=incident.started, status=incident.status, message=message, author=author
        )
    forget()
    return incident


def update(key: int, status: str, message: str, author: str, at: datetime | None = None) -> Incident:
    """Adds an update. One after it was resolved opens it again. Raises Incident.DoesNotExist."""
    now = at or timezone.now()
    with transaction.atomic():
        incident = Incident.objects.select_for_update().get(pk=key)
        incident.status = status
        incident.resolved = now if status == Incident.Status.RESOLVED else None
        incident.save()
        IncidentUpdate.objects.create(incident=incident, at=now, status=status, message=message, author=author)
    forget()
    return incident
