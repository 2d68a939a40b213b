"""The recorder of the documents' moving picture: what a terminal showed, as an SVG."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.servers import ROOT

RECORDER = ROOT / "scripts" / "terminal_svg.py"
SVG = "{http://www.w3.org/2000/svg}"
SHOW = r"printf 'wait: 1 s'; sleep 0.5; printf '\r\033[2K\033[1;32m+ done <&>\033[0m\n'; printf 'not\r\033[Kkept\n'"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The animated picture and the still one of a command that redraws its line."""
    folder = tmp_path_factory.mktemp("pictures")
    words = [sys.executable, str(RECORDER), "a.svg", "b.svg", "--title", "A <title>", SHOW]
    subprocess.run(words, cwd=folder, check=True)
    return (folder / "a.svg").read_text(), (folder / "b.svg").read_text()


def lines(svg: str) -> list[str]:
    """The text of each row that is drawn, in the order of the picture's groups."""
    return ["".join(row.itertext()) for row in ElementTree.fromstring(svg).iterfind(f"{SVG}g/{SVG}text")]


def test_what_was_redrawn_is_shown_and_hidden_again_and_the_last_moment_stays(drawn: tuple[str, str]) -> None:
    animated, still = drawn
    assert "wait: 1 s" in lines(animated) and "wait: 1 s" not in lines(still)
    assert lines(still)[-2:] == ["+ done <&>", "kept"]
    assert 'class="g b"' in still  # its colour and its weight
    description = ElementTree.fromstring(still).findtext(f"{SVG}desc") or ""
    assert description.endswith("+ done <&>\nkept")


def test_a_picture_has_both_schemes_and_no_script_and_loads_nothing(drawn: tuple[str, str]) -> None:
    for svg in (*drawn, *(file.read_text() for file in ROOT.glob("docs/*.svg"))):
        assert "prefers-color-scheme:dark" in svg
        assert "prefers-reduced-motion:reduce" in svg or not re.search(r"animation|@keyframes|<animate", svg)
        drawing = svg.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"<script|<[^>]* on\w+=|href=|url\(|@import|<image|<foreignObject", drawing)


def test_a_control_sequence_that_it_does_not_know_is_an_error_and_no_wrong_picture(tmp_path: Path) -> None:
    words = [
        sys.executable,
        str(RECORDER),
        "a.svg",
        "b.svg",
        "--title",
        "A",
        r"printf '\033[5L'",
    ]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "5 L" in done.stderr and not (tmp_path / "a.svg").exists()
