"""Rows for the tests of the ledger, made by its own rules."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from ledger import rules, tokens
from ledger.environments import names

from ledger.models import Deployment, Environment, Release
from tests.support.approving import approved

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def release(version: str, at: datetime = START) -> Release:
    return rules.register(version, hashlib.sha1(version.encode()).hexdigest(), at, f"Build {version}", at=at)[0]


def deployed(
    environment: str, version: str, result: str = "succeeded", *, at: datetime = START, **options: Any
) -> Deployment:
    """A finished deployment of a release, which is registered if need be; it takes a minute."""
    release(version)
    strategy, actor = options.pop("strategy", "rolling"), options.pop("actor", "pipeline")
    row = rules.create(environment, version, strategy, actor, at=at, **options)
    rules.start(approved(row).pk, at=at)
    return rules.finish(row.pk, result, at=at + timedelta(minutes=1))


def begun(environment: str, version: str, **options: Any) -> Deployment:
    """A running deployment."""
    release(version)
    row = rules.create(environment, version, options.pop("strategy", "rolling"), "pipeline", **options)
    return rules.start(approved(row).pk)


def token(*environments: str, name: str = "pipeline", may_register: bool = True, may_take_over: bool = False) -> str:
    """A token for those environments, or all."""
    places = Environment.objects.filter(name__in=environments or names())
    return tokens.make(name, places, may_register=may_register, may_take_over=may_take_over)[1]
