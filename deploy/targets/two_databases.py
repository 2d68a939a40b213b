"""A database per colour, as rollout.py sees it: which of the two takes the writes, never which has the traffic.

It drives `manage.py bluegreen` where both databases are in reach: in a container of the release's own image, whose
migrations and checks are the release's. docs/blue-green.md explains the two.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

from deploy.errors import ExitCode, StepFailed
from deploy.targets.base import Progress

Event = dict[str, Any]
# Runs `manage.py` with these words and --json, shows its progress, and returns its exit code and its events.
Manage = Callable[[tuple[str, ...], Progress], tuple[int, list[Event]]]


class TwoDatabases:
    """The two databases, by way of `manage`. `release` is the one that is deployed or returned to."""

    def __init__(self, manage: Manage, release: str) -> None:
        self.manage, self.release = manage, release
        self.colour = ""  # of the release's own database, once prepare() has told

    def prepare(self, unsafe: bool, tell: Progress) -> str:
        """As Databases.prepare(). Whatever an interrupted run has left is completed or undone first. After this, the
        release before the live one cannot be rolled back to without loss, as its database becomes this release's.
        """
        found = self.look(tell)
        if found["target"] and found["writable"] == found["target"] and found["ready"]:
            if found["release"] == self.release:
                self.colour = found["target"]
                return f"{self.colour} takes the writes already"
            self.bluegreen("finalize", "--yes", tell=tell)
        self.make_room(tell)
        if not unsafe:
            code, events = self.manage(("migrate_release", "--check"), tell)
            if code:
                raise StepFailed(why(events, "The check of the migrations failed."))
        done = self.bluegreen("prepare", "--release", self.release, tell=tell)
        self.colour = done.get("target") or self.status(tell)["target"]
        return f"{self.colour}: {done['copied']}" if done.get("copied") else str(done["text"])

    def make_room(self, tell: Progress) -> None:
        """Called before the idle database is made anew."""

    def switch(self, tell: Progress) -> str:
        """As Databases.switch()."""
        return moved(self.bluegreen("switch", tell=tell))

    def switch_back(self, release: str, tell: Progress) -> str:
        """As Databases.switch_back()."""
        found = self.look(tell)
        if not found["ready"] or found["release"] != release or found["writable"] != found["target"]:
            return ""
        if not found["lossless"]:
            why_not = " ".join(found["faults"]) or f"{found['source']} has not received everything yet."
            return f"{found['writable']} keeps the writes, as a rollback would lose rows: {why_not}"
        return moved(self.bluegreen("rollback", tell=tell))

    def look(self, tell: Progress) -> Event:
        """How the two are, once what an interrupted switch has left was completed or undone. Raises StepFailed."""
        found = self.status(tell)
        settled = all(phase in ("active", "standby") for phase in found["phases"].values())
        if found["phases"] and not (found["writable"] and settled):
            self.bluegreen("recover", tell=tell)
            found = self.status(tell)
        return found

    def status(self, tell: Progress) -> Event:
        """How the two are. Raises StepFailed if one does not answer."""
        _, events = self.manage(("bluegreen", "status"), tell)
        found = next((each for each in events if each["event"] == "status"), None)
        if found is None or found["unreachable"]:
            raise StepFailed(why(events, " ".join(found["faults"]) if found else "No answer from manage.py bluegreen."))
        return found

    def bluegreen(self, *words: str, tell: Progress) -> Event:
        """The result of one action. Raises StepFailed if it failed, with what it has found as details."""
        code, events = self.manage(("bluegreen", *words), tell)
        result = next((each for each in reversed(events) if each["event"] == "result"), None)
        # What moved and cannot come back at once has moved all the same.
        if result is None or (code and not (code == ExitCode.NEEDS_OPERATOR and result.get("writable"))):
            raise StepFailed(why(events, f"manage.py bluegreen {words[0]} failed."), findings(events))
        return result


def moved(result: Event) -> str:
    """What a switch did, for the ledger."""
    if "held_seconds" not in result:  # somebody was faster
        return str(result["text"])
    held = f"{result['writable']} takes the writes, which were held for {result['held_seconds'] * 1000:.0f} ms"
    return f"{held}; {'a rollback would lose nothing' if result['lossless'] else 'for now, a rollback would lose rows'}"


def why(events: Iterable[Event], otherwise: str) -> str:
    """Why the command failed, in its own words."""
    texts = [str(each["why"]) for each in events if each["event"] == "result" and each.get("why")]
    texts = texts or [str(each["text"]) for each in events if each["event"] == "text"]
    return texts[-1] if texts else otherwise


def findings(events: Iterable[Event]) -> str:
    """What was refused, a line each, for details."""
    refused = [each for each in events if each["event"] == "finding" and each["verdict"] == "refuse"]
    lines = []
    for each in refused:
        name = ".".join(filter(None, (each["table"], each["column"])))
        lines.append(" ".join(filter(None, (f"{name}:" if name else "", each["reason"], each["cure"]))))
    return "\n".join(lines)


def event(line: str) -> Event:
    """A line of --json; any other line is an event of its own, `text`."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) and "event" in found else {"event": "text", "text": line.strip()}


def shown(found: Event) -> str:
    """What an event says about progress; empty if nothing."""
    name, text = str(found.get("name", "")), str(found.get("text") or found.get("note") or "")
    return ": ".join(filter(None, (name, text))) if found["event"] in ("progress", "step", "note") else ""
