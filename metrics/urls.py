"""The URL of /metrics. The middleware answers it before routing; this gives it a name."""

from django.urls import path

from metrics import views

app_name = "metrics"
urlpatterns = [path("", views.metrics, name="metrics")]
