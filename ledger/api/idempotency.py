"""Writes that happen once however often they are sent: the Idempotency-Key header.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta

from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from ledger.api.auth import token_of
from ledger.api.problems import Problem
from ledger.models import IdempotencyKey

KEPT = timedelta(hours=48)  # how long an Idempotency-Key is remembered


def once(request: HttpRequest, key: str | None, write: Callable[[], HttpResponse]) -> HttpResponse:
    """Returns the response of `write`, which runs in one transaction, and only once for a `key`.

    A retry gets the first response again, with Idempotency-Replayed: true. If the first is still running, the retry
    waits for it on the key's row, which both try to insert. After an error nothing has been written, and the key can be
    used again. Raises Problem (422) if the key was used for another request, and what `write` raises.
    """
    with transaction.atomic():
        if not key:
            return write()
        key = key[1:-1] if len(key) > 2 and key[0] == key[-1] == '"' else key  # the draft sends a quoted string
        parts = (str(request.method).encode(), request.path.encode(), request.body)
        fingerprint = hashlib.sha256(b"\n".join(parts)).hexdigest()
        token, now = token_of(request), timezone.now()
        forget(now - KEPT)
        IdempotencyKey.objects.bulk_create(
            [IdempotencyKey(token=token, key=key, request=fingerprint, created=now)], ignore_conflicts=True
        )
        row = IdempotencyKey.objects.get(token=token, key=key)
        if row.request != fingerprint:
            raise Problem(422, "key-reused", "This Idempotency-Key was used for another request. Send a new one.")
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
    """Deletes up to 100 keys created before then; the next request deletes more. Concurrent requests do not wait."""
    old = IdempotencyKey.objects.filter(created__lt=before).order_by("created")
    if connection.features.has_select_for_update_skip_locked:
        old = old.select_for_update(skip_locked=True)
    keys = list(old.values_list("pk", flat=True)[:100])
    if keys:
        IdempotencyKey.objects.filter(pk__in=keys).delete()
