"""How a deployment is shown: live on a terminal, a line an event in a pipe, JSON lines for machines."""

import json
import time
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import OutputWrapper
from rich.console import Console
from rich.status import Status
from rich.text import Text

COLOURS = {"succeeded": "green", "failed": "red", "skipped": "dim"}
SIGNS = {"succeeded": "+", "failed": "x", "skipped": "-"}  # without colour, too
EVERY = 10.0  # seconds between two lines of progress where there is no terminal


class Output:
    """Step by step. `as_json` prints nothing but JSON objects, one a line."""

    def __init__(self, stream: OutputWrapper, *, as_json: bool, no_color: bool, force_color: bool) -> None:
        self.stream, self.as_json = stream, as_json
        stream.ending = ""  # Django would put a line end after each control sequence of rich's, too
        self.console = Console(
            file=stream,  # type: ignore[arg-type]
            no_color=no_color or None,
            force_terminal=force_color or None,
            highlight=False,
        )
        if not self.console.is_terminal:
            self.console.width = 400  # a pipe has no width to fit into
        self.status: Status | None = None
        self.name, self.began, self.told = "", 0.0, 0.0

    def event(self, kind: str, **fields: Any) -> None:
        if self.as_json:
            said = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, **fields}
            self.stream.write(json.dumps(said) + "\n")
            self.stream.flush()

    def line(self, text: str, style: str = "") -> None:
        if not self.as_json:
            self.console.print(Text(text, style))
            self.stream.flush()

    def note(self, text: str, style: str = "") -> None:
        self.event("note", text=text)
        self.line(text, style)

    def begin(self, name: str) -> None:
        self.name, self.began = name, time.monotonic()
        self.told = self.began
        self.event("step", name=name, outcome="running")
        if self.console.is_terminal and not self.as_json:
            self.status = self.console.status(Text(f"{name} ..."))
            self.status.start()

    def tell(self, text: str) -> None:
        """What is being waited for, in the step that runs."""
        took = time.monotonic() - self.began
        if self.status:
            self.status.update(Text(f"{self.name}: {text} ({took:.0f} s)"))
        elif time.monotonic() - self.told >= EVERY:
            self.told = time.monotonic()
            self.event("progress", name=self.name, text=text, seconds=round(took, 1))
            self.line(f"  {self.name}: {text} ({took:.0f} s)")

    def end(self, outcome: str, note: str) -> None:
        took = time.monotonic() - self.began
        self.quiet()
        self.event("step", name=self.name, outcome=outcome, seconds=round(took, 2), note=note)
        time_ = "" if outcome == "skipped" else f"{took:5.1f} s"
        self.line(f"{SIGNS[outcome]} {self.name:<15} {time_:>8}  {note}", COLOURS[outcome])

    def quiet(self) -> None:
        if self.status:
            self.status.stop()
            self.status = None

    def details(self, text: str) -> None:
        """A release's own words."""
        if text and not self.as_json:
            self.line("\n".join(f"    {line}" for line in text.splitlines()), "dim")
        elif text:
            self.event("log", lines=text.splitlines())
