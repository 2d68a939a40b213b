"""The pages about people. Of allauth's only those that are supported; their names are its own, which it looks up."""

from allauth.account import views as allauth
from django.urls import URLPattern, URLResolver, include, path, re_path

from accounts import avatars, views

ours: list[URLPattern | URLResolver] = [
    path("accounts/profile/", views.profile, name="profile"),
    re_path(rf"^media/{avatars.FOLDER}/(?P<name>{avatars.NAME})$", views.avatar, name="avatar"),
]

urlpatterns: list[URLPattern | URLResolver] = [
    path("", include((ours, "accounts"))),
    path("accounts/signup/", views.sends_mail(allauth.signup), name="account_signup"),
    path("accounts/login/", views.sends_mail(allauth.login), name="account_login"),
    path("accounts/logout/", allauth.logout, name="account_logout"),
    path("accounts/inactive/", allauth.account_inactive, name="account_inactive"),
    path("accounts/confirm-email/", allauth.email_verification_sent, name="account_email_verification_sent"),
    re_path(r"^accounts/confirm-email/(?P<key>[-:\w]+)/$", allauth.confirm_email, name="account_confirm_email"),
    path("accounts/email/", views.sends_mail(allauth.email), name="account_email"),
    path("accounts/reauthenticate/", allauth.reauthenticate, name="account_reauthenticate"),
    path("accounts/password/change/", allauth.password_change, name="account_change_password"),
    path("accounts/password/reset/", views.sends_mail(allauth.password_reset), name="account_reset_password"),
    path("accounts/password/reset/done/", allauth.password_reset_done, name="account_reset_password_done"),
    re_path(
        r"^accounts/password/reset/key/(?P<uidb36>[0-9A-Za-z]+)-(?P<key>.+)/$",
        allauth.password_reset_from_key,
        name="account_reset_password_from_key",
    ),
    path(
        "accounts/password/reset/key/done/",
        allauth.password_reset_from_key_done,
        name="account_reset_password_from_key_done",
    ),
]
