"""The one rule for text that people and machines enter: what forms, the API, commands and the database may hold.

Feeds are XML and records are PostgreSQL's, so a character that either cannot carry is refused where it is entered:
later it would break a page for everybody. Direction overrides are refused as they make text read as what it is not
(https://trojansource.codes/). XML's characters: https://www.w3.org/TR/xml/#charsets
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
BREAKS = "\t\n\r\u2028\u2029"  # tabs and line breaks, which one line does not have
UNFIT = re.compile(f"[{NEVER}]")
UNFIT_IN_A_LINE = re.compile(f"[{NEVER}{BREAKS}]")
JOINERS = "\u200c\u200d"  # of letters in Persian and others, and of the parts of an emoji


def lines(value: str) -> None:
    """Validates text of any number of lines. Raises ValidationError naming the first character that is not allowed."""
    refuse(UNFIT, value)


def one_line(value: str) -> None:
    """Validates text of one line. Raises ValidationError naming the first character that is not allowed."""
    refuse(UNFIT_IN_A_LINE, value)


def name(value: str) -> None:
    """Validates a name by which people tell others apart: one line without characters that show nothing, as two names
    that differ in nothing else look the same. Raises ValidationError.
    """
    one_line(value)
    for position, character in enumerate(value):
        if unicodedata.category(character) == "Cf" and character not in JOINERS:
            raise refusal(character, position)


def refuse(unfit: re.Pattern[str], value: str) -> None:
    if found := unfit.search(value):
        raise refusal(found[0], found.start())


def refusal(character: str, position: int) -> ValidationError:
    called = unicodedata.name(character, "a line break or tab" if character in BREAKS else "a control character")
    return ValidationError(
        f"Contains U+{ord(character):04X} ({called}) at position {position + 1}, which is not allowed. Remove it.",
        code="unfit_character",
    )


def clean(value: str, limit: int) -> str:
    """`value` made to fit one line of at most `limit` characters, for text that must never stop what it describes.

    Breaks and control characters become spaces, other unfit characters go, and what is too long ends in an ellipsis.
    """
    spaced = re.sub(f"[\x00-\x1f\x7f-\x9f{BREAKS}]+", " ", value)
    fit = UNFIT.sub("", spaced).strip()
    return fit if len(fit) <= limit else fit[: limit - 1].rstrip() + "…"
