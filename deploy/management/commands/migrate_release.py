"""manage.py migrate_release: migrate for a release while the one before serves. deploy runs it from the new image."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import OperationalError, connection
from django.db.migrations.executor import MigrationExecutor
from django_migration_linter import MigrationLinter
from django_migration_linter.constants import DJANGO_APPS_WITH_MIGRATIONS

KEY = 6_004_301_947_113_020_275  # of the advisory lock: any number, but always this one
WAIT = 300  # seconds for another migration to end
LOCK_TIMEOUT = "5s"  # longer would let every other query queue up behind ours

EXAMPLES = """\
examples:
  manage.py migrate_release             check the migrations that are not applied, and apply them
  manage.py migrate_release --unsafe    apply them though the old release may not be able to run on the new schema
  manage.py migrate_release --wait 600  first wait for a database that does not answer yet, 600 seconds at most

exit codes: 0 done, also when there was nothing to do; 1 it failed, see above; 2 wrong usage.
"""


class Command(BaseCommand):
    help = "Apply migrations, one process at a time, if the release that serves can go on running on the new schema."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        kwargs |= {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
        return super().create_parser(prog_name, subcommand, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--unsafe", action="store_true", help="apply also what django-migration-linter refuses")
        parser.add_argument(
            "--wait", type=float, default=0, metavar="SECONDS", help="wait so long for the database to answer"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        self.reach(options["wait"])
        with alone():
            executor = MigrationExecutor(connection)
            plan = [migration for migration, _ in executor.migration_plan(executor.loader.graph.leaf_nodes())]
            if not plan:
                self.stdout.write("Nothing to migrate.")
                return
            if executor.loader.applied_migrations and not options["unsafe"]:  # nobody runs on an empty database
                self.lint(plan)
            call_command("migrate", interactive=False, verbosity=1, stdout=self.stdout, stderr=self.stderr)
        self.stdout.write(f"{len(plan)} migration{'s' if len(plan) > 1 else ''} applied.")

    def reach(self, seconds: float) -> None:
        """Waits for the database. In the end its own error is raised, by whoever uses it next."""
        until, told = time.monotonic() + seconds, False
        while time.monotonic() < until:
            try:
                connection.ensure_connection()
                return
            except OperationalError:
                if not told:
                    self.stderr.write(f"The database does not answer; waiting for it, {seconds:g} s at most.", str)
                told = True
                time.sleep(1)

    def lint(self, plan: list[Any]) -> None:
        linter = MigrationLinter(no_cache=True)
        for migration in plan:
            if migration.app_label not in DJANGO_APPS_WITH_MIGRATIONS:
                linter.lint_migration(migration)
        if linter.has_errors:
            raise CommandError(
                "The release that serves cannot run on this schema (see above), so nothing was migrated. Change the "
                "schema in two releases (first add, later remove), or deploy with --unsafe-migrations and a --reason."
            )


@contextmanager
def alone() -> Iterator[None]:
    """One migration at a time; its statements wait for others' locks for a moment only. PostgreSQL's advisory lock
    goes with the session, so a process that dies leaves none behind. SQLite has one writer at a time anyway.

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
            cursor.execute("SELECT pg_advisory_unlock(%s)", [KEY])
