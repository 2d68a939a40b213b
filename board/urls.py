from django.urls import URLPattern, path

from board import decisions, views

urlpatterns: list[URLPattern] = [
    path("", views.home, name="home"),
    path("deployments/", views.deployments, name="deployments"),
    path("deployments/<int:key>/", views.deployment, name="deployment"),
    path("deployments/<int:key>/decide/", decisions.decide, name="decide"),
    path("insights/", views.insights, name="insights"),
]
