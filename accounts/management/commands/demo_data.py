"""`manage.py demo_data`: the data that each environment but production works with."""

import argparse
import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser, DjangoHelpFormatter
from django.db import transaction
from django.utils.module_loading import import_string
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from accounts import demo
from accounts.models import User

# Where each profile may go. The first two have passwords that everybody can read in the source.
ALLOWED = {
    "mock": ("development", "testing"),
    "testing": ("development", "testing"),
    "production-like": ("development", "testing", "staging"),
}
EVERY = 2  # seconds between two lines of progress where there is no terminal

HELP = f"""\
profiles:
  mock             a few plainly made-up accounts to click around with, for development. What is there stays as it is.
                   Sign in as demo@example.com, or demo-admin@example.com for the admin: {demo.MOCK_PASSWORD}
  testing          fixed accounts (test-member@example.com, test-admin@example.com, ...) for automated tests, put back
                   as they were if they are there: {demo.TEST_PASSWORD}
  production-like  many users of plausible shape and no real data, for staging. Nobody can sign in as them. The same
                   seed makes the same users, and those that are there are not made twice.

examples:
  manage.py demo_data --profile mock --once
  manage.py demo_data --profile testing
  manage.py demo_data --profile production-like --users 50000 --seed 7

exit codes: 0 done, 1 failed, 2 wrong usage, 4 refused in this environment. Whatever fails has changed nothing.
"""


class Help(DjangoHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of HELP."""


class Command(BaseCommand):
    help = "Loads made-up users. Never in production."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        return super().create_parser(prog_name, subcommand, formatter_class=Help, epilog=HELP, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--profile", required=True, choices=ALLOWED, help="what to load: see below")
        parser.add_argument("--once", action="store_true", help="do nothing if there is a user already")
        parser.add_argument("--users", type=count, metavar="COUNT", help="production-like: how many (default 10000)")
        parser.add_argument("--seed", type=int, metavar="NUMBER", help="production-like: which ones (default 1)")

    def handle(self, *args: Any, **options: Any) -> None:
        profile = options["profile"]
        if settings.ENVIRONMENT not in ALLOWED[profile]:
            raise CommandError(
                f"The environment is {settings.ENVIRONMENT}, and {profile} data go nowhere but into "
                f"{', '.join(ALLOWED[profile])}. Nothing was written.",
                returncode=4,
            )
        if profile != "production-like" and (options["users"] is not None or options["seed"] is not None):
            raise CommandError("--users and --seed go with --profile production-like only.", returncode=2)
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
        for path in settings.DEMO_DATA:  # what the other apps have
            if line := import_string(path)(profile):
                self.stdout.write(line)

    def grow(self, total: int, seed: int) -> None:
        """Loads `total` production-like users and shows how far it is."""
        console = Console(stderr=True)
        columns = (TextColumn("Users"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        started = told = time.monotonic()
        done = new = 0
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress, transaction.atomic():
            task = progress.add_task("", total=total)
            for seen, made in demo.grow(total, seed):
                done, new = done + seen, new + made
                progress.advance(task, seen)
                if not console.is_terminal and time.monotonic() - told > EVERY:
                    told = time.monotonic()
                    self.stderr.write(f"{done:,} of {total:,} users", str)  # not red: it is no error
        took = time.monotonic() - started
        there = f" ({total - new:,} were there)" if new < total else ""
        self.stdout.write(f"{new:,} users made{there} in {took:.1f} s: {new / took:,.0f} a second")


def count(text: str) -> int:
    """A whole number of 1 or more. Raises ArgumentTypeError."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more, such as 50000")
    return int(text)
