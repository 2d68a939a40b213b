"""manage.py api_token: make, list and revoke the tokens with which pipelines write to the ledger."""

import argparse
import sys
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import IntegrityError
from django.utils import timezone
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy import tokens
from deploy.management.base import readable
from deploy.models import ApiToken, Environment

EXAMPLES = """\
examples:
  manage.py api_token create deploy-staging --environment testing --environment staging
  manage.py api_token create deploy-production --environment production --days 90
  manage.py api_token create ci --environment testing | gh secret set LEDGER_TOKEN
  manage.py api_token list
  manage.py api_token revoke deploy-staging

The token alone goes to standard output, once; it is kept nowhere, only its SHA-256 is.
exit codes: 0 done; 1 no such token, or a name that is taken; 2 wrong usage.
"""


class Command(BaseCommand):
    help = "Make, list and revoke API tokens."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        kwargs |= {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
        return super().create_parser(prog_name, subcommand, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        create = actions.add_parser("create", help="make a token and show it, once")
        create.add_argument("name", help="which pipeline it is for; deployments without an actor show it")
        create.add_argument(
            "--environment",
            action="append",
            required=True,
            choices=Environment.Name.values,
            help="where it may deploy to; may be given several times",
        )
        create.add_argument("--days", type=int, help="for how long it is valid (default: until it is revoked)")
        actions.add_parser("list", help="show all tokens: where they are for, when they were used last")
        revoke = actions.add_parser("revoke", help="end a token; its name stays taken, so that the history is clear")
        revoke.add_argument("name")

    def handle(self, *args: Any, **options: Any) -> None:
        with readable():
            getattr(self, options["action"])(options)

    def create(self, options: dict[str, Any]) -> None:
        name, days = options["name"].strip(), options["days"]
        if not name or len(name) > 100 or not name.isprintable():
            raise CommandError("The name is 1 to 100 printable characters, such as deploy-staging.", returncode=2)
        if days is not None and not 1 <= days <= 3650:
            raise CommandError("--days is a number from 1 to 3650.", returncode=2)
        places = list(Environment.objects.filter(name__in=options["environment"]))
        expires = timezone.now() + timedelta(days=days) if days else None
        try:
            row, token = tokens.make(name, places, expires)
        except IntegrityError:
            raise CommandError(f"There is a token {name} already: choose another name.") from None
        until = f"until {expires:%Y-%m-%d %H:%M}Z" if expires else "until it is revoked"
        self.stderr.write(
            f"Token {row} for {', '.join(place.name for place in places)}, valid {until}. It is shown only now:",
            self.style.NOTICE if sys.stderr.isatty() else str,
        )
        self.stdout.write(token)

    def list(self, options: dict[str, Any]) -> None:
        rows = list(ApiToken.objects.prefetch_related("environments"))
        if not rows:
            self.stdout.write("No tokens yet. Make one: manage.py api_token create NAME --environment staging")
            return
        console = Console(
            file=self.stdout,  # type: ignore[arg-type]
            no_color=options["no_color"] or None,
            force_terminal=options["force_color"] or None,
            highlight=False,
        )
        if not console.is_terminal:
            console.width = 200
        table = Table("Name", "State", "Environments", "Made", "Expires", "Last used", box=None, pad_edge=False)
        now = timezone.now()
        for row in rows:
            state = row.state(now)
            times = (
                f"{time:%Y-%m-%d %H:%M}Z" if time else "never" for time in (row.created, row.expires, row.last_used)
            )
            places = ", ".join(place.name for place in row.environments.all())
            style = {"active": "green", "expired": "yellow"}.get(state, "red")
            table.add_row(Text(row.name), Text(state, style), Text(places), *times)
        console.print(table)

    def revoke(self, options: dict[str, Any]) -> None:
        try:
            ended = tokens.revoke(options["name"])
        except ApiToken.DoesNotExist:
            raise CommandError(
                f"There is no token {options['name']}. manage.py api_token list shows those that are."
            ) from None
        self.stdout.write(f"Token {options['name']} {'is revoked' if ended else 'was revoked already'}.")
