"""manage.py freeze: list, add and end the times in which nothing begins."""

import json
import re
from datetime import datetime, time, timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.utils import timezone
from rich.text import Text

from audit.operators import holder
from health.management import moments, tables
from health.management.base import DocumentedCommand
from ledger import durations, freezes
from ledger.environments import names
from ledger.management.base import readable
from ledger.models import Environment, Freeze
from ledger.weekly import DAYS, Weekly

EXAMPLES = """\
examples:
  manage.py freeze list
  manage.py freeze add -e production --for 2h --reason "Database maintenance"
  manage.py freeze add --all --from 2026-12-23T16:00Z --to 2027-01-04T07:00Z --reason "Holidays"
  manage.py freeze add -e production --weekly "Fri 16:00" "Mon 08:00" --zone Europe/Berlin --reason "Weekend"
  manage.py freeze end 7
  manage.py freeze extend          make the windows of weekly freezes for two years ahead; migrate does as well

In a freeze nothing begins but rollbacks, and hotfixes with --break-glass. What has begun goes on.
exit codes: 0 done, also when there is nothing to list; 1 freeze not found, or no database; 2 usage error.
"""
OF_WEEK = re.compile(r"([A-Za-z]{3})[A-Za-z]* ([0-2][0-9]):([0-5][0-9])")


class Command(DocumentedCommand):
    examples = EXAMPLES
    help = "List, add and end freezes."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        rows = actions.add_parser("list", help="list the freezes that have not ended")
        rows.add_argument("--json", action="store_true", help="print one JSON object per line")
        add = actions.add_parser("add", help="freeze an environment, or all")
        where = add.add_mutually_exclusive_group(required=True)
        where.add_argument("-e", "--environment", choices=names(), help="the environment")
        where.add_argument("--all", action="store_true", help="every environment")
        add.add_argument("--reason", required=True, help="what for; shown on the board")
        when = "such as 2026-12-23T16:00Z; without a zone UTC"
        add.add_argument("--from", dest="starts", metavar="TIME", help=f"when it starts, {when} (default: now)")
        ends = add.add_mutually_exclusive_group(required=True)
        ends.add_argument("--to", dest="ends", metavar="TIME", help=f"when it ends, {when}")
        ends.add_argument("--for", dest="length", metavar="DURATION", help="how long it is, such as 90m or 2d")
        ends.add_argument("--weekly", nargs=2, metavar=("START", "END"), help='each week, such as "Fri 16:00"')
        add.add_argument(
            "--zone", default=settings.TIME_ZONE, help="time zone of --weekly (default %(default)s), by its own clocks"
        )
        add.add_argument("--json", action="store_true", help="print the freeze as JSON")
        end = actions.add_parser("end", help="end a freeze early")
        end.add_argument("number", type=int, help="as freeze list shows it")
        actions.add_parser("extend", help="make the windows of weekly freezes for two years ahead")

    def handle(self, *args: Any, **options: Any) -> None:
        with readable():
            getattr(self, options["action"])(options)

    def list(self, options: dict[str, Any]) -> None:
        now = timezone.now()
        rows = list(freezes.standing(now).select_related("environment"))
        if options["json"]:
            for row in rows:
                self.stdout.write(json.dumps(as_dict(row), ensure_ascii=False))
            return
        if not rows:
            self.stdout.write("No freezes. Add one: manage.py freeze add -e ENVIRONMENT --for 2h --reason TEXT")
            return
        cells = [
            {
                "No.": Text(str(row.pk)),
                "Environment": Text(row.environment.name if row.environment else "all"),
                "When": Text(row.when),
                "Reason": Text(row.reason),
                "Added by": Text(row.actor),
            }
            for row in rows
        ]
        tables.show(self.stdout, options, cells, spare=("Added by",), right=())

    def add(self, options: dict[str, Any]) -> None:
        starts = moment("--from", options["starts"]) if options["starts"] else None
        given: dict[str, Any] = {"starts": starts}
        if options["weekly"]:
            if starts:
                raise CommandError("--from cannot be combined with --weekly.", returncode=2)
            start, end = options["weekly"]
            given = {"weekly": Weekly(*of_week(start), *of_week(end), options["zone"])}
        elif options["length"]:
            given["ends"] = (starts or timezone.now()) + length(options["length"])
        else:
            given["ends"] = moment("--to", options["ends"])
        where = None if options["all"] else Environment.objects.get(name=options["environment"])
        try:
            row = freezes.add(where, options["reason"], holder(), **given)
        except freezes.InvalidFreeze as error:
            raise CommandError(f"The freeze is not valid. {error}", returncode=2) from None
        if options["json"]:
            self.stdout.write(json.dumps(as_dict(row), ensure_ascii=False))
        else:
            name = row.environment.name if row.environment else "every environment"
            self.stdout.write(f"Freeze {row.pk} of {name}: {row.when}. End it early: manage.py freeze end {row.pk}")

    def end(self, options: dict[str, Any]) -> None:
        try:
            ended = freezes.end(options["number"], holder())
        except Freeze.DoesNotExist:
            raise CommandError(
                f"Freeze {options['number']} not found. List the freezes with manage.py freeze list."
            ) from None
        self.stdout.write(f"Freeze {options['number']} {'has ended' if ended else 'had ended already'}.")

    def extend(self, options: dict[str, Any]) -> None:
        self.stdout.write(f"Made {freezes.extend()} windows.")


def moment(option: str, value: str) -> datetime:
    """Returns the time that `value` names, in UTC unless it says otherwise. Raises CommandError."""
    try:
        return moments.moment(value)
    except ValueError:
        raise CommandError(
            f"{option} {value} is not valid; expected a time such as 2026-12-23T16:00Z.", returncode=2
        ) from None


def length(value: str) -> timedelta:
    """Returns the duration. Raises CommandError."""
    try:
        return durations.parse(value)
    except ValueError as error:
        raise CommandError(f"--for {error}", returncode=2) from None


def of_week(value: str) -> tuple[int, time]:
    """Returns weekday and time of "Fri 16:00". Raises CommandError."""
    found = OF_WEEK.fullmatch(value)
    if not found or found[1].capitalize() not in DAYS or int(found[2]) > 23:
        raise CommandError(
            f'--weekly {value!r} is not valid; expected a weekday and a time such as "Fri 16:00".', returncode=2
        )
    return DAYS.index(found[1].capitalize()), time(int(found[2]), int(found[3]))


def as_dict(row: Freeze) -> dict[str, Any]:
    """Returns what --json prints."""
    return {
        "id": row.pk,
        "environment": row.environment.name if row.environment else None,
        "reason": row.reason,
        "starts": row.starts.isoformat() if row.starts else None,
        "ends": row.ends.isoformat() if row.ends else None,
        "weekly": str(row.weekly) if row.weekly else None,
        "added_by": row.actor,
    }
