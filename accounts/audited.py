"""What people do with their accounts, in the audit log.

A sign-in, a sign-out and a failed sign-in go on if they cannot be recorded, and the log has the error: a database that
takes no writes must not keep anybody from signing out, or hide why signing in fails. What changes how an account is
entered (its password, its addresses) is refused if it cannot be recorded.
"""

from collections.abc import Mapping
from typing import Any

from allauth.account import signals as allauth
from allauth.account.models import EmailAddress
from django.contrib.auth import signals as django
from django.http import HttpRequest
from django.utils.crypto import salted_hmac

import audit
from accounts import addresses
from accounts.models import User
from audit.actions import Action


def connect() -> None:
    """Connects the handlers below."""
    django.user_logged_in.connect(signed_in)
    django.user_logged_out.connect(signed_out)
    django.user_login_failed.connect(sign_in_failed)
    allauth.user_signed_up.connect(signed_up)
    allauth.password_set.connect(password_changed)
    allauth.password_changed.connect(password_changed)
    allauth.password_reset.connect(password_reset)
    allauth.email_added.connect(address_added)
    allauth.email_confirmed.connect(address_verified)
    allauth.email_changed.connect(address_changed)
    allauth.email_removed.connect(address_removed)


def who(user: User | None) -> dict[str, Any]:
    """Returns the user as the actor of an entry."""
    return {"actor": user.get_username(), "actor_id": user.pk} if user else {}


def signed_in(request: HttpRequest, user: User, **_: Any) -> None:
    audit.record_or_log(Action.SIGNED_IN, request=request, **who(user))


def signed_out(request: HttpRequest, user: User | None, **_: Any) -> None:
    if user:
        audit.record_or_log(Action.SIGNED_OUT, request=request, **who(user))


def sign_in_failed(credentials: Mapping[str, Any], request: HttpRequest | None = None, **_: Any) -> None:
    """Records a failed sign-in and its account. Text that is no account's address may be a password typed into the
    wrong field, so only a digest of it is kept: enough to recognize repeated attempts.
    """
    word = str(credentials.get("email") or credentials.get("username") or "").strip().lower()
    account = addresses.owners(word).first() if word else None
    target = account.get_username() if account else ""
    details = {} if account else {"unknown address": salted_hmac("accounts.audited", word).hexdigest()[:12]}
    audit.record_or_log(Action.SIGN_IN_FAILED, target=target, details=details, request=request)


def signed_up(request: HttpRequest, user: User, **_: Any) -> None:
    audit.record(Action.SIGNED_UP, request=request, **who(user))


def password_changed(request: HttpRequest, user: User, **_: Any) -> None:
    audit.record(Action.PASSWORD_CHANGED, request=request, **who(user))


def password_reset(request: HttpRequest, user: User, **_: Any) -> None:
    audit.record(Action.PASSWORD_RESET, request=request, **who(user))


def address_added(request: HttpRequest, user: User, email_address: EmailAddress, **_: Any) -> None:
    audit.record(Action.ADDRESS_ADDED, target=email_address.email, request=request, **who(user))


def address_verified(request: HttpRequest, email_address: EmailAddress, **_: Any) -> None:
    audit.record(Action.ADDRESS_VERIFIED, target=email_address.email, request=request, **who(email_address.user))


def address_changed(
    request: HttpRequest, user: User, to_email_address: EmailAddress, from_email_address: EmailAddress | None, **_: Any
) -> None:
    before = {"before": from_email_address.email} if from_email_address else {}
    audit.record(Action.ADDRESS_CHANGED, target=to_email_address.email, details=before, request=request, **who(user))


def address_removed(request: HttpRequest, user: User, email_address: EmailAddress, **_: Any) -> None:
    audit.record(Action.ADDRESS_REMOVED, target=email_address.email, request=request, **who(user))
