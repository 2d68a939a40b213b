"""How a run is shown: live on a terminal, a line per step in a pipe, JSON lines for machines."""

import json
import time
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import OutputWrapper
from rich.status import Status
from rich.text import Text

from health.management.base import console

COLOURS = {"succeeded": "green", "failed": "red", "skipped": "dim"}
SIGNS = {"succeeded": "+", "failed": "x", "skipped": "-"}  # without colour, too
PROGRESS = 10.0  # seconds between progress lines when the output is not a terminal


class Output:
    """Shows a run step by step on `stream`. With `as_json` it prints JSON objects only, one per line."""

    def __init__(self, stream: OutputWrapper, *, as_json: bool, no_color: bool, force_color: bool) -> None:
        self.stream, self.as_json = stream, as_json
        stream.ending = ""  # Django would put a line end after each control sequence of rich's, too
        self.console = console(stream, no_color=no_color, force_color=force_color)
        self.status: Status | None = None
        self.name, self.began, self.told = "", 0.0, 0.0

    def event(self, kind: str, **fields: Any) -> None:
        """Prints a JSON object with the time, the kind of event and these fields; nothing without `as_json`."""
        if self.as_json:
            said = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, **fields}
            self.stream.write(json.dumps(said) + "\n")
            self.stream.flush()

    def line(self, text: str, style: str = "") -> None:
        """Prints a line for people, in a style of rich; nothing with `as_json`."""
        if not self.as_json:
            self.console.print(Text(text, style))
            self.stream.flush()

    def note(self, text: str, style: str = "") -> None:
        """Prints a sentence about the run, for people and machines."""
        self.event("note", text=text)
        self.line(text, style)

    def begin(self, name: str) -> None:
        """Shows that a step has begun; end() or quiet() has to follow."""
        self.name, self.began = name, time.monotonic()
        self.told = self.began
        self.event("step", name=name, outcome="running")
        if self.console.is_terminal and not self.as_json:
            self.status = self.console.status(Text(f"{name} ..."))
            self.status.start()

    def tell(self, text: str, **figures: float | None) -> None:
        """Shows what the current step is waiting for; in a pipe, a line every PROGRESS seconds. `figures`: for JSON."""
        took = time.monotonic() - self.began
        if self.status:
            self.status.update(Text(f"{self.name}: {text} ({took:.0f} s)"))
        elif time.monotonic() - self.told >= PROGRESS:
            self.told = time.monotonic()
            self.event("progress", name=self.name, text=text, seconds=round(took, 1), **figures)
            self.line(f"  {self.name}: {text} ({took:.0f} s)")

    def end(self, outcome: str, note: str, **figures: float | None) -> None:
        """Shows how the current step ended: succeeded, failed or skipped, with its seconds. `figures`: for JSON."""
        took = time.monotonic() - self.began
        self.quiet()
        self.event("step", name=self.name, outcome=outcome, seconds=round(took, 2), note=note, **figures)
        time_ = "" if outcome == "skipped" else f"{took:5.1f} s"
        self.line(f"{SIGNS[outcome]} {self.name:<16} {time_:>8}  {note}", COLOURS[outcome])

    def quiet(self) -> None:
        """Ends the live line of the current step, if there is one."""
        if self.status:
            self.status.stop()
            self.status = None

    def details(self, text: str) -> None:
        """Prints a release's own log lines, indented."""
        if text and not self.as_json:
            self.line("\n".join(f"    {line}" for line in text.splitlines()), "dim")
        elif text:
            self.event("log", lines=text.splitlines())
