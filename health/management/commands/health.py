"""manage.py health: the health checks, for people and scripts."""

import json
import sys
from typing import Any

from django.core.management.base import CommandError, CommandParser
from rich.table import Table
from rich.text import Text

from health.client import Unreachable, ask
from health.management.base import DocumentedCommand, console
from health.runner import report

EXAMPLES = """\
examples:
  manage.py health                                  run the checks in this process
  manage.py health --json                           print the JSON object of /health/
  manage.py health --url http://127.0.0.1:8000      check a running instance (the path defaults to /health/)
  manage.py health --url https://staging.backstagetest1.com/health/ready/

exit codes: 0 healthy or degraded (ready); 1 unhealthy, draining or unreachable; 2 usage error.
For a container's health check use `python -m health --url URL`, which does the same without loading Django.
"""


class Command(DocumentedCommand):
    examples = EXAMPLES
    help = "Check the health of this installation or of a running instance."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
        parser.add_argument("--url", help="check the instance at this URL instead of running the checks here")

    def handle(self, *args: Any, **options: Any) -> None:
        """Prints the report and exits with 1 if it is unhealthy. Raises CommandError."""
        try:
            found = ask(options["url"]) if options["url"] is not None else report().as_dict()
        except ValueError as error:
            raise CommandError(str(error), returncode=2) from None
        except Unreachable as error:
            raise CommandError(str(error)) from None
        if options["json"]:
            self.stdout.write(json.dumps(found))
        else:
            self.show(found, options)
        if found["status"] not in ("healthy", "degraded"):
            sys.exit(1)

    def show(self, found: dict[str, Any], options: dict[str, Any]) -> None:
        """Prints a table of the checks; in colour on a terminal, or as --no-color and --force-color say."""
        out = console(self.stdout, no_color=options["no_color"], force_color=options["force_color"])
        durations = found.get("durations_ms", {})
        table = Table("Check", "State", "Milliseconds", box=None, pad_edge=False, header_style="bold")
        table.columns[2].justify = "right"
        for name, state in found["checks"].items():
            table.add_row(Text(name), Text(state, colour(state)), Text(str(durations.get(name, ""))))
        if table.rows:
            out.print(table)
        status = found["status"]
        out.print(Text(status, f"bold {colour(status)}"), Text(f"(version {found.get('version', 'unknown')})"))


def colour(state: str) -> str:
    """Returns the colour of a state or status."""
    return {"healthy": "green", "draining": "yellow", "degraded": "yellow"}.get(state, "red")
