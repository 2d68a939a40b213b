"""Changes of who may do what: roles, suspension, and the rule that somebody must be left who can change them.

Each change is recorded in the audit log. `request` is that of the maintainer; None for a command.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from django.contrib.auth.models import Group
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.http import HttpRequest

import audit
from accounts import roles
from accounts.models import User
from accounts.roles import EVERYWHERE, Role
from audit.actions import Action


class LastMaintainer(Exception):
    """The change would leave nobody who can manage members."""

    def __init__(self) -> None:
        super().__init__(
            "This is the last maintainer, and somebody must be able to manage members. Nothing was changed. Make "
            "somebody else a maintainer everywhere first."
        )


def maintainers() -> "QuerySet[User]":
    """Returns the active users who are maintainers everywhere, superusers among them."""
    return User.objects.filter(
        Q(is_superuser=True) | Q(groups__name=roles.group_name(Role.MAINTAINER)), is_active=True
    ).distinct()


def lock_maintainers() -> None:
    """Queues behind other changes of maintainers until the transaction ends: without it two could remove each other."""
    Group.objects.select_for_update().filter(name=roles.group_name(Role.MAINTAINER)).first()


@contextmanager
def keeping_a_maintainer() -> Iterator[None]:
    """A transaction that is rolled back with LastMaintainer if it takes away the last maintainer."""
    with transaction.atomic():
        lock_maintainers()
        before = maintainers().exists()
        yield
        if before and not maintainers().exists():
            raise LastMaintainer


def set_role(
    user: User, role: Role | None, environment: str = EVERYWHERE, *, request: HttpRequest | None = None
) -> Role | None:
    """Gives the user `role` there in place of the one held, or none. Returns the one held. Raises LastMaintainer."""
    with keeping_a_maintainer():
        before = roles.assign(user, role, environment)
        if before != role:
            change = {"from": before or "none", "to": role or "none"}
            audit.record(
                Action.ROLE_CHANGED, environment=environment, target=user.email, details=change, request=request
            )
    return before


def suspend(user: User, *, request: HttpRequest | None = None) -> None:
    """Ends the user's sessions at once, and lets nobody sign in as the user or use their tokens.

    Raises LastMaintainer.
    """
    with keeping_a_maintainer():
        found = User.objects.select_for_update().get(pk=user.pk)
        if found.is_active:
            # The generation keeps the sessions from coming back to life when the user is restored.
            User.objects.filter(pk=user.pk).update(is_active=False, session_generation=F("session_generation") + 1)
            audit.record(Action.MEMBER_SUSPENDED, target=user.email, request=request)
    user.refresh_from_db()


def restore(user: User, *, request: HttpRequest | None = None) -> None:
    """Lets a suspended user sign in again, with the roles from before."""
    with transaction.atomic():
        if User.objects.filter(pk=user.pk, is_active=False).update(is_active=True):
            audit.record(Action.MEMBER_RESTORED, target=user.email, request=request)
    user.refresh_from_db()


# Deletion, wherever it is done. accounts.apps connects these.


def before_deletion(instance: User, **_: object) -> None:
    """Notes whether the user is a maintainer, while the user can still be asked."""
    with transaction.atomic():
        lock_maintainers()
        setattr(instance, "_is_maintainer", maintainers().filter(pk=instance.pk).exists())


def after_deletion(instance: User, **_: object) -> None:
    """Raises LastMaintainer, which undoes the deletion, if the last maintainer was among those deleted."""
    if getattr(instance, "_is_maintainer", False) and not maintainers().exists():
        raise LastMaintainer
