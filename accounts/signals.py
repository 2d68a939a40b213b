"""What follows from other events: accounts.apps connects it."""

from functools import partial
from typing import Any

from django.db import transaction

from accounts import avatars
from accounts.models import User
from metrics.registry import USER_REGISTRATIONS


def count_registration(**_: Any) -> None:
    transaction.on_commit(USER_REGISTRATIONS.inc)


def remove_avatar(instance: User, **_: Any) -> None:
    transaction.on_commit(partial(avatars.remove, instance.avatar.name or ""), robust=True)
