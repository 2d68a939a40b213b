"""Error budgets: how much of them Prometheus says is left, what spent them, and when they recover.

An objective such as "99.9% of the requests within 30 days" allows a number of bad requests, its error budget. The
recording rules compute it (monitoring/rules/slo.yml). https://sre.google/workbook/implementing-slos/
"""

import math
import time
from dataclasses import dataclass

from metrics.prometheus import Prometheus, PrometheusError, quoted

REMAINING = "slo:error_budget_remaining:ratio"
WINDOW = 30 * 86_400.0  # seconds; monitoring/slo.toml has it as 30d
HOUR = 3_600.0


@dataclass(frozen=True)
class Budget:
    """The error budget of one objective (`slo`) in one environment. `remaining` is 1 for an untouched budget, 0 for one
    that is spent, and below 0 for one that is overspent.
    """

    slo: str
    remaining: float

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self.remaining <= 0


def budgets(prometheus: Prometheus, seconds: float) -> dict[str, list[Budget]]:
    """Returns the known budgets by environment, those with the least left first. Waits for `seconds` at most.

    Raises PrometheusError.
    """
    found: dict[str, list[Budget]] = {}
    for each in prometheus.query(REMAINING, seconds):
        if math.isfinite(each.value):
            budget = Budget(each.labels.get("slo", ""), each.value)
            found.setdefault(each.labels.get("environment", ""), []).append(budget)
    return {name: sorted(each, key=lambda budget: (budget.remaining, budget.slo)) for name, each in found.items()}


def recovery(prometheus: Prometheus, environment: str, budget: Budget, seconds: float) -> float | None:
    """Returns the Unix time at which a spent budget has something left again, if the traffic stays as it is and no more
    requests are bad; None if Prometheus does not have the whole window's errors, hour by hour. Waits for `seconds`.

    Bad requests leave the window in the order in which they came. Raises PrometheusError.
    """
    expression = f"slo:bad_requests:increase1h{{slo={quoted(budget.slo)},environment={quoted(environment)}}}"
    now = time.time()
    found = prometheus.query_range(expression, now - WINDOW + HOUR, now, HOUR, seconds)
    hours = found[0].points if len(found) == 1 else []
    total = sum(bad for _, bad in hours)
    must_leave = total * (1 - 1 / max(1.0, 1 - budget.remaining))
    left = 0.0
    for at, bad in hours:
        left += bad
        if bad and left > must_leave:
            return at + WINDOW
    return None


def causes(prometheus: Prometheus, environment: str, label: str, seconds: float) -> list[tuple[str, float]]:
    """Returns the releases or the endpoints (`label`: version or endpoint) that server errors came from, with their
    share of all errors in the window, the largest first. Waits for `seconds` at most. Raises PrometheusError.
    """
    errors = f"release_endpoint:http_errors:rate5m{{environment={quoted(environment)}}}"
    window = f"{WINDOW / 86_400:.0f}d"
    found = prometheus.query(f"sum by ({label}) (sum_over_time({errors}[{window}]))", seconds)
    total = sum(each.value for each in found)
    shares = [(each.labels.get(label, ""), each.value / total) for each in found if total]
    return sorted(shares, key=lambda share: (-share[1], share[0]))


def spent_by(prometheus: Prometheus, environment: str, seconds: float) -> str:
    """Returns where most server errors came from, in words such as "82% of the errors came from 1.4.0, 61% from
    home"; empty if that is unknown.
    """
    told: list[str] = []
    for label in ("version", "endpoint"):
        try:
            found = causes(prometheus, environment, label, seconds)
        except PrometheusError:
            continue
        if found and found[0][0]:
            told.append(f"{found[0][1]:.0%} {'from' if told else 'of the errors came from'} {found[0][0]}")
    return ", ".join(told)
