"""A release's version is one that can be deployed: an image's tag (deploy.versions)."""

import importlib
from typing import Any

from django.db import migrations, models

GUARDS = importlib.import_module("deploy.migrations.0002_guards")
TOKENS = importlib.import_module("deploy.migrations.0006_tokens")


def lift(apps: Any, editor: Any) -> None:
    if editor.connection.vendor == "sqlite":  # which makes the table anew, without its triggers
        GUARDS.remove(apps, editor)


def put_back(apps: Any, editor: Any) -> None:
    if editor.connection.vendor == "sqlite":
        TOKENS.install(apps, editor)


class Migration(migrations.Migration):
    dependencies = [("deploy", "0007_roles")]
    operations = [
        migrations.RunPython(lift, put_back),
        migrations.RemoveConstraint("release", "deploy_release_has_a_version"),
        migrations.AddConstraint(
            "release",
            models.CheckConstraint(
                condition=models.Q(("version__regex", "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\\Z"))
                & models.Q(("version", "latest"), _negated=True),
                name="deploy_release_version_is_a_tag",
            ),
        ),
        migrations.RunPython(put_back, lift),
    ]
