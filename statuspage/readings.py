"""The health of each environment: the answer of its /health/, requested over HTTP and shared through the cache.

Pages do not wait for it. A page gets the old reading while a thread requests a new one. Only when there is no reading
at all does it wait, and for DEADLINE at most. An environment that hangs occupies one thread per process, and no more.
"""

import logging
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from django.conf import settings
from django.core.cache import cache

from health.client import TimedOut, Unreachable, ask, inconclusive
from health.runner import Report, report
from ledger.environments import config_of, environment_configs, names
from statuspage import simulation
from statuspage.metrics import CERTIFICATE_EXPIRY

logger = logging.getLogger(__name__)

FRESH = 10.0  # seconds after which a new reading is requested
KEPT = 60.0  # seconds after which a reading is discarded
DEADLINE = 1.0  # seconds that readings() waits for an environment without a reading
TIMEOUT = 3.0  # seconds that an environment has to answer
CERTAIN = 4.0  # seconds of retries before a late answer, or one with late checks, is taken as such
RETRY = 1.0  # seconds between such retries
KEY = "watch:2:{}"  # increment it when Reading changes, because two releases can share one cache
Condition = Literal["healthy", "unhealthy", "unreachable", "unknown"]


@dataclass(frozen=True)
class Reading:
    """An environment's health at a time (`at`, in UTC). `unknown` means not monitored, or no answer yet.

    `checks` maps each check's name to "healthy" or "unhealthy: reason". `latency_ms` is the response time in
    milliseconds. A `simulated` reading is made up for development, and every page says so.
    """

    environment: str
    state: Condition = "unknown"
    version: str = ""
    checks: dict[str, str] = field(default_factory=dict)
    latency_ms: float | None = None
    at: datetime | None = None
    simulated: bool = False

    @property
    def age(self) -> float:
        """The age in seconds; infinite if it was never taken."""
        return (datetime.now(UTC) - self.at).total_seconds() if self.at else float("inf")


latest: dict[str, Reading] = {}  # of this process, for when the cache is down
asking: dict[str, threading.Thread] = {}
lock = threading.Lock()


def readings(*, sure: bool = False) -> dict[str, Reading]:
    """Returns a reading of every environment by name. Waits for DEADLINE at most.

    With `sure`, for samples that are stored, it waits for CERTAIN and TIMEOUT instead, and an environment that has
    not answered by then is unreachable, and nothing is simulated. Raises ImproperlyConfigured if environments.toml
    is invalid, and nothing else.
    """
    watched = {
        name: config.url for name, config in environment_configs().items() if settings.WATCH_ENVIRONMENTS and config.url
    }
    watched.pop(settings.ENVIRONMENT, None)
    known = recall(list(watched))
    threads = {name: begin(name, url) for name, url in watched.items() if known[name].age > FRESH}
    until = time.monotonic() + (CERTAIN + TIMEOUT + 0.5 if sure else DEADLINE)
    for name, thread in threads.items():
        if sure or known[name].age > KEPT:
            thread.join(max(0.0, until - time.monotonic()))
            known[name] = latest.get(name, known[name])
        if sure and thread.is_alive():  # such as one that sends a byte now and then, which no socket timeout ends
            known[name] = Reading(name, "unreachable", at=datetime.now(UTC))
    found = {name: known.get(name, Reading(name)) for name in names()}
    found = {name: each if each.age <= KEPT else Reading(name) for name, each in found.items()}
    if not sure:
        found |= {name: each for name, each in simulated_readings().items() if name not in watched}
    return found | {settings.ENVIRONMENT: own_reading(sure=sure)}


def is_monitored(name: str) -> bool:
    """Tells whether the environment's health is known to this one, or requested by it."""
    return name == settings.ENVIRONMENT or bool(settings.WATCH_ENVIRONMENTS and config_of(name).url)


def simulated_readings() -> dict[str, Reading]:
    """Returns a healthy reading of each simulated environment by name; none outside development."""
    now = datetime.now(UTC)
    return {
        name: Reading(name, "healthy", version, latency_ms=simulation.LATENCY_MS, at=now, simulated=True)
        for name, version in simulation.versions().items()
    }


def own_reading(*, sure: bool = False) -> Reading:
    """Returns the reading of this instance's own environment, which needs no network.

    It is `unknown` while checks have not answered yet; with `sure`, it waits for them, for CERTAIN at most.
    """
    own = report()
    until = time.monotonic() + CERTAIN
    while is_unsettled(own) and sure and time.monotonic() < until:
        time.sleep(RETRY)
        own = report()
    checks = {name: str(result) for name, result in own.checks.items() if not result.late}
    state: Condition = "healthy" if own.healthy else "unhealthy"
    return Reading(
        settings.ENVIRONMENT, "unknown" if is_unsettled(own) else state, settings.VERSION, checks, None, own.timestamp
    )


def is_unsettled(own: Report) -> bool:
    """Tells whether late checks are all that is wrong."""
    wrong = [result for result in own.checks.values() if not result.healthy]
    return bool(wrong) and all(result.late for result in wrong)


def recall(names: list[str]) -> dict[str, Reading]:
    """Returns the newest readings of these environments, of this process or from the cache."""
    shared = cache.get_many([KEY.format(name) for name in names]) if names else {}
    found = {}
    for name in names:
        kept = shared.get(KEY.format(name))
        both = [latest.get(name, Reading(name)), Reading(**kept) if kept else Reading(name)]
        found[name] = min(both, key=lambda each: each.age)
    return found


def begin(name: str, url: str) -> threading.Thread:
    """Returns the thread that takes a reading of `name`: the one already running, or a new one."""
    with lock:
        thread = asking.get(name)
        if thread is None or not thread.is_alive():
            thread = asking[name] = threading.Thread(target=take, args=(name, url), name=f"watch-{name}", daemon=True)
            thread.start()
        return thread


def take(name: str, url: str) -> None:
    """Takes a reading and shares it through the cache."""
    found = latest[name] = request_reading(name, url)
    cache.set(KEY.format(name), asdict(found), KEPT)


def request_reading(name: str, url: str) -> Reading:
    """Requests the health of the environment at `url` and returns the reading. Late answers are retried for CERTAIN."""
    until = time.monotonic() + CERTAIN
    while True:
        started = time.monotonic()
        try:
            health: dict[str, Any] = ask(url, TIMEOUT, partial(note_certificate, name))
            if not inconclusive(health) or started + RETRY > until:
                break
        except (Unreachable, ValueError) as error:
            if not isinstance(error, TimedOut) or time.monotonic() + RETRY > until:
                logger.info("%s is unreachable: %s", name, error)
                return Reading(name, "unreachable", at=datetime.now(UTC))
        time.sleep(RETRY)
    state: Condition = "healthy" if health["status"] == "healthy" else "unhealthy"
    latency_ms = round(1000 * (time.monotonic() - started), 1)
    version = str(health.get("version", ""))[:64]
    return Reading(name, state, version, health["checks"], latency_ms, datetime.now(UTC))


def note_certificate(name: str, expiry: float) -> None:
    """Records when the certificate of the environment `name` expires (Unix time)."""
    CERTIFICATE_EXPIRY.labels(name).set(expiry)


def look_at_own_certificate() -> None:
    """Records when this environment's own certificate expires, as visitors get it; nothing if there is none to see.

    Own health is known without a request, so no reading has seen it.
    """
    url = config_of(settings.ENVIRONMENT).url
    if settings.WATCH_ENVIRONMENTS and url.startswith("https:"):
        with suppress(Unreachable, ValueError):
            ask(url, TIMEOUT, partial(note_certificate, settings.ENVIRONMENT))
