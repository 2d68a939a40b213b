"""manage.py migrate_release --check with two databases, as the deployer runs it before it prepares one of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.databases.side import Side
from tests.support.servers import PATIENCE, ROOT

pytestmark = pytest.mark.slow

SETTINGS = """
from settings.testing import *
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django_migration_linter", "deploy", "shop"]
AUTH_USER_MODEL, MIDDLEWARE, ROOT_URLCONF = "auth.User", [], "shop"
"""
MIGRATION = """
from django.db import migrations, models

class Migration(migrations.Migration):
    dependencies = [{after}]
    operations = [{operation}]
"""
FIRST = 'migrations.CreateModel("Thing", [("id", models.BigAutoField(primary_key=True)), ("old", models.TextField())])'


@pytest.mark.parametrize(
    ("operation", "told"),
    [
        ('migrations.AddField("thing", "new", models.TextField(null=True))', "The live release can run on the schema"),
        ('migrations.RemoveField("thing", "old")', "The live release cannot run on the new schema"),
    ],
)
def test_migrations_are_checked_and_none_is_applied(
    two_databases: tuple[Side, Side], tmp_path: Path, operation: str, told: str
) -> None:
    folder = tmp_path / "shop" / "migrations"
    folder.mkdir(parents=True)
    (tmp_path / "shop" / "__init__.py").write_text("urlpatterns = []\n")
    (tmp_path / "shop_settings.py").write_text(SETTINGS)
    (folder / "__init__.py").write_text("")
    (folder / "0001_first.py").write_text(MIGRATION.format(after="", operation=FIRST))
    blue, green = two_databases
    given = {"DATABASE_URL_BLUE": blue.url, "DATABASE_URL_GREEN": green.url}
    given |= {"DJANGO_SETTINGS_MODULE": "shop_settings", "PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def manage(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=ROOT, env=os.environ | given, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip

    assert manage("migrate").returncode == 0
    (folder / "0002_second.py").write_text(MIGRATION.format(after='("shop", "0001_first")', operation=operation))
    done = manage("migrate_release", "--check")
    assert told in done.stdout + done.stderr and (done.returncode == 0) == ("can run" in told), done.stderr
    applied = blue.run("select name from django_migrations where app = 'shop'")
    assert applied == [("0001_first",)] and not green.value("select to_regclass('django_migrations')")
