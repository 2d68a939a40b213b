"""Whether a release that has the traffic bears it: its containers, its own metrics, and what the probe traffic sees.

Errors and latency are taken from /metrics of every instance, over a window that slides along: what a Prometheus would
be asked for, without needing one. Histograms: https://prometheus.io/docs/practices/histograms/
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from deploy.probe_traffic import Traffic
from deploy.errors import LockLost, StepFailed
from deploy.targets.base import Progress, Target
from deploy.targets.probe import PAGES, late, problem
from health.checks import SERVING

EVERY = 1.0  # seconds between two looks
WINDOW = 10.0  # seconds that a verdict is about
ERRORS, FEWEST = 0.05, 5  # share of answers that are 5xx, and how many there must be: one bad answer is no bad release
SLOW, SLOWER = 1.0, 3.0  # the 95th percentile in seconds, and how many times that of the release before
ENOUGH = 20  # answers in the window, for a percentile to mean anything
STRIKES = 2  # looks in a row in which a page of the smoke test must fail; if all that it does is to be late,
LATE = 5.0  # seconds on end


@dataclass
class Sample:
    """Counters of one or more instances, added up. `buckets` are cumulative, by their upper bound in seconds."""

    requests: float = 0
    errors: float = 0
    buckets: dict[float, float] = field(default_factory=dict)

    def add(self, text: str) -> None:
        """Adds what one instance's /metrics says."""
        for family in text_string_to_metric_families(text):
            for name, labels, value, *_ in family.samples:
                if name == "http_requests_total":
                    self.requests += value
                    self.errors += value if labels.get("status", "").startswith("5") else 0
                elif name == "http_request_duration_seconds_bucket":
                    bound = float(labels["le"])
                    self.buckets[bound] = self.buckets.get(bound, 0) + value

    def since(self, before: "Sample") -> "Sample":
        """What came after `before`. An instance that began anew counts from zero: never less than nothing."""
        buckets = {bound: max(0.0, value - before.buckets.get(bound, 0)) for bound, value in self.buckets.items()}
        return Sample(max(0.0, self.requests - before.requests), max(0.0, self.errors - before.errors), buckets)

    @property
    def answers(self) -> float:
        """How many the buckets are about."""
        return max(self.buckets.values(), default=0.0)

    def quantile(self, share: float) -> float:
        """Seconds within which that share was answered, as histogram_quantile() has it; NaN without answers."""
        bounds = sorted(self.buckets)
        total = self.buckets[bounds[-1]] if bounds else 0
        if not total:
            return math.nan
        below, lower = 0.0, 0.0
        for bound in bounds:
            count = self.buckets[bound]
            if count >= share * total:
                if math.isinf(bound):
                    return lower
                return lower + (bound - lower) * (share * total - below) / max(count - below, 1e-9)
            below, lower = count, bound
        return lower


def verdict(recent: Sample, baseline: float, failed: int = 0, tried: int = 0, median: float = 0.0) -> str:
    """What speaks against the release, empty if nothing does.

    `recent` is what it did in the window, `baseline` the 95th percentile of the release before in seconds (NaN:
    unknown). Of the probe traffic in the window `failed` of `tried` requests failed, and `median` seconds were usual:
    what a visitor sees, also of what the app does not know of.
    """
    if recent.errors >= FEWEST and recent.errors >= ERRORS * recent.requests:
        return f"{recent.errors:.0f} of {recent.requests:.0f} answers of the last {WINDOW:.0f} s were errors (5xx)"
    if failed >= FEWEST and failed >= ERRORS * tried:
        return f"{failed} of {tried} probe requests of the last {WINDOW:.0f} s failed"
    limit = max(SLOW, 0.0 if math.isnan(baseline) else SLOWER * baseline)
    usual = recent.quantile(0.95)
    if recent.answers >= ENOUGH and usual > limit:
        return f"1 of 20 answers of the last {WINDOW:.0f} s took more than {usual:.1f} s; {limit:.1f} s is allowed"
    if tried >= FEWEST and median > limit:
        return (
            f"half of the probe requests of the last {WINDOW:.0f} s took over {median:.1f} s; {limit:.1f} s is allowed"
        )
    return ""


def sample(target: Target, instances: list[str]) -> Sample:
    """The metrics of all these, added up. Raises StepFailed."""
    found = Sample()
    for instance in instances:
        for answer in target.ask(instance, ["/metrics"]):
            if answer.status == 200:
                found.add(answer.body)
    return found


def watch(
    target: Target, seconds: float, baseline: float, traffic: Traffic, held: Callable[[], bool], tell: Progress
) -> str:
    """Watches for so long; returns a note. Raises StepFailed as soon as something speaks against the release."""
    began = time.monotonic()
    looks: deque[tuple[float, Sample]] = deque()
    strikes, slowest, well = 0, 0.0, began
    while True:
        now = time.monotonic()
        if said := target.failure_reason():
            raise StepFailed(f"{said}.", target.logs())
        found, wrong, only_late = Sample(), "", True
        for instance in target.new_instances():
            try:
                for answer in target.ask(instance, PAGES):
                    if said := problem(answer, SERVING):
                        wrong, only_late = said, only_late and late(answer)
                    elif answer.path == "/metrics":
                        found.add(answer.body)
            except StepFailed as error:
                wrong, only_late = str(error), False
        strikes = strikes + 1 if wrong else 0
        well = well if wrong else now
        if strikes >= STRIKES and (not only_late or now - well >= LATE):
            raise StepFailed(f"{wrong}, {strikes} times in a row.", target.logs())
        if not wrong:
            looks.append((now, found))
            while len(looks) > 2 and looks[1][0] <= now - WINDOW:
                looks.popleft()
            recent = found.since(looks[0][1])
            if against := verdict(recent, baseline, *traffic.lately(min(WINDOW, now - began))):
                raise StepFailed(f"{against}.", target.logs())
            usual = recent.quantile(0.95)
            slowest = slowest if math.isnan(usual) else max(slowest, usual)
        left = began + seconds - time.monotonic()
        if left <= 0 and not strikes:  # else once more: one bad answer proves nothing, and is not overlooked either
            count = found.since(looks[0][1]).requests if looks else 0
            return f"{count:.0f} answers in the last {WINDOW:.0f} s, 95 % of them within {slowest:.2f} s all the time"
        if not held():
            raise LockLost("Somebody has broken the lock, so nothing more is done, and nobody watches.")
        tell(f"{max(0.0, left):.0f} s to go")
        time.sleep(min(EVERY, left) if left > 0 else EVERY)
