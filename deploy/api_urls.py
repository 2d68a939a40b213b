from django.urls import path
from django.views.generic import RedirectView

from deploy.api import api
from deploy.api_docs import docs

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="api_docs")),
    path("docs/", docs, name="api_docs"),
    path("", api.urls),
]
