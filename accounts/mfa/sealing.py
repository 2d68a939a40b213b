"""Encrypts the secrets of second factors, so that a copy of the database alone does not reveal them.

The key is derived from SECRET_KEY (RFC 5869); while the key is being changed, SECRET_KEY_FALLBACKS are tried as well.
The format is Fernet, which is authenticated: https://github.com/fernet/spec/blob/master/Spec.md
"""

import base64

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.utils.encoding import force_bytes

PURPOSE = b"backstagetest1 second factors"  # another purpose gets another key


class Unreadable(Exception):
    """The text was sealed with a key that is neither SECRET_KEY nor among SECRET_KEY_FALLBACKS, or was changed."""


def seal(text: str) -> str:
    return _keys().encrypt(text.encode()).decode("ascii")


def unseal(sealed: str) -> str:
    """Returns the text. Raises Unreadable."""
    try:
        return _keys().decrypt(sealed.encode()).decode()
    except InvalidToken:
        raise Unreadable from None


def _keys() -> MultiFernet:
    return MultiFernet([_key(secret) for secret in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)])


def _key(secret: str | bytes) -> Fernet:
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=PURPOSE).derive(force_bytes(secret))
    return Fernet(base64.urlsafe_b64encode(derived))
