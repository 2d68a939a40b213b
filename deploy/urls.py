from django.urls import URLPattern, path

from deploy import views

urlpatterns: list[URLPattern] = [path("", views.home, name="home")]
