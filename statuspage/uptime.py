"""Uptime: a sample of each environment every minute, and the rollup of old samples into days.

A thread in every serving process takes the samples, so no scheduler is needed. Where there is one, `manage.py
sample_uptime` and `rollup_samples` do the same. Any number of processes may try: a unique constraint keeps one sample
per environment and minute, and a process that finds it there does nothing.
"""

import logging
import random
import threading
from collections import deque
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.conf import settings
from django.core.signals import request_started
from django.db import DatabaseError, connection, transaction
from django.db.models import Count, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import TruncDate
from django.utils import timezone
from prometheus_client import Metric

from audit import retention
from health.checks import SERVING
from ledger.environments import names
from ledger.metrics import timestamps
from ledger.models import Environment
from statuspage.models import Day, Sample
from statuspage.readings import Reading, is_monitored, look_at_own_certificate, readings, request_reading

logger = logging.getLogger(__name__)

KEPT = 7  # whole days (UTC) whose samples are kept; older ones are rolled up into one row per day
LONGEST_OUTAGE = 24 * 60  # minutes of samples that wait in memory while the database is down


def is_up(reading: Reading) -> bool:
    """Tells whether the environment served: it answered, and every check that it needs to serve passed."""
    if reading.state == "unhealthy" and reading.checks:
        return all(reading.checks.get(name, "healthy") == "healthy" for name in SERVING)
    return reading.state == "healthy"


def minute_of(at: datetime) -> datetime:
    """Returns the start of the minute."""
    return at.replace(second=0, microsecond=0)


def observe(at: datetime | None = None, url: str = "") -> list[tuple[str, datetime, bool]]:
    """Returns (environment, minute, up) for each monitored environment, without a query. Waits for their answers.

    `at` defaults to now. `url` is the address of this environment itself, for a process that does not serve, and whose
    own health therefore says nothing.
    """
    minute = minute_of(at or timezone.now())
    found = readings(sure=True) | ({settings.ENVIRONMENT: request_reading(settings.ENVIRONMENT, url)} if url else {})
    return [(name, minute, is_up(each)) for name, each in found.items() if each.state != "unknown"]


def write(observed: list[tuple[str, datetime, bool]]) -> int:
    """Saves the samples that no other process has saved. Returns the number of samples in those minutes.

    Raises django.db.Error.
    """
    keys = dict(Environment.objects.values_list("name", "pk"))
    rows = [Sample(environment_id=keys[name], minute=minute, up=up) for name, minute, up in observed if name in keys]
    Sample.objects.bulk_create(rows, ignore_conflicts=True)
    return Sample.objects.filter(minute__in={minute for _, minute, _ in observed}).count()


def rollup(now: datetime | None = None) -> int:
    """Rolls up the samples older than KEPT days into one row per day. Returns how many there were.

    Raises django.db.Error.
    """
    border = datetime.combine(
        (now or timezone.now()).astimezone(UTC).date() - timedelta(days=KEPT), datetime.min.time(), UTC
    )
    with transaction.atomic():
        # The lock admits one process at a time; two would count the same samples twice.
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
    """Counts the samples by environment and day: rows with `environment` (a primary key), `date`, `ups` and `downs`."""
    days = samples.values("environment", date=TruncDate("minute", tzinfo=UTC)).order_by("environment", "date")
    found: Any = days.annotate(ups=Count("pk", filter=Q(up=True)), downs=Count("pk", filter=Q(up=False)))
    return list(found)


def minutes_by_day(first: date) -> dict[int, dict[date, tuple[int, int]]]:
    """Returns (minutes up, minutes down) by environment's primary key and day in UTC, from `first` on, in two queries.

    Raises django.db.Error.
    """
    found: dict[int, dict[date, tuple[int, int]]] = {}
    for key, day, up, down in Day.objects.filter(day__gte=first).values_list("environment", "day", "up", "down"):
        found.setdefault(key, {})[day] = (up, down)
    begin = datetime.combine(first, datetime.min.time(), UTC)
    for row in by_day(Sample.objects.filter(minute__gte=begin)):
        days = found.setdefault(row["environment"], {})
        up, down = days.get(row["date"], (0, 0))
        days[row["date"]] = (up + row["ups"], down + row["downs"])
    return found


def uptime_samples() -> Iterable[Metric]:
    """Returns uptime_sample_timestamp_seconds{environment}, of the environments that are monitored and have samples. A
    collector; one query.
    """
    last = Sample.objects.filter(environment=OuterRef("pk")).order_by("-minute").values("minute")[:1]
    monitored = [name for name in names() if is_monitored(name)]
    return timestamps(
        "uptime_sample_timestamp_seconds",
        "Unix time of the minute of the environment's last uptime sample.",
        Environment.objects.filter(name__in=monitored).annotate(last=Subquery(last)).values_list("name", "last"),
    )


class Sampler(threading.Thread):
    """A thread that takes a sample at a random second of each minute, so that processes do not all query at once.

    Samples that cannot be saved wait in memory until the database is back, so that its outage counts as an outage.
    """

    def __init__(self) -> None:
        super().__init__(name="uptime", daemon=True)
        self.stopped = threading.Event()
        self.waiting: deque[tuple[str, datetime, bool]] = deque(maxlen=4 * LONGEST_OUTAGE)
        self.rolled_up: date | None = None

    def run(self) -> None:
        """Samples once a minute until `stopped` is set."""
        while not self.stopped.wait(self.pause()):
            try:
                self.turn()
            except Exception:  # one bad minute must not end the thread, and with it all samples to come
                logger.exception("Uptime sample failed")
            finally:
                connection.close()  # rather than keep it idle for a minute

    def pause(self) -> float:
        """Returns the seconds until a random second of the next minute."""
        return 60 - timezone.now().second + random.uniform(1, 55)

    def turn(self) -> None:
        """Takes and saves one sample, and once a day rolls up the old ones and purges the audit log."""
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
                retention.purge(settings.AUDIT_RETENTION_DAYS)  # here, because nothing else runs once a day
                self.rolled_up = minute.date()
        except DatabaseError as error:
            logger.warning("Uptime sample kept in memory; database unavailable: %s", type(error).__name__)
        look_at_own_certificate()


def start_with_the_first_request(**_: object) -> None:
    """Starts the sampler once per process, when it serves its first request.

    It cannot start earlier: gunicorn forks its workers after loading the app, and threads do not survive a fork. Health
    probes arrive every few seconds, so the first request comes soon.
    """
    if request_started.disconnect(dispatch_uid="statuspage.uptime"):  # true for the first caller only
        Sampler().start()
