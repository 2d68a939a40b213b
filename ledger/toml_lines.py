"""The lines of a TOML file's tables and keys, for messages. tomllib tells the line of a syntax error only."""

import re

HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?")


def line_of(text: str, table: str, key: str = "", number: int = 1) -> int:
    """Returns the line, from 1, of `key` in the `number`th table of that name, such as staging.watch.

    That of the table itself if the key is not found or not given, such as in an inline table; that of the table's first
    mention if it has no header; 1 if there is none either.
    """
    here, found, header = "", 0, 0
    for line, content in enumerate(text.splitlines(), 1):
        if match := HEADER.fullmatch(content):
            here = plain(match[2])
            found += here == table
            header = line if here == table and found == number else header
        elif here == table and found == number and key and names(content, key):
            return line
    return (
        header or mention(text, f"{table}.{key}" if key else table, key) or mention(text, table.partition(".")[0], key)
    )


def names(content: str, key: str) -> bool:
    """Tells whether the line sets `key`, or a key within it."""
    return re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""", content) is not None


def mention(text: str, path: str, key: str) -> int:
    """Returns the first line that sets `path` with dots or begins a table within it; else 1 without a `key`, or 0."""
    for line, content in enumerate(text.splitlines(), 1):
        left = plain(content.strip().lstrip("[").partition("=")[0].rstrip("] "))
        if left == path or left.startswith(f"{path}."):
            return line
    return 0 if key else 1


def plain(name: str) -> str:
    """Returns a dotted name without quotes and blanks."""
    return ".".join(part.strip().strip("\"'") for part in name.split("."))
