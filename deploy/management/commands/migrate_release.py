"""manage.py migrate_release: migrate while the previous release is live. deploy runs it from the new image."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError, CommandParser
from django.db import Error, OperationalError, connection
from django.db.migrations.executor import MigrationExecutor
from django_migration_linter import MigrationLinter
from django_migration_linter.constants import DJANGO_APPS_WITH_MIGRATIONS

from deploy.blocking import BlockLimit
from health.management.base import DocumentedCommand

KEY = 6_004_301_947_113_020_275  # of the advisory lock: any number, but always this one
WAIT = 300  # seconds for another migration to end
LOCK_TIMEOUT = "5s"  # every other query on the table waits behind ours meanwhile

EXAMPLES = """\
examples:
  manage.py migrate_release             check the unapplied migrations, then apply them
  manage.py migrate_release --check     check the unapplied migrations only
  manage.py migrate_release --unsafe    apply them even if the live release cannot run on the new schema
  manage.py migrate_release --wait 600  first wait up to 600 seconds for the database

exit codes:
  0  migrated, or nothing to migrate
  1  failed
  2  usage error
"""


class Command(DocumentedCommand):
    examples = EXAMPLES
    help = "Apply the migrations, one process at a time, if the live release can run on the new schema."

    def add_arguments(self, parser: CommandParser) -> None:
        """The options of the command."""
        parser.add_argument("--check", action="store_true", help="check the unapplied migrations; apply none")
        parser.add_argument("--unsafe", action="store_true", help="apply what django-migration-linter refuses, too")
        parser.add_argument(
            "--wait", type=float, default=0, metavar="SECONDS", help="time to wait for the database (default 0)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Migrates. Raises CommandError if the live release could not run on the new schema, or waited too long."""
        self.reach(options["wait"])
        with alone():
            executor = MigrationExecutor(connection)
            plan = [migration for migration, _ in executor.migration_plan(executor.loader.graph.leaf_nodes())]
            if not plan:
                self.stdout.write("Nothing to migrate.")
                return
            if executor.loader.applied_migrations and not options["unsafe"]:  # nobody runs on an empty database
                self.lint(plan)
            if options["check"]:
                self.stdout.write(f"The live release can run on the schema of {len(plan)} unapplied migrations.")
                return
            self.migrate(plan)
        self.stdout.write(f"{len(plan)} migration{'s' if len(plan) > 1 else ''} applied.")

    def migrate(self, plan: list[Any]) -> None:
        """Applies the migrations of `plan`, and none that makes others wait for longer than MIGRATION_BLOCK_LIMIT.

        Raises CommandError if one did, and what it raises by itself.
        """
        if connection.vendor != "postgresql":
            self.apply()
            return
        with BlockLimit(settings.MIGRATION_BLOCK_LIMIT) as limit:
            try:
                self.apply()
            except Error as error:
                if not limit.why:
                    raise
                connection.close()  # its session may have been ended
                applied = MigrationExecutor(connection).loader.applied_migrations
                guilty = next((one for one in plan if (one.app_label, one.name) not in applied), plan[-1])
                raise CommandError(
                    f"Migration {guilty} was cancelled: {limit.why} Its transaction was rolled back; what was applied "
                    "before it stays. Let it hold its locks for less time, in smaller steps, or raise the limit for a "
                    "deployment during which visitors may wait."
                ) from error

    def apply(self) -> None:
        """Applies all migrations that are not applied yet."""
        call_command("migrate", interactive=False, verbosity=1, stdout=self.stdout, stderr=self.stderr)

    def reach(self, seconds: float) -> None:
        """Waits up to `seconds` for the database. If it stays down, whoever uses it next raises its own error."""
        until, told = time.monotonic() + seconds, False
        while time.monotonic() < until:
            try:
                connection.ensure_connection()
                return
            except OperationalError:
                if not told:
                    self.stderr.write(f"Waiting up to {seconds:g} s for the database.", str)
                told = True
                time.sleep(1)

    def lint(self, plan: list[Any]) -> None:
        """Raises CommandError if the live release could not run on the schema of these unapplied migrations.

        https://github.com/3YOURMIND/django-migration-linter
        """
        linter = MigrationLinter(no_cache=True, analyser_string=connection.vendor)  # whatever the backend is called
        for migration in plan:
            if migration.app_label not in DJANGO_APPS_WITH_MIGRATIONS:
                linter.lint_migration(migration)
        if linter.has_errors:
            raise CommandError(
                "The live release cannot run on the new schema (see above). Nothing was migrated. Change the schema in "
                "two releases (first add, later remove), or deploy with --unsafe-migrations --reason TEXT."
            )


@contextmanager
def alone() -> Iterator[None]:
    """Allows one migration at a time, whose statements wait LOCK_TIMEOUT for others' locks. PostgreSQL's advisory
    lock ends with the session, so a process that dies leaves none behind. SQLite has one writer at a time anyway.

    https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
    """
    if connection.vendor != "postgresql":
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute(f"SET statement_timeout = '{WAIT}s'")
        cursor.execute("SELECT pg_advisory_lock(%s)", [KEY])
        cursor.execute("SET statement_timeout = 0")  # a table may take its time to be filled
        cursor.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        try:
            yield
        finally:
            with suppress(Error):  # the session may be gone, and the lock with it
                cursor.execute("SELECT pg_advisory_unlock(%s)", [KEY])
