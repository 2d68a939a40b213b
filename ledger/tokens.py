"""Bearer tokens of pipelines: `bst1_` and 256 random bits. Their SHA-256 is kept; no salt, for nobody can guess one."""

import hashlib
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from ledger.models import ApiToken, Environment

PREFIX = "bst1_"  # so that scanners for leaked secrets know one when they see it
NOTED = timedelta(minutes=1)  # last_used is written at most so often


def digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def make(
    name: str,
    environments: Iterable[Environment],
    expires: datetime | None = None,
    *,
    may_register: bool = False,
    may_take_over: bool = False,
) -> tuple[ApiToken, str]:
    """A new token's row, and the token itself, which can never be shown again.

    Raises IntegrityError if the name is taken.
    """
    token = PREFIX + secrets.token_urlsafe(32)
    rights = {"may_register": may_register, "may_take_over": may_take_over}
    with transaction.atomic():
        row = ApiToken.objects.create(name=name, digest=digest(token), expires=expires, **rights)
        row.environments.set(environments)
    return row, token


def rotate(name: str, expires: datetime | None = None) -> tuple[ApiToken, str]:
    """Gives the token of that name a new secret: it keeps its rights and its deployments, and the old secret ends.

    It ends at `expires`; None leaves that as it is. Raises ApiToken.DoesNotExist if no such token is active then.
    """
    token = PREFIX + secrets.token_urlsafe(32)
    with transaction.atomic():
        row = ApiToken.objects.select_for_update().get(name=name)
        row.expires = expires or row.expires
        if row.state(timezone.now()) != "active":
            raise ApiToken.DoesNotExist(name)
        row.digest = digest(token)
        row.save(update_fields=["digest", "expires"])
    return row, token


def find(token: str) -> ApiToken | None:
    """The row of a token that is valid now, and notes that it was used; None for any other."""
    if not token.startswith(PREFIX):
        return None
    row = ApiToken.objects.filter(digest=digest(token)).first()
    now = timezone.now()
    if row is None or row.state(now) != "active":
        return None
    if row.last_used is None or row.last_used <= now - NOTED:
        ApiToken.objects.filter(Q(last_used=None) | Q(last_used__lte=now - NOTED), pk=row.pk).update(last_used=now)
    return row


def revoke(name: str) -> bool:
    """Whether there was a token of that name to be revoked. Raises ApiToken.DoesNotExist if there is none at all."""
    if not ApiToken.objects.filter(name=name).exists():
        raise ApiToken.DoesNotExist(name)
    return bool(ApiToken.objects.filter(name=name, revoked=None).update(revoked=timezone.now()))
