from django.urls import URLPattern, path

from statuspage import views
from statuspage.feed import feed

urlpatterns: list[URLPattern] = [
    path("", views.page, name="status"),
    path("status.json", views.as_json, name="status_json"),
    path("feed.atom", feed, name="status_feed"),
    path("incidents/new/", views.new_incident, name="new_incident"),
    path("incidents/<int:key>/", views.incident, name="incident"),
]
