"""Who needs a second factor, by REQUIRE_MFA, and whether a session has shown one."""

from allauth.account.authentication import get_authentication_records
from allauth.mfa.models import Authenticator
from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser
from django.http import HttpRequest

from accounts import roles
from accounts.models import User

SET_UP = "second_factor_of"  # in a session: the user who has set up a second factor in it
FACTORS = (Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN)  # recovery codes only stand in for one of them


def is_required(user: AbstractBaseUser) -> bool:
    """Returns whether `user` has a role in REQUIRE_MFA, for the whole or for an environment. Costs a query."""
    if not settings.REQUIRE_MFA or not isinstance(user, User):
        return False
    return not set(roles.held(user).values()).isdisjoint(settings.REQUIRE_MFA)


def is_shown(request: HttpRequest) -> bool:
    """Returns whether a second factor was used, or set up, in this session. Costs no query.

    The session counts and not the account: a session that began with a password alone does not gain from a factor that
    is set up in another.
    """
    user = request.user
    if not isinstance(user, User):
        return False
    records = get_authentication_records(request, user)
    return request.session.get(SET_UP) == user.pk or any(record.get("method") == "mfa" for record in records)


def is_last(authenticator: Authenticator) -> bool:
    """Returns whether its owner has no other second factor."""
    others = Authenticator.objects.filter(user=authenticator.user_id, type__in=FACTORS).exclude(pk=authenticator.pk)
    return not others.exists()
