"""manage.py audit: what was done, as a table, JSON lines or CSV; and the purge of what is older than the retention."""

import csv
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.db import Error
from django.utils import timezone
from rich.text import Text

from audit import retention, table
from audit.actions import Action
from audit.models import Entry
from health.management import moments, tables
from health.management.base import DocumentedCommand

EXAMPLES = """\
examples:
  manage.py audit                                               the last 7 days
  manage.py audit --since 30d --action sign_in_failed
  manage.py audit --since 2026-11-01 --until 2026-12-01 --csv > november.csv
  manage.py audit --actor alice@example.com --environment production --json
  manage.py audit --purge                                       delete what is older than AUDIT_RETENTION_DAYS

exit codes: 0 done, also when there is nothing to show; 1 the database cannot be used; 2 usage error.
"""
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
LIMIT = 200  # entries of the table


class Command(DocumentedCommand):
    examples = EXAMPLES
    help = "List what people and pipelines did, newest first."

    def add_arguments(self, parser: CommandParser) -> None:
        when = "an age such as 12h or 7d, or a time such as 2026-11-29 or 2026-11-29T16:00Z; without a zone UTC"
        parser.add_argument("--since", default="7d", help=f"only entries since then: {when} (default 7d)")
        parser.add_argument("--until", help="only entries before then")
        parser.add_argument("--action", choices=Action.values, metavar="ACTION", help=f"one of {', '.join(Action)}")
        parser.add_argument("--actor", help="only of this email address or token")
        parser.add_argument("-e", "--environment", help="only of this environment")
        form = parser.add_mutually_exclusive_group()
        form.add_argument("--json", action="store_true", help="print one JSON object per line")
        form.add_argument("--csv", action="store_true", help="print CSV")
        form.add_argument("--purge", action="store_true", help="delete entries older than AUDIT_RETENTION_DAYS")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if options["purge"]:
                self.purge()
            else:
                self.search(options)
        except Error as error:
            raise CommandError(
                f"Cannot use the audit log ({type(error).__name__}). Check that the database is up (manage.py health) "
                "and migrated (manage.py migrate)."
            ) from None

    def purge(self) -> None:
        wanted = settings.AUDIT_RETENTION_DAYS
        kept = retention.days()
        count = retention.purge(wanted)
        self.stdout.write(f"Deleted {count} entries." if wanted else "AUDIT_RETENTION_DAYS is 0: entries are kept.")
        if kept != wanted:
            self.stderr.write(
                f"The database keeps entries {f'for {kept} days' if kept else 'for ever'}, AUDIT_RETENTION_DAYS is "
                f"{wanted}. Run manage.py migrate as the owner of the tables to apply the setting."
            )

    def search(self, options: dict[str, Any]) -> None:
        now = timezone.now()
        filters = {name: options[name] for name in ("action", "actor", "environment")}
        filters |= {name: options[name] and moment(f"--{name}", options[name], now) for name in ("since", "until")}
        found = Entry.objects.matching(**filters)
        if options["json"]:
            for entry in table.each(found):
                self.stdout.write(json.dumps(as_dict(entry), ensure_ascii=False))
        elif options["csv"]:
            writer = csv.writer(self.stdout)
            writer.writerow(table.COLUMNS)
            writer.writerows(map(table.row, table.each(found)))
        else:
            self.show(list(found.order_by("-time", "-pk")[: LIMIT + 1]), options)

    def show(self, rows: list[Entry], options: dict[str, Any]) -> None:
        if not rows:
            self.stdout.write("No matching entries. Try an earlier --since, or fewer filters.")
            return
        cells = [
            {
                "Time (UTC)": Text(f"{row.time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"),
                "Action": Text(table.label(row)),
                "Actor": Text(row.actor or "-"),
                "Environment": Text(row.environment),
                "Target": Text(row.target),
                "Address": Text(row.address),
                "Details": Text(table.details(row)),
            }
            for row in rows[:LIMIT]
        ]
        tables.show(self.stdout, options, cells, spare=("Details", "Address", "Environment"), right=())
        if len(rows) > LIMIT:
            self.stdout.write(f"The newest {LIMIT} entries. --json and --csv print all; --until goes further back.")


def moment(option: str, value: str, now: datetime) -> datetime:
    """Returns the time that `value` names: an age before `now`, or a date or time, in UTC unless it says otherwise.

    Raises CommandError.
    """
    if age := re.fullmatch(r"([0-9]{1,4})([mhdw])", value):
        return now - timedelta(**{UNITS[age[2]]: int(age[1])})
    try:
        return moments.moment(value)
    except ValueError:
        raise CommandError(
            f"{option} {value} is not valid; expected an age such as 12h or 7d, or a time such as 2026-11-29 or "
            "2026-11-29T16:00Z.",
            returncode=2,
        ) from None


def as_dict(entry: Entry) -> dict[str, Any]:
    """Returns what --json prints."""
    names = ("action", "actor", "actor_id", "address", "environment", "target", "details")
    return {"id": entry.pk, "time": entry.time.isoformat(), **{name: getattr(entry, name) for name in names}}
