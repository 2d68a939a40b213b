"""Demo users for every environment but production. Their addresses are in reserved domains (RFC 2606)."""

import random
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from allauth.account.models import EmailAddress
from django.contrib.auth.hashers import make_password
from django.db import transaction

from accounts import roles
from accounts.models import User
from accounts.roles import Role

MOCK_PASSWORD = "backstage-demo"
TEST_PASSWORD = "backstage-test"
BATCH = 2_000


@dataclass(frozen=True)
class Person:
    name: str  # the local part of the address
    display_name: str = ""
    verified: bool = True
    is_active: bool = True
    is_staff: bool = False
    is_superuser: bool = False
    role: Role | None = None

    @property
    def email(self) -> str:
        return f"{self.name}@example.com"


MOCK = (
    Person("demo", "Demo User", role=Role.DEPLOYER),
    Person("demo-admin", "Demo Admin", is_staff=True, is_superuser=True),
    Person("demo-approver", "Demo Approver", role=Role.APPROVER),
    Person("demo-nameless"),
    Person("demo-unverified", "Demo Unverified", verified=False),
    Person("demo-inactive", "Demo Inactive", is_active=False),
)
TEST = (
    Person("test-member", "Test Member"),
    Person("test-viewer", "Test Viewer", role=Role.VIEWER),
    Person("test-deployer", "Test Deployer", role=Role.DEPLOYER),
    Person("test-approver", "Test Approver", role=Role.APPROVER),
    Person("test-maintainer", "Test Maintainer", role=Role.MAINTAINER),
    Person("test-staff", "Test Staff", is_staff=True),
    Person("test-admin", "Test Admin", is_staff=True, is_superuser=True),
    Person("test-nameless"),
    Person("test-unverified", "Test Unverified", verified=False),
    Person("test-inactive", "Test Inactive", is_active=False),
)

# For production-like data: common names from many places, in every form that a page must cope with.
GIVEN = (
    "Ada Aiko Alejandra Amara Anders Anna Ayşe Björn Carlos Chidi Chloé Daniel Deepa Elif Emeka Eva Fatima Gabriel "
    "Giulia Hans Hiroshi Ingrid Ivan Jan Joana José Kateryna Kofi Lars Leila Liam Lucía Łukasz Maja Malik Maria Mehmet "
    "Mei Miguel Mina Nadia Noah Nora Olga Omar Paul Priya Quentin Ravi Renée Rosa Samuel Sara Siobhán Sofia Søren "
    "Thomas Tomáš Umar Vera Wei Xavier Yara Yusuf Zanele Zoë"
).split()
FAMILY = (
    "Abebe Ahmed Andersen Bauer Bernard Castillo Chen Costa Demir Dubois Eriksson Fernández Ferrari Fischer García "
    "Gruber Hansen Ibrahim Ivanova Jansen Jensen Jones Kaya Khan Kim Kovács Kowalska Kumar Lee López Martin Mbeki "
    "Mensah Müller Nakamura Nguyen Nielsen Novák Nowak O'Brien Okafor Oliveira Olsen Park Patel Pereira Petrov Popescu "
    "Ramírez Rossi Santos Sato Schmidt Silva Singh Smith Suzuki Svensson Tanaka Tran van-der-Berg Wang Weber Yılmaz "
    "Zhang"
).split()
DOMAINS = ("example.com", "example.net", "example.org")
LAST_DAY = datetime(2026, 1, 1, tzinfo=UTC)  # fixed, so that a seed gives the same users every day


def ensure(people: tuple[Person, ...], password: str, *, reset: bool = False) -> int:
    """Creates those of `people` who do not exist; `reset` also restores those who do.

    Returns the number of users created. Runs in one transaction.
    """
    shared = make_password(password)
    made = 0
    with transaction.atomic():
        for person in people:
            fields = {
                name: getattr(person, name) for name in ("display_name", "is_active", "is_staff", "is_superuser")
            } | {"password": shared}
            user, created = User.objects.get_or_create(email=person.email, defaults=fields)
            made += created
            if created or reset:
                User.objects.filter(pk=user.pk).update(**fields)
                user.emailaddress_set.all().delete()
                user.emailaddress_set.create(email=user.email, verified=person.verified, primary=True)
                user.groups.clear()
                roles.assign(user, person.role)
    return made


def people(count: int, seed: int) -> Iterator[tuple[User, bool]]:
    """Yields `count` unsaved users, each with whether the address is verified; the same seed yields the same users.

    They share one unusable password, so that nobody can sign in as them and no time is spent on hashing.
    """
    chance = random.Random(seed)
    unusable = make_password(None)
    for index in range(1, count + 1):
        given, family = chance.choice(GIVEN), chance.choice(FAMILY)
        verified = chance.random() < 0.93
        joined = LAST_DAY - timedelta(days=1000 * (1 - chance.random() ** 0.5), seconds=chance.randrange(86_400))
        seen = joined + timedelta(days=chance.expovariate(1 / 120))
        shown = chance.random()
        yield User(
            email=f"{plain(given)}.{plain(family)}.{seed}-{index}@{chance.choice(DOMAINS)}",
            display_name="" if shown < 0.3 else given if shown < 0.45 else f"{given} {family.replace('-', ' ')}",
            password=unusable,
            is_active=chance.random() < 0.98,
            date_joined=joined,
            last_login=min(seen, LAST_DAY) if verified and chance.random() < 0.85 else None,
        ), verified


def plain(name: str) -> str:
    """Returns `name` in lower-case ASCII letters, for an address."""
    letters = unicodedata.normalize(
        "NFKD", name.replace("ø", "o").replace("ł", "l").replace("Ł", "l").replace("ı", "i")
    )
    return "".join(char for char in letters.lower() if char.isascii() and char.isalpha())


def grow(count: int, seed: int) -> Iterator[tuple[int, int]]:
    """Saves people(count, seed) in batches; yields the size of each batch and how many of its users were new.

    The caller runs it in a transaction.
    """
    batch: list[tuple[User, bool]] = []
    for index, person in enumerate(people(count, seed), 1):
        batch.append(person)
        if len(batch) == BATCH or index == count:
            there = set(
                User.objects.filter(email__in=[user.email for user, _ in batch]).values_list("email", flat=True)
            )
            new = [(user, verified) for user, verified in batch if user.email not in there]
            User.objects.bulk_create([user for user, _ in new])
            EmailAddress.objects.bulk_create(
                EmailAddress(user=user, email=user.email, verified=verified, primary=True) for user, verified in new
            )
            yield len(batch), len(new)
            batch = []
