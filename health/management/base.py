"""What all commands have in common. It is here because health is the lowest room with commands, and knows no other."""

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandParser, DjangoHelpFormatter
from rich.console import Console

PIPE_WIDTH = 400  # columns where the output is not a terminal: no line of a message or table is wrapped


class HelpFormatter(DjangoHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Django's, with a command's own options first, but without wrapping the text after them."""


class DocumentedCommand(BaseCommand):
    """A command whose --help ends with `examples` and `exit_codes`, line by line as they are written."""

    examples = ""
    exit_codes = ""

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Returns the parser of the command's options."""
        kwargs |= {"epilog": self.examples + self.exit_codes, "formatter_class": HelpFormatter}
        return super().create_parser(prog_name, subcommand, **kwargs)


def console(out: Any, *, no_color: bool = False, force_color: bool = False) -> Console:
    """Returns rich's console on `out`, in colour on a terminal, or as Django's --no-color and --force-color say."""
    found = Console(file=out, no_color=no_color or None, force_terminal=force_color or None, highlight=False)
    if not found.is_terminal:
        found.width = PIPE_WIDTH
    return found
