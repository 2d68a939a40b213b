"""The environments of the deployment guide."""

from typing import Any

from django.db import migrations

ENVIRONMENTS = (
    (1, "development", "Local development", "Mock data", "Developers only", "Manual", None),
    (2, "testing", "Automated testing", "Test data", "CI/CD system", "Automated", None),
    (3, "staging", "Pre-production testing", "Production-like data", "QA team", "Automated", None),
    (4, "production", "Live application", "Real data", "End users", "Manual approval", 3),
)


def fill(apps: Any, editor: Any) -> None:
    Environment = apps.get_model("deploy", "Environment")
    for pk, name, purpose, data, access, deployment, gate in ENVIRONMENTS:
        fields = {"name": name, "order": pk, "purpose": purpose, "data": data, "access": access}
        Environment.objects.using(editor.connection.alias).update_or_create(
            pk=pk, defaults=fields | {"deployment": deployment, "gate_id": gate}
        )


def empty(apps: Any, editor: Any) -> None:
    apps.get_model("deploy", "Environment").objects.using(editor.connection.alias).all().delete()


class Migration(migrations.Migration):
    dependencies = [("deploy", "0002_guards")]
    operations = [migrations.RunPython(fill, empty)]
