"""manage.py drain: takes this instance out of the load balancer without stopping it."""

from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser

from health.draining import drain, undo
from health.management.base import DocumentedCommand

EXAMPLES = """\
examples:
  manage.py drain           in a pod's preStop hook, before SIGTERM: keep serving, but get no new requests
  manage.py drain --undo    get requests again

The flag is the file HEALTH_DRAIN_FILE. Its default name includes BIND, so set both as the instance does.
exit codes: 0 done, or nothing to do; 1 the flag cannot be written or removed; 2 usage error.
"""


class Command(DocumentedCommand):
    examples = EXAMPLES
    help = "Take this instance out of the load balancer: /health/ready/ returns 503 in every worker."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--undo", action="store_true", help="remove the flag")

    def handle(self, *args: Any, **options: Any) -> None:
        """Sets or removes the flag. Raises CommandError."""
        path = settings.HEALTH_DRAIN_FILE
        try:
            if not options["undo"]:
                drain()
                self.stdout.write(f"Draining: /health/ready/ now returns 503 ({path} created).")
            elif undo():
                self.stdout.write(f"No longer draining ({path} removed).")
            else:
                self.stdout.write(f"Not draining; nothing to do ({path} does not exist).")
        except OSError as error:
            raise CommandError(
                f"The flag {path} cannot be {'removed' if options['undo'] else 'written'} ({error.strerror}). "
                "Set HEALTH_DRAIN_FILE to a file in a folder that this user can write to."
            ) from None
