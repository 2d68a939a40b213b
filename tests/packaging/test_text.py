"""The one rule for text that people enter (settings.text)."""

from xml.etree import ElementTree

import pytest
from django.core.exceptions import ValidationError
from hypothesis import given
from hypothesis import strategies as st

from settings import text


@pytest.mark.parametrize(
    "character",
    ["\x00", "\x0c", "\x1f", "\x7f", "\x85", "\ud800", "\ufffe", "\uffff", "\U0010ffff", "\u202e", "\u2066"],
)
def test_a_character_that_xml_or_postgresql_cannot_hold_is_refused_by_its_code_point(character: str) -> None:
    for rule in (text.lines, text.one_line):
        with pytest.raises(ValidationError, match=f"Contains U\\+{ord(character):04X} .* at position 2"):
            rule(f"a{character}b")


@pytest.mark.parametrize("character", ["\n", "\r", "\t", "\u2028"])
def test_a_line_break_is_refused_in_one_line_only(character: str) -> None:
    text.lines(f"a{character}b")
    with pytest.raises(ValidationError, match="at position 2"):
        text.one_line(f"a{character}b")


def test_other_scripts_and_emoji_are_welcome() -> None:
    text.one_line("Zürich, 東京, שלום, مرحبا, 👩‍🚀, a|b <c> & \u200f")


@given(st.text())
def test_what_the_rule_takes_xml_takes_too(value: str) -> None:
    try:
        text.lines(value)
    except ValidationError:
        return
    root = ElementTree.Element("a")
    root.text = value
    read = ElementTree.fromstring(ElementTree.tostring(root, "utf-8")).text or ""
    assert read == value.replace("\r\n", "\n").replace("\r", "\n")


@given(st.text(max_size=80), st.integers(min_value=1, max_value=20))
def test_cleaned_text_fits_the_rule_and_the_limit(value: str, limit: int) -> None:
    cleaned = text.clean(value, limit)
    text.one_line(cleaned)
    assert len(cleaned) <= limit


def test_cleaning_keeps_what_is_fit_and_cuts_with_an_ellipsis() -> None:
    assert text.clean("500s | 2 is fine", 100) == "500s | 2 is fine"
    assert text.clean("one\r\n\ttwo\u202e", 100) == "one two"
    assert text.clean("x" * 501, 500) == "x" * 499 + "…"
