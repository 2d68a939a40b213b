"""What the status page says, put together from readings, uptime samples and incidents.

It is public, and read most when something is wrong. So the past is put together once for everybody, every FRESH
seconds; while the database is down the last known past is shown, from the cache or from this process's memory, with its
age.
"""

import time
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from django.conf import settings
from django.core.cache import cache
from django.db import Error, transaction
from django.db.models import Max, Q, QuerySet
from django.db.models.functions import Coalesce
from django.utils import timezone

from ledger.environments import NAMES, environment_configs
from ledger.models import Environment
from settings import text
from statuspage import uptime
from statuspage.models import Incident, IncidentUpdate
from statuspage.readings import KEPT, Reading, readings

FRESH = 30.0  # seconds for which the past is good enough for the next who asks
DAYS = 90
RESOLVED = 20  # resolved incidents that are shown, by their last update; open ones always are
KEY = "status:3"  # the number goes up when what history() gives changes: two releases share one cache
CHANGED = "status:changed"  # another value after each write: what any process put together before it is no longer fresh
NAMESPACE = uuid.UUID("5c6a2a1e-6f0b-4e65-9a45-1b8e6d0f2c77")  # of the feed's ids, so that they are the same for ever
ORDER = tuple(reversed(NAMES))  # production first

State = Literal["up", "degraded", "down", "unknown"]
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
    keys = dict(Environment.objects.values_list("name", "pk"))
    past = []
    for name in ORDER:
        if keys.get(name) not in days:
            continue
        found = [days[keys[name]].get(first + timedelta(days=number), (0, 0)) for number in range(DAYS)]
        up, down = sum(day[0] for day in found), sum(day[1] for day in found)
        past.append(
            {
                "environment": name,
                "uptime_percent": percent(up, down),
                "days_with_data": sum(any(day) for day in found),
                "days": [
                    {"date": (first + timedelta(days=number)).isoformat(), "uptime_percent": percent(*day)}
                    for number, day in enumerate(found)
                ],
            }
        )
    return {"environments": past, "incidents": [told(each) for each in shown()]}


def shown() -> QuerySet[Incident]:
    """Every open incident and the RESOLVED ones updated last, the newest first, with what told() needs."""
    resolved = (
        Incident.objects.filter(status=Incident.Status.RESOLVED)
        .annotate(updated=Coalesce(Max("updates__at"), "started"))
        .order_by("-updated", "-pk")
    )
    wanted = ~Q(status=Incident.Status.RESOLVED) | Q(pk__in=resolved.values("pk")[:RESOLVED])
    return Incident.objects.filter(wanted).select_related("environment").prefetch_related("updates")


def percent(up: int, down: int) -> float | None:
    """The share of the sampled minutes in which it was up, to a hundredth; None without samples. Never 100 if one
    minute was missed.
    """
    if not up + down:
        return None
    return min(round(100 * up / (up + down), 2), 100.0 if not down else 99.99)


def figure(value: float | None) -> str:
    """How a percentage reads wherever it is shown: two decimals, except for 100 %."""
    return "no data" if value is None else "100 %" if value == 100 else f"{value:.2f} %"


def told(incident: Incident) -> dict[str, Any]:
    """What everybody may know of it: not who wrote it.

    What was stored before there was a rule for text is made to fit it: one control character breaks a feed for
    everybody.
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


# Now


def now() -> dict[str, Reading]:
    """A reading of every environment, production first. One that is too old to tell about now is `unknown`."""
    found = readings()
    return {name: found[name] if found[name].age <= KEPT else Reading(name) for name in ORDER}


def monitored(name: str) -> bool:
    """Whether anybody asks the environment how it is."""
    return name == settings.ENVIRONMENT or bool(settings.WATCH_ENVIRONMENTS and environment_configs()[name].url)


def state(reading: Reading) -> State:
    """The one verdict on a reading, for the headline and the environment's own line alike."""
    if reading.state == "unknown":
        return "unknown"
    if not uptime.is_up(reading):
        return "down"
    return "up" if reading.state == "healthy" else "degraded"


@dataclass(frozen=True)
class Headline:
    """The verdict on production, and `notes`, whole sentences without a full stop, on everything else that ails."""

    state: State
    sentence: str
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        return ". ".join([self.sentence, *self.notes]) + "." if self.notes else self.sentence


def headline(now: dict[str, Reading], incidents: list[dict[str, Any]] | None) -> Headline:
    """What is known of production decides; `incidents` is None if they cannot be read.

    What is seen now goes before what people say. Other environments are noted, and never change the verdict, except
    that not all systems are operational while one that is monitored is not.
    """
    open_ones = [each for each in incidents or [] if each["status"] != Incident.Status.RESOLVED]
    notes = [note for name in ORDER[1:] for note in notes_on(name, state(now[name]), open_ones)]
    if incidents is None:
        notes.append("Incidents cannot be read")
    impacts = {each["impact"] for each in open_ones if each["environment"] == "production"}
    seen = state(now["production"])
    if impacts and seen != "down":
        worst: State = "down" if Incident.Impact.CRITICAL in impacts else "degraded"
        return Headline(worst, "Incident in production", tuple(notes))
    if seen == "up":
        return Headline(seen, "Production is operational" if notes else "All systems operational", tuple(notes))
    return Headline(seen, condition("production", seen), tuple(notes))


def notes_on(name: str, seen: State, open_ones: list[dict[str, Any]]) -> list[str]:
    """What is to be said of an environment beside production; nothing of one that is up, or that nobody monitors."""
    said = [] if seen == "up" or not monitored(name) else [condition(name, seen)]
    return said + ([f"Incident in {name}"] if any(each["environment"] == name for each in open_ones) else [])


def condition(name: str, seen: State) -> str:
    """Such as "Staging is degraded"."""
    if seen == "unknown":
        return f"{name.capitalize()} {'status is unknown' if monitored(name) else 'is not monitored'}"
    return f"{name.capitalize()} is {seen}"


def identifier(*words: object) -> str:
    """A name for the feed that never changes (RFC 4287, section 4.2.6)."""
    return f"urn:uuid:{uuid.uuid5(NAMESPACE, '/'.join(map(str, words)))}"


# What staff write


def report(incident: Incident, message: str, author: str, at: datetime | None = None) -> Incident:
    """Opens the incident with its first update. Raises ValidationError if a text breaks the model's rules."""
    incident.started = at or timezone.now()
    if incident.status == Incident.Status.RESOLVED:
        incident.resolved = incident.started
    with transaction.atomic():
        incident.full_clean()
        incident.save()
        add(incident, message, author, incident.started)
    forget()
    return incident


def update(key: int, status: str, message: str, author: str, at: datetime | None = None) -> Incident:
    """Adds an update. One after it was resolved opens it again, unless it says resolved, too; that keeps the time at
    which it was. Raises Incident.DoesNotExist, or ValidationError if a text breaks the model's rules.
    """
    at = at or timezone.now()
    with transaction.atomic():
        incident = Incident.objects.select_for_update().get(pk=key)
        incident.status = status
        incident.resolved = (incident.resolved or at) if status == Incident.Status.RESOLVED else None
        incident.save()
        add(incident, message, author, at)
    forget()
    return incident


def add(incident: Incident, message: str, author: str, at: datetime) -> None:
    row = IncidentUpdate(incident=incident, at=at, status=incident.status, message=message, author=author)
    row.full_clean()
    row.save()
