"""Rights of API tokens, and which token did what. Who created a deployment is a part of what never changes."""

import importlib
from typing import Any

from django.db import migrations, models

import settings.text

GUARDS = importlib.import_module("deploy.migrations.0002_guards")
FIXED = (*GUARDS.FIXED, "token")
BY_TOKEN = "The API token's name; empty if it was a command with access to the database."


def install(apps: Any, editor: Any) -> None:
    GUARDS.install(apps, editor, FIXED)


def reinstall(apps: Any, editor: Any) -> None:
    GUARDS.install(apps, editor)


def token(verbose: str, what: str) -> "models.CharField[str, str]":
    return models.CharField(verbose, blank=True, default="", help_text=f"{what} {BY_TOKEN}", max_length=100)


class Migration(migrations.Migration):
    dependencies = [("deploy", "0005_status")]
    operations = [
        migrations.RunPython(GUARDS.remove, reinstall),  # SQLite makes the tables anew
        migrations.AddField(
            "apitoken",
            "may_register",
            models.BooleanField(default=False, help_text="It may register releases."),
        ),
        migrations.AddField(
            "apitoken",
            "may_take_over",
            models.BooleanField(
                default=False,
                help_text="In its environments it may also go on with deployments that it did not create.",
            ),
        ),
        migrations.AlterField(
            "apitoken",
            "environments",
            models.ManyToManyField(
                blank=True,
                help_text="Where it may create deployments, and go on with its own.",
                related_name="+",
                to="deploy.environment",
            ),
        ),
        migrations.AddField("release", "token", token("API token", "What registered it."), preserve_default=False),
        migrations.AddField(
            "release",
            "registered",
            models.DateTimeField(blank=True, help_text="Empty if that was before this was recorded.", null=True),
        ),
        migrations.AddField("deployment", "token", token("API token", "What created it."), preserve_default=False),
        migrations.AddField(
            "deployment",
            "finished_token",
            token("finished by API token", "What finished it."),
            preserve_default=False,
        ),
        migrations.AlterField(
            "deployment",
            "actor",
            models.CharField(
                help_text="Who asked for it, as the client claims.",
                max_length=100,
                validators=[settings.text.one_line],
            ),
        ),
        migrations.AddField("step", "token", token("API token", "What reported it last."), preserve_default=False),
        migrations.RunPython(install, GUARDS.remove),
    ]
