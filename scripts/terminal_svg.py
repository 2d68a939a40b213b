"""Runs commands in a terminal and draws what it showed as an animated SVG without scripts, and the end as a still.

    scripts/terminal_svg.py OUTPUT.svg STILL.svg --title TITLE [--speed 3] COMMAND...

A shell runs each COMMAND. The picture has a light and a dark scheme. Browsers do not tell an <img> that its reader
prefers reduced motion, so pages offer the still in a <picture>.
"""

import argparse
import codecs
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from pathlib import Path

COLUMNS, ROWS = 100, 32  # earlier lines scroll away
FRAME = 0.2  # seconds of the picture; states that are shorter are not drawn
PAUSES = {"typing": 0.9, "between": 1.2, "end": 6.0}  # seconds of the picture
FONTS = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
CHARACTER, LINE, MARGIN = 7.83, 19, 18  # pixels; 13 px of a monospaced font are 0.602 as wide as high

# ECMA-48 control sequences: https://ecma-international.org/publications-and-standards/standards/ecma-48/
SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b.?|[\x00-\x1f]|[^\x00-\x1f\x1b]+", re.DOTALL)
COLOURS = ("k", "r", "g", "y", "u", "m", "c", "w")  # 30 to 37: black, red, green, yellow, blue, magenta, cyan, white
LIGHT = {"": "#1f2328", "k": "#1f2328", "r": "#b3261e", "g": "#116329", "y": "#7d4e00", "u": "#0550ae", "m": "#6639ba"}
LIGHT |= {"c": "#1b6b72", "w": "#1f2328", "d": "#59636e", "p": "#59636e"}
DARK = {"": "#e6edf3", "k": "#e6edf3", "r": "#ff8b82", "g": "#57d364", "y": "#e3b341", "u": "#79c0ff", "m": "#d2a8ff"}
DARK |= {"c": "#56d4dd", "w": "#e6edf3", "d": "#9198a1", "p": "#9198a1"}

Cells = tuple[tuple[str, str], ...]  # of one row: each character with its style, as classes of the SVG


@dataclass
class Screen:
    """A terminal's screen with its scrollback. Raises ValueError for an unknown control sequence."""

    columns: int = COLUMNS
    rows: list[list[tuple[str, str]]] = field(default_factory=lambda: [[]])
    row: int = 0
    column: int = 0
    colour: str = ""
    bold: bool = False
    dim: bool = False

    def write(self, text: str) -> None:
        for found in SEQUENCE.finditer(text):
            part = found[0]
            if found[2]:
                self.control(found[1], found[2])
            elif part == "\n":
                self.row += 1
            elif part == "\r":
                self.column = 0
            elif part == "\b":
                self.column = max(0, self.column - 1)
            elif part >= " ":
                for character in part:
                    self.put(character)
            else:
                raise ValueError(f"The recorder does not know the control character {part!r}")
            while len(self.rows) <= self.row:
                self.rows.append([])

    def put(self, character: str) -> None:
        if "\u2800" <= character <= "\u28ff":  # a spinner, whose frames would fill the picture
            character = "*"
        if self.column == self.columns:
            self.row, self.column = self.row + 1, 0
            self.rows.extend([] for _ in range(self.row + 1 - len(self.rows)))
        row = self.rows[self.row]
        row.extend((" ", "") for _ in range(self.column + 1 - len(row)))
        classes = (self.colour or ("d" if self.dim else ""), "b" if self.bold else "")
        row[self.column] = (character, " ".join(filter(None, classes)))
        self.column += 1

    def control(self, parameters: str, command: str) -> None:
        numbers = [int(number or 0) for number in parameters.lstrip("?").split(";")]
        number = numbers[0]
        if command == "m":
            self.style(numbers)
        elif command == "A":
            self.row = max(0, self.row - max(1, number))
        elif command == "B":
            self.row += max(1, number)
        elif command == "C":
            self.column = min(self.columns, self.column + max(1, number))
        elif command == "D":
            self.column = max(0, self.column - max(1, number))
        elif command == "G":
            self.column = max(0, number - 1)
        elif command == "K" and number == 0:
            del self.rows[self.row][self.column :]
        elif command == "K" and number == 2:
            self.rows[self.row].clear()
        elif command == "J" and number == 0:
            del self.rows[self.row][self.column :], self.rows[self.row + 1 :]
        elif not (command in "hl" and parameters.startswith("?")):  # modes, such as a hidden cursor
            raise ValueError(f"The recorder does not know the control sequence ESC [ {parameters} {command}")

    def style(self, numbers: list[int]) -> None:
        for number in numbers:
            if number == 0:
                self.colour, self.bold, self.dim = "", False, False
            elif number in (1, 2):
                self.bold, self.dim = self.bold or number == 1, self.dim or number == 2
            elif number == 22:
                self.bold = self.dim = False
            elif 30 <= number % 60 <= 37:  # 90 to 97 are the bright ones
                self.colour = COLOURS[number % 60 - 30]
            elif number == 39:
                self.colour = ""

    def shown(self) -> tuple[Cells, ...]:
        whole = len(self.rows) - (not self.rows[-1])  # without the line that the cursor waits on
        return tuple(map(tuple, self.rows[max(0, whole - ROWS) : whole]))


@dataclass
class Recording:
    """What a screen showed: pairs of seconds since the start and the rows from then on."""

    screen: Screen = field(default_factory=Screen)
    states: list[tuple[float, tuple[Cells, ...]]] = field(default_factory=list)
    now: float = 0.0

    def keep(self) -> None:
        state = (self.now, self.screen.shown())
        if self.states and self.now - self.states[-1][0] < FRAME:
            state = (self.states.pop()[0], state[1])
        if not self.states or self.states[-1][1] != state[1]:
            self.states.append(state)

    def run(self, command: str, *, speed: float, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
        """Runs the command in a terminal of its own. Returns its exit code and the text that it left on the screen."""
        self.screen.column = 0
        self.screen.write("\x1b[32m$\x1b[0m ")
        for word in re.findall(r"\S+\s*", command):
            self.screen.write(f"\x1b[1m{word}\x1b[0m")
            self.keep()
            self.now += FRAME
        self.screen.write("\r\n")
        self.now += PAUSES["typing"]
        first, began, start = self.screen.row, time.monotonic(), self.now
        child, terminal = pty.fork()
        if not child:
            os.chdir(folder)
            os.execvpe("bash", ["bash", "-c", command], {**environment, "TERM": "xterm-256color"})
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, self.screen.columns, 0, 0))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pending = ""
        while data := read(terminal):
            pending += decoder.decode(data)
            whole = len(pending) - len(re.search(r"(\x1b(\[[?0-9;]*)?)?$", pending)[0])  # type: ignore[index]
            self.screen.write(pending[:whole])
            pending = pending[whole:]
            self.now = start + (time.monotonic() - began) / speed
            self.keep()
        os.close(terminal)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.now += PAUSES["between"]
        return code, "\n".join("".join(c for c, _ in row).rstrip() for row in self.screen.rows[first:])

    def still(self) -> "Recording":
        """Returns a recording of the last state only."""
        return Recording(self.screen, [(0.0, self.states[-1][1])])

    def svg(self, title: str) -> str:
        """Returns the picture. Raises ValueError if nothing was recorded."""
        if not self.states:
            raise ValueError("Nothing was recorded")
        total = self.states[-1][0] + PAUSES["end"]
        spans: dict[tuple[float, float], list[str]] = {}  # what is visible, by its start and end
        height = max(len(rows) for _, rows in self.states)
        for number in range(height):
            line = [(at, rows[number] if number < len(rows) else ()) for at, rows in self.states]
            for cells, same in groupby(line, key=lambda each: each[1]):
                begin = next(same)[0]
                end = min((at for at, other in line if at > begin and other != cells), default=total)
                if any(character != " " for character, _ in cells):
                    spans.setdefault((begin, end), []).append(text(cells, number))
        rules, groups = [], []
        for index, ((begin, end), texts) in enumerate(sorted(spans.items())):
            keys = ["0%{visibility:hidden}"] if begin else []
            keys.append(f"{100 * begin / total:.4g}%{{visibility:visible}}")
            keys += [f"{100 * end / total:.4g}%{{visibility:hidden}}"] if end < total else []
            rules.append(f"@keyframes k{index}{{{''.join(keys)}}}")
            kind = "f z" if end == total else "f"
            groups.append(f'<g class="{kind}" style="animation-name:k{index}">{"".join(texts)}</g>')
        wide, high = round(2 * MARGIN + self.screen.columns * CHARACTER), 2 * MARGIN + 24 + height * LINE
        last = "\n".join("".join(character for character, _ in row).rstrip() for row in self.states[-1][1]).strip()
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" '
            'role="img" aria-labelledby="t d">',
            f'<title id="t">{escape(title)}</title>',
            f'<desc id="d">{escape(last)}</desc>',
        )
        style = (
            f"text{{font:13px {FONTS};white-space:pre}}.b{{font-weight:700}}",
            f".f{{visibility:hidden;animation:{total:.2f}s step-end infinite}}.z{{visibility:visible}}",
            scheme(LIGHT, "#f6f8fa", "#d1d9e0"),
            f"@media (prefers-color-scheme:dark){{{scheme(DARK, '#0d1117', '#3d444d')}}}",
            *rules,
            "@media (prefers-reduced-motion:reduce){.f{animation:none}}",
        )
        window = (
            f'<rect class="s" x=".5" y=".5" width="{wide - 1}" height="{high - 1}" rx="8"/>',
            f'<text class="p" x="{wide / 2:g}" y="24" text-anchor="middle">{escape(title)}</text>',
        )
        return "\n".join([*head, "<style>", *style, "</style>", *window, *groups, "</svg>\n"])


def read(terminal: int) -> bytes:
    """Returns the next bytes; none at the end, which Linux reports as an error and others as an empty read."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def scheme(colours: Mapping[str, str], surface: str, border: str) -> str:
    rules = [f"{'.' + name if name else 'text'}{{fill:{colour}}}" for name, colour in colours.items()]
    return "".join([*rules, f".s{{fill:{surface};stroke:{border}}}"])


def text(cells: Cells, number: int) -> str:
    """Returns one row as a text element, with a tspan for each run of characters in one style."""
    runs = []
    for style, run in groupby(cells, key=lambda cell: cell[1]):
        words = escape("".join(character for character, _ in run), quote=False)
        runs.append(f'<tspan class="{style}">{words}</tspan>' if style else words)
    return f'<text x="{MARGIN}" y="{MARGIN + 40 + number * LINE}">{"".join(runs)}</text>'


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw what commands show in a terminal as an animated SVG.")
    parser.add_argument("output", type=Path)
    parser.add_argument("still", type=Path)
    parser.add_argument("--title", required=True)
    parser.add_argument("--speed", type=float, default=1.0, help="how many times as fast to play it")
    parser.add_argument("commands", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    recording = Recording()
    codes = [
        recording.run(command, speed=options.speed, folder=Path.cwd(), environment=os.environ)[0]
        for command in options.commands
    ]
    options.output.write_text(recording.svg(options.title))
    options.still.write_text(recording.still().svg(options.title))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
