"""Everything that the OpenAPI schema allows, and much that it does not: schemathesis makes the requests."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from pytest_django import Settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ledger import rules
from ledger.models import Deployment
from tests.support.ledgers import begun, deployed, release, token

pytestmark = pytest.mark.django_db

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
schema = schemathesis.openapi.from_wsgi("/api/openapi.json", get_wsgi_application())


@pytest.fixture
def bearer(settings: Settings) -> Iterator[str]:
    """A token, and a ledger with something in each state."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)  # as Django's test client does: the test's transaction is to stay
    settings.API_RATE_PER_TOKEN = settings.API_RATE_PER_ADDRESS = 1_000_000
    settings.CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache", "LOCATION": uuid.uuid4().hex}}
    deployed("staging", "1.0")
    deployed("production", "1.0")
    begun("staging", "1.1")
    release("1.2")
    rules.create("testing", "1.2", "rolling", "ci")
    yield token()
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@schema.parametrize()
@hypothesis_settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_gets_an_answer_that_the_schema_does_not_know(case: Any, bearer: str) -> None:
    key = case.path_parameters.get("key")
    if isinstance(key, int) and key % 4:  # most at rows that are there
        case.path_parameters["key"] = Deployment.objects.values_list("pk", flat=True)[key % 4 - 1]
    if isinstance(case.body, dict) and case.body.get("release") and len(str(case.body["release"])) % 2:
        case.body["release"] = "1.0"
    case.call_and_validate(headers={"Authorization": f"Bearer {bearer}"}, checks=CHECKS)
