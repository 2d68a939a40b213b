from django.urls import URLPattern, path
from django.views.decorators.http import require_safe
from django.views.generic import RedirectView

from ledger.api.docs import docs
from ledger.api.operations import api

routes, app, name = api.urls
for route in routes:
    if isinstance(route, URLPattern) and route.name == "openapi-json":
        route.callback = require_safe(route.callback)  # Ninja's own view takes any method for GET

urlpatterns = [
    path("", require_safe(RedirectView.as_view(pattern_name="api_docs"))),
    path("docs/", docs, name="api_docs"),
    path("", (routes, app, name)),
]
