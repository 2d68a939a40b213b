"""Every page of the admin opens, and its doors are as well guarded as the others."""

import uuid
from typing import Any
from urllib.parse import quote

import pytest
from allauth.account.models import EmailAddress
from django.contrib import admin
from django.contrib.auth.models import AnonymousUser, Group, Permission
from django.db import models
from django.http import HttpRequest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from accounts.models import User

pytestmark = pytest.mark.django_db

REGISTERED = sorted(admin.site._registry, key=lambda model: model._meta.label)
PASSWORD = "correct horse battery staple"


@pytest.fixture(autouse=True)
def cheap(settings: Settings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache", "LOCATION": uuid.uuid4().hex}}


@pytest.fixture
def root(client: Client) -> Client:
    """Somebody who may do everything, signed in."""
    client.force_login(User.objects.create_superuser("root@example.com", PASSWORD))
    return client


def some(model: type[models.Model]) -> models.Model:
    """A saved object of `model`, with something in every field that needs it; one that migrations have made if any."""
    if not isinstance(model._meta.pk, models.AutoField) and (there := model._default_manager.first()):
        return there
    values: dict[str, Any] = {}
    for field in model._meta.concrete_fields:
        if field.has_default() or field.null or field.auto_created or field.blank:
            continue
        if isinstance(field, models.ForeignKey):
            values[field.name] = some(field.related_model)
        elif field.choices:
            values[field.name] = field.flatchoices[0][0]
        elif isinstance(field, models.DateTimeField):
            values[field.name] = timezone.now()
        elif isinstance(field, models.BooleanField | models.IntegerField | models.FloatField):
            values[field.name] = 1
        elif isinstance(field, models.EmailField):
            values[field.name] = f"{uuid.uuid4().hex}@example.com"
        else:
            values[field.name] = uuid.uuid4().hex[: field.max_length]
    return model._default_manager.create(**values)


def url(model: type[models.Model], page: str, *args: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


def test_the_admin_is_where_the_settings_say(root: Client, settings: Settings) -> None:
    assert reverse("admin:index") == f"/{settings.ADMIN_URL}"
    page = root.get(reverse("admin:index"))
    assert page.status_code == 200
    assert {User, EmailAddress} <= set(REGISTERED)
    for model in REGISTERED:
        assert url(model, "changelist") in page.content.decode()


@pytest.mark.parametrize("model", REGISTERED, ids=lambda model: model._meta.label)
def test_every_list_add_and_change_page_opens(root: Client, model: type[models.Model], rf: Any) -> None:
    one = some(model)
    assert root.get(url(model, "changelist")).status_code == 200
    found = root.get(url(model, "changelist"), {"q": "nothing of that name"})
    assert found.status_code == 200 and "e=1" not in found.get("Location", "")
    change = root.get(url(model, "change", one.pk))
    assert change.status_code == 200 and str(one.pk) in change.context["subtitle"] + url(model, "change", one.pk)
    assert root.get(url(model, "history", one.pk)).status_code == 200
    assert root.get(url(model, "delete", one.pk)).status_code in (200, 403)
    request = rf.get("/")
    request.user = User.objects.get(email="root@example.com")
    may_add = admin.site._registry[model].has_add_permission(request)
    assert root.get(url(model, "add")).status_code == (200 if may_add else 403)


def test_a_user_is_added_found_filtered_and_changed(root: Client) -> None:
    form = {"email": "New@Example.com", "usable_password": "true", "password1": PASSWORD, "password2": PASSWORD}
    added = root.post(url(User, "add"), form | {"display_name": "Newcomer"})
    assert added.status_code == 302, added.context["errors"]
    user = User.objects.get(display_name="Newcomer")
    assert user.email == "new@example.com" and user.check_password(PASSWORD)

    for query in ("q=NEW@example", "q=newcomer", "is_staff__exact=0", "is_active__exact=1"):
        page = root.get(url(User, "changelist") + "?" + query)
        assert user in page.context["cl"].result_list, query
    assert user not in root.get(url(User, "changelist") + "?is_staff__exact=1").context["cl"].result_list

    changed = root.post(
        url(User, "change", user.pk), {"email": user.email, "display_name": "Renamed", "is_active": "on"}
    )
    assert changed.status_code == 302, changed.context["errors"]
    user.refresh_from_db()
    assert (user.display_name, user.is_active) == ("Renamed", True)
    assert user.check_password(PASSWORD)
    assert root.get(url(User, "changelist").replace("user/", f"user/{user.pk}/password/")).status_code == 200


def test_a_second_user_with_the_same_address_is_a_form_error(root: Client) -> None:
    form = {"email": "ROOT@example.com", "usable_password": "false"}
    response = root.post(url(User, "add"), form)
    assert response.status_code == 200
    assert "already" in str(response.context["adminform"].form.errors["email"])


def test_an_address_changed_in_the_admin_replaces_the_old_one_and_has_to_be_verified(root: Client) -> None:
    user = User.objects.create_user("old@example.com", PASSWORD)
    user.emailaddress_set.create(email=user.email, verified=True, primary=True)
    response = root.post(url(User, "change", user.pk), {"email": "new@example.com", "is_active": "on"})
    assert response.status_code == 302
    for address in ("old@example.com", "new@example.com"):
        answer = Client().post("/accounts/login/", {"login": address, "password": PASSWORD})
        expected = "/accounts/confirm-email/" if address.startswith("new") else None
        assert answer.get("Location") == expected, address


def test_the_admin_signs_in_by_the_page_that_has_the_limits(client: Client) -> None:
    index = reverse("admin:index")
    assert client.get(index, follow=True).redirect_chain[-1][0] == f"/accounts/login/?next={quote(index, safe='')}"
    assert client.get(reverse("admin:login"))["Location"].startswith("/accounts/login/?next=")
    User.objects.create_superuser("root@example.com", PASSWORD)
    posted = client.post(reverse("admin:login"), {"username": "root@example.com", "password": PASSWORD})
    assert posted["Location"].startswith("/accounts/login/"), "the admin's own form signed in"
    assert client.get(index).status_code == 302


def test_a_password_is_changed_by_the_page_that_has_the_limits(root: Client) -> None:
    assert root.get(reverse("admin:password_change"))["Location"] == "/accounts/password/change/"


@pytest.mark.parametrize("path", ["admin:index", "admin:login", "admin:accounts_user_changelist"])
def test_a_member_who_is_not_staff_stays_outside(client: Client, path: str) -> None:
    client.force_login(User.objects.create_user("member@example.com", PASSWORD))
    response = client.get(reverse(path), follow=True)
    assert response.status_code == 403
    assert "Log in" not in response.content.decode()


def test_staff_see_what_they_have_permissions_for(client: Client) -> None:
    client.force_login(User.objects.create_user("staff@example.com", PASSWORD, is_staff=True))
    assert client.get(reverse("admin:index")).status_code == 200
    assert client.get(url(User, "changelist")).status_code == 403


ROLES = ("anonymous", "member", "staff", "viewer", "changer", "superuser")


def visitor(role: str) -> Client:
    """A client signed in as somebody of `role`; viewers have every permission to view, changers every other one too."""
    client = Client()
    if role == "anonymous":
        return client
    user = User.objects.create_user(
        f"{role}@example.com", PASSWORD, is_staff=role != "member", is_superuser=role == "superuser"
    )
    if role in ("viewer", "changer"):
        can = Permission.objects.filter(codename__startswith="view_" if role == "viewer" else "")
        user.user_permissions.set(can.exclude(content_type__app_label="sessions"))
    client.force_login(user)
    return client


def everything(model: type[models.Model]) -> dict[str, str]:
    """A form that sets every field of `model`, and of people every privilege; there is nobody called 0."""
    values = {"is_superuser": "on", "is_staff": "on", "is_active": "on", "verified": "on", "primary": "on"}
    values |= {"email": "taken-over@example.com", "name": "taken over", "display_name": "taken over"}
    values |= {
        "password": "x",
        "usable_password": "true",
        "password1": "a whole new one",
        "password2": "a whole new one",
    }
    values |= {name: str(Permission.objects.latest("pk").pk) for name in ("user_permissions", "permissions")}
    values |= {"groups": str(Group.objects.create(name=uuid.uuid4().hex).pk)}
    return values | {"user": str(User.objects.get(email="root@example.com").pk)}


def rows(model: type[models.Model]) -> list[Any]:
    """Every row of `model` but what signing in writes, with what it is related to by many-to-many fields."""
    fields = [field.attname for field in model._meta.concrete_fields if field.name != "last_login"]
    related = [field.name for field in model._meta.many_to_many]
    found = model._default_manager.order_by("pk")
    return [
        [getattr(one, name) for name in fields]
        + [sorted(getattr(one, name).values_list("pk", flat=True)) for name in related]
        for one in found
    ]


def powers() -> list[Any]:
    """Who may do what, and how those who may do everything get in."""
    root = User.objects.get(email="root@example.com")
    return [
        root.password,
        sorted(root.emailaddress_set.values_list("email", "verified", "primary")),
        sorted(User.objects.filter(is_superuser=True).values_list("pk", "email", "is_active")),
        sorted(User.objects.filter(is_staff=True).values_list("pk", flat=True)),
        sorted(User.groups.through.objects.values_list("user_id", "group_id")),
        sorted(User.user_permissions.through.objects.values_list("user_id", "permission_id")),
        sorted(Group.permissions.through.objects.values_list("group_id", "permission_id")),
    ]


def changing_as(user: User | None) -> HttpRequest:
    """A request of `user`, to ask a ModelAdmin what it allows."""
    request = HttpRequest()
    request.user = user or AnonymousUser()
    return request


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("model", REGISTERED, ids=lambda model: model._meta.label)
def test_every_page_of_the_admin_lets_a_role_do_what_it_may_and_nobody_grow(
    model: type[models.Model], role: str
) -> None:
    root = User.objects.create_superuser("root@example.com", PASSWORD)
    root.emailaddress_set.create(email="second@example.com")
    powerful: models.Model = some(model)
    if model is User:
        powerful = root
    elif model is EmailAddress:
        powerful = root.emailaddress_set.get(verified=False)
    client = visitor(role)
    own = User.objects.filter(email=f"{role}@example.com").first()
    targets = [powerful] + ([own] if own and model is User else [])
    form = everything(model)
    before, power = rows(model), powers()
    ids = [target.pk for target in targets]

    seen = [client.get(url(model, "changelist")), client.get(url(model, "change", powerful.pk))]
    seen.append(client.get(url(model, "history", powerful.pk)))
    for pk in ids:
        client.post(url(model, "change", pk), form)
        if model is User:
            client.post(reverse("admin:auth_user_password_change", args=[pk]), form)
    client.post(url(model, "add"), form)
    for action in ("delete_selected", "make_verified"):
        client.post(url(model, "changelist"), {"action": action, "_selected_action": ids[0], "post": "yes"})
    client.post(url(model, "delete", powerful.pk), {"post": "yes"})

    if role in ("anonymous", "member"):
        assert {answer.status_code for answer in seen} == {302} if role == "anonymous" else {302, 403}
    elif role == "staff":
        assert {answer.status_code for answer in seen} == {403}
    else:
        assert {answer.status_code for answer in seen} == {200}
    if role == "superuser":
        editable = admin.site._registry[model].has_delete_permission(changing_as(own))
        assert (rows(model) != before) == editable, "the forms of this test change nothing"
    elif role == "changer":
        assert powers() == power, "somebody became more than they were"
    else:
        assert rows(model) == before, "changed by somebody who may only look"


def test_staff_who_may_change_people_change_those_who_may_no_more_than_they(client: Client) -> None:
    changer = User.objects.create_user("changer@example.com", PASSWORD, is_staff=True)
    changer.user_permissions.set(Permission.objects.filter(content_type__app_label__in=("accounts", "account")))
    client.force_login(changer)
    member = User.objects.create_user("member@example.com", PASSWORD)
    form = {"email": "member@example.com", "display_name": "Renamed", "is_active": "on", "is_superuser": "on"}
    assert client.post(url(User, "change", member.pk), form).status_code == 302
    member.refresh_from_db()
    assert (member.display_name, member.is_superuser) == ("Renamed", False)
    assert client.post(url(User, "change", changer.pk), form | {"email": changer.email}).status_code == 302
    changer.refresh_from_db()
    assert (changer.display_name, changer.is_superuser) == ("Renamed", False)

    # Somebody who may see the incidents, which the changer may not, by a group and while switched off.
    group = Group.objects.create(name="watchers")
    group.permissions.set(Permission.objects.filter(codename="view_incident"))
    watcher = User.objects.create_user("watcher@example.com", PASSWORD, is_staff=True, is_active=False)
    watcher.groups.add(group)
    address = watcher.emailaddress_set.create(email="watcher@example.com")
    assert client.get(url(User, "change", watcher.pk)).status_code == 200
    assert client.post(url(User, "change", watcher.pk), form | {"email": "mine@example.com"}).status_code == 403
    new = {"usable_password": "true", "password1": "a whole new one", "password2": "a whole new one"}
    assert client.post(reverse("admin:auth_user_password_change", args=[watcher.pk]), new).status_code == 403
    assert client.post(url(EmailAddress, "change", address.pk), {"verified": "on"}).status_code == 403
    added = client.post(url(EmailAddress, "add"), {"user": watcher.pk, "email": "mine@example.com", "verified": "on"})
    assert added.status_code == 200 and "user" in added.context["adminform"].form.errors
    assert client.post(url(EmailAddress, "add"), {"user": member.pk, "email": "b@example.com"}).status_code == 302
    client.post(url(EmailAddress, "changelist"), {"action": "make_verified", "_selected_action": [address.pk]})
    assert not watcher.emailaddress_set.get().verified


def test_an_address_in_the_admin_cannot_be_given_to_another_or_rewritten(root: Client) -> None:
    member = User.objects.create_user("member@example.com", PASSWORD)
    address = member.emailaddress_set.create(email="member@example.com")
    someone = User.objects.create_user("someone@example.com", PASSWORD)
    form = {"user": someone.pk, "email": "else@example.com", "verified": "on"}
    assert root.post(url(EmailAddress, "change", address.pk), form).status_code == 302
    address.refresh_from_db()
    assert (address.user, address.email, address.verified) == (member, "member@example.com", True)
