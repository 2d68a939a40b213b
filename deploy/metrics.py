"""Metrics of a database per colour. docs/metrics.md describes them.

Each scrape writes a heartbeat on both sides if the app's role may, so the heartbeats go on between two switches.
"""

import threading
from collections.abc import Iterable

from django.conf import settings
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from deploy.databases.side import Side
from deploy.databases.status import Status, status

WAIT = 0.1  # seconds for a heartbeat to arrive; the scrape has a deadline
SHARE = 0.35  # of that deadline, for each statement: if one database is frozen, what the other one tells is kept
SLOT = ("reserved", "extended", "unreserved", "lost")  # wal_status of pg_replication_slots
WAY = ["sender", "receiver"]

_own = threading.local()  # a worker's thread has connections of its own


def databases() -> Iterable[Metric]:
    """Returns what the two databases tell, and which of them does not answer. A collector."""
    if not hasattr(_own, "sides"):
        _own.sides = [Side(colour, url) for colour, url in settings.DATABASE_URLS.items()]
        for side in _own.sides:
            side.limit = settings.METRICS_COLLECTOR_TIMEOUT * SHARE
    return families(status(*_own.sides, wait=WAIT))


def families(found: Status | None) -> list[Metric]:
    """Returns the families, without series for what is unknown."""
    up = gauge("bluegreen_up", "1 if the colour's database answers, else 0.", ["colour"])
    writable = gauge("bluegreen_writable", "1 if the colour's database takes the writes, else 0.", ["colour"])
    moving = gauge("bluegreen_switching", "1 while a switch moves the writes away from the colour, else 0.", ["colour"])
    running = gauge("bluegreen_replication_running", "1 if rows of sender reach receiver, else 0.", WAY)
    behind = gauge("bluegreen_lag_bytes", "WAL of sender that receiver has not confirmed; its slot keeps it.", WAY)
    late = gauge("bluegreen_lag_seconds", "Age of what sender has written and receiver does not have.", WAY)
    left = gauge("bluegreen_slot_safe_bytes", "WAL that sender may still write before the slot is lost.", WAY)
    state = gauge("bluegreen_slot_status", "1 for the slot's wal_status, 0 for the others.", [*WAY, "status"])
    beat = gauge("bluegreen_heartbeat_timestamp_seconds", "Unix time of sender's last heartbeat at receiver.", WAY)
    lossless = gauge("bluegreen_lossless", "1 if the other colour has, or gets, all that was written, else 0.", [])
    since = gauge("bluegreen_linked_since_timestamp_seconds", "Unix time since which the databases are linked.", [])
    if found:
        for colour in (*found.phases, *found.unreachable):
            up.add_metric([colour], colour in found.phases)
        for colour, phase in found.phases.items():
            writable.add_metric([colour], colour in found.writable_colours)
            moving.add_metric([colour], phase in ("fencing", "committing"))
        for each in found.directions:
            way = [each.sender, each.receiver]
            if not found.unreachable:
                running.add_metric(way, each.running)
            for family, value in ((behind, each.lag_bytes), (late, each.lag_seconds), (left, each.safe_wal_size)):
                if value is not None:
                    family.add_metric(way, value)
            if each.sender not in found.unreachable:  # a slot that is missing is lost as well
                for name in SLOT:
                    state.add_metric([*way, name], name == (each.wal_status or "lost"))
            if at := found.heartbeats.get(each.sender):
                beat.add_metric(way, at.timestamp())
        if found.link and found.link.ready and found.writable:
            lossless.add_metric([], found.lossless)
        if found.linked_at:
            since.add_metric([], found.linked_at.timestamp())
    return [up, writable, moving, running, behind, late, left, state, beat, lossless, since]


def gauge(name: str, text: str, labels: list[str]) -> GaugeMetricFamily:
    """A family without series."""
    return GaugeMetricFamily(name, text, labels=labels)
