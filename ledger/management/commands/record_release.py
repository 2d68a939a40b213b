"""manage.py record_release: records the running release as live, if something else than the deployer started it."""

import argparse
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from health.management.base import DocumentedCommand
from ledger import queries, rules, steps
from ledger.management.base import readable
from ledger.models import Deployment, Environment, Release

EXAMPLES = """\
examples:
  manage.py record_release --actor ada@laptop --built-at 2026-01-31T09:15:00+00:00
  kubectl exec deployment/backstagetest1 -- python manage.py record_release --actor "$USER"

The release is the one that runs this command: APP_VERSION and APP_COMMIT of its image, in its own environment.
exit codes: 0 recorded, or live already; 1 the ledger refuses it, or its database does not answer; 2 usage error.
"""
FIRST = "First release here: started together with the environment."
LATER = "Not started by manage.py deploy; recorded afterwards."


class Command(DocumentedCommand):
    examples = EXAMPLES
    help = "Record the running release as live in its environment, if the ledger does not have it there."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--actor", required=True, help="who started it, such as ada@laptop")
        parser.add_argument("--built-at", type=moment, metavar="TIME", help="ISO 8601, with its zone (default: now)")
        parser.add_argument("--image", default="", help="where the image is, with its tag")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with readable():
                self.stdout.write(record(options["actor"], options["built_at"], options["image"]))
        except (rules.RuleViolation, rules.Invalid) as error:
            raise CommandError(f"Not recorded: {error}") from None


def record(actor: str, built_at: datetime | None, image: str = "") -> str:
    """Writes the deployment of the running release, and returns a line about it.

    In an environment that is promoted to it has skipped the environment before, so it is recorded as what it is: a
    hotfix, with its reason. Raises rules.RuleViolation and rules.Invalid.
    """
    environment = Environment.objects.get(name=settings.ENVIRONMENT)
    live = queries.live(environment)
    if live and live.release.version == settings.VERSION:
        return f"Release {settings.VERSION} is already recorded as live in {environment}."
    release = Release.objects.filter(version=settings.VERSION, commit=settings.COMMIT).first()
    if release is None:
        release, _ = rules.register(settings.VERSION, settings.COMMIT, built_at or timezone.now(), image=image)
    deployment = rules.create(
        environment.name,
        release.version,
        Deployment.Strategy.ROLLING,
        actor,
        hotfix=environment.promotes_from.exists() or environment.approvals > 0,
        break_glass=environment.approvals > 0,
        reason=LATER if live else FIRST,
    )
    rules.start(deployment.pk)
    rules.step(deployment.pk, steps.START, "succeeded")
    rules.finish(deployment.pk, Deployment.Status.SUCCEEDED)
    return f"Release {release} is recorded as live in {environment}: deployment {deployment.pk}."


def moment(text: str) -> datetime | None:
    """Raises argparse.ArgumentTypeError."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time with its zone, such as 2026-01-31T09:15:00+00:00")
    return found
