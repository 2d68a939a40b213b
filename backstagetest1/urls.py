"""The whole site's URLs: composition only."""

from collections.abc import Sequence

from django.conf import settings
from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from django.views.decorators.http import require_http_methods

from backstagetest1 import assets

urlpatterns: list[URLPattern | URLResolver] = [
    path("", include("board.urls")),
    path("status/", include("statuspage.urls")),
    path("", include("accounts.urls")),
    path("health/", include("health.urls")),
    path("metrics", include("metrics.urls")),
    path("api/", include("ledger.api.urls")),
    path("static/<path:name>", assets.of_another_release),
    path(settings.ADMIN_URL, admin.site.urls),
]


def restrict(patterns: Sequence[URLPattern | URLResolver]) -> None:
    """Leaves the views of the admin and of accounts, which are pages and forms, the three methods of those: the admin
    takes any method for GET, and allauth PUT for POST. Other views of ours say themselves what they take.
    """
    for each in patterns:
        if isinstance(each, URLResolver):
            restrict(each.url_patterns)
        elif each.callback.__module__.startswith(("django.", "allauth.", "accounts.")):
            each.callback = require_http_methods(["GET", "HEAD", "POST"])(each.callback)


restrict([each for each in urlpatterns if str(each.pattern) != "api/"])  # which has its own rules for each address

handler400 = "backstagetest1.errors.bad_request"
handler429 = "backstagetest1.errors.too_many_requests"
handler500 = "backstagetest1.errors.server_error"
