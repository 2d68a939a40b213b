from django.urls import URLPattern, path

from deploy import status_views, views

urlpatterns: list[URLPattern] = [
    path("", views.home, name="home"),
    path("deployments/", views.deployments, name="deployments"),
    path("deployments/<int:key>/", views.deployment, name="deployment"),
    path("insights/", views.show_insights, name="insights"),
    path("status/", status_views.page, name="status"),
    path("status/status.json", status_views.as_json, name="status_json"),
    path("status/feed.atom", status_views.feed, name="status_feed"),
    path("status/incidents/new/", status_views.new_incident, name="new_incident"),
    path("status/incidents/<int:key>/", status_views.incident, name="incident"),
]
