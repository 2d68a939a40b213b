"""Content negotiation: parses Accept and Accept-Encoding. https://www.rfc-editor.org/rfc/rfc9110#section-12.5"""

import re
from dataclasses import dataclass

WEIGHT = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


@dataclass(frozen=True)
class Element:
    """A media range or a content coding: its name and parameters in lower case, and its weight from 0 to 1."""

    name: str
    parameters: dict[str, str]
    weight: float


def elements(header: str) -> list[Element]:
    """Returns the elements of an Accept or Accept-Encoding header. A malformed weight counts as 0: not accepted.

    A comma or semicolon within quotes separates too: nothing offered here contains one, and the parser stays cheap.
    """
    found = []
    for part in header.lower().split(","):
        name, *rest = (word.strip() for word in part.split(";"))
        if not name:
            continue
        pairs = (word.partition("=") for word in rest)
        parameters = {key.strip(): value.strip().strip('"') for key, _, value in pairs}
        weight = parameters.pop("q", "1")
        found.append(Element(name, parameters, float(weight) if WEIGHT.fullmatch(weight) else 0.0))
    return found


def codings(header: str) -> list[str]:
    """Returns the content codings that an Accept-Encoding header names and does not exclude (q=0), in its order."""
    return [each.name for each in elements(header) if each.weight > 0]
