"""manage.py verify: find out whether what is live is good, and mark it as a rollback target."""

from typing import Any

from deploy import rollout
from deploy.errors import DeployRefused
from deploy.management.base import Operation
from ledger.environments import EnvironmentConfig

WATCH = 60.0  # seconds


class Command(Operation):
    help = """\
Test and watch the live release as it is, and mark it as verified good: the
first release of an environment, or settings that kubectl has applied. The
steps: lock, smoke test, watch, mark good. It ships nothing and rolls nothing
back, and the ledger gets no deployment.
"""
    watch_help = f"time to watch it (default {WATCH:g})"
    examples = """\
examples:
  manage.py verify -e staging                 after the first kubectl apply
  manage.py verify -e production --watch 300

"""
    exit_codes = """\
exit codes:
  0  it is verified
  2  wrong usage
  3  somebody else holds the lock
  4  refused or interrupted; nothing was changed
  6  it is not good; it is live all the same, and not marked
"""

    def operate(self, config: EnvironmentConfig, options: dict[str, Any]) -> int:
        """Verifies. Returns the exit code. Raises DeployRefused and StepFailed."""
        target = self.target(config, "")
        target.validate()
        version = target.live_version()
        if not version:
            raise DeployRefused(f"Nothing is live in {config.name}.")
        watch = options["watch"]
        target = self.target(config, version)
        return self.run(rollout.Verify, target, config, version, options, watch=WATCH if watch is None else watch)
