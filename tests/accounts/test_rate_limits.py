"""The rate limits: they count by the client's address, in Redis, or in each process while Redis is down."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.test import Client
from pytest_django import Settings

import backstagetest1.cache
from accounts.models import User
from tests.support.servers import Redis, eventually, frozen

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery staple"
ADDRESS = "member@example.com"
SIGN_IN = "/accounts/login/"

FEW = {"login": "3/m/ip"}


@pytest.fixture(autouse=True)
def limits(settings: Settings, own_redis: Redis) -> Iterator[None]:
    """A Redis that is empty, and of which the process remembers nothing."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    with own_redis.client() as direct:
        direct.flushall()
    backstagetest1.cache._breakers.clear()
    for counted in backstagetest1.cache._local_counts.values():
        counted.clear()
    settings.CACHES = {"default": settings.CACHES["default"] | {"LOCATION": own_redis.url}}
    yield
    if not own_redis.process:
        own_redis.start()


@pytest.fixture
def member() -> User:
    user = User.objects.create_user(ADDRESS, PASSWORD)
    user.emailaddress_set.create(email=ADDRESS, verified=True, primary=True)
    return user


def behind_a_proxy(address: str) -> Client:
    """A client whose requests come through a proxy that we trust."""
    return Client(REMOTE_ADDR="127.0.0.1", headers={"x-forwarded-for": address})


def tries(client: Client, count: int) -> list[int]:
    """The statuses of `count` empty sign-in forms."""
    return [client.post(SIGN_IN).status_code for _ in range(count)]


def test_a_client_that_tries_too_often_gets_our_429_and_others_are_let_through() -> None:
    client = behind_a_proxy("203.0.113.5")
    assert set(tries(client, 30)) == {200}
    refused = client.post(SIGN_IN)
    assert refused.status_code == 429 and refused["Retry-After"] == "60"
    assert [template.name for template in refused.templates if template.name][0] == "429.html"
    assert tries(behind_a_proxy("203.0.113.6"), 1) == [200]
    assert client.get(SIGN_IN).status_code == 200, "reading a page is no try"


def test_a_client_cannot_make_up_addresses_to_try_more_often(settings: Settings) -> None:
    settings.ACCOUNT_RATE_LIMITS = FEW
    client = Client(REMOTE_ADDR="198.51.100.7")  # no proxy of ours
    answers = [client.post(SIGN_IN, headers={"x-forwarded-for": f"203.0.113.{n}"}).status_code for n in range(4)]
    assert answers == [200, 200, 200, 429]
    answers = [behind_a_proxy(f"203.0.113.{n}, 198.51.100.8").post(SIGN_IN).status_code for n in range(4)]
    assert answers == [200, 200, 200, 429]


def test_a_network_of_ipv6_addresses_counts_as_one_client(settings: Settings) -> None:
    settings.ACCOUNT_RATE_LIMITS = FEW
    assert tries(behind_a_proxy("2001:db8:1:2::1"), 3) == [200, 200, 200]
    assert tries(behind_a_proxy("2001:db8:1:2:ffff::9"), 1) == [429]
    assert tries(behind_a_proxy("2001:db8:1:3::1"), 1) == [200]


def test_guesses_at_one_password_are_limited_wherever_they_come_from(member: User) -> None:
    for guess in range(5):
        # The port of the Host is the client's to choose.
        client = Client(headers={"host": f"testserver:{8000 + guess}", "x-forwarded-for": f"203.0.113.{guess}"})
        assert "not correct" in client.post(SIGN_IN, {"login": ADDRESS, "password": "wrong"}).content.decode()
    client = behind_a_proxy("203.0.113.99")
    refused = client.post(SIGN_IN, {"login": ADDRESS, "password": PASSWORD})
    assert refused.status_code == 200 and "Too many failed" in refused.content.decode()


def test_signing_in_often_and_rightly_is_no_guessing(member: User) -> None:
    for _ in range(8):
        assert behind_a_proxy("203.0.113.5").post(SIGN_IN, {"login": ADDRESS, "password": PASSWORD}).status_code == 302


@pytest.mark.parametrize(("path", "times"), [("/accounts/signup/", 20), ("/accounts/password/reset/", 5)])
def test_signing_up_and_password_resets_are_limited(path: str, times: int) -> None:
    client = behind_a_proxy("203.0.113.5")
    statuses = [client.post(path, {"email": "nobody@example.com"}).status_code for _ in range(times + 1)]
    assert statuses[-1] == 429 and 429 not in statuses[:-1]


def test_the_profile_and_the_password_are_limited_by_user(member: User) -> None:
    client = behind_a_proxy("203.0.113.5")
    client.force_login(member)
    for path, times in (("/accounts/profile/", 20), ("/accounts/password/change/", 5)):
        statuses = [client.post(path, {"oldpassword": "wrong"}).status_code for _ in range(times + 1)]
        assert statuses[-1] == 429 and 429 not in statuses[:-1], path


@pytest.fixture(params=["stopped", "frozen", "read-only"])
def redis_down(request: pytest.FixtureRequest, own_redis: Redis) -> Iterator[None]:
    """Redis that counts nothing any more: it does not answer, or it refuses to write as a replica does."""
    if request.param == "stopped":
        own_redis.stop()
        yield
    elif request.param == "frozen":
        with frozen(own_redis):
            yield
    else:
        with own_redis.client() as client:
            client.replicaof("127.0.0.1", 1)
            yield
            client.replicaof("NO", "ONE")


def test_with_redis_down_people_sign_in_and_pages_open(member: User, redis_down: None) -> None:
    client = behind_a_proxy("203.0.113.5")
    assert client.post(SIGN_IN, {"login": ADDRESS, "password": PASSWORD}).status_code == 302
    assert client.get("/accounts/profile/").status_code == 200


def test_with_redis_down_a_process_goes_on_counting_guesses(member: User, redis_down: None) -> None:
    """14 of 14 were tried once."""
    answers = []
    for guess in range(14):
        client = behind_a_proxy(f"203.0.113.{guess}")
        answers.append(client.post(SIGN_IN, {"login": ADDRESS, "password": f"guess {guess}"}).content.decode())
    assert ["Too many failed" in answer for answer in answers] == [False] * 5 + [True] * 9
    refused = behind_a_proxy("203.0.113.99").post(SIGN_IN, {"login": ADDRESS, "password": PASSWORD})
    assert refused.status_code == 200


def test_with_redis_down_a_process_goes_on_counting_clients(settings: Settings, redis_down: None) -> None:
    settings.ACCOUNT_RATE_LIMITS = FEW
    assert tries(behind_a_proxy("203.0.113.5"), 5) == [200, 200, 200, 429, 429]
    assert tries(behind_a_proxy("203.0.113.6"), 1) == [200]


def test_what_was_counted_while_redis_was_down_counts_when_it_is_back(settings: Settings, own_redis: Redis) -> None:
    settings.ACCOUNT_RATE_LIMITS = FEW
    client = behind_a_proxy("203.0.113.5")
    own_redis.stop()
    assert tries(client, 2) == [200, 200]
    own_redis.start()
    cache: Any = caches["default"]
    cache.breaker.retry_at = 0.0  # its two seconds are over
    assert tries(client, 2) == [200, 429]

    def counted_in_redis_only() -> bool:
        cache.breaker.retry_at = 0.0  # a busy machine's Redis may be late again
        with own_redis.client() as direct:
            direct.flushall()
        return tries(client, 1) == [200]

    assert eventually(counted_in_redis_only)
