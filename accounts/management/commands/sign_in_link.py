"""manage.py sign_in_link: a way in that needs neither the OpenID provider nor mail."""

from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser

from accounts import links
from accounts.models import User
from audit import record
from audit.actions import Action
from health.management.base import DocumentedCommand

EXAMPLES = """\
examples:
  manage.py sign_in_link ada@example.com

The link works once, for ten minutes. A second factor is still asked for; manage.py second_factor reset removes it.
exit codes: 0 done; 1 no such account; 2 usage error.
"""


class Command(DocumentedCommand):
    examples = EXAMPLES
    help = "Print a link that signs in to an account once, for when the OpenID provider is down."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("email", help="the account's primary address")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(email=options["email"].lower(), is_active=True).first()
        if user is None:
            raise CommandError(f"No active account has the address {options['email']}.")
        record(Action.LINK_MADE, actor="manage.py sign_in_link", target=user.email)
        self.stdout.write(f"{settings.SITE_URL}{links.path_for(user)}")
