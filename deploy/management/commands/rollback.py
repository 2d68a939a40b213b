"""manage.py rollback: back to a version that was found good in an environment before."""

from typing import Any

from django.core.management.base import CommandParser

from deploy.errors import DeployRefused
from deploy.management.base import Operation
from ledger.environments import EnvironmentConfig


class Command(Operation):
    help = "Roll back to an earlier version: lock, bring up, smoke test, switch. The database schema stays as it is."
    watch_help = "watch it afterwards for so long (default 0)"
    examples = """\
examples:
  manage.py rollback -e production                 to the version that was live before and verified good
  manage.py rollback 1.3.2 -e production --reason "Pictures are lost"
  manage.py rollback -e staging --dry-run

"""

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "version", nargs="?", default="", metavar="VERSION", help="which (default: the last good one)"
        )
        super().add_arguments(parser)

    def operate(self, place: EnvironmentConfig, options: dict[str, Any]) -> int:
        version = options["version"]
        if not version:
            target = self.target(place, "")
            target.validate()
            version = target.previous_good()
            if not version:
                raise DeployRefused(f"No earlier version was verified good in {place.name}; name one.")
        target = self.target(place, version)
        target.validate()
        if target.live_version() == version:
            raise DeployRefused(f"{version} is already live in {place.name}; nothing to roll back.")
        self.sure(place, options, f"Rolls production back to {version}")
        return self.run(target, place, version, options, watch=options["watch"] or 0.0, migrate=False)
