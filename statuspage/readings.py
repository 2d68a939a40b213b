"""How each environment is: the answer of its /health/, asked for over HTTP and shared by all processes in the cache.

Nobody waits long for it. A reading that has grown old is asked for anew beside the request that wanted it, which gets
the old one; only where there is none at all does a request wait, and not beyond DEADLINE. An environment that hangs
holds one thread of each process and nothing else.
"""

import logging
import threading
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from django.conf import settings
from django.core.cache import cache

from health.client import TimedOut, Unreachable, ask, inconclusive
from health.runner import Report, report
from ledger.environments import NAMES, environment_configs

logger = logging.getLogger(__name__)

FRESH = 10.0  # seconds for which nobody asks again
KEPT = 60.0  # seconds after which a reading says nothing about now
DEADLINE = 1.0  # seconds that readings() waits for what is not known at all
TIMEOUT = 3.0  # seconds that an environment has for an answer
CERTAIN = 4.0  # seconds for which one that is late, or whose checks are, is asked again before that is believed
AGAIN = 1.0  # seconds between two such questions
KEY = "watch:1:{}"  # the number goes up when Reading changes: two releases share one cache


@dataclass(frozen=True)
class Reading:
    """What an environment said of itself, and when. `unknown`: nobody asks it, or nobody has an answer yet.

    `checks` has "healthy" or "unhealthy: reason" for each name; `latency_ms` is the time that the answer took.
    """

    environment: str
    state: Literal["healthy", "unhealthy", "unreachable", "unknown"] = "unknown"
    version: str = ""
    checks: dict[str, str] = field(default_factory=dict)
    latency_ms: float | None = None
    at: datetime | None = None

    @property
    def age(self) -> float:
        """In seconds; infinite if it was never taken."""
        return (datetime.now(UTC) - self.at).total_seconds() if self.at else float("inf")


latest: dict[str, Reading] = {}  # of this process, for when the cache is away
asking: dict[str, threading.Thread] = {}
lock = threading.Lock()


def readings(*, sure: bool = False) -> dict[str, Reading]:
    """Of every environment, by name. It waits DEADLINE seconds at most, and raises nothing but ImproperlyConfigured.

    `sure` is for who writes it down: it waits until CERTAIN and TIMEOUT are over, and who has not answered by then is
    unreachable.
    """
    watched = {
        name: place.url for name, place in environment_configs().items() if settings.WATCH_ENVIRONMENTS and place.url
    }
    watched.pop(settings.ENVIRONMENT, None)
    known = recall(list(watched))
    threads = {name: begin(name, url) for name, url in watched.items() if known[name].age > FRESH}
    until = time.monotonic() + (CERTAIN + TIMEOUT + 0.5 if sure else DEADLINE)
    for name, thread in threads.items():
        if sure or known[name].age > KEPT:
            thread.join(max(0.0, until - time.monotonic()))
            known[name] = latest.get(name, known[name])
        if sure and thread.is_alive():  # also one that sends a byte now and then, which no time-out of a socket ends
            known[name] = Reading(name, "unreachable", at=datetime.now(UTC))
    found = {name: known.get(name, Reading(name)) for name in NAMES}
    found = {name: each if each.age <= KEPT else Reading(name) for name, each in found.items()}
    return found | {settings.ENVIRONMENT: itself(sure=sure)}


def itself(*, sure: bool = False) -> Reading:
    """This instance's own environment, which needs no network. `unknown` while checks have had no answer at all yet;
    if `sure`, that is waited for."""
    said = report()
    until = time.monotonic() + CERTAIN
    while unsettled(said) and sure and time.monotonic() < until:
        time.sleep(AGAIN)
        said = report()
    checks = {name: str(result) for name, result in said.checks.items() if not result.late}
    state: Literal["healthy", "unhealthy", "unknown"] = "healthy" if said.healthy else "unhealthy"
    return Reading(
        settings.ENVIRONMENT, "unknown" if unsettled(said) else state, settings.VERSION, checks, None, said.timestamp
    )


def unsettled(said: Report) -> bool:
    """Whether nothing is wrong but that answers are late."""
    wrong = [result for result in said.checks.values() if not result.healthy]
    return bool(wrong) and all(result.late for result in wrong)


def recall(names: list[str]) -> dict[str, Reading]:
    """The newest reading that this process or any other has taken."""
    shared = cache.get_many([KEY.format(name) for name in names]) if names else {}
    found = {}
    for name in names:
        kept = shared.get(KEY.format(name))
        both = [latest.get(name, Reading(name)), Reading(**kept) if kept else Reading(name)]
        found[name] = min(both, key=lambda each: each.age)
    return found


def begin(name: str, url: str) -> threading.Thread:
    """The thread that asks `name`: the one under way, or a new one."""
    with lock:
        thread = asking.get(name)
        if thread is None or not thread.is_alive():
            thread = asking[name] = threading.Thread(target=take, args=(name, url), name=f"watch-{name}", daemon=True)
            thread.start()
        return thread


def take(name: str, url: str) -> None:
    """Asks, and writes the reading down where all can see it."""
    found = latest[name] = asked(name, url)
    cache.set(KEY.format(name), asdict(found), KEPT)


def asked(name: str, url: str) -> Reading:
    """What `url` says of itself. What was only late is asked again for CERTAIN seconds before it is believed."""
    until = time.monotonic() + CERTAIN
    while True:
        started = time.monotonic()
        try:
            said: dict[str, Any] = ask(url, TIMEOUT)
            if not inconclusive(said) or started + AGAIN > until:
                break
        except (Unreachable, ValueError) as error:
            if not isinstance(error, TimedOut) or time.monotonic() + AGAIN > until:
                logger.info("%s is unreachable: %s", name, error)
                return Reading(name, "unreachable", at=datetime.now(UTC))
        time.sleep(AGAIN)
    state: Literal["healthy", "unhealthy"] = "healthy" if said["status"] == "healthy" else "unhealthy"
    took = round(1000 * (time.monotonic() - started), 1)
    version = str(said.get("version", ""))[:64]
    return Reading(name, state, version, said["checks"], took, datetime.now(UTC))
