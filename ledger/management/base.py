"""What the commands of the ledger and of the deployer have in common."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error
from rich.console import Console


class DocumentedCommand(BaseCommand):
    """A command whose --help ends with `examples` and `exit_codes`, line by line as they are written."""

    examples = ""
    exit_codes = ""

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Returns Django's parser, which would wrap the lines, with a formatter that keeps them."""
        kwargs |= {"epilog": self.examples + self.exit_codes, "formatter_class": argparse.RawDescriptionHelpFormatter}
        return super().create_parser(prog_name, subcommand, **kwargs)


def console(out: Any, *, no_color: bool, force_color: bool, pipe_width: int) -> Console:
    """Returns rich's console on `out`, in colour as Django's options say, `pipe_width` columns wide off a terminal."""
    found = Console(file=out, no_color=no_color or None, force_terminal=force_color or None, highlight=False)
    if not found.is_terminal:
        found.width = pipe_width
    return found


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
