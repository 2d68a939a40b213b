"""manage.py migrate_release on a real PostgreSQL: no migration makes visitors wait for longer than it may."""

import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from tests.support.servers import PATIENCE, ROOT, Postgres

LIMIT = 1.0  # seconds
LONG = 3 * PATIENCE  # seconds; nobody waits for so long
SETTINGS = """
from settings.testing import *
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "deploy", "slow"]
AUTH_USER_MODEL, MIDDLEWARE, ROOT_URLCONF = "auth.User", [], "slow"
"""
MIGRATION = """
import select
from django.db import migrations, models

def hold(apps, editor):
    editor.execute("LOCK TABLE shop")
    select.select([editor.connection.connection], [], [], {long})  # works on, until the server ends the session

class Migration(migrations.Migration):
    operations = [
        migrations.CreateModel("Thing", [("id", models.BigAutoField(primary_key=True))]),
        {operation},
    ]
"""

pytestmark = pytest.mark.slow


class Readers:
    """Reads the table shop again and again; `longest` is what it waited for an answer, in seconds."""

    def __init__(self, server: Postgres) -> None:
        self.server, self.longest, self.reads = server, 0.0, 0
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def __enter__(self) -> "Readers":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self.thread.join()

    def run(self) -> None:
        with closing(self.server.connect()) as connection, connection.cursor() as cursor:
            while not self.ending.wait(0.02):
                began = time.monotonic()
                cursor.execute("SELECT count(*) FROM shop")
                self.longest = max(self.longest, time.monotonic() - began)
                self.reads += 1


def migrated(server: Postgres, folder: Path, operation: str) -> tuple["subprocess.CompletedProcess[str]", Readers]:
    """How migrating went, of an app whose one migration has this operation, and the readers meanwhile."""
    (folder / "slow" / "migrations").mkdir(parents=True)
    (folder / "slow" / "__init__.py").write_text("urlpatterns = []\n")
    (folder / "slow" / "migrations" / "__init__.py").write_text("")
    (folder / "slow" / "migrations" / "0001_first.py").write_text(MIGRATION.format(operation=operation, long=LONG))
    (folder / "slow_settings.py").write_text(SETTINGS)
    given = {
        "DATABASE_URL": server.url,
        "DJANGO_SETTINGS_MODULE": "slow_settings",
        "PYTHONPATH": f"{folder}:{ROOT}",
        "MIGRATION_BLOCK_LIMIT": str(LIMIT),
    }
    with closing(server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS shop (id int)")
    with Readers(server) as readers:
        done = subprocess.run(
            [sys.executable, "manage.py", "migrate_release", "--unsafe"],
            cwd=ROOT, env=os.environ | given, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
    return done, readers


@pytest.mark.parametrize(
    "operation",
    [f'migrations.RunSQL("LOCK TABLE shop; SELECT pg_sleep({LONG})")', "migrations.RunPython(hold)"],
    ids=["in one statement", "between two statements"],
)
def test_a_migration_that_makes_visitors_wait_is_cancelled_and_rolled_back(
    own_postgres: Postgres, tmp_path: Path, operation: str
) -> None:
    done, readers = migrated(own_postgres, tmp_path, operation)
    assert done.returncode == 1
    assert "Migration slow.0001_first was cancelled: 1 other session waited 1." in done.stderr, done.stderr
    assert f"limit {LIMIT:g} s (MIGRATION_BLOCK_LIMIT)" in done.stderr
    assert LIMIT <= readers.longest < PATIENCE / 2, "so long and no longer"
    with closing(own_postgres.connect()) as connection, connection.cursor() as cursor:
        with pytest.raises(psycopg2.errors.UndefinedTable):
            cursor.execute("SELECT 1 FROM slow_thing")


def test_a_long_migration_that_is_in_nobodys_way_goes_on(own_postgres: Postgres, tmp_path: Path) -> None:
    done, readers = migrated(own_postgres, tmp_path, f'migrations.RunSQL("SELECT pg_sleep({2 * LIMIT})")')
    assert done.returncode == 0, done.stderr
    assert readers.reads > 5
