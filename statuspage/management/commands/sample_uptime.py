"""manage.py sample_uptime: takes a sample from a scheduler, where no serving process does."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from statuspage import uptime


class Command(BaseCommand):
    help = "Take this minute's uptime sample of each monitored environment. Does nothing if it has been taken already."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", default="", help="the address of this environment itself, such as http://web:8000")

    def handle(self, *args: Any, **options: Any) -> None:
        observed = uptime.observe(url=options["url"])
        if not observed:
            raise CommandError("No environment is monitored. Set WATCH_ENVIRONMENTS; .env.example explains it.")
        try:
            uptime.write(observed)
        except DatabaseError as error:
            raise CommandError(
                f"Cannot save the samples ({type(error).__name__}). Check that the database is up and migrated."
            )
        for name, minute, up in observed:
            self.stdout.write(f"{minute:%Y-%m-%d %H:%M}Z {name}: {'up' if up else 'down'}")
