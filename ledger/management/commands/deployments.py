"""manage.py deployments: the history, as a table or as JSON lines."""

import json
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone
from rich.text import Text

from health.management import tables
from health.management.base import DocumentedCommand
from ledger.humanize import age, took
from ledger.management.base import readable
from ledger.models import Deployment, Environment

EXAMPLES = """\
examples:
  manage.py deployments                                          the last 20, of all environments
  manage.py deployments --environment production --limit 5
  manage.py deployments --status failed --json | jq .release     one JSON object per line

exit codes: 0 done, also when there is nothing to show; 1 the ledger cannot be read; 2 usage error.
"""
COLOURS = {
    "waiting": "yellow",
    "rejected": "red",
    "expired": "dim",
    "succeeded": "green",
    "failed": "red",
    "rolled_back": "yellow",
    "running": "cyan",
    "pending": "dim",
}
SIGNS = {
    "waiting": "?",
    "rejected": "x",
    "expired": "-",
    "succeeded": "+",
    "failed": "x",
    "rolled_back": "<",
    "running": ">",
    "pending": ".",
}  # without colour, too


class Command(DocumentedCommand):
    examples = EXAMPLES
    help = "List deployments, newest first."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("-e", "--environment", metavar="NAME", help="only this environment, also a former one")
        parser.add_argument("--status", choices=Deployment.Status.values, help="only this status")
        parser.add_argument("--limit", type=int, default=20, help="maximum number (default 20)")
        parser.add_argument("--json", action="store_true", help="print one JSON object per line")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["limit"] < 1:
            raise CommandError(f"--limit {options['limit']} is not valid; expected 1 or more.", returncode=2)
        found = Deployment.objects.select_related("environment", "release", "previous__release").newest_first()
        with readable():
            known = list(Environment.objects.values_list("name", flat=True))
            if options["environment"] and options["environment"] not in known:
                detail = f"--environment {options['environment']} is not valid; expected one of {', '.join(known)}."
                raise CommandError(detail, returncode=2)
            rows = list(
                found.matching(environment=options["environment"], status=options["status"])[: options["limit"]]
            )
        if options["json"]:
            for row in rows:
                self.stdout.write(json.dumps(as_dict(row)))
        elif rows:
            self.show(rows, options)
        elif options["environment"] or options["status"]:
            self.stdout.write("No matching deployments. Leave out --environment or --status to see more.")
        else:
            self.stdout.write(
                "No deployments yet. A pipeline reports them to /api/ (docs/api.md); create its token with\n"
                "  manage.py api_token create NAME --environment staging\n"
                "or load mock data for development with\n"
                "  manage.py demo_data --profile mock"
            )

    def show(self, rows: list[Deployment], options: dict[str, Any]) -> None:
        now = timezone.now()
        cells = []
        for row in rows:
            kind = "hotfix" if row.hotfix else "rollback" if row.kind == Deployment.Kind.ROLLBACK else row.strategy
            cells.append(
                {
                    "Id": Text(str(row.pk)),
                    "When": Text(age(now, row.created)),
                    "Environment": Text(row.environment.name),
                    "Version": Text(row.release.version),
                    "Commit": Text(row.release.short_commit),
                    "Kind": Text(kind),
                    "Status": Text(f"{SIGNS[row.status]} {Deployment.Status(row.status).label}", COLOURS[row.status]),
                    "Took": Text(took(row.duration)),
                    "Actor": Text(row.actor),
                }
            )
        tables.show(self.stdout, options, cells, spare=("Commit", "Took", "Kind", "Actor"), right=("Id", "Took"))


def as_dict(row: Deployment) -> dict[str, Any]:
    times = {
        name: value and value.isoformat()
        for name in ("created", "started", "finished")
        for value in [getattr(row, name)]
    }
    return {
        "id": row.pk,
        "environment": row.environment.name,
        "release": row.release.version,
        "commit": row.release.commit,
        "kind": row.kind,
        "strategy": row.strategy,
        "hotfix": row.hotfix,
        "reason": row.reason,
        "status": row.status,
        "actor": row.actor,
        "token": row.token,
        "finished_token": row.finished_token,
        "previous": row.previous.release.version if row.previous else None,
        **times,
        "duration_seconds": None if row.duration is None else row.duration.total_seconds(),
        "failed_requests": row.failed_requests,
        "run_url": row.run_url,
        "revision": row.revision,
    }
