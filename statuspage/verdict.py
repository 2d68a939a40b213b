"""The verdict: what the readings and the open incidents say of now, for the headline and each environment alike."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from ledger.environments import production_first, production_names
from statuspage import uptime
from statuspage.models import Incident
from statuspage.readings import KEPT, Reading, is_monitored, readings

State = Literal["up", "degraded", "down", "unknown"]
WORST_FIRST: tuple[State, ...] = ("down", "degraded", "unknown", "up")


@dataclass(frozen=True)
class Headline:
    """The verdict on production, and `notes` on the other environments: sentences without their full stops."""

    state: State
    sentence: str
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """The sentence and the notes in one text."""
        return ". ".join([self.sentence, *self.notes]) + "." if self.notes else self.sentence


def current_readings() -> dict[str, Reading]:
    """Returns a reading of every environment by name, production first. One older than KEPT is `unknown`."""
    taken = readings()
    return {name: taken[name] if taken[name].age <= KEPT else Reading(name) for name in production_first()}


def state_of(reading: Reading) -> State:
    """Returns the state of an environment by its reading."""
    if reading.state == "unknown":
        return "unknown"
    if not uptime.is_up(reading):
        return "down"
    return "up" if reading.state == "healthy" else "degraded"


def headline(current: dict[str, Reading], incidents: list[dict[str, Any]] | None) -> Headline:
    """Returns the headline for these readings and published incidents (None if they cannot be read).

    Production decides, and what is measured outranks what people report. Other environments are noted and never change
    the state, and so is what is simulated; but "All systems operational" requires that every monitored one is. A
    headline about a simulated production says so itself.
    """
    open_incidents = [each for each in incidents or [] if each["status"] != Incident.Status.RESOLVED]
    production = production_names()
    others = [name for name in production_first() if name not in production]
    notes = [note for name in others for note in notes_on(name, state_of(current[name]), open_incidents)]
    if simulated := [name for name in current if current[name].simulated]:
        notes.append(f"Simulated: {', '.join(simulated)}")
    if incidents is None:
        notes.append("Incidents are unavailable")
    state, said = verdict_on_production({name: current[name] for name in production}, open_incidents)
    if state == "up" and not notes:
        said = "All systems operational"
    made_up = any(current[name].simulated for name in production)
    return Headline(state, f"{said} (simulated)" if made_up else said, tuple(notes))


def verdict_on_production(found: dict[str, Reading], open_incidents: list[dict[str, Any]]) -> tuple[State, str]:
    """Returns the state of production, the worst of its environments, and a sentence that says it."""
    verdicts = [verdict_on(name, reading, open_incidents) for name, reading in found.items()]
    worst = min((state for state, _ in verdicts), key=WORST_FIRST.index)
    if worst == "up" and len(found) > 1:
        *names, last = [name if number else name.capitalize() for number, name in enumerate(found)]
        return worst, f"{', '.join(names)} and {last} are operational"
    return worst, ". ".join(said for state, said in verdicts if state == worst)


def verdict_on(name: str, reading: Reading, open_incidents: list[dict[str, Any]]) -> tuple[State, str]:
    """Returns the state of a production environment and a sentence that says it."""
    impacts = {each["impact"] for each in open_incidents if each["environment"] == name}
    measured = state_of(reading)
    if impacts and measured != "down":
        return "down" if Incident.Impact.CRITICAL in impacts else "degraded", f"Incident in {name}"
    return measured, f"{name.capitalize()} is operational" if measured == "up" else sentence(name, measured)


def checked(current: dict[str, Reading]) -> datetime | None:
    """Returns since when all of production has been looked at; None if something of it was not, or is simulated."""
    found = [current[name] for name in production_names()]
    times = [each.at for each in found if each.at and not each.simulated]
    return min(times) if len(times) == len(found) else None


def notes_on(name: str, state: State, open_incidents: list[dict[str, Any]]) -> list[str]:
    """Returns the notes on an environment other than production; none if it is up or not monitored, and has no
    incident.
    """
    measured = [] if state == "up" or not is_monitored(name) else [sentence(name, state)]
    reported = [f"Incident in {name}"] if any(each["environment"] == name for each in open_incidents) else []
    return measured + reported


def sentence(name: str, state: State) -> str:
    """Returns a sentence such as "Staging is degraded"."""
    if state == "unknown":
        return f"{name.capitalize()} {'status is unknown' if is_monitored(name) else 'is not monitored'}"
    return f"{name.capitalize()} is {state}"
