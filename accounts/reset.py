"""Password reset links: only the latest works, once, and only while its address belongs to the user."""

import secrets

from django.contrib.auth.tokens import PasswordResetTokenGenerator

from accounts import addresses
from accounts.models import ResetLink, User


def renew(user: User, address: str) -> None:
    """Invalidates the user's previous link; the next token is for a link sent to `address`."""
    ResetLink.objects.update_or_create(user=user, defaults={"address": address, "nonce": secrets.token_hex(16)})


class ResetTokens(PasswordResetTokenGenerator):
    """Django's tokens, bound to the latest link. allauth uses them by its PASSWORD_RESET_TOKEN_GENERATOR setting."""

    def _make_hash_value(self, user: User, timestamp: int) -> str:
        link = ResetLink.objects.filter(user=user).first()
        bound = f"{link.address} {link.nonce}" if link else ""
        return f"{super()._make_hash_value(user, timestamp)} {bound}"

    def check_token(self, user: User | None, token: str | None) -> bool:
        """Returns whether `token` is that of the latest link and its address still belongs to the user."""
        link = ResetLink.objects.filter(user=user).first() if user else None
        return bool(user and link and addresses.belongs_to(link.address, user) and super().check_token(user, token))
