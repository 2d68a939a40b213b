"""manage.py rollback: return an environment to a version that was verified good there."""

from typing import Any

from django.core.management.base import CommandParser

from deploy import rollout
from deploy.errors import DeployRefused
from deploy.management.base import Operation
from deploy.targets.compose import Compose
from ledger.environments import EnvironmentConfig


class Command(Operation):
    help = """\
Roll an environment back to an earlier version. The steps: lock, start,
smoke test, switch, mark good; on a cluster, those of scripts/rollback.sh.
The database schema stays as it is; with a database per colour the writes
return to the release's own, and no row that was written since is lost.
"""
    watch_help = "time to watch the release afterwards (default 0)"
    examples = """\
examples:
  manage.py rollback -e production                 to the previous version that was verified good
  manage.py rollback 1.3.2 -e production --reason "Pictures are lost"
  manage.py rollback -e staging --dry-run

"""

    def add_arguments(self, parser: CommandParser) -> None:
        """The arguments of a rollback."""
        parser.add_argument(
            "version", nargs="?", default="", metavar="VERSION", help="the version (default: the last good one)"
        )
        super().add_arguments(parser)

    def operate(self, config: EnvironmentConfig, options: dict[str, Any]) -> int:
        """Rolls back. Returns the exit code. Raises DeployRefused and StepFailed."""
        version = options["version"]
        if not version:
            target = self.target(config, "")
            target.validate()
            version = target.previous_good()
            if not version:
                raise DeployRefused(
                    f"{config.name} has no earlier version that was verified good. Name a version: "
                    f"manage.py rollback VERSION -e {config.name}"
                )
        target = self.target(config, version)
        target.validate()
        if isinstance(target, Compose) and target.has_two_databases():
            target.use_two_databases()
        if target.rollback_script is None and target.live_version() == version:
            raise DeployRefused(f"{version} is already live in {config.name}; nothing to roll back.")
        options["revision"] = target.choose_revision()
        self.confirm(config, options, f"About to roll production back to {version}")
        return self.run(rollout.rollback, target, config, version, options, watch=options["watch"] or 0.0)
