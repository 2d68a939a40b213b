"""Readiness: whether this instance should get requests, which is not the same as whether its dependencies are up.

A shared dependency is down for all instances at once. If all of them became unready, visitors would get "connection
refused" instead of a page that explains the outage. So an instance that has been ready once stays ready, and reports
"degraded". One that has never been ready does not become ready while its checks fail, so a rollout stops at a bad
release.

An instance that has lost a dependency its peers still have does become unready. They tell through the cache: each
healthy instance sends a heartbeat every few seconds, a value that changes each time. Peers are the instances of the
same environment, version and commit; another release may be the idle colour, which is healthy but serves nobody. No
clocks are compared.

That the instance was ready is recorded in a file, like the flag of health.draining: all workers of this server share
it, including one that starts during the outage, and it is ignored if it is older than this server.
"""

import logging
import secrets
import time
from pathlib import Path

from django.conf import settings
from django.core.cache import cache

from health.draining import is_set
from health.runner import Report

logger = logging.getLogger("health")

# gunicorn loads the app in its master (preload_app), so the workers of an instance share this id.
INSTANCE_ID = secrets.token_hex(8)
HEARTBEAT_TTL = 60  # seconds
HEARTBEAT_EVERY = 2.0  # seconds between two heartbeats of one process
# Seconds for which peers must have been healthy, and this instance not, before it becomes unready: a shared outage does
# not begin and end for all instances at the same moment.
ISOLATED_AFTER = 15.0
PEERS_GONE_AFTER = 10.0  # seconds (at least two probes) without a new heartbeat after which no peer counts as healthy
TIME_FOR_CHECKS = 0.4  # seconds that the checks may have taken if the cache is still to be asked within the deadline


class Readiness:
    """What one process knows about its instance's readiness. Times are those of time.monotonic()."""

    def __init__(self) -> None:
        self.was_ready = False
        self.heartbeat_at = 0.0
        self.failing = False
        self.last_heartbeat: str | None = None  # the latest that was read
        self.peers_healthy_since: float | None = None  # while this instance is not
        self.heartbeat_changed_at = 0.0

    def status(self, report: Report, took: float) -> str:
        """Returns "healthy" or "degraded", which are ready, or "unhealthy", which is not.

        `report` is that of settings.HEALTH_READY, and took `took` seconds.
        """
        if report.healthy:
            self.failing, self.peers_healthy_since = False, None
            self.record_ready()
            if took < TIME_FOR_CHECKS:
                self.send_heartbeat()
            return "healthy"
        if not (self.was_ready or is_set(settings.HEALTH_READY_FILE)):
            return "unhealthy"
        if took < TIME_FOR_CHECKS and self.isolated():
            return "unhealthy"
        return "degraded"

    def record_ready(self) -> None:
        """Records for all workers that this server was ready."""
        if is_set(settings.HEALTH_READY_FILE):
            return
        try:
            path = Path(settings.HEALTH_READY_FILE)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # a former server's
            path.touch()
        except OSError as error:
            if not self.was_ready:
                logger.warning("Readiness could not be recorded for the other workers: %s", error)
        self.was_ready = True

    def send_heartbeat(self) -> None:
        """Tells the peers that this instance is healthy."""
        now = time.monotonic()
        if now - self.heartbeat_at >= HEARTBEAT_EVERY:
            self.heartbeat_at = now
            cache.set(key(), f"{INSTANCE_ID} {secrets.token_hex(4)}", HEARTBEAT_TTL)

    def isolated(self) -> bool:
        """Whether peers have been healthy for a while and this instance has not. Without the cache this is unknown, and
        counts as False.
        """
        now, found = time.monotonic(), cache.get(key())
        if not self.failing:  # this heartbeat may date from before the outage
            self.failing, self.last_heartbeat, self.peers_healthy_since = True, found, None
            return False
        if found and found != self.last_heartbeat:
            self.last_heartbeat, self.heartbeat_changed_at = found, now
            if found.startswith(INSTANCE_ID):  # another worker of this instance is healthy
                self.peers_healthy_since = None
            elif self.peers_healthy_since is None:
                self.peers_healthy_since = now
        elif now - self.heartbeat_changed_at > PEERS_GONE_AFTER:
            self.peers_healthy_since = None
        return self.peers_healthy_since is not None and now - self.peers_healthy_since >= ISOLATED_AFTER


def key() -> str:
    """Returns the cache key of the heartbeats of this instance and its peers."""
    return f"health:heartbeat:{settings.ENVIRONMENT}:{settings.VERSION}:{settings.COMMIT}"


state = Readiness()
