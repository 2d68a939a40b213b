"""Keeps the audit log append-only, by triggers on PostgreSQL and SQLite.

audit_append_only    an entry never changes, and is not deleted before audit_retention_days() are over

audit.retention sets that number, after each migrate. On PostgreSQL a TRUNCATE is refused as well. Only the owner of the
table may do one, and could remove the trigger; it is refused so that nobody does by mistake. Whoever means it, as the
tests do, says `SET audit.truncate = 'allowed'`.
"""

from typing import Any

from django.db import migrations

from audit.retention import FUNCTION, KEPT, TRIGGER

RAISE = f"RAISE EXCEPTION '{KEPT}' USING ERRCODE = 'check_violation', CONSTRAINT = 'audit_append_only'"

# The functions call each other by name, so their search_path is pinned: see ledger/migrations/0003_guards.py.
POSTGRESQL = f"""
{FUNCTION.format(days=0)};

CREATE FUNCTION audit_guard_entry() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE kept integer := audit_retention_days();
BEGIN
  IF TG_OP <> 'DELETE' OR kept = 0 OR old.time > now() - make_interval(days => kept) THEN {RAISE}; END IF;
  RETURN old;
END $$;

CREATE FUNCTION audit_guard_table() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('audit.truncate', true) IS DISTINCT FROM 'allowed' THEN {RAISE}; END IF;
  RETURN NULL;
END $$;

DO $$ BEGIN
  EXECUTE format('ALTER FUNCTION audit_guard_entry() SET search_path = %I, pg_temp', current_schema());
  EXECUTE format('ALTER FUNCTION audit_guard_table() SET search_path = %I, pg_temp', current_schema());
END $$;

CREATE TRIGGER audit_guard BEFORE UPDATE OR DELETE ON audit_entry
  FOR EACH ROW EXECUTE FUNCTION audit_guard_entry();
CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit_entry
  FOR EACH STATEMENT EXECUTE FUNCTION audit_guard_table();
"""
POSTGRESQL_REVERSE = """
DROP TRIGGER audit_no_truncate ON audit_entry;
DROP TRIGGER audit_guard ON audit_entry;
DROP FUNCTION audit_guard_table();
DROP FUNCTION audit_guard_entry();
DROP FUNCTION audit_retention_days();
"""
SQLITE_UPDATE = f"""
CREATE TRIGGER audit_entry_update BEFORE UPDATE ON audit_entry FOR EACH ROW
BEGIN SELECT RAISE(ABORT, '{KEPT}'); END
"""


def install(_apps: Any, editor: Any) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(POSTGRESQL, None)
        return
    editor.execute(SQLITE_UPDATE, None)
    editor.execute(TRIGGER.format(days=0), None)


def remove(_apps: Any, editor: Any) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(POSTGRESQL_REVERSE, None)
        return
    editor.execute("DROP TRIGGER IF EXISTS audit_entry_update")
    editor.execute("DROP TRIGGER IF EXISTS audit_entry_delete")


class Migration(migrations.Migration):
    dependencies = [("audit", "0001_initial")]
    operations = [migrations.RunPython(install, remove)]
