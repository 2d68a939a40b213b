"""The checks' results for Prometheus. metrics finds this by its dotted path in settings.METRICS_COLLECTORS."""

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from health.runner import report


def health_check_up() -> Iterable[Metric]:
    """health_check_up{check}: 1 if the check is healthy, else 0; nothing while there has been no answer at all yet. It
    holds up a scrape for 0.2 s at the most."""
    family = GaugeMetricFamily("health_check_up", "Whether the health check succeeds (1) or not (0).", labels=["check"])
    for name, result in report(wait=0.2).checks.items():
        if not result.late:
            family.add_metric([name], float(result.healthy))
    return [family]
