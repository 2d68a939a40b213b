from django.urls import URLPattern, path

from board import views

urlpatterns: list[URLPattern] = [
    path("", views.home, name="home"),
    path("deployments/", views.deployments, name="deployments"),
    path("deployments/<int:key>/", views.deployment, name="deployment"),
    path("insights/", views.insights, name="insights"),
]
