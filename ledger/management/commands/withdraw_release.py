"""manage.py withdraw_release: undo the registration of a release that was never deployed."""

import logging
from typing import Any

from django.core.management.base import CommandError, CommandParser

from health.management.base import DocumentedCommand
from ledger import rules
from ledger.management.base import readable
from ledger.models import Release

EXAMPLES = """\
examples:
  manage.py withdraw_release 1.4.0     another build was registered as 1.4.0, and the real one gets 409

The version can be registered again. A release that was deployed cannot be withdrawn: give the other build its own
version.
exit codes: 0 done; 1 not registered, or deployed; 2 usage error.
"""
log = logging.getLogger(__name__)


class Command(DocumentedCommand):
    examples = EXAMPLES
    help = "Undo the registration of a release that was never deployed."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("version")

    def handle(self, *args: Any, **options: Any) -> None:
        version = options["version"]
        try:
            with readable():
                release = rules.withdraw(version)
        except Release.DoesNotExist:
            raise CommandError(f"Release {version} is not registered.") from None
        except rules.RuleViolation as error:
            raise CommandError(str(error)) from None
        what = f"Release {release}, commit {release.short_commit}, registered{rules.registration(release)}"
        log.warning("%s, was withdrawn", what)
        self.stdout.write(f"{what}, was withdrawn. Its version can be registered again.")
