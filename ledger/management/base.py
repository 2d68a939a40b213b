"""What the commands that read the ledger's database have in common."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError
from django.db import Error


@contextmanager
def readable() -> Iterator[None]:
    """Turns a database error into a CommandError of one line. It names no host: that is in the log and the settings."""
    try:
        yield
    except Error as error:
        raise CommandError(
            f"Cannot read the ledger's database ({type(error).__name__}). Check that it is up (manage.py health) and "
            "migrated (manage.py migrate)."
        ) from None
