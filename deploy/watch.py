"""Whether a release bears the traffic: its containers, its own metrics, and what the probe traffic sees.

Errors and latency come from /metrics of every instance, over a sliding window: what one would ask a Prometheus for,
without needing one. Histograms: https://prometheus.io/docs/practices/histograms/
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from deploy.errors import LockLost, NoAnswer, StepFailed
from deploy.probe_traffic import Source, Traffic
from deploy.targets.base import Progress, Target
from deploy.targets.probe import PAGES, late, problem
from health.checks import SERVING

INTERVAL = 1.0  # seconds between two looks
WINDOW = 10.0  # seconds that a verdict is about
ERROR_SHARE, FEWEST_ERRORS = 0.05, 5  # of the responses; both must be reached, as one error does not make a bad release
SLOW, SLOWER = 1.0, 3.0  # limits of the p95 latency: seconds, and times that of the previous release
ENOUGH = 20  # responses in the window, for a percentile to mean anything
STRIKES = 2  # looks in a row in which a page of the smoke test must fail
LATE = 5.0  # seconds for which it must fail if it is merely late
FEWEST_ANSWERS = 20  # from outside, without which a release is not called good


@dataclass
class Counters:
    """Request counters of one or more instances, added up. `buckets` are cumulative, by upper bound in seconds."""

    requests: float = 0
    errors: float = 0
    buckets: dict[float, float] = field(default_factory=dict)

    def add(self, text: str) -> None:
        """Adds those of one instance's /metrics, in the Prometheus text format."""
        for family in text_string_to_metric_families(text):
            for name, labels, value, *_ in family.samples:
                if name == "http_requests_total":
                    self.requests += value
                    self.errors += value if labels.get("status", "").startswith("5") else 0
                elif name == "http_request_duration_seconds_bucket":
                    bound = float(labels["le"])
                    self.buckets[bound] = self.buckets.get(bound, 0) + value

    def since(self, before: "Counters") -> "Counters":
        """What was counted after `before`. A restarted instance counts from zero, so nothing is below zero."""
        buckets = {bound: max(0.0, value - before.buckets.get(bound, 0)) for bound, value in self.buckets.items()}
        return Counters(max(0.0, self.requests - before.requests), max(0.0, self.errors - before.errors), buckets)

    @property
    def responses(self) -> float:
        """How many responses the buckets have."""
        return max(self.buckets.values(), default=0.0)

    def quantile(self, share: float) -> float:
        """The latency in seconds that this share of the responses did not exceed; NaN without responses.

        As histogram_quantile() computes it: https://prometheus.io/docs/prometheus/latest/querying/functions/
        """
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


def verdict(recent: Counters, baseline: float, failed: int = 0, tried: int = 0, median: float = 0.0) -> str:
    """What is wrong with the release, as a clause; empty if nothing is.

    `recent` is what it counted in the window, and `baseline` the previous release's p95 latency in seconds, NaN if
    unknown. `failed` of `tried` probe requests in the window failed, and `median` is their latency in seconds: what a
    visitor sees, including what the app does not know of.
    """
    window = f"in the last {WINDOW:.0f} s"
    if recent.errors >= FEWEST_ERRORS and recent.errors >= ERROR_SHARE * recent.requests:
        return f"{recent.errors:.0f} of {recent.requests:.0f} responses {window} were 5xx errors"
    if against := failures(failed, tried):
        return against
    limit = max(SLOW, 0.0 if math.isnan(baseline) else SLOWER * baseline)
    p95 = recent.quantile(0.95)
    if recent.responses >= ENOUGH and p95 > limit:
        return f"p95 latency {p95:.1f} s, limit {limit:.1f} s ({window})"
    if tried >= FEWEST_ERRORS and median > limit:
        return f"median latency of the probe requests {median:.1f} s, limit {limit:.1f} s ({window})"
    return ""


def failures(failed: int, tried: int) -> str:
    """What is wrong with what visitors see, as a clause, if `failed` of `tried` probe requests in the window failed;
    empty if that is nothing to speak of.
    """
    if failed >= FEWEST_ERRORS and failed >= ERROR_SHARE * tried:
        return f"{failed} of {tried} probe requests in the last {WINDOW:.0f} s failed"
    return ""


def unseen(answers: Counter[Source], recent: Counter[Source], version: str) -> str:
    """Why the release cannot be called good by the answers that the probe traffic got, as a clause; empty if it can.

    `answers` are all since the switch, and `recent` those of the last WINDOW seconds, or since the watch began.
    """
    count = sum(number for source, number in answers.items() if source.release == version)
    if count < FEWEST_ANSWERS:
        return f"{count} of {answers.total()} answers from outside came from {version}, fewer than {FEWEST_ANSWERS}"
    others = Counter({source: number for source, number in recent.items() if source.release != version})
    if others:
        return f"{others.total()} of {recent.total()} answers at the end of the watch came from {named(others)}"
    return ""


def named(answers: Counter[Source]) -> str:
    """The releases that gave these answers."""
    return ", ".join(sorted({source.release or "a release that does not say which" for source in answers}))


def read_counters(target: Target, instances: list[str]) -> Counters:
    """The counters of these instances, added up. Raises StepFailed."""
    found = Counters()
    for instance in instances:
        for answer in target.ask(instance, ["/metrics"]):
            if answer.status == 200:
                found.add(answer.body)
    return found


def watch(
    target: Target, seconds: float, baseline: float, traffic: Traffic, held: Callable[[], bool], tell: Progress
) -> str:
    """Watches the release for `seconds` and returns a note, or raises StepFailed once something is wrong with it.

    A look that finds a page failing is followed by another one, past the end if need be: one bad response proves
    nothing, and is not overlooked either. `baseline` is as in verdict(), and `held` tells whether the lock still is
    this run's. Raises LockLost if it is not.
    """
    began = time.monotonic()
    looks: deque[tuple[float, Counters]] = deque()
    strikes, slowest, well = 0, 0.0, began
    while True:
        now = time.monotonic()
        if reason := target.failure_reason():
            raise StepFailed(f"{reason}.", target.logs())
        found, wrong, only_late = look(target)
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
            p95 = recent.quantile(0.95)
            slowest = slowest if math.isnan(p95) else max(slowest, p95)
        left = began + seconds - time.monotonic()
        if left <= 0 and not strikes:
            count = found.since(looks[0][1]).requests if looks else 0
            if not count:
                return f"no responses in the last {WINDOW:.0f} s"
            latency = f", p95 latency never above {1000 * slowest:.0f} ms" if slowest else ""
            return f"{count:.0f} responses in the last {WINDOW:.0f} s{latency}"
        if not held():
            raise LockLost("Somebody broke the lock, so this run stopped. The release is live and no longer watched.")
        tell(f"{max(0.0, left):.0f} s left")
        time.sleep(min(INTERVAL, left) if left > 0 else INTERVAL)


def look(target: Target) -> tuple[Counters, str, bool]:
    """Asks each of the release's instances for its pages, once: the counters of all, what is wrong with one of them
    (empty if nothing is), and whether all that is wrong is a late answer.
    """
    found, wrong, only_late = Counters(), "", True
    for instance in target.new_instances():
        try:
            for answer in target.ask(instance, PAGES):
                if reason := problem(answer, SERVING):
                    wrong, only_late = reason, only_late and late(answer)
                elif answer.path == "/metrics":
                    found.add(answer.body)
        except NoAnswer:
            raise
        except StepFailed as error:
            wrong, only_late = str(error), False
    return found, wrong, only_late
