"""How long entries are kept. The database enforces it, and deletes nothing that is younger, whoever asks.

The number of days is part of what guards the table: a function on PostgreSQL, the trigger itself on SQLite. Only the
tables' owner can change it, so `manage.py migrate` does, from AUDIT_RETENTION_DAYS. The app's own role cannot.
"""

import re
from datetime import datetime, timedelta
from typing import Any

from django.db import connection as default
from django.db import transaction
from django.utils import timezone

from audit.models import Entry

BATCH = 10_000  # entries deleted at once, so that nobody waits for long
CLOCKS = timedelta(minutes=5)  # by which the clocks of the app and of the database may differ

KEPT = "audit_append_only: entries of the audit log never change, and none is deleted before its time"
# On SQLite, as Django writes times: text that sorts like the times it stands for.
TRIGGER = f"""
CREATE TRIGGER audit_entry_delete BEFORE DELETE ON audit_entry FOR EACH ROW
WHEN {{days}} = 0 OR old.time > strftime('%Y-%m-%d %H:%M:%f', 'now', '-{{days}} days')
BEGIN SELECT RAISE(ABORT, '{KEPT}'); END
"""
# The function reads no table, so it needs no search_path of its own.
FUNCTION = "CREATE OR REPLACE FUNCTION audit_retention_days() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT {days}'"
OWNED = (
    "SELECT pg_has_role(current_user, proowner, 'MEMBER') FROM pg_proc "
    "WHERE oid = to_regprocedure('audit_retention_days()')"
)


def days(connection: Any = default) -> int | None:
    """Returns how many days the database keeps entries, 0 for ever; None if its guards are not installed."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT to_regprocedure('audit_retention_days()') IS NOT NULL")
            if not cursor.fetchone()[0]:
                return None
            cursor.execute("SELECT audit_retention_days()")
            return int(cursor.fetchone()[0])
        cursor.execute("SELECT sql FROM sqlite_master WHERE name = 'audit_entry_delete'")
        row = cursor.fetchone()
        found = re.search(r"WHEN (\d+) = 0", row[0]) if row else None
        return int(found[1]) if found else None


def enforce(connection: Any, wanted: int) -> None:
    """Has the database keep entries for `wanted` days, unless it does or the role may not: purge() reports that."""
    if days(connection) in (None, wanted):
        return
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(OWNED)
            if cursor.fetchone()[0]:
                cursor.execute(FUNCTION.format(days=int(wanted)))
            return
        cursor.execute("DROP TRIGGER audit_entry_delete")
        cursor.execute(TRIGGER.format(days=int(wanted)))


def purge(wanted: int, now: datetime | None = None) -> int:
    """Deletes the entries older than `wanted` days, or than the database keeps them if that is longer.

    Returns how many there were; 0 for either keeps all. Raises django.db.Error.
    """
    kept = days()
    if not wanted or not kept:
        return 0
    border = (now or timezone.now()) - timedelta(days=max(wanted, kept)) - CLOCKS
    count = 0
    while True:
        old = Entry.objects.filter(time__lt=border).order_by("time", "pk").values_list("pk", flat=True)[:BATCH]
        deleted = Entry.objects.filter(pk__in=list(old)).delete()[0]
        count += deleted
        if deleted < BATCH:
            return count
