"""The verdict: what the readings and the open incidents say of now, for the headline and each environment alike."""

from dataclasses import dataclass
from typing import Any, Literal


from statuspage import uptime
from statuspage.models import Incident
from statuspage.readings import KEPT, PRODUCTION_FIRST, Reading, is_monitored, readings

State = Literal["up", "degraded", "down", "unknown"]


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
    return {name: taken[name] if taken[name].age <= KEPT else Reading(name) for name in PRODUCTION_FIRST}


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
    notes = [note for name in PRODUCTION_FIRST[1:] for note in notes_on(name, state_of(current[name]), open_incidents)]
    if simulated := [name for name in current if current[name].simulated]:
        notes.append(f"Simulated: {', '.join(simulated)}")
    if incidents is None:
        notes.append("Incidents are unavailable")
    state, said = verdict_on_production(current["production"], open_incidents)
    if state == "up" and not notes:
        said = "All systems operational"
    return Headline(state, f"{said} (simulated)" if current["production"].simulated else said, tuple(notes))


def verdict_on_production(reading: Reading, open_incidents: list[dict[str, Any]]) -> tuple[State, str]:
    """Returns the state of production and a sentence that says it."""
    impacts = {each["impact"] for each in open_incidents if each["environment"] == "production"}
    measured = state_of(reading)
    if impacts and measured != "down":
        return "down" if Incident.Impact.CRITICAL in impacts else "degraded", "Incident in production"
    return measured, "Production is operational" if measured == "up" else sentence("production", measured)


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
