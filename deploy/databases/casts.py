"""Whether values of one column type survive as another, and back. Replication sends text, and the other side reads it.

So a cast that SQL would refuse may succeed here, and what the reader rounds or cuts off is lost without an error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from deploy.databases.catalogs import Type

Change = Literal["same", "looser", "stricter", "rounds", "changed"]

INTEGERS = {"smallint": 5, "integer": 10, "bigint": 19}  # with the digits of their largest values
# Each type converts to these without losing a value. Converting back silently rounds or truncates what does not fit.
ROUNDED = {
    ("real", "double precision"),
    ("date", "timestamp without time zone"),
    ("date", "timestamp with time zone"),
}
FRACTIONS = ("timestamp without time zone", "timestamp with time zone", "time without time zone", "interval")


@dataclass(frozen=True)
class Kind:
    """A type taken apart: `numeric(10,2)` is numeric, 10 and 2."""

    name: str
    size: int | None
    scale: int | None
    array: bool
    labels: frozenset[str]  # of an enum
    checks: frozenset[str]  # of a domain


def kind(text: str, types: Mapping[str, Type]) -> Kind:
    """Takes apart what format_type() writes; a domain becomes its base with the domain's rules."""
    array = text.endswith("[]")
    own = types.get(text.removesuffix("[]"))
    if own and own.base:
        base = kind(own.base, types)
        return Kind(base.name, base.size, base.scale, array, base.labels, base.checks | set(own.checks))
    size = re.search(r"\((\d+)(?:,(-?\d+))?\)", text)
    name = re.sub(r"\([^()]*\)", "", text.removesuffix("[]"))
    labels = frozenset(own.labels) if own else frozenset()
    return Kind(
        name, int(size[1]) if size else None, int(size[2]) if size and size[2] else None, array, labels, frozenset()
    )


def change(old: str, new: str, olds: Mapping[str, Type], news: Mapping[str, Type]) -> Change:
    """What becomes of values that go from the type `old` to `new` and back; `olds` and `news` are each side's types.

    "looser": all go, and of those that come back the ones that do not fit are refused; "stricter" is the reverse.
    "rounds": what does not fit is changed in silence on one of the ways. "changed": nothing is known of it.
    """
    first, second = kind(old, olds), kind(new, news)
    there, back = widens(first, second), widens(second, first)
    if "rounds" in (there, back):
        return "rounds"
    if there == back:
        return "same" if there == "keeps" else "changed"
    return "looser" if there == "keeps" else "stricter"


def widens(old: Kind, new: Kind) -> Literal["keeps", "rounds", "no"]:
    """Whether `new` holds every value of `old`; "rounds" if it does, but rounds others when converted back."""
    if old.array != new.array or not new.checks <= old.checks:
        return "no"
    if old.name == new.name and (old.size, old.scale) == (new.size, new.scale):
        return "keeps" if old.labels <= new.labels else "no"
    if old.name in INTEGERS and new.name in INTEGERS:
        return "keeps" if INTEGERS[old.name] < INTEGERS[new.name] else "no"
    if old.name in INTEGERS and new.name == "numeric":
        return "keeps" if new.size is None or not new.scale and new.size >= INTEGERS[old.name] else "no"
    if old.name in TEXTS and new.name in TEXTS:
        return "keeps" if new.size is None or old.size is not None and old.size <= new.size else "no"
    if old.name == new.name == "numeric":
        return numbers(old, new)
    if old.name == new.name and old.name in FRACTIONS:
        return "rounds" if (6 if old.size is None else old.size) < (6 if new.size is None else new.size) else "no"
    return "rounds" if (old.name, new.name) in ROUNDED else "no"


TEXTS = ("character varying", "text")


def numbers(old: Kind, new: Kind) -> Literal["keeps", "rounds", "no"]:
    """The same for two numeric types of different precision."""
    if new.size is None:
        return "rounds"
    if old.size is None:
        return "no"
    before, after = old.scale or 0, new.scale or 0
    if new.size - after < old.size - before or after < before:
        return "no"
    return "keeps" if after == before else "rounds"
