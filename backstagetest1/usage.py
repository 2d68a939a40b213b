"""Usage errors of manage.py commands: one line with a suggestion, and exit code 2.

argparse prints the whole usage before the line that matters. manage.py replaces that with complain() for all commands,
Django's own included.
"""

import re
import sys
from argparse import _SubParsersAction
from collections.abc import Iterator
from difflib import get_close_matches
from typing import NoReturn

from django.core.management import CommandError
from django.core.management.base import CommandParser

CHOICE = re.compile(r"argument (?P<name>.+?): invalid choice: (?P<given>.*) \(choose from (?P<known>.*)\)")


def complain(parser: CommandParser, message: str) -> NoReturn:
    """Prints the error and exits with 2. Raises CommandError instead if a program called the command."""
    text = f"{parser.prog}: {reworded(parser, message)}"
    if not parser.called_from_command_line:
        raise CommandError(text, returncode=2)
    sys.stderr.write(f"{text} See {parser.prog} --help.\n")
    sys.exit(2)


def reworded(parser: CommandParser, message: str) -> str:
    """Returns argparse's message as what was wrong, the closest match, and what was expected."""
    if found := CHOICE.fullmatch(message):
        given, known = found["given"].strip("'"), [each.strip("'") for each in found["known"].split(", ")]
        name = found["name"].rpartition("/")[2]
        return f"{name} {given!r} is not valid.{did_you_mean(given, known)} Expected {', '.join(known)}."
    head, _, rest = message.partition(": ")
    if head == "unrecognized arguments":
        word = rest.split()[0]
        if word.startswith("-"):
            name = word.partition("=")[0]
            return f"Unknown option {name}.{did_you_mean(name, list(options(parser)))}"
        return f"Unexpected argument {word!r}."
    if head == "the following arguments are required":
        return f"Missing {rest}."
    return f"{message.removeprefix('argument ').rstrip('.')}."


def did_you_mean(given: str, known: list[str]) -> str:
    """Returns a suggestion, with a blank before it, or "" if nothing is close."""
    close = get_close_matches(given, known, 1)
    return f" Did you mean {close[0]}?" if close else ""


def options(parser: CommandParser) -> Iterator[str]:
    """Yields the options of a command and of its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, _SubParsersAction):
            for each in action.choices.values():
                yield from options(each)
