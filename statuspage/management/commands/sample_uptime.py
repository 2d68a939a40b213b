"""manage.py sample_uptime: for a scheduler, where no process that serves takes the samples."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from statuspage import uptime


class Command(BaseCommand):
    help = "Take this minute's sample of each environment that is watched. Harmless if it has been taken already."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", default="", help="where this environment itself is asked, as in http://web:8000")

    def handle(self, *args: Any, **options: Any) -> None:
        observed = uptime.observe(url=options["url"])
        if not observed:
            raise CommandError("No environment is watched: see WATCH_ENVIRONMENTS in .env.example.")
        try:
            uptime.write(observed)
        except DatabaseError as error:
            raise CommandError(f"The database takes no sample ({type(error).__name__}). Is it there, and migrated?")
        for name, minute, up in observed:
            self.stdout.write(f"{minute:%Y-%m-%d %H:%M}Z {name}: {'up' if up else 'down'}")
