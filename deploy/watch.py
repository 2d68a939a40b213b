"""Whether a release bears the traffic: its containers, its own metrics, and what the probe traffic sees.

Errors and latency come from /metrics of every instance, over a sliding window; and from a Prometheus as well, if the
environment has one (deploy/objectives.py). Histograms: https://prometheus.io/docs/practices/histograms/
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from deploy.errors import LockLost, NoAnswer, StepFailed
from deploy.objectives import Evidence
from deploy.probe_traffic import READ, Source, Traffic
from deploy.targets.base import Progress, Target
from deploy.targets.probe import PAGES, SHORT, SLOWER, Answer, excuse, late, problem, starved, suffers
from health.checks import SERVING
from ledger.environments import WatchConfig

INTERVAL = 1.0  # seconds between two looks
WINDOW = 10.0  # seconds that a verdict is about
FEWEST_ERRORS = 5  # that count beside their share, as one error does not make a bad release
LIMITS = (
    WatchConfig()
)  # unless environments.toml has others. The p95 latency may be SLOWER times that of another release
ENOUGH = 20  # responses in the window, for a percentile to mean anything
STRIKES = 2  # looks in a row in which a page of the smoke test must fail
EXCUSED = 60.0  # seconds for which a release is excused at most by what it may have done itself, or past the end
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


def errors(recent: Counters, failed: int = 0, tried: int = 0, limits: WatchConfig = LIMITS) -> str:
    """What is wrong with the release, by its errors, as a clause; empty if nothing is.

    `recent` is what it counted in the window. `failed` of `tried` probe requests in the window failed: what a visitor
    sees, including what the app does not know of.
    """
    if recent.errors >= FEWEST_ERRORS and recent.errors >= limits.max_error_rate * recent.requests:
        return f"{recent.errors:.0f} of {recent.requests:.0f} responses in the last {WINDOW:.0f} s were 5xx errors"
    return failures(failed, tried, limits)


def failures(failed: int, tried: int, limits: WatchConfig = LIMITS) -> str:
    """What is wrong with what visitors see, as a clause, if `failed` of `tried` probe requests in the window failed;
    empty if that is nothing to speak of.
    """
    if failed >= FEWEST_ERRORS and failed >= limits.max_error_rate * tried:
        return f"{failed} of {tried} probe requests in the last {WINDOW:.0f} s failed"
    return ""


def unseen(answers: Counter[Source], recent: Counter[Source], version: str, revision: str = "") -> str:
    """Why the release cannot be called good by the answers that the probe traffic got, as a clause; empty if it can.

    `answers` are all since the switch, and `recent` those of the last WINDOW seconds, or since the watch began.
    """
    count = sum(number for source, number in answers.items() if source.of(version, revision))
    if count < FEWEST_ANSWERS:
        return f"{count} of {answers.total()} answers from outside came from {version}, fewer than {FEWEST_ANSWERS}"
    others = Counter({source: number for source, number in recent.items() if not source.of(version, revision)})
    if others:
        return f"{others.total()} of {recent.total()} answers at the end of the watch came from {named(others)}"
    return ""


def named(answers: Counter[Source]) -> str:
    """The releases that gave these answers, and their revisions."""
    names = {(source.release or "a release that does not say which", source.revision) for source in answers}
    return ", ".join(f"{release} ({revision})" if revision else release for release, revision in sorted(names))


def slowness(recent: Counters, limit: float, tried: int = 0, median: float = 0.0) -> tuple[str, float]:
    """Why the release is too slow, as a clause, and the seconds that it takes; empty and 0 if it is not.

    `recent` is as in errors(), `limit` in seconds. `median` is the latency of the `tried` probe requests in the window.
    """
    told = f"limit {limit:.1f} s (in the last {WINDOW:.0f} s)"
    p95 = recent.quantile(0.95)
    if recent.responses >= ENOUGH and p95 > limit:
        return f"p95 latency {p95:.1f} s, {told}", p95
    if tried >= FEWEST_ERRORS and median > limit:
        return f"median latency of the probe requests {median:.1f} s, {told}", median
    return "", 0.0


class Comparison:
    """Tells a release's own faults from those of the machine, which another release suffers from at the same moment.

    `baseline` is the p95 latency of the release that was live before, in seconds; NaN if unknown. Where no other
    release is up, as after a rolling update, evidence that the machine is short of CPU excuses the release, for
    EXCUSED seconds.
    """

    def __init__(self, target: Target, baseline: float, limits: WatchConfig = LIMITS) -> None:
        self.target = target
        self.limit = max(limits.max_p95_seconds, 0.0 if math.isnan(baseline) else SLOWER * baseline)
        self.slow_since = self.short_since = math.inf  # by the monotonic clock
        self.why = ""  # the last excuse

    def other(self, path: str) -> Answer | None:
        """What an instance of another release answers now; None if there is none, or if it cannot be asked.

        Raises NoAnswer.
        """
        try:
            there = self.target.other_instances()
            return self.target.ask(there[0], [path])[0] if there else None
        except NoAnswer:
            raise
        except StepFailed:
            return None

    def excuses(self, answer: Answer) -> bool:
        """Whether a failed or late answer is not the release's fault; `why` then says whose. Raises NoAnswer."""
        other = self.other(answer.path)
        self.why = excuse(answer, other)
        return bool(self.why) and (other is not None or self.still_short(True))

    def slow(
        self, recent: Counters, tried: int, median: float, answers: Sequence[Answer], evidence: Evidence | None = None
    ) -> str:
        """Why the release is too slow, as a clause, once it has been so for longer than the window without an excuse;
        empty before, or if it is not. `answers` are its own in this look, and `evidence` is what Prometheus has of its
        latency. Raises NoAnswer.
        """
        now = time.monotonic()
        told, seconds = slowness(recent, self.limit, tried, median)
        if not told and evidence:
            told, seconds = evidence.slowness(self.limit, ENOUGH)
        self.why = ""
        if told:
            other = self.other(READ)
            if other is not None and suffers(other, seconds):
                self.why = SHORT if any(map(starved, [*answers, other])) else "the other release is as slow"
            elif other is None and self.still_short(any(starved(each) and suffers(each, seconds) for each in answers)):
                self.why = SHORT
        if not told:
            self.short_since = math.inf
        if not told or self.why:
            self.slow_since = math.inf
            return ""
        self.slow_since = min(self.slow_since, now)
        return told if now - self.slow_since >= WINDOW else ""

    def still_short(self, evidence: bool) -> bool:
        """Whether `evidence` that the machine is short of CPU counts: not for ever, as the release may be its cause."""
        if not evidence:
            return False
        self.short_since = min(self.short_since, time.monotonic())
        return time.monotonic() - self.short_since < EXCUSED

    def undecided(self) -> bool:
        """Whether the release is slow, and it is not yet clear why."""
        return not math.isinf(self.slow_since)


def read_counters(target: Target, instances: list[str]) -> Counters:
    """The counters of these instances, added up. Raises StepFailed."""
    found = Counters()
    for instance in instances:
        for answer in target.ask(instance, ["/metrics"]):
            if answer.status == 200:
                found.add(answer.body)
    return found


@dataclass
class Look:
    """What the release's instances answered, once: their counters added up, and their answers.

    `wrong` is what is wrong with one of them; empty if nothing is. `bad` is the answer, if there was one, and
    `only_late` says that nothing worse is known than that something took too long. `ready` is whether there are any.
    """

    counters: Counters
    answers: list[Answer]
    wrong: str = ""
    bad: Answer | None = None
    only_late: bool = True
    ready: bool = True


def look(target: Target) -> Look:
    """Asks each of the release's instances for its pages, once. Raises NoAnswer."""
    seen = Look(Counters(), [])
    instances = target.new_instances()
    if not instances:
        seen.wrong, seen.ready = "no instance is ready", False
    for instance in instances:
        try:
            answers = target.ask(instance, PAGES)
        except NoAnswer:
            raise
        except StepFailed as error:
            seen.wrong, seen.bad, seen.only_late = str(error), None, False
            continue
        seen.answers += answers
        for answer in answers:
            if (reason := problem(answer, SERVING)) and seen.only_late:  # an error says more than another late answer
                seen.wrong, seen.bad, seen.only_late = reason, answer, late(answer)
            elif not reason and answer.path == "/metrics":
                seen.counters.add(answer.body)
    return seen


def watch(
    target: Target,
    seconds: float,
    baseline: float,
    traffic: Traffic,
    held: Callable[[], bool],
    tell: Progress,
    evidence: Evidence | None = None,
) -> str:
    """Watches the release for `seconds` and returns a note, or raises StepFailed once something is wrong with it.

    A look that finds a page failing is followed by another one, past the end if need be: one bad response proves
    nothing, and is not overlooked either. What another release suffers from as well does not count against it; if that
    goes on for EXCUSED seconds past the end, an error ends the watch, and slowness is noted. `baseline` is as in
    Comparison, and `held` tells whether the lock still is this run's. Raises LockLost if it is not. `evidence` has the
    limits, and perhaps a Prometheus, which counts in addition.
    """
    evidence = evidence or Evidence()
    limits = evidence.limits
    began = time.monotonic()
    looks: deque[tuple[float, Counters]] = deque()
    strikes, slowest, well = 0, 0.0, began
    compared = Comparison(target, baseline, limits)
    while True:
        now = time.monotonic()
        if reason := target.failure_reason():
            raise StepFailed(f"{reason}.", target.logs())
        seen = look(target)
        failed, tried, median = traffic.lately(min(WINDOW, now - began))
        excused = seen.bad is not None and compared.excuses(seen.bad)
        if not seen.ready and tried >= FEWEST_ERRORS and not failed:
            # As after an outage of the API server, which takes the nodes for lost until they report again.
            excused, compared.why = True, "visitors get their answers"
        to_blame = bool(seen.wrong) and not excused
        strikes = strikes + 1 if to_blame else 0
        well = well if to_blame else now
        if strikes >= STRIKES and (not seen.only_late or now - well >= LATE):
            raise StepFailed(f"{seen.wrong}, {strikes} times in a row.", target.logs())
        evidence.look()
        if seen.wrong:
            against = failures(failed, tried, limits)
        else:
            looks.append((now, seen.counters))
            while len(looks) > 2 and looks[1][0] <= now - WINDOW:
                looks.popleft()
            recent = seen.counters.since(looks[0][1])
            against = errors(recent, failed, tried, limits) or evidence.against(FEWEST_ERRORS)
            against = against or compared.slow(recent, tried, median, seen.answers, evidence)
            p95 = recent.quantile(0.95)
            slowest = slowest if math.isnan(p95) else max(slowest, p95)
        if against:
            raise StepFailed(f"{against}.", target.logs())
        left = began + seconds - time.monotonic()
        if left <= 0 and not seen.wrong and not compared.undecided() and not evidence.undecided():
            return noted(seen.counters.since(looks[0][1]), slowest, compared.why, evidence.summary())
        if left <= -EXCUSED and excused:
            if not seen.only_late:
                raise StepFailed(f"{seen.wrong}; {compared.why}.", target.logs())
            return noted(Counters(), slowest, f"{seen.wrong}; {compared.why}", evidence.summary())
        if not held():
            raise LockLost("Somebody broke the lock, so this run stopped. The release is live and no longer watched.")
        tell("; ".join(filter(None, (f"{max(0.0, left):.0f} s left", seen.wrong, compared.why))))
        time.sleep(min(INTERVAL, left) if left > 0 else INTERVAL)


def noted(recent: Counters, slowest: float, why: str, more: str = "") -> str:
    """The note about a watch that has found nothing, with what it excused at the end, and `more` evidence."""
    latency = f", p95 latency never above {1000 * slowest:.0f} ms" if slowest else ""
    count = f"{recent.requests:.0f} responses" if recent.requests else "no responses"
    return f"{count} in the last {WINDOW:.0f} s{latency if recent.requests else ''}" + "".join(
        f"; {each}" for each in (why, more) if each
    )
