"""The approvals, and the triggers that let no deployment run without those that its environment requires.

ledger_approval            a deployment to an environment with approvals waits. It runs once enough people have approved its
                           digest, if no approval has expired, nobody has rejected it and nothing else has gone live there
                           since. Rollbacks, and hotfixes that break the glass, do not wait
ledger_own_approval        nobody decides about what they have asked for
ledger_decision            only a waiting deployment is approved or rejected, with its digest; only one that broke the glass
                           is reviewed; decisions never change, except that the account of one may be deleted

The same conditions hold on PostgreSQL and SQLite. `t` is the time of the start: as the row claims, but not in the future.
"""

from typing import Any

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

from settings import text

APPROVAL = "ledger_approval: the deployment has not been approved"
OWN = "ledger_own_approval: nobody decides about what they have asked for"
DECISION = "ledger_decision: this cannot be decided, or the decision cannot change"

NEEDED = """new.kind = 'deploy' AND NOT new.break_glass AND EXISTS (
    SELECT 1 FROM ledger_environment AS e WHERE e.id = new.environment_id AND e.approvals > 0)"""
# The release that was live when the deployment `{row}` was requested is live still.
CURRENT = """{row}.previous_id {same} (SELECT o.id FROM ledger_deployment AS o
    WHERE o.environment_id = {row}.environment_id AND o.status = 'succeeded' ORDER BY o.created DESC, o.id DESC LIMIT 1)"""
APPROVED = """(SELECT COUNT(DISTINCT a.approver_id) FROM ledger_approval AS a
    WHERE a.deployment_id = new.id AND a.verdict = 'approved' AND a.digest = new.digest
    AND (new.requester IS NULL OR a.approver_id <> new.requester) AND {recent}
  ) >= (SELECT e.approvals FROM ledger_environment AS e WHERE e.id = new.environment_id)
  AND NOT EXISTS (SELECT 1 FROM ledger_approval AS a WHERE a.deployment_id = new.id AND a.verdict = 'rejected')
  AND {current}"""
LIFE = "(SELECT e.approval_seconds FROM ledger_environment AS e WHERE e.id = new.environment_id)"
NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
RECENT = {
    "postgresql": f"a.time > LEAST(new.started, clock_timestamp()) - make_interval(secs => {LIFE})"
    " AND a.time <= LEAST(new.started, clock_timestamp()) + interval '5 minutes'",
    "sqlite": f"(julianday(min(new.started, {NOW})) - julianday(a.time)) * 86400 BETWEEN -300 AND {LIFE} - 0.001",
}
SAME = {"postgresql": "IS NOT DISTINCT FROM", "sqlite": "IS"}


def current(vendor: str, row: str) -> str:
    return CURRENT.format(row=row, same=SAME[vendor])


def approved(vendor: str) -> str:
    return APPROVED.format(recent=RECENT[vendor], current=current(vendor, "new"))


def raise_(message: str) -> str:
    """A statement of PL/pgSQL that Django reports as an IntegrityError."""
    return f"RAISE EXCEPTION '{message}' USING ERRCODE = 'check_violation', CONSTRAINT = '{message.partition(':')[0]}'"


OWN_DECISION = "new.approver_id = d.requester OR lower(new.name) = lower(d.actor)"
MAY_DECIDE = (
    "new.approver_id IS NOT NULL AND new.digest = d.digest AND CASE WHEN new.verdict = 'reviewed'"
    " THEN d.break_glass ELSE d.status = 'waiting' AND {current} END"
)

POSTGRESQL = f"""
CREATE FUNCTION ledger_guard_approved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    IF new.status <> 'waiting' AND {NEEDED} THEN {raise_(APPROVAL)}; END IF;
  ELSIF old.status = 'waiting' AND new.status = 'running' AND {NEEDED} AND NOT ({approved('postgresql')}) THEN
    {raise_(APPROVAL)};
  END IF;
  RETURN new;
END $$;

CREATE FUNCTION ledger_guard_decision() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE d ledger_deployment%ROWTYPE;
BEGIN
  IF TG_OP = 'UPDATE' THEN
    IF new.approver_id IS NULL AND (new.id, new.deployment_id, new.name, new.verdict, new.comment, new.digest, new.time)
      IS NOT DISTINCT FROM (old.id, old.deployment_id, old.name, old.verdict, old.comment, old.digest, old.time) THEN
      RETURN new;
    END IF;
  END IF;
  IF TG_OP <> 'INSERT' THEN {raise_(DECISION)}; END IF;
  SELECT * INTO d FROM ledger_deployment WHERE id = new.deployment_id FOR NO KEY UPDATE;
  IF {OWN_DECISION} THEN {raise_(OWN)}; END IF;
  IF NOT ({MAY_DECIDE.format(current=current('postgresql', 'd'))}) THEN {raise_(DECISION)}; END IF;
  RETURN new;
END $$;

CREATE TRIGGER ledger_guard_approved BEFORE INSERT OR UPDATE ON ledger_deployment
  FOR EACH ROW EXECUTE FUNCTION ledger_guard_approved();
CREATE TRIGGER ledger_guard BEFORE INSERT OR UPDATE OR DELETE ON ledger_approval
  FOR EACH ROW EXECUTE FUNCTION ledger_guard_decision();
DO $$ BEGIN
  EXECUTE format('ALTER FUNCTION ledger_guard_approved() SET search_path = %I, pg_temp', current_schema());
  EXECUTE format('ALTER FUNCTION ledger_guard_decision() SET search_path = %I, pg_temp', current_schema());
END $$;
"""
POSTGRESQL_REVERSE = """
DROP TRIGGER ledger_guard ON ledger_approval;
DROP TRIGGER ledger_guard_approved ON ledger_deployment;
DROP FUNCTION ledger_guard_decision();
DROP FUNCTION ledger_guard_approved();
"""
FIELDS = ("id", "deployment_id", "name", "verdict", "comment", "digest", "time")
OF = "EXISTS (SELECT 1 FROM ledger_deployment AS d WHERE d.id = new.deployment_id AND ({}))"
# By trigger: (table, event, condition under which it is refused, message).
SQLITE = {
    "ledger_deployment_must_wait": (
        "ledger_deployment",
        "INSERT",
        f"new.status <> 'waiting' AND {NEEDED}",
        APPROVAL,
    ),
    "ledger_deployment_approved": (
        "ledger_deployment",
        "UPDATE",
        f"old.status = 'waiting' AND new.status = 'running' AND {NEEDED} AND NOT ({approved('sqlite')})",
        APPROVAL,
    ),
    "ledger_approval_own": ("ledger_approval", "INSERT", OF.format(OWN_DECISION), OWN),
    "ledger_approval_decision": (
        "ledger_approval",
        "INSERT",
        f"NOT {OF.format(MAY_DECIDE.format(current=current('sqlite', 'd')))}",
        DECISION,
    ),
    "ledger_approval_update": (
        "ledger_approval",
        "UPDATE",
        "new.approver_id IS NOT NULL OR " + " OR ".join(f"new.{name} IS NOT old.{name}" for name in FIELDS),
        DECISION,
    ),
    "ledger_approval_delete": ("ledger_approval", "DELETE", "1", DECISION),
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
    dependencies = [migrations.swappable_dependency(settings.AUTH_USER_MODEL), ("ledger", "0005_permissions")]
    operations = [
        migrations.CreateModel(
            name="Approval",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "name",
                    models.CharField(
                        help_text="Email address of the approver.", max_length=254, validators=[text.one_line]
                    ),
                ),
                (
                    "verdict",
                    models.CharField(
                        choices=[("approved", "approved"), ("rejected", "rejected"), ("reviewed", "reviewed")],
                        max_length=10,
                    ),
                ),
                ("comment", models.CharField(blank=True, max_length=500, validators=[text.one_line])),
                (
                    "digest",
                    models.CharField(
                        blank=True, help_text="Digest of the image that was decided about.", max_length=71
                    ),
                ),
                ("time", models.DateTimeField()),
                (
                    "approver",
                    models.ForeignKey(
                        help_text="Empty once the account is deleted; such an approval no longer counts.",
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "deployment",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="approvals",
                        to="ledger.deployment",
                    ),
                ),
            ],
            options={
                "ordering": ("time", "pk"),
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("verdict__in", ["approved", "rejected", "reviewed"])),
                        name="ledger_known_verdict",
                    )
                ],
            },
        ),
        migrations.RunPython(install, remove),
    ]
