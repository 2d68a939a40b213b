"""Freezes, and the triggers that let nothing begin in one.

ledger_frozen              a deployment does not begin while its environment is frozen, unless it is a rollback,
                           or a hotfix that breaks the glass
ledger_freeze_lapsed       nor while a weekly freeze has no window left, as it would otherwise end unnoticed
ledger_freeze_fixed        a freeze never changes, but for its early end, once; it and its windows are never deleted

The time is the database's, whatever the row claims. On PostgreSQL, whoever adds a freeze holds an advisory lock that those
who begin a deployment share. So either waits for the other, and what began before a freeze is known to have.
"""

from typing import Any

import django.db.models.deletion
from django.db import migrations, models

import settings.text

FROZEN = "ledger_frozen: the environment is frozen; only rollbacks begin in a freeze, and hotfixes that break the glass"
LAPSED = "ledger_freeze_lapsed: the windows of a weekly freeze have run out; run manage.py migrate"
FIXED = "ledger_freeze_fixed: a freeze never changes, and is not deleted; it can be ended early"

LOCK = 6_004_301_947_113_020_276
NOW = {"postgresql": "clock_timestamp()", "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now')"}
HELD = "new.kind <> 'rollback' AND NOT (new.hotfix AND new.break_glass)"
INSERTED = f"new.status <> 'waiting' AND {HELD}"
STARTED = f"old.status IN ('pending', 'waiting') AND new.status = 'running' AND {HELD}"
HERE = """EXISTS (SELECT 1 FROM ledger_freeze AS f
    WHERE f.ended_early IS NULL AND (f.environment_id IS NULL OR f.environment_id = new.environment_id) AND {})"""
IN_WINDOW = """(f.starts <= {now} AND {now} < f.ends OR EXISTS (SELECT 1 FROM ledger_freezewindow AS w
    WHERE w.freeze_id = f.id AND w.starts <= {now} AND {now} < w.ends))"""
WITHOUT_WINDOWS = """f.starts IS NULL AND NOT EXISTS (SELECT 1 FROM ledger_freezewindow AS w
    WHERE w.freeze_id = f.id AND w.ends > {now})"""
FIELDS = (
    "id",
    "environment_id",
    "reason",
    "starts",
    "ends",
    "start_day",
    "start_time",
    "end_day",
    "end_time",
    "zone",
    "actor",
    "created",
)


def frozen(vendor: str) -> str:
    return HERE.format(IN_WINDOW.format(now=NOW[vendor]))


def lapsed(vendor: str) -> str:
    return HERE.format(WITHOUT_WINDOWS.format(now=NOW[vendor]))


def raise_(message: str) -> str:
    """A statement of PL/pgSQL that Django reports as an IntegrityError."""
    return f"RAISE EXCEPTION '{message}' USING ERRCODE = 'check_violation', CONSTRAINT = '{message.partition(':')[0]}'"


POSTGRESQL = f"""
CREATE FUNCTION ledger_guard_frozen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    IF NOT ({INSERTED}) THEN RETURN new; END IF;
  ELSIF NOT ({STARTED}) THEN
    RETURN new;
  END IF;
  PERFORM pg_advisory_xact_lock_shared({LOCK});
  IF {frozen('postgresql')} THEN {raise_(FROZEN)}; END IF;
  IF {lapsed('postgresql')} THEN {raise_(LAPSED)}; END IF;
  RETURN new;
END $$;

CREATE FUNCTION ledger_guard_freeze() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    PERFORM pg_advisory_xact_lock({LOCK});
    RETURN new;
  END IF;
  IF TG_OP = 'UPDATE' THEN
    IF old.ended_early IS NULL AND ({", ".join("new." + name for name in FIELDS)})
      IS NOT DISTINCT FROM ({", ".join("old." + name for name in FIELDS)}) THEN RETURN new; END IF;
  END IF;
  {raise_(FIXED)};
END $$;

CREATE FUNCTION ledger_guard_window() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  {raise_(FIXED)};
END $$;

CREATE TRIGGER ledger_guard_frozen BEFORE INSERT OR UPDATE ON ledger_deployment
  FOR EACH ROW EXECUTE FUNCTION ledger_guard_frozen();
CREATE TRIGGER ledger_guard BEFORE INSERT OR UPDATE OR DELETE ON ledger_freeze
  FOR EACH ROW EXECUTE FUNCTION ledger_guard_freeze();
CREATE TRIGGER ledger_guard BEFORE UPDATE OR DELETE ON ledger_freezewindow
  FOR EACH ROW EXECUTE FUNCTION ledger_guard_window();
DO $$ BEGIN
  EXECUTE format('ALTER FUNCTION ledger_guard_frozen() SET search_path = %I, pg_temp', current_schema());
END $$;
"""
POSTGRESQL_REVERSE = """
DROP TRIGGER ledger_guard ON ledger_freezewindow;
DROP TRIGGER ledger_guard ON ledger_freeze;
DROP TRIGGER ledger_guard_frozen ON ledger_deployment;
DROP FUNCTION ledger_guard_window();
DROP FUNCTION ledger_guard_freeze();
DROP FUNCTION ledger_guard_frozen();
"""
CHANGED = " OR ".join(f"new.{name} IS NOT old.{name}" for name in FIELDS)
# By trigger: (table, event, condition under which it is refused, message).
SQLITE = {
    "ledger_deployment_frozen": (
        "ledger_deployment",
        "INSERT",
        f"{INSERTED} AND {frozen('sqlite')}",
        FROZEN,
    ),
    "ledger_deployment_start_frozen": (
        "ledger_deployment",
        "UPDATE",
        f"{STARTED} AND {frozen('sqlite')}",
        FROZEN,
    ),
    "ledger_deployment_lapsed": (
        "ledger_deployment",
        "INSERT",
        f"{INSERTED} AND {lapsed('sqlite')}",
        LAPSED,
    ),
    "ledger_deployment_start_lapsed": (
        "ledger_deployment",
        "UPDATE",
        f"{STARTED} AND {lapsed('sqlite')}",
        LAPSED,
    ),
    "ledger_freeze_update": ("ledger_freeze", "UPDATE", f"old.ended_early IS NOT NULL OR {CHANGED}", FIXED),
    "ledger_freeze_delete": ("ledger_freeze", "DELETE", "1", FIXED),
    "ledger_freezewindow_update": ("ledger_freezewindow", "UPDATE", "1", FIXED),
    "ledger_freezewindow_delete": ("ledger_freezewindow", "DELETE", "1", FIXED),
}


def install(_apps: Any, editor: Any) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(POSTGRESQL, None)
        return
    for name, (table, event, condition, message) in SQLITE.items():
        editor.execute(
            f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW WHEN {condition} "
            f"BEGIN SELECT RAISE(ABORT, '{message}'); END",
            None,
        )


def remove(_apps: Any, editor: Any) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(POSTGRESQL_REVERSE, None)
        return
    for name in SQLITE:
        editor.execute(f"DROP TRIGGER IF EXISTS {name}")


class Migration(migrations.Migration):

    dependencies = [
        ("ledger", "0007_token_owner"),
    ]

    operations = [
        migrations.CreateModel(
            name="Freeze",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("reason", models.CharField(max_length=200, validators=[settings.text.one_line])),
                ("starts", models.DateTimeField(blank=True, null=True)),
                ("ends", models.DateTimeField(blank=True, null=True)),
                (
                    "start_day",
                    models.PositiveSmallIntegerField(
                        blank=True,
                        choices=[
                            (0, "Monday"),
                            (1, "Tuesday"),
                            (2, "Wednesday"),
                            (3, "Thursday"),
                            (4, "Friday"),
                            (5, "Saturday"),
                            (6, "Sunday"),
                        ],
                        null=True,
                    ),
                ),
                ("start_time", models.TimeField(blank=True, null=True)),
                (
                    "end_day",
                    models.PositiveSmallIntegerField(
                        blank=True,
                        choices=[
                            (0, "Monday"),
                            (1, "Tuesday"),
                            (2, "Wednesday"),
                            (3, "Thursday"),
                            (4, "Friday"),
                            (5, "Saturday"),
                            (6, "Sunday"),
                        ],
                        null=True,
                    ),
                ),
                ("end_time", models.TimeField(blank=True, null=True)),
                (
                    "zone",
                    models.CharField(
                        blank=True,
                        help_text="Of a weekly freeze, as in Europe/Berlin.",
                        max_length=64,
                        verbose_name="time zone",
                    ),
                ),
                ("actor", models.CharField(help_text="Who added it.", max_length=300)),
                ("created", models.DateTimeField()),
                ("ended_early", models.DateTimeField(blank=True, null=True)),
                ("ended_by", models.CharField(blank=True, max_length=300)),
                (
                    "environment",
                    models.ForeignKey(
                        blank=True,
                        help_text="Empty for all of them.",
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="freezes",
                        to="ledger.environment",
                    ),
                ),
            ],
            options={
                "ordering": ("-pk",),
                "permissions": [("change_freeze", "Can freeze environments, and end a freeze")],
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="FreezeWindow",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("starts", models.DateTimeField()),
                ("ends", models.DateTimeField()),
                (
                    "freeze",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="windows",
                        to="ledger.freeze",
                    ),
                ),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.AddConstraint(
            model_name="freeze",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("end_day", None),
                        ("end_time", None),
                        ("ends__gt", models.F("starts")),
                        ("ends__isnull", False),
                        ("start_day", None),
                        ("start_time", None),
                        ("starts__isnull", False),
                        ("zone", ""),
                    ),
                    models.Q(
                        models.Q(("zone", ""), _negated=True),
                        ("end_day__isnull", False),
                        ("end_day__range", (0, 6)),
                        ("end_time__isnull", False),
                        ("ends", None),
                        ("start_day__isnull", False),
                        ("start_day__range", (0, 6)),
                        ("start_time__isnull", False),
                        ("starts", None),
                    ),
                    _connector="OR",
                ),
                name="ledger_freeze_once_or_weekly",
            ),
        ),
        migrations.AddConstraint(
            model_name="freeze",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("ended_by", ""), ("ended_early", None)),
                    models.Q(
                        models.Q(("ended_by", ""), _negated=True),
                        ("ended_early__gte", models.F("created")),
                        ("ended_early__isnull", False),
                    ),
                    _connector="OR",
                ),
                name="ledger_freeze_ended_by_somebody",
            ),
        ),
        migrations.AddConstraint(
            model_name="freeze",
            constraint=models.CheckConstraint(
                condition=models.Q(("reason__regex", "\\S")), name="ledger_freeze_has_a_reason"
            ),
        ),
        migrations.AddIndex(
            model_name="freezewindow",
            index=models.Index(fields=["freeze", "ends"], name="ledger_freeze_windows"),
        ),
        migrations.AddConstraint(
            model_name="freezewindow",
            constraint=models.UniqueConstraint(fields=("freeze", "starts", "ends"), name="ledger_freeze_window_once"),
        ),
        migrations.AddConstraint(
            model_name="freezewindow",
            constraint=models.CheckConstraint(
                condition=models.Q(("ends__gt", models.F("starts"))), name="ledger_freeze_window_has_a_length"
            ),
        ),
        migrations.RunPython(install, remove),
    ]
