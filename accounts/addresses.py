"""Whose an e-mail address is.

Anybody may type any address. So an address stands for the person who has verified it, or else for the one whose primary
address it is. Another one that has not been verified stands for nobody: it resets no password, signs nobody in, keeps
nobody from signing up, and goes when its owner turns up.
"""

from allauth.account.models import EmailAddress
from django.db.models import QuerySet

from accounts.models import User


def owners(address: str) -> "QuerySet[User]":
    """The person whom `address` stands for, in any case of letters: one at most."""
    address = address.lower()
    verified = User.objects.filter(emailaddress__email=address, emailaddress__verified=True)
    return verified if verified.exists() else User.objects.filter(email=address)


def is_of(address: str, user: User) -> bool:
    """Whether `user` has verified `address`, or has it as the primary one."""
    address = address.lower()
    return user.email == address or user.emailaddress_set.filter(email=address, verified=True).exists()


def release(address: str, *, to: User | None = None) -> None:
    """Takes `address` from those who have added it and not verified it: not from `to`, nor where it is primary."""
    added = EmailAddress.objects.filter(email=address.lower(), verified=False).exclude(user__email=address.lower())
    (added.exclude(user=to) if to else added).delete()


def keep_only_proven(user: User, address: str) -> None:
    """Makes `user` the account of whoever reads `address`, as its password is being reset by a link sent there.

    Addresses that are not verified go. If `address` was not verified either, the others go too: whoever added them has
    never proved to be the owner of the account's address. Sets user.email; the caller saves it.
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
    """Whether somebody other than `user` has `address` as the primary one."""
    return User.objects.filter(email=address).exclude(pk=user.pk).exists()
