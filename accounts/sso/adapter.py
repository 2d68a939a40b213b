"""Decides which account a person of the provider enters, and answers what goes wrong with a page that says so."""

import logging
from collections.abc import Mapping
from typing import Any

from allauth.account.adapter import get_adapter as get_account_adapter
from allauth.account.signals import user_signed_up
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.mfa.models import Authenticator
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.models import SocialAccount
from django.conf import settings
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.http import HttpRequest
from django.shortcuts import redirect, render

from accounts import addresses, sessions
from accounts.models import User
from accounts.sso import claims as roles_by_claims
from audit import record, record_or_log
from audit.actions import Action

logger = logging.getLogger(__name__)


class Refused(Exception):
    """The person may not enter, for the reason that the text gives them."""


class SignOnAdapter(DefaultSocialAccountAdapter):  # type: ignore[misc]
    def populate_user(self, request: HttpRequest, sociallogin: Any, data: Any) -> Any:
        """Leaves the new user empty: account_of() finds or creates the one that counts."""
        return sociallogin.user

    def authenticate_by_email(self, sociallogin: Any) -> None:
        """Returns None: account_of() has stricter rules."""

    def pre_social_login(self, request: HttpRequest, sociallogin: Any) -> None:
        """Links the person to an account, if they are not yet, and gives them the roles that their claims give."""
        try:
            with transaction.atomic():
                if not sociallogin.is_existing:
                    sociallogin.user = account_of(request, sociallogin.claims)
                    sociallogin.account.user = sociallogin.user
                    sociallogin.account.save()
                roles_by_claims.follow(sociallogin.user, sociallogin.claims)
        except Refused as reason:
            record_or_log(Action.SIGN_IN_FAILED, details={"sign-on": str(reason)}, request=request)
            raise ImmediateHttpResponse(refused(request, str(reason))) from None
        except IntegrityError:  # the same person twice at once: a double click
            raise ImmediateHttpResponse(redirect("account_login")) from None

    def on_authentication_error(
        self, request: HttpRequest, provider: Any, error: Any = None, exception: Any = None, extra_context: Any = None
    ) -> None:
        if error == "cancelled":
            messages.info(request, "Sign-in cancelled.")
            raise ImmediateHttpResponse(redirect("account_login"))
        if exception:
            logger.warning("Sign-on refused: %s", exception)
        reason = "The answer could not be verified." if exception else "It was started elsewhere, or took too long."
        record_or_log(Action.SIGN_IN_FAILED, details={"sign-on": str(exception or reason)}, request=request)
        raise ImmediateHttpResponse(refused(request, f"{reason} Start again."))


def refused(request: HttpRequest, reason: str) -> Any:
    return render(request, "sso/refused.html", {"reason": reason}, status=403)


def account_of(request: HttpRequest, claims: Mapping[str, Any]) -> User:
    """Returns the account of a person who signs on for the first time: the owner of their address, or a new one.

    The provider must have verified the address. If the account has not, whoever made it has never proved to own it, so
    their password, other addresses, second factors and sessions end, as with a password reset.

    Raises Refused.
    """
    given = claims.get("email")
    if not isinstance(given, str) or not given:
        raise Refused(f"{settings.OIDC_NAME} sent no email address.")
    if claims.get("email_verified") is not True:
        raise Refused(f"{settings.OIDC_NAME} has not verified your email address.")
    try:
        address = get_account_adapter().clean_email(given.lower())
    except ValidationError:
        raise Refused(f"The email address that {settings.OIDC_NAME} sent is not valid.") from None
    user = addresses.owners(address).select_for_update().first()
    if user is None:
        return sign_up(request, address, claims)
    if SocialAccount.objects.filter(user=user, extra_data__iss=claims["iss"]).exists():
        raise Refused(f"The account with this address belongs to somebody else at {settings.OIDC_NAME}.")
    if not user.emailaddress_set.filter(email=address, verified=True).exists():
        addresses.remove_unproven(user, address)
        user.set_unusable_password()
        user.save()
        Authenticator.objects.filter(user=user).delete()
        sessions.end_all(user)
    record(Action.SIGN_ON_LINKED, actor=user.email, actor_id=user.pk, target=settings.OIDC_NAME, request=request)
    get_account_adapter().send_notification_mail("sso/email/linked", user, {"provider_name": settings.OIDC_NAME})
    return user


def sign_up(request: HttpRequest, address: str, claims: Mapping[str, Any]) -> User:
    addresses.remove_unverified(address)
    user = User(email=address, display_name=str(claims.get("name") or "")[:80].strip())
    try:
        user.clean_fields(exclude=["password"])
    except ValidationError:
        user.display_name = ""
    user.set_unusable_password()
    user.save()
    user.emailaddress_set.create(email=address, verified=True, primary=True)
    user_signed_up.send(sender=User, request=request, user=user)
    return user
