"""What allauth does differently here: https://docs.allauth.org/en/latest/account/adapter.html"""

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

from accounts import addresses
from accounts.models import User

logger = logging.getLogger(__name__)


class MailNotSent(Exception):
    """The mail server does not take the message now."""


def origin(request: HttpRequest) -> str:
    """The site's address that links in mail begin with: SITE_URL, or else the host that was asked for.

    Of that host neither a dot at its end nor a port counts, for ALLOWED_HOSTS restricts neither, and a port may be
    another server's. Only this server's own port is kept, if the client came straight to it and not by a proxy.

    Raises DisallowedHost.
    """
    if settings.SITE_URL:
        return str(settings.SITE_URL)
    host, port = split_domain_port(request.get_host())
    own = port and port == request.META.get("SERVER_PORT") and "HTTP_X_FORWARDED_FOR" not in request.META
    return f"{request.scheme}://{host.rstrip('.')}{f':{port}' if own else ''}"


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    def clean_email(self, email: str) -> str:
        """For every form of allauth that takes an address: what would not fit into its row is refused, not cut.

        Raises ValidationError.
        """
        User._meta.get_field("email").run_validators(email)
        return email

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Raises MailNotSent. Every link (a value named *_url) leads to the site, whatever Host the client has sent."""
        site = urlsplit(origin(allauth_context.request))
        for name, value in context.items():
            if name.endswith("_url"):
                context = context | {name: urlsplit(value)._replace(scheme=site.scheme, netloc=site.netloc).geturl()}
        try:
            super().send_mail(template_prefix, email, context | {"origin": site.geturl(), "site": site.netloc})
        except OSError as error:  # smtplib's own are of this kind too
            raise MailNotSent from error

    def send_confirmation_mail(self, request: HttpRequest, emailconfirmation: Any, signup: bool) -> None:
        """Raises MailNotSent; it does not count as sent then, and the next try is not held back."""
        try:
            super().send_confirmation_mail(request, emailconfirmation, signup)
        except MailNotSent:
            email = emailconfirmation.email_address.email
            ratelimit.clear(request, action="confirm_email", key=email.lower())
            raise

    def send_notification_mail(self, template_prefix: str, user: AbstractBaseUser, *args: Any, **kwargs: Any) -> None:
        """Tells the owner of a change. The change holds even if the message cannot be sent."""
        try:
            super().send_notification_mail(template_prefix, user, *args, **kwargs)
        except MailNotSent:
            logger.exception("A notification could not be sent to user %s: %s", user.pk, template_prefix)

    def is_ajax(self, request: HttpRequest) -> bool:
        """Never: the pages are HTML, whatever a client says of itself."""
        return False

    def authenticate(self, request: HttpRequest, **credentials: Any) -> User | None:
        """Whom the credentials are of, if the address stands for that person: allauth takes any that was added."""
        user: User | None = super().authenticate(request, **credentials)
        return user if user and addresses.is_of(str(credentials.get("email", "")), user) else None

    def can_delete_email(self, email_address: Any) -> bool:
        """Not the account's own address, also where allauth has not marked it as the primary one."""
        return email_address.email != email_address.user.email and bool(super().can_delete_email(email_address))

    def _get_login_attempts_cache_key(self, request: HttpRequest, **credentials: Any) -> str:
        """The address alone. allauth puts the Host before it, whose port a client may vary, for tries without end."""
        return str(credentials.get("email", "")).lower()
