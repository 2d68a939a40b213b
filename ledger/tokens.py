"""Bearer tokens of pipelines: `bst1_` and 256 random bits. Stored as SHA-256, unsalted: nobody can guess them."""

import hashlib
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone

import audit
from audit.actions import Action
from ledger.models import ApiToken, Environment

PREFIX = "bst1_"  # recognizable to scanners for leaked secrets
LAST_USED_INTERVAL = timedelta(minutes=1)  # between two writes of last_used


def digest(token: str) -> str:
    """Returns the SHA-256 of the token, in hex."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def make(
    name: str,
    environments: Iterable[Environment],
    expires: datetime | None = None,
    *,
    may_register: bool = False,
    may_take_over: bool = False,
    may_request: bool = True,
    may_record: bool = True,
    owner: Any = None,
    actor: str = "",
    request: HttpRequest | None = None,
) -> tuple[ApiToken, str]:
    """Creates a token. Returns its row, and the token itself, which cannot be shown again.

    `actor` or `request` says who did, for the audit log, here as in rotate() and revoke().

    Raises IntegrityError if the name is taken.
    """
    token = PREFIX + secrets.token_urlsafe(32)
    rights = {
        "may_register": may_register,
        "may_take_over": may_take_over,
        "may_request": may_request,
        "may_record": may_record,
    }
    with transaction.atomic():
        row = ApiToken.objects.create(name=name, digest=digest(token), expires=expires, owner=owner, **rights)
        row.environments.set(environments)
        names = ", ".join(row.environments.order_by("order").values_list("name", flat=True))
        granted = [right.replace("_", " ") for right, given in rights.items() if given]
        details = {"environments": names or "none", "rights": ", ".join(granted) or "none"}
        details["expires"] = f"{expires:%Y-%m-%d %H:%M}Z" if expires else "never"
        audit.record(Action.TOKEN_MADE, actor=actor, target=name, details=details, request=request)
    return row, token


def rotate(
    name: str, expires: datetime | None = None, *, actor: str = "", request: HttpRequest | None = None
) -> tuple[ApiToken, str]:
    """Gives a token a new secret, and invalidates the old one. Its rights and its deployments stay.

    Returns its row and the new secret. `expires` replaces its expiry; None keeps it. Raises ApiToken.DoesNotExist
    if the token does not exist, is revoked, or is expired even with the new expiry.
    """
    token = PREFIX + secrets.token_urlsafe(32)
    with transaction.atomic():
        row = ApiToken.objects.select_for_update().get(name=name)
        row.expires = expires or row.expires
        if row.state(timezone.now()) != "active":
            raise ApiToken.DoesNotExist(name)
        row.digest = digest(token)
        row.save(update_fields=["digest", "expires"])
        audit.record(Action.TOKEN_ROTATED, actor=actor, target=name, request=request)
    return row, token


def usable(row: ApiToken) -> bool:
    """Returns whether the token's owner may still do what every token may: read everything. True without an owner."""
    return row.owner is None or row.owner.is_active and row.owner.has_perm("ledger.view_people")


def find(token: str, address: str = "") -> ApiToken | None:
    """Returns the row of an active token, and records that it was used, from `address`; None for any other."""
    if not token.startswith(PREFIX):
        return None
    row = ApiToken.objects.select_related("owner").filter(digest=digest(token)).first()
    now = timezone.now()
    if row is None or row.state(now) != "active" or not usable(row):
        return None
    if row.last_used is None or row.last_used <= now - LAST_USED_INTERVAL:
        ApiToken.objects.filter(Q(last_used=None) | Q(last_used__lte=now - LAST_USED_INTERVAL), pk=row.pk).update(
            last_used=now, last_address=address[:45]
        )
    return row


def revoke(name: str, *, actor: str = "", request: HttpRequest | None = None) -> bool:
    """Revokes a token. Returns False if it was already revoked. Raises ApiToken.DoesNotExist."""
    if not ApiToken.objects.filter(name=name).exists():
        raise ApiToken.DoesNotExist(name)
    with transaction.atomic():
        ended = bool(ApiToken.objects.filter(name=name, revoked=None).update(revoked=timezone.now()))
        if ended:
            audit.record(Action.TOKEN_REVOKED, actor=actor, target=name, request=request)
    return ended


def revoke_those_of(instance: Any, **_: Any) -> None:
    """Revokes the tokens of a user who is about to be deleted: without an owner they would be anybody's."""
    for name in ApiToken.objects.filter(owner=instance.pk, revoked=None).values_list("name", flat=True):
        revoke(name, actor="deletion of the owner")
