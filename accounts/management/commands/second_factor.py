"""manage.py second_factor: for somebody who has lost their device and their recovery codes."""

from typing import Any

from allauth.mfa.models import Authenticator
from django.core.management.base import CommandError, CommandParser
from django.db import transaction

from accounts import sessions
from accounts.models import User
from audit import record
from audit.actions import Action
from health.management.base import DocumentedCommand

EXAMPLES = """\
examples:
  manage.py second_factor reset ada@example.com

Be sure who asks: afterwards the password, or the sign-on of your provider, is enough to sign in to the account.
exit codes: 0 done; 1 no such account; 2 usage error.
"""


class Command(DocumentedCommand):
    examples = EXAMPLES
    help = "Remove an account's authenticator app, passkeys and recovery codes, and end its sessions."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        reset = actions.add_parser("reset", help="remove all second factors of an account")
        reset.add_argument("email", help="the account's primary address")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(email=options["email"].lower()).first()
        if user is None:
            raise CommandError(f"No account has the address {options['email']}.")
        with transaction.atomic():
            removed = Authenticator.objects.filter(user=user).delete()[0]
            record(Action.FACTORS_RESET, actor="manage.py second_factor", target=user.email)
        ended = sessions.end_all(user)
        self.stdout.write(f"Second factors removed: {removed}. Sessions ended: {ended}.")
