"""The whole site's URLs: composition only."""

from collections.abc import Sequence

from django.conf import settings
from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from django.views.decorators.http import require_http_methods

from backstagetest1 import assets

urlpatterns: list[URLPattern | URLResolver] = [
    path("", include("board.urls")),
    path("audit/", include("audit.urls")),
    path("status/", include("statuspage.urls")),
    path("", include("accounts.urls")),
    path("health/", include("health.urls")),
    path("metrics", include("metrics.urls")),
    path("api/", include("ledger.api.urls")),
    path("static/<path:name>", assets.of_another_release),
    path(settings.ADMIN_URL, admin.site.urls),
]


def restrict(patterns: Sequence[URLPattern | URLResolver]) -> None:
    """Limits the views of the admin and of accounts to GET, HEAD and POST: the admin treats any method as GET, and
    allauth treats PUT as POST. Our other views declare their methods themselves.
    """
    for each in patterns:
        if isinstance(each, URLResolver):
            restrict(each.url_patterns)
        elif each.callback.__module__.startswith(("django.", "allauth.", "accounts.")):
            each.callback = require_http_methods(["GET", "HEAD", "POST"])(each.callback)


restrict([each for each in urlpatterns if str(each.pattern) != "api/"])  # whose operations declare their methods

handler400 = "backstagetest1.errors.bad_request"
handler429 = "backstagetest1.errors.too_many_requests"
handler500 = "backstagetest1.errors.server_error"
