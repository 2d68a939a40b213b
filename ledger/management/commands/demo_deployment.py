"""manage.py demo_deployment: runs the mock deployment that `demo_data --profile mock` has started to its end."""

import os
import time
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from ledger import demo


class Command(BaseCommand):
    help = "Simulate the rest of the mock deployment in progress, in real time. For development; see ./run serve."

    def handle(self, *args: Any, **options: Any) -> None:
        if settings.ENVIRONMENT not in ("development", "testing"):
            raise CommandError(
                f"The environment is {settings.ENVIRONMENT}; only development and testing have simulated deployments.",
                returncode=4,
            )
        parent = os.getppid()

        def wait(pause: timedelta) -> bool:
            """Sleeps; returns False once the parent process, ./run serve, has exited."""
            until = time.monotonic() + pause.total_seconds()
            while (left := until - time.monotonic()) > 0 and os.getppid() == parent:
                time.sleep(min(left, 1))
            return os.getppid() == parent

        try:
            demo.simulate(wait)
        except KeyboardInterrupt:
            pass
