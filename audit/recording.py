"""Writes entries. Nothing secret belongs into one: no password, no token, no key."""

import logging
from collections.abc import Mapping
from typing import Any

from django.db import DatabaseError, transaction
from django.http import HttpRequest
from django.utils import timezone

from audit.actions import Action
from settings import text

logger = logging.getLogger(__name__)

DETAIL = 1_000  # characters of a detail


def record(
    action: str,
    *,
    actor: str = "",
    actor_id: int | None = None,
    environment: str = "",
    target: str = "",
    details: Mapping[str, str] | None = None,
    request: HttpRequest | None = None,
    using: str | None = None,
) -> None:
    """Adds an entry to the audit log, in the caller's transaction: what is rolled back has not happened.

    `action` is one of audit.actions.Action. `actor` is an email address, or a word for what acted, such as `token ci`;
    `actor_id` is the user's primary key. `request` supplies the client's address, and the actor unless one is given.
    Text that is too long is cut. `using` is the alias of another database than the default.

    Raises ValueError if the action is unknown, and django.db.Error if the entry cannot be written. So what changes who
    may do what is refused while it cannot be recorded.
    """
    # Not at the top: Django imports the package of an app before any model may be imported.
    from audit.models import Entry

    if action not in Action.values:
        raise ValueError(f"Unknown action {action!r}; add it to audit.actions.Action.")
    address = ""
    if request is not None:
        address = request.META.get("REMOTE_ADDR", "")
        user: Any = getattr(request, "user", None)
        if not actor and user is not None and user.is_authenticated:
            actor, actor_id = user.get_username(), user.pk
    fields = {"actor": actor, "address": address, "environment": environment, "target": target}
    Entry(
        time=timezone.now(),
        action=str(action),
        actor_id=actor_id,
        details={text.clean(key, 50): text.clean(str(value), DETAIL) for key, value in (details or {}).items()},
        **{name: text.clean(value, Entry.length(name)) for name, value in fields.items()},
    ).save(using=using)


def record_or_log(action: str, **what: Any) -> None:
    """Adds an entry as record() does; if the database refuses it, logs the error, and the caller goes on.

    For what concerns nobody's rights, such as signing out, and must work while the database does not take writes.
    """
    try:
        with transaction.atomic():
            record(action, **what)
    except DatabaseError:
        logger.exception("Cannot record %s in the audit log", action)
