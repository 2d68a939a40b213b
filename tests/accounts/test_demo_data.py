"""manage.py demo_data: the right people in the right environment, and nobody in production."""

import io
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from django.core.management import CommandError, call_command
from django.test import Client
from pytest_django import Settings

from accounts import demo
from accounts.management.commands.demo_data import Command
from accounts.models import User
from tests.support.servers import PATIENCE, ROOT

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def cheap(settings: Settings) -> None:
    settings.DEMO_DATA = []  # people alone: what other apps load is theirs to test
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache", "LOCATION": uuid.uuid4().hex}}


def load(*words: str) -> str:
    """What the command prints."""
    out = io.StringIO()
    call_command("demo_data", *words, stdout=out, stderr=out)
    return out.getvalue()


def rows() -> list[tuple[Any, ...]]:
    """Everything about everybody but their ids and passwords' salts."""
    fields = ("email", "display_name", "is_active", "is_staff", "is_superuser", "last_login")
    addresses = EmailAddress.objects.order_by("email").values_list("email", "verified", "primary", "user__email")
    return [*User.objects.order_by("email").values_list(*fields), *addresses]


def sign_in(address: str, password: str) -> str | None:
    answer = Client().post("/accounts/login/", {"login": address, "password": password})
    return answer.get("Location")


def test_mock_data_are_a_few_accounts_to_sign_in_with_and_say_how() -> None:
    told = load("--profile", "mock")
    assert told.count("\n") == 1 and "demo@example.com" in told and demo.MOCK_PASSWORD in told
    assert sign_in("demo@example.com", demo.MOCK_PASSWORD) == "/"
    assert User.objects.get(is_superuser=True).email == "demo-admin@example.com"
    assert all("demo" in email and email.endswith("@example.com") for email in emails())


def emails() -> list[str]:
    return sorted(User.objects.values_list("email", flat=True))


def test_mock_data_loaded_again_leave_what_is_there_as_it_is() -> None:
    load("--profile", "mock")
    User.objects.filter(email="demo@example.com").update(display_name="Changed")
    before = rows()
    load("--profile", "mock")
    assert rows() == before


def test_once_does_nothing_when_there_is_a_user() -> None:
    User.objects.create(email="member@example.com")
    assert load("--profile", "mock", "--once") == ""
    assert emails() == ["member@example.com"]
    User.objects.all().delete()
    assert "demo@example.com" in load("--profile", "mock", "--once")


def test_test_data_are_always_the_same_accounts() -> None:
    load("--profile", "testing")
    before = rows()
    User.objects.filter(email="test-member@example.com").update(password="!", is_staff=True, display_name="Changed")
    EmailAddress.objects.filter(email="test-unverified@example.com").update(verified=True)
    load("--profile", "testing")
    assert rows() == before
    assert sign_in("test-member@example.com", demo.TEST_PASSWORD) == "/"
    assert sign_in("test-inactive@example.com", demo.TEST_PASSWORD) == "/accounts/inactive/"
    assert sign_in("test-unverified@example.com", demo.TEST_PASSWORD) == "/accounts/confirm-email/"


def test_production_like_data_are_the_same_for_the_same_seed_and_not_made_twice() -> None:
    told = load("--profile", "production-like", "--users", "300", "--seed", "7")
    assert told.startswith("Created 300 users") and "per second" in told
    before = rows()
    assert "Created 0 users (300 already existed)" in load(
        "--profile", "production-like", "--users", "300", "--seed", "7"
    )
    assert rows() == before
    load("--profile", "production-like", "--users", "310", "--seed", "7")
    assert set(before) < set(rows()) and User.objects.count() == 310
    User.objects.all().delete()
    load("--profile", "production-like", "--users", "300", "--seed", "7")
    assert rows() == before
    User.objects.all().delete()
    load("--profile", "production-like", "--users", "300", "--seed", "8")
    assert rows() != before


def test_production_like_people_have_every_shape_and_nobody_can_be_them() -> None:
    load("--profile", "production-like", "--users", "600")
    people = list(User.objects.all())
    assert len(people) == 600 == EmailAddress.objects.filter(primary=True).count()
    for user in people:
        user.clean_fields(exclude=["avatar"])
        assert user.email.rpartition("@")[2] in ("example.com", "example.net", "example.org")
        assert not user.has_usable_password() and not user.is_staff and not user.is_superuser
        assert user.last_login is None or user.date_joined <= user.last_login <= demo.LAST_DAY
    for some in (
        [user for user in people if not user.display_name],
        [user for user in people if not user.display_name.isascii()],
        [user for user in people if not user.is_active],
        [user for user in people if user.last_login is None],
        EmailAddress.objects.filter(verified=False),
    ):
        assert 3 < len(some) < 300


@pytest.fixture
def second_batch_fails(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(demo, "BATCH", 100)
    real, calls = User.objects.bulk_create, iter(range(9))

    def bulk_create(*args: Any, **kwargs: Any) -> Any:
        if next(calls):
            raise OSError("the connection is gone")
        return real(*args, **kwargs)

    monkeypatch.setattr(User.objects, "bulk_create", bulk_create)
    yield


def test_what_fails_half_way_has_written_nothing(second_batch_fails: None) -> None:
    with pytest.raises(OSError, match="gone"):
        load("--profile", "production-like", "--users", "300")
    assert not User.objects.exists()


@pytest.mark.parametrize(
    ("environment", "allowed"),
    [
        ("development", {"mock", "testing", "production-like"}),
        ("testing", {"mock", "testing", "production-like"}),
        ("staging", {"production-like"}),
        ("production", set()),
    ],
)
@pytest.mark.parametrize("profile", ["mock", "testing", "production-like"])
def test_each_environment_takes_its_own_data_only(
    settings: Settings, environment: str, allowed: set[str], profile: str
) -> None:
    settings.ENVIRONMENT = environment
    words = ["--profile", profile, *(["--users", "5"] if profile == "production-like" else [])]
    if profile in allowed:
        load(*words)
        assert User.objects.exists()
        return
    with pytest.raises(CommandError, match=f"not allowed in {environment}.*Nothing was changed") as refusal:
        load(*words)
    assert refusal.value.returncode == 4
    assert not User.objects.exists()


def test_production_refuses_with_exit_code_4() -> None:
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "settings.production"}
    done = subprocess.run(
        [sys.executable, "manage.py", "demo_data", "--skip-checks", "--profile", "mock"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert "not allowed in production" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("--profile nonsense", 2, "invalid choice"),
        ("", 2, "--profile"),
        ("--profile production-like --users 0", 2, "whole number"),
        ("--profile production-like --users many", 2, "whole number"),
        ("--help", 0, "manage.py demo_data --profile production-like --users 50000 --seed 7"),
    ],
)
def test_wrong_usage_exits_with_two(words: str, code: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        Command().run_from_argv(["manage.py", "demo_data", *words.split()])
    assert end.value.code == code
    printed = capsys.readouterr()
    assert told in (printed.err if code else printed.out)


def test_options_of_another_profile_are_refused() -> None:
    with pytest.raises(CommandError, match="require --profile production-like") as refusal:
        load("--profile", "mock", "--users", "3")
    assert refusal.value.returncode == 2
    assert not User.objects.exists()
