"""People with roles, for the tests of pages and of the API."""

from itertools import count

from accounts import roles
from accounts.models import User
from accounts.roles import EVERYWHERE, Role

numbers = count(1)


def member(role: Role | str | None, environment: str | None = None) -> User:
    """A new person with `role` in `environment`, or everywhere; without a role for None. Has no password."""
    name = f"{role or 'nobody'}-{next(numbers)}"
    user = User.objects.create_user(f"{name}@example.com", display_name=name)
    user.emailaddress_set.create(email=user.email, verified=True, primary=True)
    if role:
        roles.assign(user, Role(role), environment or EVERYWHERE)
    return user
