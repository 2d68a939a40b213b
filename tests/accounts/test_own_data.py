"""What a person gets of their data, and what their account's deletion deletes."""

import json

import pytest
from allauth.mfa.models import Authenticator
from django.apps import apps
from django.db import connection
from django.test import Client
from pytest_django import Settings

from accounts import own_data
from accounts.models import User
from accounts.roles import Role
from audit.models import Entry
from tests.support.people import member

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery staple"
PAGE, EXPORT, DELETE = "/accounts/data/", "/accounts/data/export/", "/accounts/data/delete/"


@pytest.fixture(autouse=True)
def cheap(settings: Settings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def user() -> User:
    user = User.objects.create_user("ada@example.com", PASSWORD, display_name="Ada")
    user.emailaddress_set.create(email=user.email, verified=True, primary=True)
    return user


def confirmed(client: Client, user: User) -> Client:
    """Signs in, and confirms the password."""
    client.post("/accounts/login/", {"login": user.email, "password": PASSWORD})
    client.post(f"/accounts/reauthenticate/?next={PAGE}", {"password": PASSWORD})
    return client


def test_the_export_holds_everything_but_secrets(client: Client, user: User) -> None:
    Authenticator.objects.create(user=user, type="totp", data={"secret": "hunter2"})
    client.force_login(user)
    assert "reauthenticate" in client.post(EXPORT)["Location"]
    client.post(f"/accounts/reauthenticate/?next={PAGE}", {"password": PASSWORD})
    response = client.post(EXPORT)
    assert "attachment" in response["Content-Disposition"] and "no-store" in response["Cache-Control"]
    found = json.loads(response.content)
    assert found["account"]["email"] == "ada@example.com" and found["addresses"][0]["verified"] is True
    assert found["second_factors"][0]["kind"] == "totp" and found["audit_log"]
    text = response.content.decode()
    assert "hunter2" not in text and user.password not in text and str(client.session.session_key) not in text


def test_each_model_that_points_at_people_is_in_the_export_or_left_out_for_a_reason() -> None:
    exported = {
        "accounts.User_groups",
        "accounts.Invitation",
        "account.EmailAddress",
        "mfa.Authenticator",
        "usersessions.UserSession",
    }
    pointing = {
        model._meta.label
        for model in apps.get_models(include_auto_created=True)
        for field in model._meta.get_fields()
        if field.concrete and field.is_relation and field.related_model is User and not field.many_to_many
    }
    assert pointing == exported | set(own_data.LEFT_OUT)


def test_a_deleted_account_is_gone_and_the_records_stay(client: Client, user: User) -> None:
    confirmed(client, user)
    elsewhere = Client()
    elsewhere.post("/accounts/login/", {"login": user.email, "password": PASSWORD})
    assert client.post(DELETE).status_code == 302 and User.objects.filter(pk=user.pk).exists(), "the box is not ticked"
    response = client.post(DELETE, {"sure": "on"}, follow=True)
    assert "Your account was deleted." in response.content.decode()
    assert not User.objects.filter(pk=user.pk).exists()
    assert not client.session.get("_auth_user_id") and elsewhere.get(PAGE).status_code == 302
    entry = Entry.objects.get(action="account_deleted")
    assert entry.target == entry.actor == "ada@example.com"


def test_deletion_asks_for_the_password_and_the_form_for_its_token(user: User) -> None:
    client = Client()
    client.force_login(user)
    assert "reauthenticate" in client.post(DELETE, {"sure": "on"})["Location"]
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(user)
    assert strict.post(DELETE, {"sure": "on"}).status_code == 403
    assert User.objects.filter(pk=user.pk).exists()


def test_the_last_maintainer_stays(client: Client) -> None:
    last = member(Role.MAINTAINER)
    last.set_password(PASSWORD)
    last.save()
    last.emailaddress_set.get_or_create(email=last.email, defaults={"verified": True, "primary": True})
    confirmed(client, last)
    assert "last maintainer" in client.post(DELETE, {"sure": "on"}, follow=True).content.decode()
    assert User.objects.filter(pk=last.pk).exists() and not Entry.objects.filter(action="account_deleted").exists()


def test_what_sign_on_has_left_does_not_keep_an_account(user: User) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE TABLE {own_data.SIGN_ON} (user_id bigint REFERENCES accounts_user DEFERRABLE INITIALLY DEFERRED)"
        )
        cursor.execute(f"INSERT INTO {own_data.SIGN_ON} VALUES (%s)", [user.pk])
        user.delete()
        cursor.execute(f"SELECT count(*) FROM {own_data.SIGN_ON}")
        assert cursor.fetchone() == (0,)
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
