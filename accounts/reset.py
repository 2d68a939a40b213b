"""Links that reset a password: the newest one alone works, once, and for the address that it was sent to."""

import secrets

from django.contrib.auth.tokens import PasswordResetTokenGenerator

from accounts import addresses
from accounts.models import ResetLink, User


def renew(user: User, address: str) -> None:
    """Ends the link that `user` has been sent; the next token is for a link sent to `address`."""
    ResetLink.objects.update_or_create(user=user, defaults={"address": address, "nonce": secrets.token_hex(16)})


class ResetTokens(PasswordResetTokenGenerator):
    """Django's tokens, bound to the link that was asked for last. allauth takes them by its settings."""

    def _make_hash_value(self, user: User, timestamp: int) -> str:
        link = ResetLink.objects.filter(user=user).first()
        bound = f"{link.address} {link.nonce}" if link else ""
        return f"{super()._make_hash_value(user, timestamp)} {bound}"

    def check_token(self, user: User | None, token: str | None) -> bool:
        """Whether `token` is that of the newest link, and the address that it was sent to is still the user's."""
        link = ResetLink.objects.filter(user=user).first() if user else None
        return bool(user and link and addresses.is_of(link.address, user) and super().check_token(user, token))
