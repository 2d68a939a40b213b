"""The metrics that the app updates as things happen. docs/metrics.md describes every metric.

What is known only on demand (active users, open connections, ...) is computed at each scrape: see metrics.collectors.
"""

from django.conf import settings
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from metrics import store

REGISTRY = CollectorRegistry()
store.install(REGISTRY)  # before the first metric, so that gunicorn's workers share all values

REQUESTS = Counter(
    "http_requests_total",
    "Requests, each counted once, however it ended.",
    ["method", "endpoint", "status"],
    registry=REGISTRY,
)
REQUEST_DURATION = Histogram(
    "http_request_duration_seconds",
    "Time from the arrival of the request in the app to the last byte of the response.",
    ["method", "endpoint"],
    buckets=settings.METRICS_BUCKETS,
    registry=REGISTRY,
)
REQUESTS_IN_PROGRESS = Gauge(
    "http_requests_in_progress",
    "Requests in progress, in all workers.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
RESPONSE_SIZE = Histogram(
    "http_response_size_bytes",
    "Size of response bodies, before any compression by the proxy.",
    ["method", "endpoint"],
    buckets=(100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000),
    registry=REGISTRY,
)
EXCEPTIONS = Counter(
    "http_exceptions_total",
    "Unhandled exceptions: each ended a request with status 500 or 503, or interrupted a stream.",
    ["type", "endpoint"],
    registry=REGISTRY,
)
USER_REGISTRATIONS = Counter("user_registrations_total", "Users who signed up.", registry=REGISTRY)
CACHE_HITS = Counter("cache_hits_total", "Cache lookups that found the key.", registry=REGISTRY)
CACHE_MISSES = Counter("cache_misses_total", "Cache lookups that did not find the key.", registry=REGISTRY)
CACHE_ERRORS = Counter(
    "cache_errors_total",
    "Failed cache operations; the app went on as if the cache were empty.",
    ["reason"],
    registry=REGISTRY,
)
DATABASE_QUERY_DURATION = Histogram(
    "database_query_duration_seconds",
    "Duration of database queries, by the alias of the database in the settings.",
    ["alias"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
    registry=REGISTRY,
)
WORKER_EXITS = Counter(
    "worker_exits_total",
    "Workers of gunicorn that ended without being told to.",
    ["reason"],
    registry=REGISTRY,
)
SCRAPES = Counter("metrics_scrapes_total", "Responses of /metrics.", ["status"], registry=REGISTRY)
COLLECTOR_ERRORS = Counter(
    "metrics_collector_errors_total",
    "Times that a collector failed or missed its deadline, and was left out of a scrape.",
    ["collector"],
    registry=REGISTRY,
)

# A series that appears only with its first event hides that event from rate() and increase().
# https://prometheus.io/docs/practices/instrumentation/#avoid-missing-metrics
for reason in ("timeout", "connection", "response", "skipped"):
    CACHE_ERRORS.labels(reason)
for alias in settings.DATABASES:
    DATABASE_QUERY_DURATION.labels(alias)
for reason in ("timeout", "crash", "recycled"):
    WORKER_EXITS.labels(reason)
for entry in settings.METRICS_COLLECTORS:
    for path in (entry,) if isinstance(entry, str) else entry:
        COLLECTOR_ERRORS.labels(path)
