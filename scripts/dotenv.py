"""Reads .env as docker compose does and prints NAME=VALUE pairs, each terminated by NUL, for ./run.

https://docs.docker.com/compose/how-tos/environment-variables/variable-interpolation/#env-file-syntax
It runs before there is a .venv, so it uses Python's standard library only and runs on any Python 3. It exits with 2 and
a one-line message if the file is not valid.
"""

import os
import re
import sys
from typing import Mapping

LINE = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*[=:][ \t]*")
VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|(?P<plain>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"(?:(?P<how>:?[-+?])(?P<word>(?:[^{}]|\{[^{}]*\})*))?\})"
)
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$$"}


class Unreadable(Exception):
    """A line is not valid. The message says which and why, and does not contain the value."""


def read(text: str, environment: "Mapping[str, str]") -> "dict[str, str]":
    """Returns the variables in `text`. In ${NAME}, the environment takes precedence. Raises Unreadable."""
    text = text.lstrip("\ufeff").replace("\r\n", "\n")
    found = {}  # type: dict[str, str]
    position = 0
    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        line = text[position:end]
        match = LINE.match(line)
        if not match:  # empty, a comment, or a name alone, whose value comes from the environment
            position = end + 1
            continue
        number = text.count("\n", 0, position) + 1
        start = position + match.end()
        if text[start : start + 1] in ('"', "'"):
            value, position = quoted(text, start, number)
            literal = text[start] == "'"
        else:
            value = text[start:end].partition(" #")[0].strip()
            position, literal = end + 1, False
        found[match[1]] = value if literal else substitute(value, environment, found, number)
    return found


def quoted(text: str, start: int, number: int) -> "tuple[str, int]":
    """Returns the quoted value at `start`, which may span lines, and where the next line begins. Raises Unreadable."""
    quote, place = text[start], start + 1
    parts = []  # type: list[str]
    while text[place : place + 1] not in ("", quote):
        if text[place] == "\\" and quote == '"':
            after = text[place + 1 : place + 2]
            parts.append(ESCAPES.get(after, "\\" + after))
            place += 2
        elif text[place] == "\\" and text[place + 1 : place + 2] == quote:
            parts.append(quote)
            place += 2
        else:
            parts.append(text[place])
            place += 1
    if place >= len(text):
        raise Unreadable("line %d has no closing %s" % (number, quote))
    end = text.find("\n", place)
    end = len(text) if end < 0 else end
    rest = text[place + 1 : end].strip()
    if rest and not rest.startswith("#"):
        raise Unreadable("line %d has text after the closing %s" % (number, quote))
    return "".join(parts), end + 1


def substitute(value: str, environment: "Mapping[str, str]", found: "Mapping[str, str]", number: int) -> str:
    """Returns `value` with $NAME and ${NAME} replaced, and $$ as $. Raises Unreadable for ${NAME?MESSAGE}."""

    def one(match: "re.Match[str]") -> str:
        if match["escaped"]:
            return "$"
        name, how, word = match["plain"] or match["name"], match["how"] or "", match["word"] or ""
        known = environment.get(name, found.get(name))
        there = bool(known) if how.startswith(":") else known is not None
        if how.endswith("-") and not there:
            return substitute(word, environment, found, number)
        if how.endswith("+"):
            return substitute(word, environment, found, number) if there else ""
        if how.endswith("?") and not there:
            raise Unreadable("line %d requires %s: %s" % (number, name, word or "it is not set"))
        return known or ""

    return VARIABLE.sub(one, value)


def main() -> None:
    with open(sys.argv[1], encoding="utf-8-sig", newline="") as file:
        found = read(file.read(), os.environ)
    for name, value in found.items():
        if name not in os.environ and re.match("[A-Za-z_][A-Za-z0-9_]*$", name):  # a shell can export no other name
            sys.stdout.write("%s=%s\0" % (name, value))


if __name__ == "__main__":
    try:
        main()
    except (Unreadable, OSError, UnicodeDecodeError) as error:
        sys.stderr.write("%s is not readable: %s. See .env.example.\n" % (sys.argv[1], error))
        sys.exit(2)
