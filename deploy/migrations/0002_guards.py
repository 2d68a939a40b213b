"""Triggers: what no constraint can say. On PostgreSQL and SQLite alike, with the same names in their messages.

deploy_append_only     a finished deployment, its steps and a release never change; nothing is deleted, but
deploy_release_used    a release, as long as no deployment refers to it
deploy_fixed           what was asked for does not change while it is carried out: only status, times and steps do
deploy_order           pending -> running -> succeeded, failed or rolled_back; pending -> failed
deploy_gate            an environment with a gate takes what has succeeded there, a hotfix, or back what it had itself
deploy_rollback        a rollback goes to what has succeeded in the same environment

Not held by them: TRUNCATE, DROP and whoever may switch triggers off, that is, the tables' owner. The app's role is
another (docs/production.md), and 0007_roles.py closes the ways around that are left to it.

SQLite drops a table's triggers when Django alters the table, for it makes the table anew: a later migration that alters
one of these tables must run install() again after it. A test looks for them in a database that has all migrations.
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
    "reason",
    "actor",
    "previous_id",
    "created",
    "run_url",
)
FINISHED = "('succeeded', 'failed', 'rolled_back')"

APPEND_ONLY = "deploy_append_only: the ledger is append-only: what has finished does not change, and nothing is deleted"
FIXED_MESSAGE = "deploy_fixed: what a deployment is does not change, only how it goes"
ORDER = "deploy_order: a deployment goes from pending to running to succeeded, failed or rolled_back"
GATE = "deploy_gate: the release has not succeeded in the environment before, and this is no hotfix"
USED = "deploy_release_used: the release was deployed and stays in the history"
ROLLBACK = "deploy_rollback: the release has never been live in this environment"

# `new` is the row to be written, in both dialects.
SUCCEEDED = (
    "EXISTS (SELECT 1 FROM deploy_deployment AS d"
    " WHERE d.release_id = new.release_id AND d.status = 'succeeded' AND d.environment_id = {where})"
)
GATE_OPEN = f"""
  new.kind = 'rollback' OR new.hotfix
  OR NOT EXISTS (SELECT 1 FROM deploy_environment AS e WHERE e.id = new.environment_id AND e.gate_id IS NOT NULL)
  OR {SUCCEEDED.format(where="(SELECT e.gate_id FROM deploy_environment AS e WHERE e.id = new.environment_id)")}
"""
DEPLOYED = "EXISTS (SELECT 1 FROM deploy_deployment AS d WHERE d.release_id = old.id)"
MAY_GO_BACK = f"new.kind <> 'rollback' OR {SUCCEEDED.format(where='new.environment_id')}"
IN_ORDER = f"""
  old.status = new.status
  OR (old.status = 'pending' AND new.status IN ('running', 'failed'))
  OR (old.status = 'running' AND new.status IN {FINISHED})
"""
ENDED = f"EXISTS (SELECT 1 FROM deploy_deployment AS d WHERE d.id = {{row}}.deployment_id AND d.status IN {FINISHED})"


def raise_(message: str) -> str:
    """A statement of PL/pgSQL that Django reports as an IntegrityError."""
    return f"RAISE EXCEPTION '{message}' USING ERRCODE = 'check_violation', CONSTRAINT = '{message.partition(':')[0]}'"


def postgresql(fixed: tuple[str, ...]) -> str:
    """The statements that install them; `fixed` are the columns of a deployment that never change."""
    return f"""
CREATE OR REPLACE FUNCTION deploy_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  {raise_(APPEND_ONLY)};
END $$;

CREATE OR REPLACE FUNCTION deploy_guard_deployment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    IF NOT ({GATE_OPEN}) THEN {raise_(GATE)}; END IF;
    IF NOT ({MAY_GO_BACK}) THEN {raise_(ROLLBACK)}; END IF;
    RETURN new;
  END IF;
  IF old.status IN {FINISHED} THEN {raise_(APPEND_ONLY)}; END IF;
  IF ({", ".join("new." + name for name in fixed)})
    IS DISTINCT FROM ({", ".join("old." + name for name in fixed)}) THEN {raise_(FIXED_MESSAGE)}; END IF;
  IF NOT ({IN_ORDER}) THEN {raise_(ORDER)}; END IF;
  RETURN new;
END $$;

CREATE OR REPLACE FUNCTION deploy_guard_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF {ENDED.format(row="new")} THEN {raise_(APPEND_ONLY)}; END IF;
  IF TG_OP = 'UPDATE' AND (old.outcome <> 'running' OR old.deployment_id <> new.deployment_id) THEN
    {raise_(APPEND_ONLY)};
  END IF;
  RETURN new;
END $$;

CREATE OR REPLACE FUNCTION deploy_guard_release() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF {DEPLOYED} THEN {raise_(USED)}; END IF;
  RETURN old;
END $$;

CREATE TRIGGER deploy_no_delete BEFORE DELETE ON deploy_deployment FOR EACH ROW EXECUTE FUNCTION deploy_refuse();
CREATE TRIGGER deploy_no_delete BEFORE DELETE ON deploy_step FOR EACH ROW EXECUTE FUNCTION deploy_refuse();
CREATE TRIGGER deploy_no_change BEFORE UPDATE ON deploy_release FOR EACH ROW EXECUTE FUNCTION deploy_refuse();
CREATE TRIGGER deploy_guard BEFORE DELETE ON deploy_release FOR EACH ROW EXECUTE FUNCTION deploy_guard_release();
CREATE TRIGGER deploy_guard BEFORE INSERT OR UPDATE ON deploy_deployment
  FOR EACH ROW EXECUTE FUNCTION deploy_guard_deployment();
CREATE TRIGGER deploy_guard BEFORE INSERT OR UPDATE ON deploy_step
  FOR EACH ROW EXECUTE FUNCTION deploy_guard_step();
"""


POSTGRESQL_REVERSE = """
DROP TRIGGER deploy_guard ON deploy_step;
DROP TRIGGER deploy_guard ON deploy_deployment;
DROP TRIGGER deploy_no_change ON deploy_release;
DROP TRIGGER IF EXISTS deploy_guard ON deploy_release;
DROP TRIGGER deploy_no_delete ON deploy_step;
DROP TRIGGER deploy_no_delete ON deploy_deployment;
DROP FUNCTION deploy_guard_step();
DROP FUNCTION deploy_guard_deployment();
DROP FUNCTION IF EXISTS deploy_guard_release();
DROP FUNCTION deploy_refuse();
"""


def sqlite(fixed: tuple[str, ...]) -> dict[str, tuple[str, str, str, str]]:
    """name: (table, event, condition under which it is refused, message)"""
    return {
        "deploy_deployment_delete": ("deploy_deployment", "DELETE", "1", APPEND_ONLY),
        "deploy_deployment_gate": ("deploy_deployment", "INSERT", f"NOT ({GATE_OPEN})", GATE),
        "deploy_deployment_rollback": ("deploy_deployment", "INSERT", f"NOT ({MAY_GO_BACK})", ROLLBACK),
        "deploy_deployment_finished": ("deploy_deployment", "UPDATE", f"old.status IN {FINISHED}", APPEND_ONLY),
        "deploy_deployment_fixed": (
            "deploy_deployment",
            "UPDATE",
            f"old.status NOT IN {FINISHED} AND ("
            + " OR ".join(f"new.{name} IS NOT old.{name}" for name in fixed)
            + ")",
            FIXED_MESSAGE,
        ),
        "deploy_deployment_order": (
            "deploy_deployment",
            "UPDATE",
            f"old.status NOT IN {FINISHED} AND NOT ({IN_ORDER})",
            ORDER,
        ),
        "deploy_release_update": ("deploy_release", "UPDATE", "1", APPEND_ONLY),
        "deploy_release_delete": ("deploy_release", "DELETE", DEPLOYED, USED),
        "deploy_step_delete": ("deploy_step", "DELETE", "1", APPEND_ONLY),
        "deploy_step_insert": ("deploy_step", "INSERT", ENDED.format(row="new"), APPEND_ONLY),
        "deploy_step_update": (
            "deploy_step",
            "UPDATE",
            f"old.outcome <> 'running' OR old.deployment_id <> new.deployment_id OR {ENDED.format(row='new')}",
            APPEND_ONLY,
        ),
    }


def install(_apps: Any, editor: Any, fixed: tuple[str, ...] = FIXED) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(postgresql(fixed))
        return
    remove(_apps, editor)
    for name, (table, event, condition, message) in sqlite(fixed).items():
        editor.execute(
            f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW WHEN {condition} "
            f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
        )


def remove(_apps: Any, editor: Any) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(POSTGRESQL_REVERSE)
        return
    for name in sqlite(FIXED):
        editor.execute(f"DROP TRIGGER IF EXISTS {name}")


class Migration(migrations.Migration):
    dependencies = [("deploy", "0001_initial")]
    operations = [migrations.RunPython(install, remove)]
