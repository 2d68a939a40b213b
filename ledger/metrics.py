"""Metrics of deployments, counted by the instance that finishes them. docs/metrics.md describes them."""

from collections.abc import Iterable
from datetime import datetime

from prometheus_client import Counter, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily

from ledger.environments import names
from ledger.models import IN_FLIGHT, RESULTS, Deployment, Lock
from metrics.registry import REGISTRY

DEPLOYMENTS = Counter(
    "deployments_total",
    "Deployments that have ended, rollbacks included.",
    ["environment", "strategy", "result"],
    registry=REGISTRY,
)
DURATION = Histogram(
    "deployment_duration_seconds",
    "Time from a deployment's start to its end, whatever the result.",
    ["environment", "strategy"],
    buckets=(10, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600),
    registry=REGISTRY,
)
LEAD_TIME = Histogram(
    "deployment_lead_time_seconds",
    "Time from a release's build until it was live in the environment for the first time.",
    ["environment"],
    buckets=(600, 1_800, 3_600, 14_400, 43_200, 86_400, 259_200, 604_800, 2_592_000),
    registry=REGISTRY,
)

# A series that appears only with its first event hides that event from rate() and increase().
for environment in names():
    LEAD_TIME.labels(environment)
    for strategy in Deployment.Strategy.values:
        DURATION.labels(environment, strategy)
        for result in RESULTS:
            DEPLOYMENTS.labels(environment, strategy, result)


def count(deployment: Deployment, first: bool) -> None:
    """Counts a deployment that has just finished. `first`: its release is live there for the first time."""
    environment = deployment.environment.name
    DEPLOYMENTS.labels(environment, deployment.strategy, deployment.status).inc()
    if deployment.duration is not None:
        DURATION.labels(environment, deployment.strategy).observe(deployment.duration.total_seconds())
    if first and deployment.finished:
        LEAD_TIME.labels(environment).observe((deployment.finished - deployment.release.built_at).total_seconds())


def in_progress() -> Iterable[Metric]:
    """Returns deployment_in_progress_since_timestamp_seconds{environment}, no series while there is none. A collector;
    one query.
    """
    return timestamps(
        "deployment_in_progress_since_timestamp_seconds",
        "Unix time since which a deployment to the environment is pending or running.",
        Deployment.objects.filter(status__in=IN_FLIGHT).order_by().values_list("environment__name", "created"),
    )


def locks() -> Iterable[Metric]:
    """Returns deployment_lock_held_since_timestamp_seconds{environment}, no series while nobody holds one by hand. A
    collector; one query.
    """
    return timestamps(
        "deployment_lock_held_since_timestamp_seconds",
        "Unix time since which the environment's deployment lock is held by hand.",
        Lock.objects.order_by().values_list("environment__name", "since"),
    )


def timestamps(name: str, text: str, rows: Iterable[tuple[str, datetime | None]]) -> Iterable[Metric]:
    """Returns a gauge of Unix times by environment, a series for each row (environment, time) with a time."""
    family = GaugeMetricFamily(name, text, labels=["environment"])
    for environment, at in rows:
        if at:
            family.add_metric([environment], at.timestamp())
    return [family]
