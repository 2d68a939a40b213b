"""Answers of Prometheus, and of the two databases, for pages: fetched by threads, cached, waited for until a deadline.

A page shows the cached answer while a thread fetches a new one. It waits only if nothing is cached, and not beyond its
deadline. It does not wait after a recent failure, nor when an open page polls. The cache is per process, because the
queries are cheap.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from metrics.prometheus import PrometheusError

DEADLINE = 1.0  # seconds that a page waits for a first answer
TIMEOUT = 1.0  # seconds that Prometheus has to answer
FRESH = 20.0  # seconds after which it is asked again; also after a failure
KEPT = 300.0  # seconds after which an answer is discarded
MANY = 100  # answers that are kept at most


@dataclass(frozen=True)
class Answer:
    """What was asked for, or None and `why` Prometheus has not answered, for members only. `at`: monotonic clock."""

    value: Any
    why: str
    at: float


Key = tuple[Hashable, Hashable]  # who is asked, and for what

kept: OrderedDict[Key, Answer] = OrderedDict()
asking: dict[Key, threading.Thread] = {}
lock = threading.Lock()
SLOW = Answer(None, "Prometheus has not answered yet.", 0.0)


def begin(key: Key, ask: Callable[[], Any]) -> None:
    """Lets a thread ask, unless one does or the last answer is fresh. `ask` may raise PrometheusError."""
    with lock:
        known, thread = kept.get(key), asking.get(key)
        if known and time.monotonic() - known.at < FRESH or thread and thread.is_alive():
            return
        asking[key] = threading.Thread(target=keep, args=(key, ask), name="ask for a page", daemon=True)
        asking[key].start()


def keep(key: Key, ask: Callable[[], Any]) -> None:
    """Asks and keeps the answer."""
    try:
        value, why = ask(), ""
    except PrometheusError as error:
        value, why = None, f"{error}."
    with lock:
        kept[key] = Answer(value, why, time.monotonic())
        kept.move_to_end(key)
        while len(kept) > MANY:
            kept.popitem(last=False)
        asking.pop(key, None)


def result(key: Key, until: float) -> Answer:
    """Returns the last answer; if there is none, waits for it until then, by the monotonic clock."""
    now = time.monotonic()
    with lock:
        known, thread = kept.get(key), asking.get(key)
        failures = [each for other, each in kept.items() if other[0] == key[0] and each.why and now - each.at < FRESH]
    if known and now - known.at < KEPT:
        return known
    if failures:
        return failures[-1]
    if thread:
        thread.join(max(0.0, until - now))
    with lock:
        return kept.get(key, SLOW)
