"""BENCH_VARIANT says what is put in: `bare`, `ours`, or a peer. BENCH_ASYNC=true makes the pages async views."""

import os
from typing import Any

from settings import base, env, services

VARIANT = os.environ.get("BENCH_VARIANT", "bare")
ASYNC = env.flag("BENCH_ASYNC", False)

SECRET_KEY = "for the benchmark only: nothing here is signed"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "bench.site.urls"
INSTALLED_APPS: list[str] = []
MIDDLEWARE: list[str] = []
USE_TZ = True
LOGGING: dict[str, Any] = {"version": 1, "root": {"level": "CRITICAL"}}  # nobody is measured by what it logs

# All use the same servers, the same timeouts and persistent connections, which docs/guide.md lacks. Only ours checks
# its connections before it uses them.
DATABASES: dict[str, Any] = {"default": {"ENGINE": "django.db.backends.sqlite3"}}
if "DATABASE_URL" in os.environ:
    DATABASES = {"default": services.database()}
DATABASES["default"]["CONN_HEALTH_CHECKS"] = VARIANT == "ours"
CACHES: dict[str, Any] = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
if "REDIS_URL" in os.environ:
    CACHES = {"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": os.environ["REDIS_URL"]}}

match VARIANT:
    case "ours":
        OURS = ("METRICS_", "HEALTH_", "VERSION", "COMMIT", "ENVIRONMENT", "STATIC_URL", "MEDIA_")
        globals().update({name: getattr(base, name) for name in dir(base) if name.startswith(OURS)})
        INSTALLED_APPS = ["health", "metrics"]
        MIDDLEWARE = ["health.middleware.ProbeMiddleware", "metrics.middleware.MetricsMiddleware"]
        MIDDLEWARE = env.words("BENCH_MIDDLEWARE") or MIDDLEWARE
        if env.flag("BENCH_TELEMETRY", False):
            TELEMETRY = ("OTLP_", "OTEL_", "SENTRY_", "REVISION", "BASE_DIR", "TRUSTED_PROXIES")
            globals().update({name: getattr(base, name) for name in dir(base) if name.startswith(TELEMETRY)})
            INSTALLED_APPS = ["health", "metrics", "audit", "ledger"]  # which is asked for the deployment, and has none
            DATABASES["default"]["NAME"] = ":memory:"
        # Those of the rooms that are here: the others have no tables to query.
        HERE = ("metrics.", "health.")
        METRICS_COLLECTORS = [
            entry if isinstance(entry, str) else tuple(path for path in entry if path.startswith(HERE))
            for entry in (base.METRICS_COLLECTORS if env.flag("BENCH_COLLECTORS", True) else [])
        ]
        if "REDIS_URL" in os.environ:
            CACHES = base.redis_cache("")
        else:
            CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache"}}
    case "prometheus_client":
        MIDDLEWARE = ["bench.site.by_hand.MetricsMiddleware"]
    case "django-prometheus":
        INSTALLED_APPS = ["django_prometheus"]
        MIDDLEWARE = [f"django_prometheus.middleware.Prometheus{place}Middleware" for place in ("Before", "After")]
    case "django-health-check":
        INSTALLED_APPS = ["health_check"]
    case "django-watchman":
        INSTALLED_APPS = ["watchman"]
        WATCHMAN_CHECKS = ("watchman.checks.databases", "watchman.checks.caches")
    case "dockerflow":
        INSTALLED_APPS = ["dockerflow.django"]
        MIDDLEWARE = ["dockerflow.django.middleware.DockerflowMiddleware"]
        BASE_DIR = base.BASE_DIR
        DOCKERFLOW_CHECKS = [f"dockerflow.django.checks.check_{name}_connected" for name in ("database", "redis")]
