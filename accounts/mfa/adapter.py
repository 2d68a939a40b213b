"""Overrides of allauth.mfa's behaviour: https://docs.allauth.org/en/latest/mfa/adapter.html"""

import logging
from typing import Any
from urllib.parse import urlsplit

from allauth.core import context as allauth_context
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.models import Authenticator
from django.shortcuts import render

from accounts.adapter import origin
from accounts.mfa import requirement, sealing
from accounts.models import User

logger = logging.getLogger(__name__)


class MFAAdapter(DefaultMFAAdapter):  # type: ignore[misc]
    error_messages = DefaultMFAAdapter.error_messages | {
        "cannot_delete_authenticator": "Your role requires a second factor. Add another one before you remove this.",
        "incorrect_code": "This code is not correct. Wait for the next one, and check the clock of your device.",
        "incorrect_passkey": "This passkey could not be verified. Try again, or use another way to sign in.",
        "unverified_email": "Verify or remove your unverified email addresses before you set up a second factor.",
    }

    def encrypt(self, text: str) -> str:
        return sealing.seal(text)

    def decrypt(self, encrypted_text: str) -> str:
        """Returns the secret. If it cannot be read, the request is answered with a page that says so (503)."""
        try:
            return sealing.unseal(encrypted_text)
        except sealing.Unreadable:
            logger.error("Cannot read the secret of a second factor: SECRET_KEY was changed without a fallback")
            page = render(allauth_context.request, "mfa/unreadable.html", status=503)
            raise ImmediateHttpResponse(page) from None

    def can_delete_authenticator(self, authenticator: Authenticator) -> bool:
        return not (requirement.is_required(authenticator.user) and requirement.is_last(authenticator))

    def generate_authenticator_name(self, user: User, type: Authenticator.Type) -> str:
        number = Authenticator.objects.filter(user=user, type=type).count() + 1
        return f"Passkey {number}" if number > 1 else "Passkey"

    def get_public_key_credential_rp_entity(self) -> dict[str, Any]:
        """Returns the site that passkeys are bound to: the host of SITE_URL, or else of the request."""
        host = urlsplit(origin(allauth_context.request)).hostname
        return {"id": host, "name": "backstagetest1"}
