"""Uptime: a sample of each environment every minute, and what becomes of them with age.

Every serving process has a thread that takes them, and so no scheduler is needed; where there is one,
manage.py sample_uptime and rollup_samples do the same. Any number of processes may try: the database takes one sample
of an environment a minute (a unique constraint), and whoever finds it there does nothing.
"""

import logging
import random
import threading
from collections import deque
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.conf import settings
from django.core.signals import request_started
from django.db import DatabaseError, connection, transaction
from django.db.models import Count, Q, QuerySet
from django.db.models.functions import TruncDate
from django.utils import timezone

from health.checks import SERVING
from ledger.models import Environment
from statuspage.models import Day, Sample
from statuspage.readings import Reading, asked, readings

logger = logging.getLogger(__name__)

KEPT = 7  # whole days (UTC) whose samples are kept one by one; older ones become a row a day
LONGEST_OUTAGE = 24 * 60  # samples that are kept in memory while the database takes none


def is_up(reading: Reading) -> bool:
    """Whether it served: it answered, and no check failed that it needs for serving."""
    if reading.state == "unhealthy" and reading.checks:
        return all(reading.checks.get(name, "healthy") == "healthy" for name in SERVING)
    return reading.state == "healthy"


def minute_of(at: datetime) -> datetime:
    return at.replace(second=0, microsecond=0)


def observe(at: datetime | None = None, url: str = "") -> list[tuple[str, datetime, bool]]:
    """(environment, minute, up) of each environment that is watched. Touches no table.

    `url` is where this environment itself is asked, for a process that does not serve: that it is well says nothing.
    """
    minute = minute_of(at or timezone.now())
    found = readings(sure=True) | ({settings.ENVIRONMENT: asked(settings.ENVIRONMENT, url)} if url else {})
    return [(name, minute, is_up(each)) for name, each in found.items() if each.state != "unknown"]


def write(observed: list[tuple[str, datetime, bool]]) -> int:
    """Writes those that nobody else has written yet. Returns how many samples the given minutes have now."""
    keys = dict(Environment.objects.values_list("name", "pk"))
    rows = [Sample(environment_id=keys[name], minute=minute, up=up) for name, minute, up in observed if name in keys]
    Sample.objects.bulk_create(rows, ignore_conflicts=True)
    return Sample.objects.filter(minute__in={minute for _, minute, _ in observed}).count()


def rollup(now: datetime | None = None) -> int:
    """Makes a row a day of the samples that are older than KEPT days. Returns how many samples went into them."""
    border = datetime.combine(
        (now or timezone.now()).astimezone(UTC).date() - timedelta(days=KEPT), datetime.min.time(), UTC
    )
    with transaction.atomic():
        # One at a time: two would count the same samples twice.
        list(Environment.objects.select_for_update().order_by("pk").values_list("pk"))
        old = Sample.objects.filter(minute__lt=border)
        for row in by_day(old):
            day, _ = Day.objects.get_or_create(
                environment_id=row["environment"], day=row["date"], defaults={"up": 0, "down": 0}
            )
            day.up, day.down = day.up + row["ups"], day.down + row["downs"]
            day.save()
        return old.delete()[0]


def by_day(samples: QuerySet[Sample]) -> list[dict[str, Any]]:
    """environment, date, ups and downs of each day."""
    days = samples.values("environment", date=TruncDate("minute", tzinfo=UTC)).order_by("environment", "date")
    found: Any = days.annotate(ups=Count("pk", filter=Q(up=True)), downs=Count("pk", filter=Q(up=False)))
    return list(found)


def days_of(first: date) -> dict[int, dict[date, tuple[int, int]]]:
    """By environment's key and day: (minutes up, minutes down), from `first` on. Two queries, whatever there is."""
    found: dict[int, dict[date, tuple[int, int]]] = {}
    for key, day, up, down in Day.objects.filter(day__gte=first).values_list("environment", "day", "up", "down"):
        found.setdefault(key, {})[day] = (up, down)
    begin = datetime.combine(first, datetime.min.time(), UTC)
    for row in by_day(Sample.objects.filter(minute__gte=begin)):
        days = found.setdefault(row["environment"], {})
        up, down = days.get(row["date"], (0, 0))
        days[row["date"]] = (up + row["ups"], down + row["downs"])
    return found


class Sampler(threading.Thread):
    """Takes a sample at a random second of each minute, so that not all processes come at once. What the database
    does not take is written when it does again: the outage of one's own database is an outage, too.
    """

    def __init__(self) -> None:
        super().__init__(name="uptime", daemon=True)
        self.ends = threading.Event()
        self.waiting: deque[tuple[str, datetime, bool]] = deque(maxlen=4 * LONGEST_OUTAGE)
        self.rolled_up: date | None = None

    def run(self) -> None:
        while not self.ends.wait(self.pause()):
            try:
                self.turn()
            except Exception:  # a thread that dies of one bad minute would say nothing of all that follow
                logger.exception("No sample could be taken")
            finally:
                connection.close()  # it is not kept for a minute of doing nothing

    def pause(self) -> float:
        """Seconds until a random time in the next minute."""
        return 60 - timezone.now().second + random.uniform(1, 55)

    def turn(self) -> None:
        minute = minute_of(timezone.now())
        try:
            if Sample.objects.filter(minute=minute).exists() and not self.waiting:
                return
        except DatabaseError:
            pass
        self.waiting.extend(observe(minute))
        try:
            write(list(self.waiting))
            self.waiting.clear()
            if self.rolled_up != minute.date():
                rollup(minute)
                self.rolled_up = minute.date()
        except DatabaseError as error:
            logger.warning("A sample waits, as the database does not take it: %s", type(error).__name__)


def start_with_the_first_request(**_: object) -> None:
    """Threads do not survive a fork, and gunicorn forks its workers after loading the app: so none starts before a
    process serves. The probes come every few seconds, so that is soon.
    """
    if request_started.disconnect(dispatch_uid="statuspage.uptime"):  # true for one only
        Sampler().start()
