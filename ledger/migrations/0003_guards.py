"""The rules that no constraint can express, as triggers on PostgreSQL and SQLite, with the same names in their messages.

ledger_append_only     a finished deployment, its steps and a release never change; nothing is deleted, except
ledger_release_used    a release that no deployment refers to
ledger_fixed           what was requested never changes while it is running: only status, times and steps do
ledger_order           waiting -> running, rejected or expired; pending -> running -> succeeded, failed or
                       rolled_back; pending -> failed
ledger_promotion       an environment that is promoted to takes only what has succeeded in one of those before, and has
                       been live there for as long as its soak says; a hotfix; or a rollback
ledger_rollback        a rollback goes to what has succeeded in the same environment

Triggers do not stop TRUNCATE, DROP or disabling triggers, which only the tables' owner may do. The app connects as
another role (docs/production.md). Two more ways around the guards are closed here:

- Environments, what they are promoted from (one without accepts everything) and the list of applied migrations (a guard
  listed as applied is never installed) are rows. Only the owner of their tables, or a member of that role, may write them.
- The guards read tables by name. PostgreSQL searches pg_temp first unless it is named last, so a temporary table of the
  same name would be read instead: the functions pin their search_path.

SQLite has no roles. When Django alters a table there it recreates it, and the table's triggers are lost: a migration that
alters one of these tables must run install() again. tests/ledger/test_migrations.py checks that every trigger is there.
"""

from typing import Any

from django.db import migrations

FIXED = (
    "id",
    "environment_id",
    "release_id",
    "kind",
    "strategy",
    "hotfix",
    "break_glass",
    "digest",
    "requester",
    "reason",
    "actor",
    "previous_id",
    "created",
    "run_url",
    "revision",
    "token",
)
RESULTS = "('succeeded', 'failed', 'rolled_back')"
FINISHED = "('succeeded', 'failed', 'rolled_back', 'rejected', 'expired')"

APPEND_ONLY = "ledger_append_only: the ledger is append-only: finished deployments never change, and nothing is deleted"
FIXED_MESSAGE = "ledger_fixed: what was requested never changes, only its progress"
ORDER = "ledger_order: a deployment goes from waiting or pending to running, then to succeeded, failed or rolled_back"
PROMOTION = (
    "ledger_promotion: the release has not been live for long enough where this environment is promoted from, and this is "
    "not a hotfix"
)
USED = "ledger_release_used: the release was deployed, so it stays in the history"
ROLLBACK = "ledger_rollback: the release was never live in this environment"

# `new` is the row to be written, in both dialects.
SUCCEEDED = (
    "EXISTS (SELECT 1 FROM ledger_deployment AS d"
    " WHERE d.release_id = new.release_id AND d.status = 'succeeded' AND d.environment_id = {where})"
)
# Whether `d` stayed live in the source for the soak of `e`. No time to come counts, whatever the row claims.
UNBROKEN = """ NOT EXISTS (SELECT 1 FROM ledger_deployment AS o
    WHERE o.environment_id = d.environment_id AND o.status = 'succeeded' AND o.release_id <> d.release_id
    AND o.finished > d.finished AND {early})"""
SOAKED = {
    "postgresql": "d.finished + make_interval(secs => e.soak) <= LEAST(new.created, clock_timestamp()) AND"
    + UNBROKEN.format(early="o.finished < d.finished + make_interval(secs => e.soak)"),
    "sqlite": "(julianday(min(new.created, strftime('%Y-%m-%d %H:%M:%f', 'now'))) - julianday(d.finished)) * 86400"
    " >= e.soak - 0.001 AND"
    + UNBROKEN.format(early="(julianday(o.finished) - julianday(d.finished)) * 86400 < e.soak - 0.001"),
}
MAY_COME = """
  new.kind = 'rollback' OR new.hotfix
  OR NOT EXISTS (SELECT 1 FROM ledger_promotion AS p WHERE p.environment_id = new.environment_id)
  OR EXISTS (SELECT 1 FROM ledger_promotion AS p JOIN ledger_environment AS e ON e.id = p.environment_id
    JOIN ledger_deployment AS d ON d.environment_id = p.source_id
    WHERE p.environment_id = new.environment_id AND d.release_id = new.release_id AND d.status = 'succeeded'
    AND (e.soak = 0 OR {soaked}))
"""
DEPLOYED = "EXISTS (SELECT 1 FROM ledger_deployment AS d WHERE d.release_id = old.id)"
MAY_GO_BACK = f"new.kind <> 'rollback' OR {SUCCEEDED.format(where='new.environment_id')}"
IN_ORDER = f"""
  old.status = new.status
  OR (old.status = 'waiting' AND new.status IN ('running', 'rejected', 'expired'))
  OR (old.status = 'pending' AND new.status IN ('running', 'failed'))
  OR (old.status = 'running' AND new.status IN {RESULTS})
"""
ENDED = f"EXISTS (SELECT 1 FROM ledger_deployment AS d WHERE d.id = {{row}}.deployment_id AND d.status IN {FINISHED})"


def raise_(message: str) -> str:
    """A statement of PL/pgSQL that Django reports as an IntegrityError."""
    return f"RAISE EXCEPTION '{message}' USING ERRCODE = 'check_violation', CONSTRAINT = '{message.partition(':')[0]}'"


FUNCTIONS = (
    "ledger_refuse",
    "ledger_guard_deployment",
    "ledger_guard_step",
    "ledger_guard_release",
    "ledger_owner_only",
)
PIN = """
DO $$ BEGIN
  EXECUTE format('ALTER FUNCTION {name}() SET search_path = %I, pg_temp', current_schema());
END $$;
"""


def postgresql() -> str:
    """Returns the statements that install functions and triggers."""
    return f"""
CREATE FUNCTION ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  {raise_(APPEND_ONLY)};
END $$;

CREATE FUNCTION ledger_guard_deployment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    IF NOT ({MAY_COME.format(soaked=SOAKED['postgresql'])}) THEN {raise_(PROMOTION)}; END IF;
    IF NOT ({MAY_GO_BACK}) THEN {raise_(ROLLBACK)}; END IF;
    RETURN new;
  END IF;
  IF old.status IN {FINISHED} THEN {raise_(APPEND_ONLY)}; END IF;
  IF ({", ".join("new." + name for name in FIXED)})
    IS DISTINCT FROM ({", ".join("old." + name for name in FIXED)}) THEN {raise_(FIXED_MESSAGE)}; END IF;
  IF NOT ({IN_ORDER}) THEN {raise_(ORDER)}; END IF;
  RETURN new;
END $$;

CREATE FUNCTION ledger_guard_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF {ENDED.format(row="new")} THEN {raise_(APPEND_ONLY)}; END IF;
  IF TG_OP = 'UPDATE' AND (old.outcome <> 'running' OR old.deployment_id <> new.deployment_id) THEN
    {raise_(APPEND_ONLY)};
  END IF;
  RETURN new;
END $$;

CREATE FUNCTION ledger_guard_release() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF {DEPLOYED} THEN {raise_(USED)}; END IF;
  RETURN old;
END $$;

CREATE TRIGGER ledger_no_delete BEFORE DELETE ON ledger_deployment FOR EACH ROW EXECUTE FUNCTION ledger_refuse();
CREATE TRIGGER ledger_no_delete BEFORE DELETE ON ledger_step FOR EACH ROW EXECUTE FUNCTION ledger_refuse();
CREATE TRIGGER ledger_no_change BEFORE UPDATE ON ledger_release FOR EACH ROW EXECUTE FUNCTION ledger_refuse();
CREATE TRIGGER ledger_guard BEFORE DELETE ON ledger_release FOR EACH ROW EXECUTE FUNCTION ledger_guard_release();
CREATE TRIGGER ledger_guard BEFORE INSERT OR UPDATE ON ledger_deployment
  FOR EACH ROW EXECUTE FUNCTION ledger_guard_deployment();
CREATE TRIGGER ledger_guard BEFORE INSERT OR UPDATE ON ledger_step
  FOR EACH ROW EXECUTE FUNCTION ledger_guard_step();

CREATE FUNCTION ledger_owner_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT pg_has_role(current_user, (SELECT relowner FROM pg_catalog.pg_class WHERE oid = TG_RELID), 'MEMBER') THEN
    RAISE EXCEPTION 'ledger_owner_only: only the owner of % may write to it, in migrations', TG_TABLE_NAME
      USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NULL;
END $$;

CREATE TRIGGER ledger_owner_only BEFORE INSERT OR UPDATE OR DELETE ON ledger_environment
  FOR EACH STATEMENT EXECUTE FUNCTION ledger_owner_only();
CREATE TRIGGER ledger_owner_only BEFORE INSERT OR UPDATE OR DELETE ON ledger_promotion
  FOR EACH STATEMENT EXECUTE FUNCTION ledger_owner_only();
CREATE TRIGGER ledger_owner_only BEFORE INSERT OR UPDATE OR DELETE ON django_migrations
  FOR EACH STATEMENT EXECUTE FUNCTION ledger_owner_only();
""" + "".join(PIN.format(name=name) for name in FUNCTIONS)


POSTGRESQL_REVERSE = """
DROP TRIGGER ledger_owner_only ON ledger_environment;
DROP TRIGGER ledger_owner_only ON ledger_promotion;
DROP TRIGGER ledger_owner_only ON django_migrations;
DROP TRIGGER ledger_guard ON ledger_step;
DROP TRIGGER ledger_guard ON ledger_deployment;
DROP TRIGGER ledger_no_change ON ledger_release;
DROP TRIGGER ledger_guard ON ledger_release;
DROP TRIGGER ledger_no_delete ON ledger_step;
DROP TRIGGER ledger_no_delete ON ledger_deployment;
DROP FUNCTION ledger_owner_only();
DROP FUNCTION ledger_guard_step();
DROP FUNCTION ledger_guard_deployment();
DROP FUNCTION ledger_guard_release();
DROP FUNCTION ledger_refuse();
"""


def sqlite() -> dict[str, tuple[str, str, str, str]]:
    """Returns by trigger: (table, event, condition under which it is refused, message)."""
    return {
        "ledger_deployment_delete": ("ledger_deployment", "DELETE", "1", APPEND_ONLY),
        "ledger_deployment_promotion": (
            "ledger_deployment",
            "INSERT",
            f"NOT ({MAY_COME.format(soaked=SOAKED['sqlite'])})",
            PROMOTION,
        ),
        "ledger_deployment_rollback": ("ledger_deployment", "INSERT", f"NOT ({MAY_GO_BACK})", ROLLBACK),
        "ledger_deployment_finished": ("ledger_deployment", "UPDATE", f"old.status IN {FINISHED}", APPEND_ONLY),
        "ledger_deployment_fixed": (
            "ledger_deployment",
            "UPDATE",
            f"old.status NOT IN {FINISHED} AND ("
            + " OR ".join(f"new.{name} IS NOT old.{name}" for name in FIXED)
            + ")",
            FIXED_MESSAGE,
        ),
        "ledger_deployment_order": (
            "ledger_deployment",
            "UPDATE",
            f"old.status NOT IN {FINISHED} AND NOT ({IN_ORDER})",
            ORDER,
        ),
        "ledger_release_update": ("ledger_release", "UPDATE", "1", APPEND_ONLY),
        "ledger_release_delete": ("ledger_release", "DELETE", DEPLOYED, USED),
        "ledger_step_delete": ("ledger_step", "DELETE", "1", APPEND_ONLY),
        "ledger_step_insert": ("ledger_step", "INSERT", ENDED.format(row="new"), APPEND_ONLY),
        "ledger_step_update": (
            "ledger_step",
            "UPDATE",
            f"old.outcome <> 'running' OR old.deployment_id <> new.deployment_id OR {ENDED.format(row='new')}",
            APPEND_ONLY,
        ),
    }


def install(_apps: Any, editor: Any) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(postgresql(), None)
        return
    remove(_apps, editor)
    for name, (table, event, condition, message) in sqlite().items():
        editor.execute(
            f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW WHEN {condition} "
            f"BEGIN SELECT RAISE(ABORT, '{message}'); END",
            None,
        )


def remove(_apps: Any, editor: Any) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(POSTGRESQL_REVERSE, None)
        return
    for name in sqlite():
        editor.execute(f"DROP TRIGGER IF EXISTS {name}")


class Migration(migrations.Migration):
    dependencies = [("ledger", "0001_initial")]
    operations = [migrations.RunPython(install, remove)]
