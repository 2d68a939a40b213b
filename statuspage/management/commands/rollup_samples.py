"""manage.py rollup_samples: rolls up old samples from a scheduler, where no serving process does."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from statuspage import uptime


class Command(BaseCommand):
    help = f"Roll up uptime samples older than {uptime.KEPT} days into one row per day."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            count = uptime.rollup()
        except DatabaseError as error:
            raise CommandError(
                f"Cannot roll up the samples ({type(error).__name__}). Check that the database is up and migrated."
            )
        self.stdout.write(f"Rolled up {count} samples.")
