"""`manage.py demo_data`: loads demo data into any environment but production."""

import argparse
import sys
import time
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.db import transaction
from django.utils.module_loading import import_string
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from accounts import demo
from accounts.models import User
from health.management.base import DocumentedCommand, console

# The environments that accept each profile. The passwords of the first two are public: they are in the source.
ALLOWED = {
    "mock": ("development", "testing"),
    "testing": ("development", "testing"),
    "production-like": ("development", "testing", "staging"),
}
INTERVAL = 2  # seconds between progress lines when there is no terminal

EXAMPLES = f"""\
profiles:
  mock             a few demo accounts for development. Existing accounts are kept unchanged.
                   Sign in as demo@example.com, or as demo-admin@example.com for the admin.
                   Password: {demo.MOCK_PASSWORD}
  testing          fixed accounts (test-member@example.com, test-admin@example.com, ...) for automated tests.
                   Existing ones are reset. Password: {demo.TEST_PASSWORD}
  production-like  many realistic users without real data, for staging. Nobody can sign in as them.
                   The same seed generates the same users; existing ones are skipped.

examples:
  manage.py demo_data --profile mock --once
  manage.py demo_data --profile testing
  manage.py demo_data --profile production-like --users 50000 --seed 7

exit codes: 0 success, 1 failure, 2 usage error, 4 not allowed in this environment. A failure changes nothing.
"""


class Command(DocumentedCommand):
    examples = EXAMPLES
    help = "Load demo users. Not available in production."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--profile", required=True, choices=ALLOWED, help="the data to load; see below")
        parser.add_argument("--once", action="store_true", help="do nothing if any user exists")
        parser.add_argument(
            "--users", type=count, metavar="COUNT", help="production-like: number of users (default 10000)"
        )
        parser.add_argument("--seed", type=int, metavar="NUMBER", help="production-like: random seed (default 1)")

    def handle(self, *args: Any, **options: Any) -> None:
        profile = options["profile"]
        if settings.ENVIRONMENT not in ALLOWED[profile]:
            raise CommandError(
                f"The profile {profile} is not allowed in {settings.ENVIRONMENT}, only in "
                f"{', '.join(ALLOWED[profile])}. Nothing was changed.",
                returncode=4,
            )
        if profile != "production-like" and (options["users"] is not None or options["seed"] is not None):
            raise CommandError("--users and --seed require --profile production-like.", returncode=2)
        if options["once"] and User.objects.exists():
            return
        if profile == "mock":
            demo.ensure(demo.MOCK, demo.MOCK_PASSWORD)
            self.stdout.write(
                f"Mock data: sign in as {demo.MOCK[0].email}, or as {demo.MOCK[1].email} for the admin, "
                f"with the password {demo.MOCK_PASSWORD}"
            )
        elif profile == "testing":
            demo.ensure(demo.TEST, demo.TEST_PASSWORD, reset=True)
            self.stdout.write(f"Test data: {len(demo.TEST)} accounts with the password {demo.TEST_PASSWORD}")
        else:
            self.grow(options["users"] or 10_000, 1 if options["seed"] is None else options["seed"])
        for path in settings.DEMO_DATA:  # of the other apps
            if line := import_string(path)(profile):
                self.stdout.write(line)

    def grow(self, total: int, seed: int) -> None:
        """Loads `total` production-like users and shows the progress."""
        out = console(sys.stderr)
        columns = (TextColumn("Users"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        started = told = time.monotonic()
        done = new = 0
        with Progress(*columns, console=out, disable=not out.is_terminal) as progress, transaction.atomic():
            task = progress.add_task("", total=total)
            for seen, made in demo.grow(total, seed):
                done, new = done + seen, new + made
                progress.advance(task, seen)
                if not out.is_terminal and time.monotonic() - told > INTERVAL:
                    told = time.monotonic()
                    self.stderr.write(f"{done:,} of {total:,} users", str)  # not red, as it is not an error
        took = time.monotonic() - started
        there = f" ({total - new:,} already existed)" if new < total else ""
        self.stdout.write(f"Created {new:,} users{there} in {took:.1f} s, {new / took:,.0f} per second")


def count(text: str) -> int:
    """Parses a positive whole number. Raises ArgumentTypeError."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a valid count; expected a positive whole number, such as 50000"
        )
    return int(text)
