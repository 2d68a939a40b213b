"""The results of the checks for Prometheus: settings.METRICS_COLLECTORS names the function by its dotted path."""

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from health.runner import report


def health_check_up() -> Iterable[Metric]:
    """Returns health_check_up{check}: 1 if the check is healthy, 0 if not, and nothing while it has no result yet.

    Delays a scrape by at most 0.2 s.
    """
    family = GaugeMetricFamily("health_check_up", "Whether the health check succeeds (1) or not (0).", labels=["check"])
    for name, result in report(wait=0.2).checks.items():
        if not result.late:
            family.add_metric([name], float(result.healthy))
    return [family]
