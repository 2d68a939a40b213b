"""What the owner's guide sketches, filled in: its health view, and its request metrics with prometheus_client alone.

The metrics are the same as ours, so that their scrapes can be compared; the label is the route's template, too.
"""

from collections.abc import Callable
from time import perf_counter

from django.core.cache import cache
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

REQUESTS = Counter("http_requests_total", "Total HTTP requests", ["method", "endpoint", "status"])
DURATION = Histogram(
    "http_request_duration_seconds",
    "HTTP request duration",
    ["method", "endpoint"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
SIZE = Histogram(
    "http_response_size_bytes",
    "HTTP response size",
    ["method", "endpoint"],
    buckets=(100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000),
)
IN_PROGRESS = Gauge("http_requests_in_progress", "HTTP requests in progress", multiprocess_mode="livesum")


class MetricsMiddleware:
    """As the documentation of prometheus_client shows it: labels() at every request."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        started = perf_counter()
        IN_PROGRESS.inc()
        response = self.get_response(request)
        method = str(request.method)
        endpoint = request.resolver_match.route if request.resolver_match else "unknown"
        REQUESTS.labels(method, endpoint, str(response.status_code)).inc()
        DURATION.labels(method, endpoint).observe(perf_counter() - started)
        SIZE.labels(method, endpoint).observe(len(response.content))
        IN_PROGRESS.dec()
        return response


def metrics(request: HttpRequest) -> HttpResponse:
    """The scrape in multi-process mode, as the documentation of prometheus_client shows it."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def health_check(request: HttpRequest) -> JsonResponse:
    """Answers like the health view of docs/guide.md."""
    checks = {}
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        checks["database"] = "healthy"
    except Exception as error:
        checks["database"] = f"unhealthy: {error}"
    try:
        cache.set("health_check", "ok", 10)
        cache.get("health_check")
        checks["cache"] = "healthy"
    except Exception as error:
        checks["cache"] = f"unhealthy: {error}"
    status = "healthy" if set(checks.values()) == {"healthy"} else "unhealthy"
    return JsonResponse({"status": status, "timestamp": timezone.now().isoformat(), "checks": checks})
