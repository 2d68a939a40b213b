"""Who may ask the API, how often and how much, and what happens when they ask the same twice."""

import hashlib
import ipaddress
from collections.abc import Callable
from datetime import datetime, timedelta
from time import time

from django.conf import settings
from django.core.cache import cache
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from ninja.security import HttpBearer

from ledger import tokens
from ledger.api.problems import Problem
from ledger.models import ApiToken, Deployment, IdempotencyKey

MAX_BODY = 65_536  # bytes
WINDOW = 60  # seconds in which requests are counted
KEPT = timedelta(hours=48)  # for how long an Idempotency-Key is known


class Bearer(HttpBearer):
    """Authorization: Bearer TOKEN (RFC 6750). Whatever is refused here is refused before the body is read."""

    def __call__(self, request: HttpRequest) -> ApiToken:
        """The token's row. Raises Problem: 401, 413, 429."""
        length = request.META.get("CONTENT_LENGTH") or "0"
        if not length.isdecimal() or int(length) > MAX_BODY:
            raise Problem(413, "too-large", f"The body has more than {MAX_BODY} bytes.")
        limit("address", network(request.META.get("REMOTE_ADDR", "")), settings.API_RATE_PER_ADDRESS)
        scheme, _, given = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise unauthorized("Bearer", "A token is needed: Authorization: Bearer TOKEN.")
        found = self.authenticate(request, given.strip())
        limit("token", str(found.pk), settings.API_RATE_PER_TOKEN)
        return found

    def authenticate(self, request: HttpRequest, token: str) -> ApiToken:
        found = tokens.find(token)
        if found is None:
            challenge = 'Bearer error="invalid_token"'
            raise unauthorized(
                challenge, "The token is unknown, expired or revoked. manage.py api_token makes another."
            )
        return found


def unauthorized(challenge: str, detail: str) -> Problem:
    return Problem(401, "", detail, headers={"WWW-Authenticate": challenge})


def network(address: str) -> str:
    """Whom `address` stands for: itself, and of IPv6 its /64, which is what one subscriber has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return ""
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else address


def limit(kind: str, who: str, most: int) -> None:
    """Counts a request of `who`. Raises Problem (429) beyond `most` in a minute.

    While Redis is down, each process counts for itself (backstagetest1.cache).
    """
    now = time()
    key = f"api-limit:{kind}:{who.replace('/', '-')}:{int(now // WINDOW)}"
    cache.add(key, 0, 2 * WINDOW)
    try:
        count = cache.incr(key)
    except ValueError:  # lost since, or never taken
        return
    if count > most:
        wait = WINDOW - int(now % WINDOW)
        detail = f"More than {most} requests in a minute from this {kind}. Go on in {wait} s."
        raise Problem(429, "rate-limited", detail, headers={"Retry-After": str(wait)})


def token_of(request: HttpRequest) -> ApiToken:
    """The token that Bearer has found."""
    found = getattr(request, "auth")
    assert isinstance(found, ApiToken)
    return found


def in_scope(request: HttpRequest, environment: str) -> None:
    """Raises Problem (403) if the request's token is not for `environment`."""
    token = token_of(request)
    if not token.environments.filter(name=environment).exists():
        raise Problem(403, "out-of-scope", f"The token {token.name} is not for {environment}.")


def may_register(request: HttpRequest) -> None:
    """Raises Problem (403) if the request's token may not register releases."""
    token = token_of(request)
    if not token.may_register:
        raise Problem(
            403,
            "may-not-register",
            f"The token {token.name} may not register releases. Let the pipeline that builds them register them, with "
            "a token made with --register.",
        )


def may_change(request: HttpRequest, key: int) -> None:
    """Raises Problem (403) if the request's token may not go on with the deployment of that key: its environment is out
    of the token's scope, or another token created it and this one may not take over. Raises Deployment.DoesNotExist.

    A deployment's environment and token never change, so there is nothing to lock.
    """
    token = token_of(request)
    environment, creator = Deployment.objects.values_list("environment__name", "token").get(pk=key)
    in_scope(request, environment)
    if creator != token.name and not token.may_take_over:
        who = f"the token {creator}" if creator else "a command"
        raise Problem(
            403,
            "not-its-own",
            f"Deployment {key} was created by {who}; the token {token.name} may only change its own. Use that token "
            "(manage.py api_token rotate renews it if it is lost), or one made with --take-over.",
        )


def once(request: HttpRequest, key: str | None, write: Callable[[], HttpResponse]) -> HttpResponse:
    """What `write` answers, in one transaction; with a key, done once however often it is asked.

    A retry gets the first answer again, with Idempotency-Replayed: true. While the first is still at work the retry
    waits for it: on the key's row, which both try to insert. What ends in an error has not happened, and its key may
    be used again. Raises Problem (422) if the key came with another request.
    https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
    """
    with transaction.atomic():
        if not key:
            return write()
        key = key[1:-1] if len(key) > 2 and key[0] == key[-1] == '"' else key  # the draft's form is a quoted string
        parts = (str(request.method).encode(), request.path.encode(), request.body)
        fingerprint = hashlib.sha256(b"\n".join(parts)).hexdigest()
        token, now = token_of(request), timezone.now()
        forget(now - KEPT)
        IdempotencyKey.objects.bulk_create(
            [IdempotencyKey(token=token, key=key, request=fingerprint, created=now)], ignore_conflicts=True
        )
        row = IdempotencyKey.objects.get(token=token, key=key)
        if row.request != fingerprint:
            raise Problem(422, "key-reused", "This Idempotency-Key was used for another request. Make a new one.")
        if row.status is not None:
            replay = HttpResponse(row.body, "application/json", row.status, headers={"Idempotency-Replayed": "true"})
            if row.location:
                replay["Location"] = row.location
            return replay
        response = write()
        row.status, row.body = response.status_code, response.content.decode()
        row.location = response.headers.get("Location", "")
        row.save(update_fields=["status", "body", "location"])
        return response


def forget(before: datetime) -> None:
    """Drops some of the keys made before then; who comes next drops more. Nobody waits for another who does."""
    old = IdempotencyKey.objects.filter(created__lt=before).order_by("created")
    if connection.features.has_select_for_update_skip_locked:
        old = old.select_for_update(skip_locked=True)
    keys = list(old.values_list("pk", flat=True)[:100])
    if keys:
        IdempotencyKey.objects.filter(pk__in=keys).delete()
