"""Overrides of django-allauth's behaviour: https://docs.allauth.org/en/latest/account/adapter.html"""

import logging
from typing import Any
from urllib.parse import urlsplit

from allauth.account.adapter import DefaultAccountAdapter
from allauth.core import context as allauth_context
from allauth.core import ratelimit
from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser
from django.http import HttpRequest
from django.http.request import split_domain_port

from accounts import addresses, audited, invitations
from accounts.models import User

logger = logging.getLogger(__name__)


class MailNotSent(Exception):
    """The mail server is unavailable or rejected the message."""


def origin(request: HttpRequest) -> str:
    """Returns the scheme and host that links in mail start with: SITE_URL, or else the request's own.

    ALLOWED_HOSTS restricts neither a trailing dot nor the port of the Host header, so both are dropped: a link must not
    lead to another server's port. This server's own port is kept if no proxy is in between.

    Raises DisallowedHost.
    """
    if settings.SITE_URL:
        return str(settings.SITE_URL)
    host, port = split_domain_port(request.get_host())
    own = port and port == request.META.get("SERVER_PORT") and "HTTP_X_FORWARDED_FOR" not in request.META
    return f"{request.scheme}://{host.rstrip('.')}{f':{port}' if own else ''}"


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    def clean_email(self, email: str) -> str:
        """Validates an address that any of allauth's forms takes; without this, one that is too long is truncated.

        Raises ValidationError.
        """
        User._meta.get_field("email").run_validators(email)
        return email

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        """Returns whether the visitor may sign up, as SIGN_UP says: with `invited`, who has opened an invitation."""
        if settings.SIGN_UP == "invited":
            return invitations.of_session(request) is not None
        return bool(settings.SIGN_UP == "open")

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Sends mail whose links (values named *_url) lead to this site, whatever Host was sent. Raises MailNotSent."""
        site = urlsplit(origin(allauth_context.request))
        for name, value in context.items():
            if name.endswith("_url"):
                context = context | {name: urlsplit(value)._replace(scheme=site.scheme, netloc=site.netloc).geturl()}
        try:
            super().send_mail(template_prefix, email, context | {"origin": site.geturl(), "site": site.netloc})
        except OSError as error:  # includes smtplib.SMTPException
            raise MailNotSent from error

    def send_confirmation_mail(self, request: HttpRequest, emailconfirmation: Any, signup: bool) -> None:
        """Raises MailNotSent; the failed attempt does not count towards the rate limit."""
        try:
            super().send_confirmation_mail(request, emailconfirmation, signup)
        except MailNotSent:
            email = emailconfirmation.email_address.email
            ratelimit.clear(request, action="confirm_email", key=email.lower())
            raise

    def send_notification_mail(self, template_prefix: str, user: AbstractBaseUser, *args: Any, **kwargs: Any) -> None:
        """Notifies the owner of a change, which stands even if the mail cannot be sent."""
        try:
            super().send_notification_mail(template_prefix, user, *args, **kwargs)
        except MailNotSent:
            logger.exception("Cannot send a notification to user %s: %s", user.pk, template_prefix)

    def is_ajax(self, request: HttpRequest) -> bool:
        """Returns False: these pages are HTML, whatever the client's headers say."""
        return False

    def authenticate(self, request: HttpRequest, **credentials: Any) -> User | None:
        """Returns the user, if the address is verified or primary; allauth accepts any address that was added."""
        user: User | None = super().authenticate(request, **credentials)
        if user and not addresses.belongs_to(str(credentials.get("email", "")), user):
            audited.sign_in_failed(credentials, request)
            return None
        return user

    def can_delete_email(self, email_address: Any) -> bool:
        """Returns False for the account's own address, even where allauth has not marked it as primary."""
        return email_address.email != email_address.user.email and bool(super().can_delete_email(email_address))

    def _get_login_attempts_cache_key(self, request: HttpRequest, **credentials: Any) -> str:
        """Returns the address alone: allauth prefixes the Host, whose port a client can vary to escape the limit."""
        return str(credentials.get("email", "")).lower()
