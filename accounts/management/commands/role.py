"""manage.py role: grant, revoke and list roles, also before there is anybody who may use the members page."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import CommandError, CommandParser

from accounts import members, roles
from accounts.models import User
from accounts.roles import EVERYWHERE, Role
from health.management.base import DocumentedCommand

EXAMPLES = """\
examples:
  manage.py role grant ada@example.com maintainer
  manage.py role grant ada@example.com deployer --environment staging
  manage.py role revoke ada@example.com --environment staging
  manage.py role list

A person has at most one role everywhere and one more in each environment; granting another replaces it.
exit codes: 0 done; 1 no such account or environment; 2 usage error.
"""


class Command(DocumentedCommand):
    examples = EXAMPLES
    help = "Grant, revoke and list roles: viewer, deployer, approver, maintainer."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        grant = actions.add_parser("grant", help="give an account a role")
        revoke = actions.add_parser("revoke", help="take an account's role away")
        for each in (grant, revoke):
            each.add_argument("email", help="the account's primary address")
        grant.add_argument("role", choices=Role.values)
        for each in (grant, revoke):
            each.add_argument("--environment", default=EVERYWHERE, help="only there (default: everywhere)")
        actions.add_parser("list", help="list who has a role, and where")

    def handle(self, *args: Any, **options: Any) -> None:
        getattr(self, options["action"])(**options)

    def grant(self, email: str, role: str, environment: str, **_: Any) -> None:
        with refusing():
            members.set_role(account(email), Role(role), known(environment))
        self.stdout.write(f"{email} is {role} {where(environment)}.")

    def revoke(self, email: str, environment: str, **_: Any) -> None:
        with refusing():
            before = members.set_role(account(email), None, environment)
        if before is None:
            raise CommandError(f"{email} has no role {where(environment)}. List the roles with manage.py role list.")
        self.stdout.write(f"{email} no longer has the role {before} {where(environment)}.")

    def list(self, **_: Any) -> None:
        people = roles.with_a_role().order_by("email")
        for user in people:
            held = sorted(roles.held(user).items())
            state = "" if user.is_active else " (suspended)"
            shown = ", ".join(f"{role} {where(environment)}" for environment, role in held)
            self.stdout.write(f"{user.email}{state}: {shown}{' (superuser)' if user.is_superuser else ''}")
        if not people:
            self.stdout.write("Nobody has a role yet. Grant one: manage.py role grant EMAIL maintainer")


@contextmanager
def refusing() -> Iterator[None]:
    """Turns LastMaintainer into a CommandError."""
    try:
        yield
    except members.LastMaintainer as error:
        raise CommandError(str(error)) from None


def account(email: str) -> User:
    """Raises CommandError."""
    try:
        return User.objects.get_by_natural_key(email)
    except User.DoesNotExist:
        raise CommandError(f"No account has the primary address {email}. Check the spelling.") from None


def known(environment: str) -> str:
    """Raises CommandError."""
    if environment and environment not in roles.environments():
        raise CommandError(f"No environment {environment}. Expected one of {', '.join(roles.environments())}.")
    return environment


def where(environment: str) -> str:
    return f"in {environment}" if environment else "everywhere"
