"""Readiness: whether this instance should be sent requests. That is not whether all that it needs is there.

A dependency that all instances share is down for all of them at once. If each of them left, nobody would be there to
tell the visitors: they would get "connection refused" instead of a page that explains. So an instance that has been
ready once stays ready, and says that it is degraded. One that has never been ready does not get ready while its checks
fail, which is how a bad release is caught.

An instance that alone has lost what its peers still have does leave. The cache tells: each instance that is well signs
there every few seconds, and the signature is seen to change. Peers are the instances of the same environment, version
and commit; another release may be the idle colour, which is well and serves nobody. No clocks are compared.

That it was ready is noted in a file, like the flag of health.draining: all workers of this server share it, also one
that starts during the outage, and it is void if it is older than this server.
"""

import logging
import secrets
import time
from pathlib import Path

from django.conf import settings
from django.core.cache import cache

from health.draining import raised
from health.runner import Report

logger = logging.getLogger("health")

# gunicorn loads the app in its master (preload_app): the workers of an instance have one name.
INSTANCE = secrets.token_hex(8)
KEPT = 60  # seconds that a signature is kept
SIGN_EVERY = 2.0  # seconds between two signatures of one process
# Seconds for which peers must have been seen well, while this instance was not, before it leaves: an outage for all
# does not begin and end for all at the same moment.
ALONE_AFTER = 15.0
QUIET = 10.0  # seconds without a new signature, at the least two probes, after which nobody is seen well any more
HURRY = 0.4  # seconds that a report may have taken for the cache to be asked within the deadline, too


class Standing:
    """What one process knows; times are of time.monotonic()."""

    def __init__(self) -> None:
        self.was_ready = False
        self.signed = 0.0
        self.failing = False
        self.seen: str | None = None  # the signature that was found last
        self.well_since: float | None = None  # since when peers are seen well while this instance is not
        self.well_at = 0.0  # when the signature was last seen to have changed

    def judge(self, report: Report, took: float) -> str:
        """Returns "healthy" or "degraded", which are ready, or "unhealthy", which is not.

        `report` is of settings.HEALTH_READY, and took so many seconds.
        """
        if report.healthy:
            self.failing, self.well_since = False, None
            self.mark()
            if took < HURRY:
                self.sign()
            return "healthy"
        if not (self.was_ready or raised(settings.HEALTH_READY_FILE)):
            return "unhealthy"
        if took < HURRY and self.alone():
            return "unhealthy"
        return "degraded"

    def mark(self) -> None:
        """Notes for all workers that this server was ready."""
        if raised(settings.HEALTH_READY_FILE):
            return
        try:
            path = Path(settings.HEALTH_READY_FILE)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # an earlier server's
            path.touch()
        except OSError as error:
            if not self.was_ready:
                logger.warning("That this instance was ready is known to one worker only: %s", error)
        self.was_ready = True

    def sign(self) -> None:
        """Tells the peers that this instance is well."""
        now = time.monotonic()
        if now - self.signed >= SIGN_EVERY:
            self.signed = now
            cache.set(key(), f"{INSTANCE} {secrets.token_hex(4)}", KEPT)

    def alone(self) -> bool:
        """Whether peers are well, and have been for a while, and this instance is not. Without the cache nobody knows,
        and it stays.
        """
        now, found = time.monotonic(), cache.get(key())
        if not self.failing:  # what is there now may have been written before the outage
            self.failing, self.seen, self.well_since = True, found, None
            return False
        if found and found != self.seen:
            self.seen, self.well_at = found, now
            if found.startswith(INSTANCE):  # another worker here is well: this is no matter of the instance
                self.well_since = None
            elif self.well_since is None:
                self.well_since = now
        elif now - self.well_at > QUIET:
            self.well_since = None
        return self.well_since is not None and now - self.well_since >= ALONE_AFTER


def key() -> str:
    return f"health:well:{settings.ENVIRONMENT}:{settings.VERSION}:{settings.COMMIT}"


standing = Standing()
