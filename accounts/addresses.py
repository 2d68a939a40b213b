"""Decides who owns an email address.

Anyone can enter any address. It belongs to the user who has verified it, or else to the one whose primary address it
is. An unverified secondary address belongs to nobody: it cannot reset a password or sign in, does not block a sign-up,
and is removed when its owner verifies it elsewhere.
"""

from allauth.account.models import EmailAddress
from django.db.models import QuerySet

from accounts.models import User


def owners(address: str) -> "QuerySet[User]":
    """Returns the owner of `address`, at most one; upper and lower case are the same."""
    address = address.lower()
    verified = User.objects.filter(emailaddress__email=address, emailaddress__verified=True)
    return verified if verified.exists() else User.objects.filter(email=address)


def belongs_to(address: str, user: User) -> bool:
    """Returns whether `user` has verified `address`, or has it as the primary address."""
    address = address.lower()
    return user.email == address or user.emailaddress_set.filter(email=address, verified=True).exists()


def remove_unverified(address: str, *, keep_for: User | None = None) -> None:
    """Removes the unverified secondary address `address` from every account but that of `keep_for`."""
    added = EmailAddress.objects.filter(email=address.lower(), verified=False).exclude(user__email=address.lower())
    (added.exclude(user=keep_for) if keep_for else added).delete()


def remove_unproven(user: User, address: str) -> None:
    """Removes the addresses of `user` that prove nothing, while its password is reset by a link sent to `address`.

    These are the unverified ones. If `address` itself was unverified, the others go as well: whoever added them has
    never proved that they own the account. Sets user.email; the caller saves it.
    """
    own = user.emailaddress_set
    others = own.exclude(email=address)
    known = own.filter(email=address, verified=True).exists()
    (others.filter(verified=False) if known else others).delete()
    if not EmailAddress.objects.filter(email=address, verified=True).exclude(user=user).exists():
        own.update_or_create(email=address, defaults={"verified": True})
    if not own.filter(email=user.email, verified=True).exists() and not is_primary_elsewhere(address, user):
        user.email = address
    own.update(primary=False)
    own.filter(email=user.email).update(primary=True)


def is_primary_elsewhere(address: str, user: User) -> bool:
    """Returns whether `address` is the primary address of another user."""
    return User.objects.filter(email=address).exclude(pk=user.pk).exists()
