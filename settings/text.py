"""The one rule for text that people and machines enter: what forms, the API, commands and the database accept.

Feeds are XML and rows are PostgreSQL's, so a character that either cannot represent is rejected on input; later it
would break a page for everyone. Direction overrides are rejected because they make text look like something else
(https://trojansource.codes/). Characters of XML: https://www.w3.org/TR/xml/#charsets
"""

import re
import unicodedata

from django.core.exceptions import ValidationError

# Control characters, lone surrogates, noncharacters, and the embeddings, overrides and isolates of bidirectional text.
NEVER = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
    + "\u202a-\u202e\u2066-\u2069"
)
BREAKS = "\t\n\r\u2028\u2029"  # tabs and line breaks, which a single line cannot have
FORBIDDEN = re.compile(f"[{NEVER}]")
FORBIDDEN_IN_A_LINE = re.compile(f"[{NEVER}{BREAKS}]")
JOINERS = "\u200c\u200d"  # join letters in Persian and other scripts, and the parts of an emoji


def lines(value: str) -> None:
    """Validates text of any number of lines. Raises ValidationError naming the first character that is not allowed."""
    reject(FORBIDDEN, value)


def one_line(value: str) -> None:
    """Validates text of one line. Raises ValidationError naming the first character that is not allowed."""
    reject(FORBIDDEN_IN_A_LINE, value)


def name(value: str) -> None:
    """Validates a name that people tell things apart by: one line without invisible characters, because two names that
    differ in nothing else look the same. Raises ValidationError.
    """
    one_line(value)
    for position, character in enumerate(value):
        if unicodedata.category(character) == "Cf" and character not in JOINERS:
            raise rejection(character, position)


def reject(forbidden: re.Pattern[str], value: str) -> None:
    """Raises ValidationError at the first match of `forbidden`."""
    if found := forbidden.search(value):
        raise rejection(found[0], found.start())


def rejection(character: str, position: int) -> ValidationError:
    """Returns the error that names a character and its position, counted from 0."""
    called = unicodedata.name(character, "a line break or tab" if character in BREAKS else "a control character")
    return ValidationError(
        f"Contains U+{ord(character):04X} ({called}) at position {position + 1}, which is not allowed. Remove it.",
        code="unfit_character",
    )


def clean(value: str, limit: int) -> str:
    """Returns `value` reduced to one valid line of at most `limit` characters, for text that must never be rejected.

    Breaks and control characters become spaces, other forbidden characters are removed, and what is too long ends in
    an ellipsis.
    """
    spaced = re.sub(f"[\x00-\x1f\x7f-\x9f{BREAKS}]+", " ", value)
    fit = FORBIDDEN.sub("", spaced).strip()
    return fit if len(fit) <= limit else fit[: limit - 1].rstrip() + "…"
