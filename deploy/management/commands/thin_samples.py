"""manage.py thin_samples: for a scheduler, where no process that serves thins the samples."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from deploy import uptime


class Command(BaseCommand):
    help = f"Make a row a day of the uptime samples that are older than {uptime.KEPT} days."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            count = uptime.thin()
        except DatabaseError as error:
            raise CommandError(
                f"The samples cannot be thinned ({type(error).__name__}). Is the database there, and migrated?"
            )
        self.stdout.write(f"{count} samples became rows a day.")
