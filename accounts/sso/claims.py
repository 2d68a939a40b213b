"""Which roles a person has by their claims, as OIDC_ROLES maps them."""

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.db import transaction

from accounts import roles
from accounts.models import User
from accounts.roles import Role
from audit import record
from audit.actions import Action


def granted(claims: Mapping[str, Any]) -> dict[str, Role]:
    """Returns the highest role for each environment that the claims give; that for all of them under ""."""
    ranks = list(Role)
    found: dict[str, Role] = {}
    for claim, value, role, environment in settings.OIDC_ROLES:
        held = claims.get(claim)
        if value == held or isinstance(held, list) and value in held:
            found[environment] = max(Role(role), found.get(environment, Role(role)), key=ranks.index)
    return found


def follow(user: User, claims: Mapping[str, Any]) -> None:
    """Makes the roles of `user` those that the claims give, and records what changes. Without OIDC_ROLES, nothing does.

    The provider decides also about the last maintainer; manage.py role gives the role to another.
    """
    if not settings.OIDC_ROLES:
        return
    given = granted(claims)
    with transaction.atomic():
        User.objects.select_for_update().get(pk=user.pk)
        held = filter(None, map(roles.parse, user.groups.values_list("name", flat=True)))
        for environment in sorted({environment for _, environment in held} | set(given)):
            role = given.get(environment)
            before = roles.assign(user, role, environment)
            if before != role:
                change = {"from": before or "none", "to": role or "none"}
                record(Action.ROLE_CHANGED, actor="sign-on", environment=environment, target=user.email, details=change)
