"""The three endpoints; docs/health.md says who should use which, and why.

health.middleware answers before routing. The views are in a URLconf too, so that their paths have names.
"""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed

from health.draining import draining
from health.readiness import TIME_FOR_CHECKS, state
from health.runner import report

Probe = Callable[[HttpRequest], HttpResponse]


def probe(make: Callable[[], dict[str, Any]]) -> Probe:
    """Makes a view of a function that returns a report: 200 if its status is "healthy" or "degraded", else 503. Allows
    GET and HEAD only.
    """

    @wraps(make)
    def view(request: HttpRequest) -> HttpResponse:
        response: HttpResponse = HttpResponseNotAllowed(["GET", "HEAD"], content_type="application/json")
        body = b""
        if request.method in ("GET", "HEAD"):
            found = make()
            body = json.dumps(found).encode() + b"\n"
            status = 200 if found["status"] in ("healthy", "degraded") else 503
            response = HttpResponse(body if request.method == "GET" else b"", "application/json", status)
        response["Content-Length"] = str(len(body))
        response["Cache-Control"] = "no-store"
        return response

    return view


@probe
def health() -> dict[str, Any]:
    """/health/: every check, for people and monitoring."""
    return report().as_dict()


@probe
def live() -> dict[str, Any]:
    """/health/live/: this process responds. It checks no dependency: a restart would fix none of them."""
    return {"status": "healthy", "timestamp": datetime.now(UTC).isoformat(), "version": settings.VERSION}


@probe
def ready() -> dict[str, Any]:
    """/health/ready/: this instance can serve, or could at some time since its start, and is not draining."""
    if draining():
        return {"status": "draining", "timestamp": datetime.now(UTC).isoformat(), "version": settings.VERSION}
    started = time.monotonic()
    # While the checks fail, they get less time: the rest is for asking the cache about the peers.
    found = report(settings.HEALTH_READY, wait=TIME_FOR_CHECKS / 2 if state.failing else None)
    return found.as_dict() | {"status": state.status(found, time.monotonic() - started)}
