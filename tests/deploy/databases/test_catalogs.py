"""Types compared without a database, and the messages of logical decoding."""

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.databases.casts import Change, change
from deploy.databases.catalogs import Type
from deploy.databases.errors import DatabaseError
from deploy.databases.findings import CODES
from deploy.databases.pgoutput import Written, written
from tests.support.servers import ROOT

NAMES = [
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "numeric(6,2)",
    "numeric(9,0)",
    "numeric(12,0)",
    "numeric(9,4)",
    "text",
    "character varying",
    "character varying(5)",
    "character varying(9)",
    "character(5)",
    "boolean",
    "uuid",
    "date",
    "timestamp with time zone",
    "timestamp(0) with time zone",
    "timestamp without time zone",
    "real",
    "double precision",
    "jsonb",
    "json",
    "integer[]",
    "bigint[]",
    "public.mood",
    "public.positive",
]
TYPES = {"public.mood": Type(("calm",), "", ()), "public.positive": Type((), "integer", ("CHECK (VALUE > 0)",))}
REVERSE: dict[Change, Change] = {
    "same": "same",
    "looser": "stricter",
    "stricter": "looser",
    "rounds": "rounds",
    "changed": "changed",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_type_is_the_same_as_itself(name: str) -> None:
    assert change(name, name, TYPES, TYPES) == "same"


@given(st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_what_is_looser_one_way_is_stricter_the_other(old: str, new: str) -> None:
    assert change(new, old, TYPES, TYPES) == REVERSE[change(old, new, TYPES, TYPES)]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("smallint", "bigint", "looser"),
        ("integer[]", "bigint[]", "looser"),
        ("integer", "bigint[]", "changed"),
        ("integer", "numeric", "looser"),
        ("integer", "numeric(9,0)", "changed"),
        ("integer", "numeric(12,0)", "looser"),
        ("character varying(5)", "text", "looser"),
        ("text", "character varying", "same"),
        ("text", "character varying(5)", "stricter"),
        ("character(5)", "text", "changed"),
        ("numeric(6,2)", "numeric(9,4)", "rounds"),
        ("numeric(6,2)", "numeric", "rounds"),
        ("numeric(9,4)", "numeric(9,0)", "changed"),
        ("date", "timestamp with time zone", "rounds"),
        ("timestamp without time zone", "timestamp with time zone", "changed"),
        ("timestamp with time zone", "timestamp(0) with time zone", "rounds"),
        ("json", "jsonb", "changed"),
        ("integer", "text", "changed"),
        ("public.positive", "integer", "looser"),
        ("public.positive", "bigint", "looser"),
        ("smallint", "public.positive", "changed"),
    ],
)
def test_types_are_compared_by_the_values_that_survive(old: str, new: str, expected: Change) -> None:
    assert change(old, new, TYPES, TYPES) == expected


def test_labels_of_an_enum_are_compared() -> None:
    more = {"public.mood": Type(("calm", "glad"), "", ())}
    other = {"public.mood": Type(("quiet",), "", ())}
    assert change("public.mood", "public.mood", TYPES, more) == "looser"
    assert change("public.mood", "public.mood", more, TYPES) == "stricter"
    assert change("public.mood", "public.mood", TYPES, other) == "changed"  # renamed


def relation(oid: int, name: str) -> bytes:
    return b"R" + struct.pack("!I", oid) + b"public\0" + name.encode() + b"\0" + b"d" + struct.pack("!H", 0)


def test_messages_are_counted_by_table() -> None:
    messages = [
        (b"B" + bytes(20), 3),
        (b"I" + struct.pack("!I", 7), 2),
        (b"I" + struct.pack("!I", 7) + b"N" + bytes(9), 3),
        (relation(7, "t"), 1),
        (relation(8, "Größe"), 1),
        (b"U" + struct.pack("!I", 8), 1),
        (b"D" + struct.pack("!I", 8), 4),
        (b"T" + struct.pack("!IBII", 2, 0, 7, 8), 1),
        (b"C" + bytes(25), 3),
    ]
    assert written(messages) == (
        Written("public", "Größe", updates=1, deletes=4, truncates=1),
        Written("public", "t", inserts=5, truncates=1),
    )
    assert written([]) == ()


@given(st.lists(st.binary(max_size=20)))
def test_any_other_message_is_refused_or_counted_and_never_more(messages: list[bytes]) -> None:
    try:
        assert len(written((message, 1) for message in messages)) <= 20 * len(messages)
    except DatabaseError as error:
        assert "unknown message" in str(error)


def test_the_documentation_lists_every_code_with_its_verdict() -> None:
    text = (ROOT / "docs" / "blue-green.md").read_text()
    listed: dict[str, str] = {}
    for codes, verdict in re.findall(r"^\| ((?:`[a-z-]+`(?:, )?)+) \|.*?\| (allowed|refused) \|", text, re.MULTILINE):
        listed |= dict.fromkeys(re.findall(r"`([a-z-]+)`", codes), verdict)
    assert listed == {code: {"allow": "allowed", "refuse": "refused"}[verdict] for code, verdict in CODES.items()}


def test_every_code_is_reported_and_tested() -> None:
    package, tests = (
        "".join(path.read_text() for path in sorted(folder.glob("*.py")) if path.name != "findings.py")
        for folder in (ROOT / "deploy" / "databases", ROOT / "tests" / "deploy" / "databases")
    )
    made = {"type-rounds", "type-changed", "type-looser", "type-stricter"}  # their names are put together
    assert [code for code in CODES if f'"{code}"' not in package and code not in made] == []
    assert [code for code in CODES if f'"{code}"' not in tests] == []
