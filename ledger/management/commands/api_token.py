"""manage.py api_token: create, list, rotate and revoke the tokens that pipelines send to the API."""

import sys
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser
from django.db import IntegrityError
from django.utils import timezone
from rich.text import Text

from audit.operators import holder
from health.management import tables
from health.management.base import DocumentedCommand
from ledger import tokens
from ledger.management.base import readable
from ledger.environments import names
from ledger.models import ApiToken, Environment

EXAMPLES = """\
examples:
  manage.py api_token create build --register
  manage.py api_token create deploy-staging --environment testing --environment staging
  manage.py api_token create deploy-production --environment production --days 90
  manage.py api_token create ci --environment testing | gh secret set LEDGER_TOKEN
  manage.py api_token create rescue --environment production --take-over --days 1
  manage.py api_token list
  manage.py api_token rotate deploy-staging
  manage.py api_token revoke deploy-staging

The token alone is printed to standard output, once; only its SHA-256 is stored.
exit codes: 0 done; 1 token not found, or the name is taken; 2 usage error.
"""


class Command(DocumentedCommand):
    examples = EXAMPLES
    help = "Create, list, rotate and revoke API tokens."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        create = actions.add_parser("create", help="create a token and show it, once")
        create.add_argument("name", help="the pipeline that uses it; the actor of deployments that name none")
        create.add_argument(
            "--environment",
            action="append",
            default=[],
            choices=names(),
            help="where it may create and continue deployments; repeatable",
        )
        create.add_argument("--register", action="store_true", help="allow it to register releases")
        create.add_argument(
            "--take-over",
            action="store_true",
            help="allow it to continue and finish deployments in its environments that others created",
        )
        create.add_argument("--days", type=int, help="days until it expires (default: never)")
        actions.add_parser("list", help="list all tokens with their rights and last use")
        rotate = actions.add_parser("rotate", help="replace a token's secret; its name, rights and deployments stay")
        rotate.add_argument("name")
        rotate.add_argument("--days", type=int, help="days from now until it expires (default: unchanged)")
        revoke = actions.add_parser(
            "revoke", help="revoke a token; its name stays taken, so that the history is unambiguous"
        )
        revoke.add_argument("name")

    def handle(self, *args: Any, **options: Any) -> None:
        with readable():
            getattr(self, options["action"])(options)

    def create(self, options: dict[str, Any]) -> None:
        name = options["name"].strip()
        try:
            ApiToken(name=name).clean_fields(exclude={each.name for each in ApiToken._meta.fields} - {"name"})
        except ValidationError as error:
            detail = f"The name {name!r} is not valid. {error.messages[0]} Expected a name such as deploy-staging."
            raise CommandError(detail, returncode=2) from None
        if not options["environment"] and not options["register"]:
            raise CommandError(
                "A token without rights is useless. Add --environment, --register or both.", returncode=2
            )
        if options["take_over"] and not options["environment"]:
            raise CommandError("--take-over requires --environment.", returncode=2)
        environments = Environment.objects.filter(name__in=options["environment"])
        rights = {"may_register": options["register"], "may_take_over": options["take_over"]}
        try:
            self.show(*tokens.make(name, environments, ends(options["days"]), actor=holder(), **rights))
        except IntegrityError:
            raise CommandError(f"A token named {name} already exists. Choose another name.") from None

    def rotate(self, options: dict[str, Any]) -> None:
        name = options["name"]
        try:
            self.show(*tokens.rotate(name, ends(options["days"]), actor=holder()))
        except ApiToken.DoesNotExist:
            raise CommandError(
                f"No active token {name}. List the tokens with manage.py api_token list; --days renews an expired one."
            ) from None

    def show(self, row: ApiToken, token: str) -> None:
        """Prints the token's rights to standard error, and the token alone to standard output."""
        until = f"until {row.expires:%Y-%m-%d %H:%M}Z" if row.expires else "until it is revoked"
        self.stderr.write(
            f"Token {row}: {', '.join(rights_of(row))}; valid {until}. It is shown only now:",
            self.style.SUCCESS if sys.stderr.isatty() else str,  # NOTICE is red, as errors are
        )
        self.stdout.write(token)

    def list(self, options: dict[str, Any]) -> None:
        rows = list(ApiToken.objects.prefetch_related("environments"))
        if not rows:
            self.stdout.write("No tokens yet. Create one: manage.py api_token create NAME --environment staging")
            return
        now, cells = timezone.now(), []
        for row in rows:
            state = row.state(now)
            style = {"active": "green", "expired": "yellow"}.get(state, "red")
            cells.append(
                {
                    "Name": Text(row.name),
                    "State": Text(state, style),
                    "Rights": Text(", ".join(rights_of(row))),
                    "Created": Text(moment(row.created)),
                    "Expires": Text(moment(row.expires)),
                    "Last used": Text(moment(row.last_used)),
                }
            )
        tables.show(self.stdout, options, cells, spare=("Created", "Last used"), right=())

    def revoke(self, options: dict[str, Any]) -> None:
        try:
            ended = tokens.revoke(options["name"], actor=holder())
        except ApiToken.DoesNotExist:
            raise CommandError(
                f"Token {options['name']} not found. List the tokens with manage.py api_token list."
            ) from None
        self.stdout.write(f"Token {options['name']} {'is revoked' if ended else 'was already revoked'}.")


def moment(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M}Z" if at else "never"


def ends(days: int | None) -> datetime | None:
    """Returns the time `days` days from now; None for None. Raises CommandError."""
    if days is not None and not 1 <= days <= 3650:
        raise CommandError(f"--days {days} is not valid; expected 1 to 3650.", returncode=2)
    return timezone.now() + timedelta(days=days) if days else None


def rights_of(row: ApiToken) -> list[str]:
    """Returns what the token may do: environments, register, take over."""
    rights = [each.name for each in row.environments.all()]
    return rights + ["register"] * row.may_register + ["take over"] * row.may_take_over
