"""Signal handlers; accounts.apps connects them."""

from functools import partial
from typing import Any

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from django.db import transaction
from django.http import HttpRequest

from accounts import addresses, avatars
from accounts.mfa import requirement
from accounts.models import User
from audit import record, record_or_log
from audit.actions import Action
from metrics.registry import USER_REGISTRATIONS


def count_registration(**_: Any) -> None:
    transaction.on_commit(USER_REGISTRATIONS.inc)


def release_address(email_address: EmailAddress, **_: Any) -> None:
    """Removes a newly verified address from other accounts that have added it without verifying it."""
    addresses.remove_unverified(email_address.email, keep_for=email_address.user)


def factor_added(request: HttpRequest, user: User, authenticator: Authenticator, **_: Any) -> None:
    """Counts a second factor that was just set up as shown in this session, and records it."""
    if authenticator.type in requirement.FACTORS:  # recovery codes come with the first, and are no news
        request.session[requirement.SET_UP] = user.pk
        record(Action.FACTOR_ADDED, target=str(authenticator), request=request)


def factor_removed(request: HttpRequest, authenticator: Authenticator, **_: Any) -> None:
    if authenticator.type in requirement.FACTORS:  # recovery codes go with the last
        record(Action.FACTOR_REMOVED, target=str(authenticator), request=request)


def factor_failed(request: HttpRequest, user: User, **_: Any) -> None:
    record_or_log(Action.SIGN_IN_FAILED, target=user.email, details={"second factor": "wrong code"}, request=request)


def codes_replaced(request: HttpRequest, **_: Any) -> None:
    record(Action.CODES_REPLACED, request=request)


def remove_avatar(instance: User, **_: Any) -> None:
    transaction.on_commit(partial(avatars.remove, instance.avatar.name or ""), robust=True)
