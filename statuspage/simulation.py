"""Simulated environments for development, where only this instance exists and mock data says what the others run."""

from django.conf import settings
from django.db import Error

from ledger import demo, queries
from ledger.models import Environment

LATENCY_MS = 24.0  # what a small health endpoint takes within one region


def versions() -> dict[str, str]:
    """Returns the version of each simulated environment by name: the mock release that is live there.

    Empty unless settings.SIMULATE_ENVIRONMENTS is set and this is development. An environment with a release that
    demo_data did not make up is not simulated, and neither is any while the database is unavailable.
    """
    if not settings.SIMULATE_ENVIRONMENTS or settings.ENVIRONMENT != "development":
        return {}
    try:
        live = {environment.name: queries.live(environment) for environment in Environment.objects.on_board()}
    except Error:
        return {}
    mock = f"{demo.REGISTRY}/"
    return {name: each.release.version for name, each in live.items() if each and each.release.image.startswith(mock)}
