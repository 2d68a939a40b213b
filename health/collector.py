"""The results of the checks for Prometheus: settings.METRICS_COLLECTORS names the function by its dotted path."""

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from health.reasons import Reason
from health.runner import report


def health_checks() -> Iterable[Metric]:
    """Returns health_check_up{check}, 1 if the check is healthy, else 0, and health_check_reason{check,reason}, 1 for
    the reason that a failing check names, else 0. A check without a result yet has no series.

    Delays a scrape by at most 0.2 s.
    """
    up = GaugeMetricFamily("health_check_up", "Whether the health check succeeds (1) or not (0).", labels=["check"])
    why = GaugeMetricFamily(
        "health_check_reason",
        "Whether the health check fails for this reason (1) or not (0).",
        labels=["check", "reason"],
    )
    for name, result in report(wait=0.2).checks.items():
        if not result.late:
            up.add_metric([name], float(result.healthy))
            for reason in Reason:
                why.add_metric([name, reason], float(result.reason is reason))
    return [up, why]
