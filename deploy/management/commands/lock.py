"""manage.py lock: hold an environment's lock by hand, release it, or see who holds it."""

from dataclasses import replace
from typing import Any

from django.core.management.base import CommandParser

from deploy.errors import ExitCode, InvalidUsage
from deploy.ledger_client import LedgerUnavailable
from deploy.locks import Holding
from deploy.management.base import STRATEGIES, TEXT, EnvironmentCommand, ledger_of
from deploy.targets.base import Target
from ledger.environments import EnvironmentConfig
from ledger.rules import Invalid, RuleViolation


class Command(EnvironmentCommand):
    help = """\
Block deployments to an environment, or see what blocks them.

  acquire  block deployments and rollbacks until release; never expires
  release  remove the lock, whoever holds it; a run that held it stops before
           its next step
  status   show who holds the lock, since when and why

acquire and release tell the ledger, so that an alert can say that a lock has
been held for long.
"""
    reason_help = f"why: one line of at most {TEXT} characters; required by acquire"
    examples = """\
examples:
  manage.py lock acquire -e production --reason "The database is being moved"
  manage.py lock status -e production
  manage.py lock status -e production --json
  manage.py lock release -e production

"""
    exit_codes = """\
exit codes:
  0  acquired, or released; the lock is free (status)
  2  usage error
  3  somebody holds the lock (acquire, status), or the process that holds it
     is alive (release on the compose target)
  4  refused or not possible; nothing was changed
"""

    def add_arguments(self, parser: CommandParser) -> None:
        """The arguments of the command."""
        parser.add_argument("action", choices=("acquire", "release", "status"), help="what to do with the lock")
        super().add_arguments(parser)

    def operate(self, config: EnvironmentConfig, options: dict[str, Any]) -> int:
        """Acts on the lock. Returns the exit code. Raises DeployRefused and StepFailed."""
        reason, action = options["reason"], options["action"]
        if action == "acquire" and not reason:
            raise InvalidUsage("lock acquire requires a reason: --reason TEXT")
        if action != "acquire" and reason:
            raise InvalidUsage(f"Unexpected argument: lock {action} takes no --reason.")
        # Every strategy of a target has the same lock.
        target = self.target(replace(config, strategy=next(iter(STRATEGIES[config.target]))), "")
        lock = target.lock
        if action == "acquire":
            lock.acquire_by_hand(reason)
            found, text = (
                lock.status(),
                f"Locked {config.name}: {reason}. Release with: manage.py lock release -e {config.name}",
            )
        elif action == "release":
            was = lock.force_release()
            found, text = None, f"Released the lock. {was.sentence('had held')}." if was else "The lock was free."
        else:
            found = lock.status()
            text = f"{found}." if found else f"The lock of {config.name} is free."
        if action != "status":
            self.report(target, config, found)
        self.show(config.name, found, text)
        return ExitCode.LOCKED if action == "status" and found else ExitCode.DONE

    def report(self, target: Target, config: EnvironmentConfig, found: Holding | None) -> None:
        """Tells the ledger, so that metrics and alerts know of the lock. A ledger that is down prevents nothing."""
        try:
            ledger = ledger_of(target, config)
            if found:
                ledger.lock(config.name, found.holder, found.purpose, found.since)
            else:
                ledger.unlock(config.name)
        except (LedgerUnavailable, RuleViolation, Invalid, LookupError) as error:
            self.output.note(f"The ledger does not know of this, so alerts may be wrong: {error}")

    def show(self, environment: str, found: Holding | None, text: str) -> None:
        """Shows the lock as it is now: as a sentence, or as one JSON object."""
        self.output.line(text)
        self.output.event(
            "lock",
            text=text,
            environment=environment,
            locked=found is not None,
            holder=found.holder if found else None,
            since=found.since if found else None,
            reason=found.purpose if found else None,
            by_hand=found.by_hand if found else None,
        )
