"""Signal handlers; accounts.apps connects them."""

from functools import partial
from typing import Any

from allauth.account.models import EmailAddress
from django.db import transaction
from django.http import HttpRequest

from accounts import addresses, avatars
from accounts.mfa import requirement
from accounts.models import User
from metrics.registry import USER_REGISTRATIONS


def count_registration(**_: Any) -> None:
    transaction.on_commit(USER_REGISTRATIONS.inc)


def release_address(email_address: EmailAddress, **_: Any) -> None:
    """Removes a newly verified address from other accounts that have added it without verifying it."""
    addresses.remove_unverified(email_address.email, keep_for=email_address.user)


def remember_second_factor(request: HttpRequest, user: User, **_: Any) -> None:
    """Counts a second factor that was just set up as shown in this session."""
    request.session[requirement.SET_UP] = user.pk


def remove_avatar(instance: User, **_: Any) -> None:
    transaction.on_commit(partial(avatars.remove, instance.avatar.name or ""), robust=True)
