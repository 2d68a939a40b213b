"""The pages of second factors. Of allauth's only those that are supported, under its names for them."""

from allauth.mfa.base import views as base
from allauth.mfa.recovery_codes import views as recovery_codes
from allauth.mfa.totp import views as totp
from allauth.mfa.webauthn import views as webauthn
from django.urls import URLPattern, path
from django.views.decorators.cache import never_cache

from accounts.mfa import views

# Never cached, as they show secrets.
urlpatterns: list[URLPattern] = [
    path("accounts/2fa/", never_cache(views.IndexView.as_view()), name="mfa_index"),
    path("accounts/2fa/authenticate/", never_cache(base.authenticate), name="mfa_authenticate"),
    path("accounts/2fa/reauthenticate/", never_cache(base.reauthenticate), name="mfa_reauthenticate"),
    path("accounts/2fa/app/", never_cache(totp.activate_totp), name="mfa_activate_totp"),
    path("accounts/2fa/app/remove/", never_cache(totp.deactivate_totp), name="mfa_deactivate_totp"),
    path("accounts/2fa/codes/", never_cache(recovery_codes.view_recovery_codes), name="mfa_view_recovery_codes"),
    path(
        "accounts/2fa/codes/new/",
        never_cache(recovery_codes.generate_recovery_codes),
        name="mfa_generate_recovery_codes",
    ),
    path(
        "accounts/2fa/codes/download/",
        never_cache(recovery_codes.download_recovery_codes),
        name="mfa_download_recovery_codes",
    ),
    path("accounts/2fa/passkeys/add/", never_cache(views.AddPasskeyView.as_view()), name="mfa_add_webauthn"),
    path(
        "accounts/2fa/passkeys/reauthenticate/",
        never_cache(webauthn.reauthenticate_webauthn),
        name="mfa_reauthenticate_webauthn",
    ),
    path(
        "accounts/2fa/passkeys/<int:pk>/remove/",
        never_cache(views.RemovePasskeyView.as_view()),
        name="mfa_remove_webauthn",
    ),
    path(
        "accounts/2fa/passkeys/sign-in/",
        never_cache(views.SignInWithPasskeyView.as_view()),
        name="mfa_login_webauthn",
    ),
]
