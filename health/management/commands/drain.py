"""manage.py drain: take this instance out of the load balancer, without ending it."""

import argparse
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from health.draining import drain, undo

EXAMPLES = """\
examples:
  manage.py drain           a pod's preStop hook, before SIGTERM: serve on, but get no new requests
  manage.py drain --undo    take part again

The flag is the file HEALTH_DRAIN_FILE; BIND is part of its default name, so give both as the instance has them.
exit codes: 0 done (also if it already was so); 1 the flag cannot be written or removed; 2 wrong usage.
"""


class Command(BaseCommand):
    help = "Make /health/ready/ answer 503, in every worker of this instance at once."
    requires_system_checks = []

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        kwargs |= {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
        return super().create_parser(prog_name, subcommand, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--undo", action="store_true", help="remove the flag again")

    def handle(self, *args: Any, **options: Any) -> None:
        path = settings.HEALTH_DRAIN_FILE
        try:
            if not options["undo"]:
                drain()
                self.stdout.write(f"Draining: /health/ready/ answers 503 from now on ({path} is set).")
            elif undo():
                self.stdout.write(f"No longer draining ({path} is removed).")
            else:
                self.stdout.write(f"It was not draining ({path} is not there).")
        except OSError as error:
            raise CommandError(
                f"The flag {path} cannot be {'removed' if options['undo'] else 'written'} ({error.strerror}): "
                "let HEALTH_DRAIN_FILE name a file in a folder that this user may write to."
            ) from None
