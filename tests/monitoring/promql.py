"""A reader of PromQL that finds what a lint asks about: the selectors, what is applied to them, the labels grouped by.

It does not check the syntax; promtool has done so before.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""#.*|\s+|("(?:[^"\\]|\\.)*")|([a-zA-Z_:][\w:]*)|(\d[\w.]*|\.\d+)|(\[[^\]]*\])|(=~|!~|!=|[<>=]=|.)"""
)
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
KEYWORDS = GROUPING | {"and", "or", "unless", "offset", "bool", "inf", "nan"}


@dataclass
class Selector:
    """A metric in an expression."""

    metric: str
    matchers: dict[str, tuple[str, str]]  # label: (operator, value)
    range: str  # [5m], or nothing
    inside: tuple[str, ...]  # the functions and aggregations around it, from the outside


@dataclass
class Expression:
    """What an expression is made of."""

    text: str
    selectors: list[Selector] = field(default_factory=list)
    grouping: set[str] = field(default_factory=set)  # labels in by (), on () and so on

    def __post_init__(self) -> None:
        tokens = [found[0] for found in TOKEN.finditer(self.text) if not re.match(r"#|\s", found[0])]
        inside: list[str] = []
        name, place = "", 0
        while place < len(tokens):
            token, after = tokens[place], tokens[place + 1] if place + 1 < len(tokens) else ""
            if token in GROUPING:
                end = tokens.index(")", place)
                self.grouping |= set(tokens[place + 2 : end]) - {","}
                place = end
            elif token == "(":
                inside.append(name)
                name = ""
            elif token == ")":
                inside.pop()
            elif re.match(r"[a-zA-Z_:]", token) and token not in KEYWORDS:
                if after == "(" or after in GROUPING:
                    name = token
                else:
                    place = self.select(tokens, place, tuple(filter(None, inside)))
            place += 1

    def select(self, tokens: list[str], place: int, inside: tuple[str, ...]) -> int:
        """Notes the selector at `place`; returns the place of its last token."""
        one = Selector(tokens[place], {}, "", inside)
        if tokens[place + 1 : place + 2] == ["{"]:
            end = tokens.index("}", place)
            words = [token for token in tokens[place + 2 : end] if token != ","]
            one.matchers = {words[i]: (words[i + 1], words[i + 2].strip('"')) for i in range(0, len(words), 3)}
            place = end
        if place + 1 < len(tokens) and tokens[place + 1].startswith("["):
            place += 1
            one.range = tokens[place]
        self.selectors.append(one)
        return place


def values(matcher: tuple[str, str]) -> Iterator[str]:
    """The values that a matcher names; none for a pattern that is more than a choice."""
    operator, value = matcher
    if operator in ("=", "!="):
        yield value
    elif re.fullmatch(r"[\w |-]+", value):
        yield from value.split("|")
