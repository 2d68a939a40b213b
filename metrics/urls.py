"""Where to scrape. The middleware answers this path itself; the URL is for those who look it up by name."""

from django.urls import path

from metrics import views

app_name = "metrics"
urlpatterns = [path("", views.metrics, name="metrics")]
