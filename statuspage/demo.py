"""Mock history for the status page in development: ninety days of uptime, and an incident that matches it."""

import random
from datetime import UTC, datetime, timedelta

from django.db import transaction
from django.utils import timezone

from ledger.environments import names, production_names
from ledger.models import Environment
from statuspage.models import Day, Incident, IncidentUpdate, Sample
from statuspage.uptime import minute_of

DAYS = 90
OUTAGES = (12, 4)  # days with an outage, of the environment before production and of production
STORY = (
    (0, "investigating", "Some of you cannot sign in. We are looking into it."),
    (9, "identified", "This morning's release is missing a setting. We are rolling back to the previous release."),
    (14, "monitoring", "The rollback is complete and sign-in works again. We are keeping an eye on it."),
    (45, "resolved", "No errors for half an hour. We have added a test for the missing setting."),
)


def load(profile: str) -> str | None:
    """Creates the history if `profile` is mock and there is none. Returns None: there is nothing to print."""
    if profile == "mock" and not Day.objects.exists() and not Incident.objects.exists():
        with transaction.atomic():
            write(timezone.now(), random.Random(7))
    return None


def write(now: datetime, chance: random.Random) -> None:
    """Creates uptime up to `now`, with outages on days that `chance` chooses, and a resolved incident."""
    today = now.astimezone(UTC).date()
    midnight = datetime.combine(today, datetime.min.time(), UTC)
    keys = dict(Environment.objects.values_list("name", "pk"))
    bad_day = 12  # days ago
    production = production_names()[0]
    watched = names()[: names().index(production) + 1][-2:]
    for name, outages in zip(watched, OUTAGES[-len(watched) :], strict=True):
        down = {day: chance.randint(2, 40) for day in chance.sample(range(1, DAYS), outages)}
        down[bad_day] = 14 if name == production else 0
        first = DAYS - 1 if name == production else 71  # the other has been monitored for less long
        Day.objects.bulk_create(
            Day(
                environment_id=keys[name],
                day=today - timedelta(days=day),
                up=1440 - down.get(day, 0),
                down=down.get(day, 0),
            )
            for day in range(1, first + 1)
        )
        minutes = int((minute_of(now) - midnight).total_seconds() // 60)
        Sample.objects.bulk_create(
            (
                Sample(environment_id=keys[name], minute=midnight + timedelta(minutes=n), up=True)
                for n in range(minutes)
            ),
            batch_size=500,
        )
    began = midnight - timedelta(days=bad_day) + timedelta(hours=9, minutes=12)
    incident = Incident.objects.create(
        title="Some users could not sign in",
        impact=Incident.Impact.MAJOR,
        environment_id=keys[production],
        status=Incident.Status.RESOLVED,
        started=began,
        resolved=began + timedelta(minutes=STORY[-1][0]),
    )
    IncidentUpdate.objects.bulk_create(
        IncidentUpdate(
            incident=incident,
            at=began + timedelta(minutes=minutes),
            status=status,
            message=message,
            author="demo-admin@example.com",
        )
        for minutes, status, message in STORY
    )
