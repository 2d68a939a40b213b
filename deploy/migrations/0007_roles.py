"""What holds against the app's own database role, which works with the tables and does not own them (docs/production.md).

PostgreSQL itself lets only a table's owner alter it, truncate it, or touch its triggers, constraints and functions. Two
ways around the guards would be left, and are closed here:

- Environments (a gate that is taken away guards nothing) and the list of applied migrations (a guard that counts as
  installed never comes) are rows. Only their table's owner, or a member of it, may write them.
- The guards read tables by their names. A table of the same name in pg_temp, which is looked through first unless it is
  named last, would answer for them.

SQLite has no roles.
"""

from typing import Any

from django.db import migrations

FUNCTIONS = (
    "deploy_refuse",
    "deploy_guard_deployment",
    "deploy_guard_step",
    "deploy_guard_release",
    "deploy_owner_only",
)
TABLES = ("deploy_environment", "django_migrations")
INSTALL = f"""
CREATE FUNCTION deploy_owner_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT pg_has_role(current_user, (SELECT relowner FROM pg_catalog.pg_class WHERE oid = TG_RELID), 'MEMBER') THEN
    RAISE EXCEPTION 'deploy_owner_only: only the owner of % writes it, by migrations', TG_TABLE_NAME
      USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NULL;
END $$;
""" + "".join(
    f"""
CREATE TRIGGER deploy_owner_only BEFORE INSERT OR UPDATE OR DELETE ON {table}
  FOR EACH STATEMENT EXECUTE FUNCTION deploy_owner_only();
""" for table in TABLES
)
PIN = """
DO $$ BEGIN
  EXECUTE format('ALTER FUNCTION {name}() SET search_path = %I, pg_temp', current_schema());
END $$;
"""
REMOVE = "".join(f"DROP TRIGGER deploy_owner_only ON {table};\n" for table in TABLES) + (
    "DROP FUNCTION deploy_owner_only();\n"
    + "".join(f"ALTER FUNCTION {name}() RESET search_path;\n" for name in FUNCTIONS[:-1])
)


def install(_apps: Any, editor: Any) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(INSTALL + "".join(PIN.format(name=name) for name in FUNCTIONS), None)


def remove(_apps: Any, editor: Any) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(REMOVE, None)


class Migration(migrations.Migration):
    dependencies = [("deploy", "0006_tokens")]
    operations = [migrations.RunPython(install, remove)]
