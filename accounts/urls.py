"""The account pages. Of allauth's only those that are supported, under the names by which it looks them up."""

from allauth.account import views as allauth
from django.conf import settings
from django.db import transaction
from django.urls import URLPattern, URLResolver, include, path, re_path
from django.views.decorators.cache import never_cache

from accounts import avatars, links, members_views, views
from accounts.mfa.urls import urlpatterns as mfa

ours: list[URLPattern | URLResolver] = [
    path("accounts/profile/", views.profile, name="profile"),
    path("accounts/sessions/", views.own_sessions, name="sessions"),
    path("accounts/data/", views.own_data_page, name="own_data"),
    path("accounts/data/export/", views.export, name="export"),
    path("accounts/data/delete/", views.delete_account, name="delete"),
    path("members/", members_views.listing, name="members"),
    path("members/invite/", members_views.invite, name="invite"),
    path("members/invitations/<int:key>/revoke/", members_views.revoke_invitation, name="revoke_invitation"),
    path("members/<int:key>/", members_views.member, name="member"),
    path("members/<int:key>/role/", members_views.change_role, name="change_role"),
    path("members/<int:key>/suspend/", members_views.suspend, name="suspend"),
    path("members/<int:key>/restore/", members_views.restore, name="restore"),
    path("accounts/invitations/<str:key>/", members_views.invitation, name="invitation"),
    re_path(rf"^media/{avatars.FOLDER}/(?P<name>{avatars.NAME})$", views.avatar, name="avatar"),
]

# These show personal data or the key of a link, so neither browsers nor proxies may store them.
urlpatterns: list[URLPattern | URLResolver] = [
    path("", include((ours, "accounts"))),
    *mfa,
    path("accounts/link/<str:key>/", links.sign_in, name="sign_in_link"),
    path("accounts/signup/", never_cache(views.sends_mail(allauth.signup)), name="account_signup"),
    path("accounts/login/", never_cache(views.sends_mail(views.sign_in)), name="account_login"),
    path("accounts/logout/", never_cache(allauth.logout), name="account_logout"),
    path("accounts/inactive/", never_cache(allauth.account_inactive), name="account_inactive"),
    path(
        "accounts/confirm-email/",
        never_cache(allauth.email_verification_sent),
        name="account_email_verification_sent",
    ),
    re_path(
        r"^accounts/confirm-email/(?P<key>[-:\w]+)/$",
        never_cache(views.ConfirmEmailView.as_view()),
        name="account_confirm_email",
    ),
    path("accounts/email/", never_cache(views.sends_mail(views.EmailView.as_view())), name="account_email"),
    path("accounts/reauthenticate/", never_cache(allauth.reauthenticate), name="account_reauthenticate"),
    path(
        "accounts/password/change/",
        never_cache(transaction.atomic(allauth.password_change)),
        name="account_change_password",
    ),
    path(
        "accounts/password/reset/",
        never_cache(views.sends_mail(allauth.password_reset)),
        name="account_reset_password",
    ),
    path(
        "accounts/password/reset/done/",
        never_cache(allauth.password_reset_done),
        name="account_reset_password_done",
    ),
    re_path(
        r"^accounts/password/reset/key/(?P<uidb36>[0-9A-Za-z]+)-(?P<key>.+)/$",
        never_cache(transaction.atomic(views.PasswordResetFromKeyView.as_view())),
        name="account_reset_password_from_key",
    ),
    path(
        "accounts/password/reset/key/done/",
        never_cache(allauth.password_reset_from_key_done),
        name="account_reset_password_from_key_done",
    ),
]
if settings.OIDC_ISSUER:
    from accounts.sso.urls import urlpatterns as sso

    urlpatterns += sso
if settings.SSO_ONLY:
    closed = {"account_signup", "account_reset_password", "account_reset_password_from_key", "mfa_login_webauthn"}
    for entry in urlpatterns:
        if isinstance(entry, URLPattern) and entry.name in closed:
            entry.callback = views.only_sign_on
