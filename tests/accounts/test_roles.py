"""accounts.roles and its backend: what each role may do, everywhere and in one environment, and manage.py role."""

import io

import pytest
from django.apps import apps
from django.contrib.auth.models import AnonymousUser, Group, Permission
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts import roles
from accounts.models import User
from accounts.roles import Role, may
from ledger.models import Deployment, Environment
from tests.support.people import member

pytestmark = pytest.mark.django_db

FROM = {
    Role.VIEWER: {"ledger.view_people"},
    Role.DEPLOYER: {"ledger.request_deployment", "ledger.roll_back"},
    Role.APPROVER: {"ledger.approve_deployment", "ledger.break_glass"},
    Role.MAINTAINER: {
        "ledger.break_lock",
        "ledger.manage_tokens",
        "statuspage.manage_incidents",
        "accounts.manage_members",
    },
}
ALL = set().union(*FROM.values())


def allowed(role: Role) -> set[str]:
    """What a role may do: its own, and what those below it may."""
    order = list(Role)
    return set().union(*(FROM[each] for each in order[: order.index(role) + 1]))


def run(*words: str) -> str:
    out = io.StringIO()
    call_command("role", *words, stdout=out)
    return out.getvalue()


@pytest.mark.parametrize("role", Role)
def test_a_role_may_what_those_below_it_may_and_what_is_its_own(role: Role) -> None:
    user = member(role)
    assert {each for each in ALL if user.has_perm(each)} == allowed(role)
    here = Environment.objects.get(name="staging")
    assert {each for each in ALL if may(user, each, here)} == allowed(role)
    assert {each for each in ALL if roles.environments_with(user, each) is None} == allowed(role)


@pytest.mark.parametrize("role", Role)
def test_a_role_in_one_environment_is_none_anywhere_else(role: Role) -> None:
    user = member(role, "production")
    production, staging = (Environment.objects.get(name=name) for name in ("production", "staging"))
    places: tuple[object, ...] = (production, "production")
    for place in places:
        assert {each for each in ALL if may(user, each, place)} == allowed(role)
    places = (None, staging, "staging", "")
    for place in places:
        assert {each for each in ALL if may(user, each, place)} == set()
    found = {each: roles.environments_with(user, each) for each in ALL}
    assert found == {each: frozenset({"production"} if each in allowed(role) else ()) for each in ALL}


def test_something_else_with_a_name_is_not_an_environment() -> None:
    user = member("maintainer", "production")
    for thing in (Group(name="production"), Deployment(), object()):
        assert not may(user, "ledger.manage_tokens", thing)
    assert not may(member("maintainer"), "ledger.manage_tokens", object())


def test_roles_add_up() -> None:
    user = member("viewer")
    roles.assign(user, Role.DEPLOYER, "staging")
    assert roles.held(user) == {"": Role.VIEWER, "staging": Role.DEPLOYER}
    assert may(user, "ledger.roll_back", "staging") and not may(user, "ledger.roll_back", "production")
    assert may(user, "ledger.view_people", "production")
    assert roles.environments_with(user, "ledger.roll_back") == frozenset({"staging"})


def test_another_role_in_the_same_place_replaces_the_one_held() -> None:
    user = member("maintainer")
    assert user.has_perm("accounts.manage_members")
    assert roles.assign(user, Role.VIEWER) == Role.MAINTAINER
    assert not user.has_perm("accounts.manage_members"), "what was cached is dropped"
    assert roles.held(user) == {"": Role.VIEWER}
    assert roles.assign(user, None, "staging") is None and roles.assign(user, None) == Role.VIEWER
    assert roles.held(user) == {}


def test_neither_a_suspended_person_nor_a_stranger_may_anything() -> None:
    user = member("maintainer")
    roles.assign(user, Role.MAINTAINER, "staging")
    user.is_active = False
    root = User(is_superuser=True, is_active=False)
    for nobody in (user, root, AnonymousUser()):
        assert not any(may(nobody, each, place) for each in ALL for place in (None, "staging"))
        assert {roles.environments_with(nobody, each) for each in ALL} == {frozenset()}


def test_a_superuser_is_a_maintainer() -> None:
    root = User.objects.create_superuser("root@example.com", "x")
    assert roles.held(root) == {"": Role.MAINTAINER}
    assert all(may(root, each, place) for each in ALL for place in (None, "staging"))


def test_a_permission_of_ones_own_holds_everywhere() -> None:
    user = member(None)
    user.user_permissions.add(Permission.objects.get(codename="roll_back"))
    roles.forget(user)
    assert user.has_perm("ledger.roll_back") and may(user, "ledger.roll_back", "staging")
    assert roles.environments_with(user, "ledger.roll_back") is None


def test_permissions_cost_two_queries_however_many_are_asked_for() -> None:
    user = User.objects.get(pk=member("deployer", "staging").pk)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        for each in ALL:
            user.has_perm(each)
            may(user, each, "staging")
            roles.environments_with(user, each)
    assert len(queries) == 2


def test_who_may_do_something_in_an_environment() -> None:
    everywhere, here, elsewhere = member("approver"), member("maintainer", "staging"), member("approver", "testing")
    member("deployer")
    suspended = member("approver")
    User.objects.filter(pk=suspended.pk).update(is_active=False)
    root = User.objects.create_superuser("root@example.com", "x")
    assert set(roles.holders("ledger.approve_deployment", "staging")) == {everywhere, here, root}
    assert set(roles.holders("ledger.approve_deployment")) == {everywhere, root}
    assert elsewhere in roles.holders("ledger.approve_deployment", "testing")


# The groups


def test_every_permission_that_an_app_declares_exists() -> None:
    declared = {f"{label}.{codename}" for label, codename in roles.declared()[Role.MAINTAINER]}
    there = {
        f"{label}.{codename}"
        for label, codename in Permission.objects.values_list("content_type__app_label", "codename")
    }
    assert ALL <= declared and declared - there <= {"ledger.change_freeze"}


def test_a_migration_corrects_the_groups() -> None:
    user = member("deployer", "staging")
    Group.objects.get(name="deployer:staging").permissions.clear()
    Group.objects.get(name="viewer").permissions.add(Permission.objects.get(codename="manage_members"))
    Group.objects.get(name="approver").delete()
    own = Group.objects.create(name="editors")
    own.permissions.add(Permission.objects.get(codename="view_release"))
    call_command("migrate", verbosity=0)
    assert may(User.objects.get(pk=user.pk), "ledger.roll_back", "staging")
    assert {each.codename for each in Group.objects.get(name="viewer").permissions.all()} == {"view_people"}
    assert member("approver").has_perm("ledger.approve_deployment")
    assert own.permissions.count() == 1, "other groups are left alone"


def test_groups_that_are_right_are_not_written() -> None:
    last = [config for config in apps.get_app_configs() if roles.role_permissions(config)][-1]
    roles.correct_groups(last, "default")
    with CaptureQueriesContext(connection) as queries:
        roles.correct_groups(last, "default")
    # A savepoint around an insert that finds its rows there already is no change.
    written = [each["sql"] for each in queries if each["sql"].startswith(("UPDATE", "DELETE"))]
    assert written == [] and len(queries) < 8


# manage.py role


def test_the_command_grants_revokes_and_lists() -> None:
    assert "Grant one" in run("list")
    user = member(None)
    assert run("grant", user.email.upper(), "maintainer") == f"{user.email.upper()} is maintainer everywhere.\n"
    run("grant", user.email, "deployer", "--environment", "staging")
    assert run("list") == f"{user.email}: maintainer everywhere, deployer in staging\n"
    assert "no longer has the role deployer in staging" in run("revoke", user.email, "--environment", "staging")
    assert roles.held(user) == {"": Role.MAINTAINER}


@pytest.mark.parametrize(
    "words",
    [
        ("grant", "who@example.com", "viewer"),
        ("grant", "EMAIL", "viewer", "--environment", "moon"),
        ("revoke", "EMAIL"),
    ],
)
def test_the_command_says_what_it_does_not_know(words: tuple[str, ...]) -> None:
    user = member(None)
    with pytest.raises(CommandError, match="No account|No environment moon. Expected one of dev|has no role") as error:
        run(*(user.email if word == "EMAIL" else word for word in words))
    assert error.value.returncode == 1
