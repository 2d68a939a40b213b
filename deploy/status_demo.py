"""A made-up past for the status page of development: ninety days of samples, and incidents that fit to them."""

import random
from datetime import UTC, datetime, timedelta

from django.db import transaction
from django.utils import timezone

from deploy.models import Environment
from deploy.status_models import Day, Incident, IncidentUpdate, Sample
from deploy.uptime import minute_of

DAYS = 90
WATCHED = {"staging": 12, "production": 4}  # days with an outage
STORY = (
    (0, "investigating", "Signing in fails for some of you. We are looking into it."),
    (9, "identified", "The release of this morning lost a setting. We go back to the one before."),
    (14, "monitoring", "The release before serves again, and signing in works. We keep watching."),
    (45, "resolved", "It has worked for half an hour. The setting has a test now, which would have told us."),
)


def load(profile: str) -> str | None:
    """Writes the past, if `profile` is mock and there is none. Returns nothing to print."""
    if profile == "mock" and not Day.objects.exists() and not Incident.objects.exists():
        with transaction.atomic():
            write(timezone.now(), random.Random(7))
    return None


def write(now: datetime, chance: random.Random) -> None:
    today = now.astimezone(UTC).date()
    midnight = datetime.combine(today, datetime.min.time(), UTC)
    keys = dict(Environment.objects.values_list("name", "pk"))
    bad_day = 12  # days ago
    for name, outages in WATCHED.items():
        down = {day: chance.randint(2, 40) for day in chance.sample(range(1, DAYS), outages)}
        down[bad_day] = 14 if name == "production" else 0
        first = DAYS - 1 if name == "production" else 71  # staging was not watched from the beginning
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
        title="Signing in failed for some",
        impact=Incident.Impact.MAJOR,
        environment_id=keys["production"],
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
