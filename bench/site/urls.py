"""Thirty pages, and the peer's /health/ and /metrics; ours are answered by middleware."""

import django.core.cache  # noqa: F401  # as in any app: Django tidies up after each request once it is loaded
import django.db  # noqa: F401
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, URLResolver, include, path

from bench.site.settings import ASYNC, VARIANT

ROUTES = 30
BODY = b"x" * 2000


def page(request: HttpRequest, number: int) -> HttpResponse:
    return HttpResponse(BODY)


async def async_page(request: HttpRequest, number: int) -> HttpResponse:
    return HttpResponse(BODY)


urlpatterns: list[URLPattern | URLResolver] = [
    path(f"route{index}/<int:number>/", async_page if ASYNC else page, name=f"route{index}") for index in range(ROUTES)
]

match VARIANT:
    case "guide":
        from bench.site.by_hand import health_check

        urlpatterns.append(path("health/", health_check))
    case "prometheus_client":
        from bench.site.by_hand import metrics

        urlpatterns.append(path("metrics", metrics))
    case "django-prometheus":
        urlpatterns.append(path("", include("django_prometheus.urls")))
    case "django-health-check":
        from health_check.views import HealthCheckView

        checks = ["health_check.checks.Database", "health_check.checks.Cache"]
        urlpatterns.append(path("health/", HealthCheckView.as_view(checks=checks)))
    case "django-watchman":
        urlpatterns.append(path("health/", include("watchman.urls")))
