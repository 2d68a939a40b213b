"""Roles: who may do what, everywhere or in one environment.

A role is a Django group with Django permissions: `deployer` for every environment, `deployer:production` for one. Each
role has the permissions of those below it, and its own. An app declares in its AppConfig from which role on its
permissions are held, by codename:

    role_permissions = {"deployer": ("request_deployment", "roll_back")}

The groups are corrected after each migration (correct_groups). A superuser has every permission everywhere.
`user.has_perm(permission)` asks whether it is held everywhere; `user.has_perm(permission, environment)` whether it is
held there, by the environment or its name (accounts.backends).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.contrib.auth.management import create_permissions
from django.contrib.auth.models import AnonymousUser, Group, Permission
from django.db import connections, models, transaction
from django.db.models import Q, QuerySet
from django.utils.module_loading import import_string

from accounts.models import User

EVERYWHERE = ""  # what stands for all environments where one is named
CACHE = "_permissions_by_environment"  # the attribute of a user that keeps group_permissions()


class Role(models.TextChoices):
    """The roles, from the one with the fewest permissions up."""

    VIEWER = "viewer", "viewer"
    DEPLOYER = "deployer", "deployer"
    APPROVER = "approver", "approver"
    MAINTAINER = "maintainer", "maintainer"


def group_name(role: Role, environment: str = EVERYWHERE) -> str:
    return f"{role.value}:{environment}" if environment else role.value


def parse(name: str) -> tuple[Role, str] | None:
    """Returns the role and the environment of a group's name; None for a group that is not a role."""
    role, colon, environment = name.partition(":")
    return (Role(role), environment) if role in Role.values and bool(colon) == bool(environment) else None


def environments() -> list[str]:
    """Returns the names of the environments, in order. Raises django.db.Error."""
    found: list[str] = import_string(settings.ROLE_ENVIRONMENTS)()
    return found


def in_one_environment(prefix: str = "") -> Q:
    """Returns the condition for groups that hold a role in one environment; `prefix` is the path to them."""
    return Q(*(Q((f"{prefix}name__startswith", f"{role}:")) for role in Role.values), _connector=Q.OR)


# What the roles may do


def declared() -> dict[Role, set[tuple[str, str]]]:
    """Returns the permissions of each role, as app label and codename. Raises ValueError for an unknown role."""
    own: dict[Role, set[tuple[str, str]]] = {role: set() for role in Role}
    for config in apps.get_app_configs():
        for role, codenames in role_permissions(config).items():
            own[Role(role)] |= {(config.label, codename) for codename in codenames}
    roles = list(Role)
    return {role: set().union(*(own[each] for each in roles[: n + 1])) for n, role in enumerate(roles)}


def role_permissions(config: AppConfig) -> Mapping[str, tuple[str, ...]]:
    found: Mapping[str, tuple[str, ...]] = getattr(config, "role_permissions", {})
    return found


def correct_groups(sender: AppConfig, using: str, **sent: Any) -> None:
    """Makes the groups of the roles hold what the apps declare: after a migration, and after `manage.py flush`.

    It waits for the last app that declares something, since Django adds the permissions app by app; those of this app
    may not be there yet, as the order of the signal's receivers is that of INSTALLED_APPS.
    """
    if sender != [config for config in apps.get_app_configs() if role_permissions(config)][-1]:
        return
    connection = connections[using]
    with connection.cursor() as cursor:
        if Group._meta.db_table not in connection.introspection.table_names(cursor):
            return  # migrated back to before there were any
    create_permissions(sender, verbosity=0, using=using, **{name: sent[name] for name in ("apps",) if name in sent})
    Group.objects.using(using).bulk_create([Group(name=role.value) for role in Role], ignore_conflicts=True)
    correct(Group.objects.using(using).filter(Q(name__in=Role.values) | in_one_environment()), using)


def correct(groups: "QuerySet[Group]", using: str | None = None) -> None:
    """Makes `groups`, which are roles', hold what the apps declare. Those that are right already cost two queries."""
    expected = declared()
    labels = {label for label, _ in expected[Role.MAINTAINER]}
    known = {
        (label, codename): key
        for key, label, codename in Permission.objects.using(using)
        .filter(content_type__app_label__in=labels)
        .values_list("pk", "content_type__app_label", "codename")
    }
    held = Group.permissions.through.objects.using(using)
    there: dict[tuple[int, str], set[int]] = {}
    for key, name, permission in groups.values_list("pk", "name", "permissions"):
        there.setdefault((key, name), set()).update({permission} - {None})
    missing = []
    for (key, name), permissions in there.items():
        found = parse(name)
        if found is None:
            continue
        right = {known[each] for each in expected[found[0]] if each in known}
        missing += [held.model(group_id=key, permission_id=each) for each in right - permissions]
        if permissions - right:
            held.filter(group_id=key, permission_id__in=permissions - right).delete()
    held.bulk_create(missing, ignore_conflicts=True)


# Who holds them


def held(user: User) -> dict[str, Role]:
    """Returns the user's roles by environment; that for all of them under EVERYWHERE. A superuser is a maintainer."""
    found: dict[str, Role] = {}
    ranks = list(Role)
    for name in user.groups.values_list("name", flat=True):
        if parsed := parse(name):
            role, environment = parsed
            found[environment] = max(role, found.get(environment, role), key=ranks.index)
    return found | ({EVERYWHERE: Role.MAINTAINER} if user.is_superuser else {})


def assign(user: User, role: Role | None, environment: str = EVERYWHERE) -> Role | None:
    """Gives the user `role` in `environment`, or everywhere, in place of the one held there; None takes it away.

    Returns the role that was held there. Whoever calls this decides whether it is allowed.
    """
    with transaction.atomic():
        names = {group_name(each, environment): each for each in Role}
        before = [names[name] for name in user.groups.filter(name__in=names).values_list("name", flat=True)]
        if role:
            group, new = Group.objects.get_or_create(name=group_name(role, environment))
            if new:
                correct(Group.objects.filter(pk=group.pk))
            user.groups.add(group)
        leaving = set(names) - ({group_name(role, environment)} if role else set())
        user.groups.remove(*user.groups.filter(name__in=leaving))
    forget(user)
    return max(before, key=list(Role).index, default=None)


def forget(user: User) -> None:
    """Drops the permissions that the object has cached, so that the next question sees a change."""
    for name in ("_perm_cache", "_user_perm_cache", "_group_perm_cache", CACHE):
        if hasattr(user, name):
            delattr(user, name)


def group_permissions(user: User) -> dict[str, set[str]]:
    """Returns what the user's groups permit, by environment; what they permit everywhere under EVERYWHERE.

    One query, whose answer the object keeps.
    """
    cached: dict[str, set[str]] | None = getattr(user, CACHE, None)
    if cached is None:
        cached = {}
        rows = user.groups.values_list("name", "permissions__content_type__app_label", "permissions__codename")
        for name, label, codename in rows.order_by():
            _, environment = parse(name) or (None, EVERYWHERE)
            cached.setdefault(environment, set()).add(f"{label}.{codename}")
        setattr(user, CACHE, cached)
    return cached


def may(user: Any, permission: str, environment: Any = None) -> bool:
    """Returns whether `user` has `permission` everywhere, or in `environment` (an environment or its name)."""
    return bool(user.has_perm(permission, environment))


def environments_with(user: User | AnonymousUser, permission: str) -> frozenset[str] | None:
    """Returns the names of the environments in which `user` has `permission`; None if in all of them."""
    if user.has_perm(permission):
        return None
    if not isinstance(user, User) or not user.is_active:
        return frozenset()
    return frozenset(environment for environment, each in group_permissions(user).items() if permission in each)


def with_a_role() -> "QuerySet[User]":
    """Returns the users who have any role anywhere, also suspended ones."""
    in_groups = User.objects.filter(Q(groups__name__in=Role.values) | in_one_environment("groups__"))
    return User.objects.filter(Q(is_superuser=True) | Q(pk__in=in_groups.values("pk")))


@dataclass(frozen=True)
class Scope:
    """The environments in which somebody may do something; `names` is None if that is all of them."""

    names: frozenset[str] | None

    def __contains__(self, environment: str) -> bool:
        return self.names is None or environment in self.names

    def __bool__(self) -> bool:
        """Whether it is any at all."""
        return self.names is None or bool(self.names)


def scope(user: User | AnonymousUser, permission: str) -> Scope:
    return Scope(environments_with(user, permission))


def holders(permission: str, environment: str = EVERYWHERE) -> "QuerySet[User]":
    """Returns the active users who have `permission` in `environment`, or everywhere."""
    label, _, codename = permission.partition(".")
    roles = [role for role, permissions in declared().items() if (label, codename) in permissions]
    names = [group_name(role, each) for role in roles for each in {EVERYWHERE, environment}]
    in_groups = User.objects.filter(groups__name__in=names).values("pk")
    return User.objects.filter(Q(is_superuser=True) | Q(pk__in=in_groups), is_active=True)
