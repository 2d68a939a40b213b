from django.urls import URLPattern, path

from board import decisions, freezes, tokens, views

urlpatterns: list[URLPattern] = [
    path("", views.home, name="home"),
    path("deployments/", views.deployments, name="deployments"),
    path("deployments/<int:key>/", views.deployment, name="deployment"),
    path("deployments/<int:key>/decide/", decisions.decide, name="decide"),
    path("tokens/", tokens.page, name="tokens"),
    path("tokens/<int:key>/revoke/", tokens.revoke, name="revoke_token"),
    path("freezes/", freezes.page, name="freezes"),
    path("freezes/<int:key>/end/", freezes.end, name="end_freeze"),
    path("insights/", views.insights, name="insights"),
]
