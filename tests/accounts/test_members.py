"""The members page: roles, suspension, and that somebody is left who can manage members."""

import threading
from collections.abc import Callable

import pytest
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test import Client

from accounts import members, roles
from accounts.models import User
from accounts.roles import Role
from audit.models import Entry
from tests.support.people import member
from tests.support.servers import PATIENCE

pytestmark = pytest.mark.django_db


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


PAGES = ("/members/", "/members/invite/", "/members/{}/")
ACTIONS = ("/members/{}/role/", "/members/{}/suspend/", "/members/{}/restore/", "/members/invite/")


@pytest.mark.parametrize("role", [None, "viewer", "deployer", "approver", "stranger"])
def test_the_pages_are_for_maintainers(role: str | None) -> None:
    other = member("viewer")
    client = Client() if role == "stranger" else client_of(member(role))
    for url in (*PAGES, *ACTIONS):
        answer = client.get(url.format(other.pk)) if url in PAGES else client.post(url.format(other.pk))
        assert answer.status_code == (302 if role == "stranger" else 403), url
    assert client_of(member("maintainer", "staging")).get("/members/").status_code == 403
    assert User.objects.get(pk=other.pk).is_active


def test_the_list_shows_who_has_which_role() -> None:
    root, ada = member("maintainer"), member("viewer")
    roles.assign(ada, Role.DEPLOYER, "staging")
    nobody = member(None)
    page = client_of(root).get("/members/").content.decode()
    assert ada.email in page and "Viewer, Deployer in staging" in page and nobody.email not in page
    page = client_of(root).get("/members/?who=all&search=nobody").content.decode()
    assert nobody.email in page and ada.email not in page
    members.suspend(ada)
    page = client_of(root).get("/members/?who=suspended").content.decode()
    assert ada.email in page and "Suspended" in page and nobody.email not in page
    for query in ("?page=9999", "?page=x", "?who=%00&search=%00"):
        assert client_of(root).get(f"/members/{query}").status_code == 200


def test_a_role_is_changed_for_one_environment_or_all() -> None:
    root, ada = member("maintainer"), member("viewer")
    client = client_of(root)
    change = f"/members/{ada.pk}/role/"
    assert client.post(change, {"role": "deployer", "environment": "staging"}).status_code == 302
    assert client.post(change, {"role": "approver", "environment": ""}).status_code == 302
    assert roles.held(ada) == {"": Role.APPROVER, "staging": Role.DEPLOYER}
    assert client.post(change, {"role": "", "environment": "staging"}).status_code == 302
    for bad in ({"role": "root", "environment": ""}, {"role": "viewer", "environment": "moon"}):
        assert client.post(change, bad).status_code == 422
    assert roles.held(ada) == {"": Role.APPROVER}
    entry = Entry.objects.filter(action="role_changed", environment="staging").earliest("pk")
    assert (entry.actor, entry.target, entry.details) == (root.email, ada.email, {"from": "none", "to": "deployer"})


def test_a_form_changes_nothing_but_what_it_is_for() -> None:
    root, ada = member("maintainer"), member("viewer")
    given = {"role": "viewer", "environment": "", "is_superuser": "on", "is_staff": "on", "email": "eve@example.com"}
    client_of(root).post(f"/members/{ada.pk}/role/", given | {"groups": str(Group.objects.get(name="maintainer").pk)})
    after = User.objects.get(pk=ada.pk)
    assert (after.is_superuser, after.is_staff, after.email) == (False, False, ada.email)
    assert roles.held(after) == {"": Role.VIEWER}


# Suspension


def test_a_suspended_person_is_signed_out_at_the_next_request_for_good() -> None:
    ada = member("deployer")
    client, root = client_of(ada), client_of(member("maintainer"))
    assert client.get("/accounts/profile/").status_code == 200
    assert root.post(f"/members/{ada.pk}/suspend/").status_code == 302
    assert client.get("/accounts/profile/").status_code == 302
    poll = client.get("/", {"seen": "x"}, headers={"HX-Request": "true"})
    assert ada.email not in poll.content.decode() and not User.objects.get(pk=ada.pk).is_active
    assert root.post(f"/members/{ada.pk}/restore/").status_code == 302
    assert client.get("/accounts/profile/").status_code == 302, "the session does not come back to life"
    assert client_of(User.objects.get(pk=ada.pk)).get("/accounts/profile/").status_code == 200
    assert roles.held(ada) == {"": Role.DEPLOYER}
    assert list(Entry.objects.filter(target=ada.email).order_by("pk").values_list("action", flat=True)) == [
        "member_suspended",
        "member_restored",
    ]


def test_a_password_that_is_changed_still_ends_the_other_sessions() -> None:
    ada = member("viewer")
    before = ada.get_session_auth_hash()
    members.suspend(ada)
    after = ada.get_session_auth_hash()
    ada.set_password("correct horse battery staple")
    assert len({before, after, ada.get_session_auth_hash()}) == 3


# The last maintainer


def by_page(path: str, **given: str) -> Callable[[User], None]:
    def act(user: User) -> None:
        client_of(user).post(f"/members/{user.pk}/{path}/", given)

    return act


def by_command(user: User) -> None:
    with pytest.raises(CommandError, match="last maintainer"):
        call_command("role", "revoke", user.email)


def by_deletion(user: User) -> None:
    with pytest.raises(members.LastMaintainer), transaction.atomic():
        User.objects.all().delete()


WAYS = {
    "demoted": by_page("role", role="viewer", environment=""),
    "without a role": by_page("role", role="", environment=""),
    "suspended": by_page("suspend"),
    "by command": by_command,
    "deleted": by_deletion,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_last_maintainer_stays(way: str) -> None:
    user = member("maintainer")
    member("maintainer", "staging")
    WAYS[way](user)
    after = User.objects.get(pk=user.pk)
    assert after.is_active and roles.held(after) == {"": Role.MAINTAINER}


@pytest.mark.parametrize("field", ["is_superuser", "is_active"])
def test_the_admin_cannot_take_the_last_maintainer_away_either(field: str) -> None:
    root = User.objects.create_superuser("root@example.com", "x")
    client = client_of(root)
    given = {"email": root.email, "display_name": "", "is_active": "on", "is_staff": "on", "is_superuser": "on"}
    given.pop(field)
    page = client.post(f"/admin/accounts/user/{root.pk}/change/", given, follow=True)
    assert "last maintainer" in page.content.decode()
    client.post(f"/admin/accounts/user/{root.pk}/delete/", {"post": "yes"})
    client.post("/admin/accounts/user/", {"action": "delete_selected", "_selected_action": root.pk, "post": "yes"})
    after = User.objects.get(pk=root.pk)
    assert after.is_superuser and after.is_active
    member("maintainer")
    client.post(f"/admin/accounts/user/{root.pk}/change/", given)
    assert not getattr(User.objects.get(pk=root.pk), field)


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_of_two_maintainers_who_remove_each_other_one_stays() -> None:
    changes: list[Callable[[User], object]] = [
        lambda user: members.set_role(user, Role.VIEWER),
        members.suspend,
        lambda user: user.delete(),
    ]
    for n in range(15):
        pair = [member("maintainer"), member("maintainer")]
        barrier, refused = threading.Barrier(2, timeout=PATIENCE), []

        def remove(other: User, change: Callable[[User], object]) -> None:
            try:
                barrier.wait()
                change(other)
            except members.LastMaintainer:
                refused.append(other)
            finally:
                connection.close()

        threads = [
            threading.Thread(target=remove, args=(pair[1 - each], changes[(n + each) % len(changes)]))
            for each in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(refused) == 1 == members.maintainers().count()
        User.objects.filter(pk__in=[each.pk for each in pair if each.pk]).update(is_active=False)
