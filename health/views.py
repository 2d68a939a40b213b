"""What the three addresses answer; docs/health.md says who asks which, and why.

health.middleware answers before routing. The views stand in a URLconf too, so that their paths have names.
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
from health.readiness import HURRY, standing
from health.runner import report

Probe = Callable[[HttpRequest], HttpResponse]


def probe(answer: Callable[[], dict[str, Any]]) -> Probe:
    """A view of what `answer` says: 200 if its status is "healthy" or "degraded", else 503. GET and HEAD only."""

    @wraps(answer)
    def view(request: HttpRequest) -> HttpResponse:
        response: HttpResponse = HttpResponseNotAllowed(["GET", "HEAD"], content_type="application/json")
        body = b""
        if request.method in ("GET", "HEAD"):
            said = answer()
            body = json.dumps(said).encode() + b"\n"
            status = 200 if said["status"] in ("healthy", "degraded") else 503
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
    """/health/live/: this process answers. It asks nothing of anything: a restart would mend no database."""
    return {"status": "healthy", "timestamp": datetime.now(UTC).isoformat(), "version": settings.VERSION}


@probe
def ready() -> dict[str, Any]:
    """/health/ready/: what is needed to serve is there, or was once, and nobody has asked this instance to drain."""
    if draining():
        return {"status": "draining", "timestamp": datetime.now(UTC).isoformat(), "version": settings.VERSION}
    started = time.monotonic()
    # What is known to be down is not waited for: the rest of the time is for asking the cache about the peers.
    found = report(settings.HEALTH_READY, wait=HURRY / 2 if standing.failing else None)
    return found.as_dict() | {"status": standing.judge(found, time.monotonic() - started)}
