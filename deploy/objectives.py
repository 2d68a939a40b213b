"""What Prometheus says about a release: its own series while it is watched, and before that the error budget."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from deploy.errors import DeployRefused
from ledger.environments import Check, WatchConfig
from metrics import budgets
from metrics.budgets import Budget
from metrics.prometheus import Prometheus, PrometheusError, quoted

EVERY = 5.0  # seconds between two times that Prometheus is asked; it scrapes less often
SECONDS = 2.0  # that it has to answer, as the watch waits meanwhile
PATIENT = 5.0  # seconds that it has to answer before a deployment
RATE = 300.0  # seconds that the recording rules look back
STRIKES = 2  # answers in a row in which a check of one's own must be exceeded
# The release's own series; monitoring/rules/recording.yml makes them.
REQUESTS = "release:http_requests:rate5m"
ERRORS = "release:http_errors:ratio_rate5m"
P95 = "release:http_request_duration_seconds:p95_5m"


@dataclass(frozen=True)
class Answer:
    """What was asked and answered: `value` is None where it is unknown, and `why` may then say why."""

    expression: str
    limit: str
    value: float | None
    why: str = ""

    def __str__(self) -> str:
        known = f"unknown{f' ({self.why})' if self.why else ''}" if self.value is None else f"{self.value:.4g}"
        return f"{' '.join(self.expression.split())} = {known}, {self.limit}"


@dataclass
class Evidence:
    """What a Prometheus says about a release during its watch. Without one, nothing is asked.

    It is asked every EVERY seconds, for SECONDS at most. It is evidence in addition to what the deployer sees itself:
    one that does not answer, or has no series of the release, neither condemns the release nor makes it good.
    """

    prometheus: Prometheus | None = None
    environment: str = ""
    version: str = ""
    limits: WatchConfig = WatchConfig()
    answers: list[Answer] = field(default_factory=list)  # the last ones
    why: str = ""  # it did not answer; empty if it did
    asked: int = 0  # how often it was asked
    missed: int = 0  # how often it did not answer
    at: float = -math.inf  # when it was asked last, by the monotonic clock
    requests: float | None = None  # that the release answered within RATE
    errors: float | None = None  # share of them
    p95: float | None = None  # seconds
    strikes: dict[str, int] = field(default_factory=dict)  # by the name of a check
    exceeded: dict[str, str] = field(default_factory=dict)  # what is wrong, by the name of a check

    def look(self) -> None:
        """Asks, if it is time to."""
        now = time.monotonic()
        if self.prometheus is None or now - self.at < EVERY:
            return
        self.at, self.why, self.asked = now, "", self.asked + 1
        self.answers = list(self.ask(self.prometheus, now + SECONDS))
        self.missed += bool(self.why)

    def ask(self, prometheus: Prometheus, until: float) -> Iterator[Answer]:
        """Asks for everything. Yields what was asked and answered."""
        inside = f"{{environment={quoted(self.environment)},version={quoted(self.version)}}}"
        found: dict[str, float] = {}
        try:
            names = quoted("|".join((REQUESTS, ERRORS, P95)))
            series = prometheus.query(f"{{__name__=~{names},{inside[1:]}", until - time.monotonic())
            found = {each.labels.get("__name__", ""): each.value for each in series}
        except PrometheusError as error:
            self.why = str(error)
        rate, self.errors, self.p95 = found.get(REQUESTS), found.get(ERRORS), found.get(P95)
        self.requests = None if rate is None else rate * RATE
        yield Answer(f"{ERRORS}{inside}", f"max {self.limits.max_error_rate:g}", self.errors)
        yield Answer(f"{P95}{inside}", f"max {self.limits.max_p95_seconds:g}", self.p95)
        for check in self.limits.checks:
            yield self.check(prometheus, check, until)

    def check(self, prometheus: Prometheus, check: Check, until: float) -> Answer:
        """Asks for a check of one's own, and counts how often in a row it is exceeded."""
        expression, why, values = check.expression(self.environment, self.version), "", []
        try:
            values = [each.value for each in prometheus.query(expression, max(0.0, until - time.monotonic()))]
        except PrometheusError as error:
            why = str(error)
        worst = (max if check.max is not None else min)(values) if values else None
        beyond = worst is not None and check.exceeded(worst)
        self.strikes[check.name] = self.strikes.get(check.name, 0) + 1 if beyond else 0
        self.exceeded.pop(check.name, None)
        if beyond:
            self.exceeded[check.name] = f"{check.name}: {worst:.4g}, {check.limit}"
        return Answer(expression, check.limit, worst, why)

    def against(self, fewest_errors: int) -> str:
        """What is wrong with the release, by its errors and one's own checks, as a clause; empty if nothing is.

        A share of errors counts from `fewest_errors` errors on. The words, and those of slowness(), are the summary of
        an alert: ReleaseFailing and ReleaseSlow in monitoring/rules/alerts.yml, which go on watching afterwards.
        """
        if self.errors is not None and self.requests is not None and self.errors >= self.limits.max_error_rate:
            if self.errors * self.requests >= fewest_errors - 0.5:  # it is extrapolated
                limit = f"limit {100 * self.limits.max_error_rate:.4g}%"
                minutes = f"{RATE / 60:.0f} min"
                return f"{100 * self.errors:.4g}% of the responses in the last {minutes} were 5xx errors, {limit}"
        return next((self.exceeded[name] for name, number in self.strikes.items() if number >= STRIKES), "")

    def slowness(self, limit: float, enough: int) -> tuple[str, float]:
        """Why the release is too slow, as a clause, and its p95 latency in seconds; empty and 0 if it is not.

        A latency counts from `enough` responses on, and above `limit` seconds.
        """
        if self.p95 is None or self.requests is None or self.p95 <= limit or self.requests < enough:
            return "", 0.0
        return f"p95 latency {self.p95:.1f} s, limit {limit:.1f} s (in the last {RATE / 60:.0f} min)", self.p95

    def undecided(self) -> bool:
        """Whether a check of one's own was exceeded, but not often enough yet."""
        return any(0 < number < STRIKES for number in self.strikes.values())

    def summary(self) -> str:
        """The last answers in a few words, for the terminal; empty without a Prometheus."""
        if self.prometheus is None or not self.asked:
            return ""
        if self.why:
            return f"{self.why}, so the release was judged by /metrics and probe traffic alone"
        if self.errors is None and self.p95 is None:
            return f"Prometheus has no series of {self.version}, so it was judged by /metrics and probe traffic alone"
        errors = "unknown" if self.errors is None else f"{self.errors:.1%}"
        p95 = "unknown" if self.p95 is None else f"{1000 * self.p95:.0f} ms"
        checks = [
            f"{check.name} {'unknown' if answer.value is None else f'{answer.value:.4g}'}"
            for check, answer in zip(self.limits.checks, self.answers[2:], strict=True)
        ]
        return ", ".join([f"by Prometheus {errors} errors", f"p95 latency {p95}", *checks])

    def record(self) -> str:
        """What was asked and answered last, for the ledger; empty without a Prometheus."""
        if self.prometheus is None or not self.asked:
            return ""
        missed = f"; no answer {self.missed} of {self.asked} times" if self.missed else ""
        return f"Asked {self.prometheus.url}: {'; '.join(map(str, self.answers))}{missed}."


def check_budget(prometheus: Prometheus | None, environment: str, *, pass_because: str) -> str:
    """Checks that the environment has error budget left. Returns a note; `pass_because` says why a spent one is no
    obstacle, and is empty if it is one. An unknown budget is none: if monitoring is down, a cure must not wait for it.

    Raises DeployRefused, which says how much is spent, by what, and until when.
    """
    if prometheus is None:
        return "unknown, as no Prometheus is configured; not held"
    try:
        found = budgets.budgets(prometheus, PATIENT).get(environment, [])
    except PrometheusError as error:
        return f"unknown; not held: {error}"
    if not found:
        return f"unknown, as Prometheus has no budget of {environment}; not held"
    spent = [each for each in found if each.spent]
    if not spent:
        return ", ".join(f"{each.remaining:.0%} left ({each.slo})" for each in found)
    told = "; ".join(f"{1 - each.remaining:.0%} of the {each.slo} budget" for each in spent)
    if pass_because:
        return f"spent ({told}); {pass_because}"
    cause = budgets.spent_by(prometheus, environment, PATIENT)
    raise DeployRefused(
        f"The error budget of {environment} is spent: {told} of {budgets.WINDOW / 86_400:.0f} days"
        f"{f'; {cause}' if cause else ''}. {recovers(prometheus, environment, spent)} Wait, or pass --hotfix --reason "
        "TEXT if the release cannot wait. Rollbacks are not held."
    )


def recovers(prometheus: Prometheus, environment: str, spent: list[Budget]) -> str:
    """When the last of the budgets has something left again, as a sentence."""
    times = []
    for budget in spent:
        try:
            times.append(budgets.recovery(prometheus, environment, budget, PATIENT))
        except PrometheusError:
            times.append(None)
    known = [each for each in times if each is not None]
    if len(known) < len(times):
        return "When it recovers is unknown."
    return f"It recovers at {datetime.fromtimestamp(max(known), UTC):%Y-%m-%d %H:%M} UTC at the earliest."
