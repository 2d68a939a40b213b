"""What the app counts, under the names that dashboards and alerts use. docs/metrics.md describes every metric.

What is known only when somebody asks (users seen lately, open connections, ...) is computed at the scrape instead:
see metrics.collectors.
"""

from django.conf import settings
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from metrics import store

REGISTRY = CollectorRegistry()
store.install(REGISTRY)  # before the first metric: all keep their values there, and gunicorn's workers share them

REQUESTS = Counter(
    "http_requests_total",
    "Requests answered, each counted once, whatever ended it.",
    ["method", "endpoint", "status"],
    registry=REGISTRY,
)
REQUEST_DURATION = Histogram(
    "http_request_duration_seconds",
    "Time from the request's arrival in the app to the last byte of its answer.",
    ["method", "endpoint"],
    buckets=settings.METRICS_BUCKETS,
    registry=REGISTRY,
)
REQUESTS_IN_PROGRESS = Gauge(
    "http_requests_in_progress",
    "Requests being answered now, by all workers.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
RESPONSE_SIZE = Histogram(
    "http_response_size_bytes",
    "Size of the answers' bodies, before any compression by the proxy.",
    ["method", "endpoint"],
    buckets=(100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000),
    registry=REGISTRY,
)
EXCEPTIONS = Counter(
    "http_exceptions_total",
    "Exceptions that nothing handled: each ended a request with status 500 or 503, or broke off a stream.",
    ["type", "endpoint"],
    registry=REGISTRY,
)
USER_REGISTRATIONS = Counter("user_registrations_total", "Users who signed up.", registry=REGISTRY)
CACHE_HITS = Counter("cache_hits_total", "Keys asked of the cache and found.", registry=REGISTRY)
CACHE_MISSES = Counter("cache_misses_total", "Keys asked of the cache and not found.", registry=REGISTRY)
CACHE_ERRORS = Counter(
    "cache_errors_total",
    "Cache operations not carried out; the app went on as if the cache were empty.",
    ["reason"],
    registry=REGISTRY,
)
DATABASE_QUERY_DURATION = Histogram(
    "database_query_duration_seconds",
    "Time of one database query, by the database's alias in the settings.",
    ["alias"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
    registry=REGISTRY,
)
SCRAPES = Counter("metrics_scrapes_total", "Answers given to /metrics.", ["status"], registry=REGISTRY)
COLLECTOR_ERRORS = Counter(
    "metrics_collector_errors_total",
    "Times a collector failed or missed its deadline, and was left out of a scrape.",
    ["collector"],
    registry=REGISTRY,
)

# A series that appears only with its first event hides that event from rate() and increase().
for reason in ("timeout", "connection", "response", "skipped"):
    CACHE_ERRORS.labels(reason)
for alias in settings.DATABASES:
    DATABASE_QUERY_DURATION.labels(alias)
for collector in settings.METRICS_COLLECTORS:
    COLLECTOR_ERRORS.labels(collector)
