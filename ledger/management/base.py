"""What the commands that read the ledger have in common."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError
from django.db import Error


@contextmanager
def readable() -> Iterator[None]:
    """Turns an error of the ledger's database into one line. It names no host: that is in the log and the settings."""
    try:
        yield
    except Error as error:
        raise CommandError(
            f"The ledger's database does not answer as expected ({type(error).__name__}). Is it up (manage.py health), "
            "and is it migrated (manage.py migrate)?"
        ) from None
