"""The authentication backend: allauth's, with permissions that can be held in a single environment."""

from typing import Any

from allauth.account.auth_backends import AuthenticationBackend
from django.db.models import Model

from accounts import roles


def environment_name(obj: Any) -> str:
    """Returns the name of an environment, given by itself or by its name; empty for any other object.

    accounts does not know the model, so it goes by the name of the class: what else has a name is not an environment.
    """
    if isinstance(obj, str):
        return obj
    name = getattr(obj, "name", "")
    known = not isinstance(obj, Model) or obj._meta.object_name == "Environment"
    return name if known and isinstance(name, str) else ""


class Backend(AuthenticationBackend):  # type: ignore[misc]
    """`has_perm(permission)` asks what is held everywhere; with an environment, also what is held there."""

    def get_user_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        """Returns the permissions of the user's own, which hold in every environment."""
        return set() if obj is not None and not environment_name(obj) else set(super().get_user_permissions(user_obj))

    def get_group_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        """Returns the permissions of the user's groups: of those that hold everywhere, or also in `obj`."""
        if not user_obj.is_active or user_obj.is_anonymous or obj is not None and not environment_name(obj):
            return set()
        if user_obj.is_superuser:
            return set(super().get_group_permissions(user_obj))
        held = roles.group_permissions(user_obj)
        everywhere = held.get(roles.EVERYWHERE, set())
        return everywhere if obj is None else everywhere | held.get(environment_name(obj), set())

    def get_all_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        return self.get_user_permissions(user_obj, obj) | self.get_group_permissions(user_obj, obj)
