"""The addresses of sign-on. The provider needs to know the second: https://HOST/accounts/sso/callback/."""

from django.urls import URLPattern, path
from django.views.decorators.cache import never_cache

from accounts.sso import views

urlpatterns: list[URLPattern] = [
    path("accounts/sso/", never_cache(views.start), name="sso_start"),
    path("accounts/sso/callback/", never_cache(views.callback), name="sso_callback"),
]
