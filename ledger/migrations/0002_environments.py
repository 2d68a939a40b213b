"""The environments, as rows."""

from typing import Any

from django.db import migrations

ENVIRONMENTS = (
    (1, "development", "Local development", "Mock data", "Developers only", "Manual", None),
    (2, "testing", "Automated testing", "Test data", "CI/CD system", "Automated", None),
    (3, "staging", "Pre-production testing", "Production-like data", "QA team", "Automated", None),
    (4, "production", "Live application", "Real data", "End users", "Manual approval", 3),
)


def fill(apps: Any, editor: Any) -> None:
    Environment = apps.get_model("ledger", "Environment")
    for pk, name, purpose, data, access, deployment, promotes_from in ENVIRONMENTS:
        fields = {"name": name, "order": pk, "purpose": purpose, "data": data, "access": access}
        Environment.objects.using(editor.connection.alias).update_or_create(
            pk=pk, defaults=fields | {"deployment": deployment, "promotes_from_id": promotes_from}
        )


class Migration(migrations.Migration):
    dependencies = [("ledger", "0001_initial")]
    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
