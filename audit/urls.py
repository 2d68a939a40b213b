from django.urls import URLPattern, path

from audit import views

urlpatterns: list[URLPattern] = [
    path("", views.entries, name="audit"),
    path("export.csv", views.export, name="audit_export"),
]
