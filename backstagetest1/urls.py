"""The whole site's URLs: composition only."""

from django.conf import settings
from django.contrib import admin
from django.urls import include, path

from backstagetest1 import assets

urlpatterns = [
    path("", include("deploy.urls")),
    path("", include("accounts.urls")),
    path("health/", include("health.urls")),
    path("metrics", include("metrics.urls")),
    path("api/", include("deploy.api_urls")),
    path("static/<path:name>", assets.of_another_release),
    path(settings.ADMIN_URL, admin.site.urls),
]

handler400 = "backstagetest1.errors.bad_request"
handler429 = "backstagetest1.errors.too_many_requests"
handler500 = "backstagetest1.errors.server_error"
