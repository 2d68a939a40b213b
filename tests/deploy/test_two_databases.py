"""How a deployment drives `manage.py bluegreen`: what it asks, in which order, and what it makes of the answers."""

from typing import Any

import pytest

from deploy.errors import ExitCode, StepFailed
from deploy.targets.two_databases import Event, TwoDatabases, event, shown

BARE: Event = {"phases": {}, "writable": None, "target": None, "source": None, "release": None, "ready": False}
STANDING: Event = {"event": "status", "unreachable": [], "faults": [], "lossless": True, **BARE}
LINKED: Event = {"phases": {"blue": "active", "green": "standby"}, "source": "blue", "target": "green", "ready": True}
OURS: Event = STANDING | LINKED | {"writable": "blue", "release": "2"}
SWITCHED: Event = OURS | {"writable": "green", "phases": {"blue": "standby", "green": "active"}}
MOVED: Event = {"event": "result", "text": "", "writable": "green", "held_seconds": 0.0412, "lossless": True}


class Manage:
    """manage.py, with what it would print for each of its words; any other action succeeds."""

    def __init__(self, *states: Event, **answers: tuple[int, list[Event]]) -> None:
        self.states, self.answers, self.asked = list(states), answers, [""][1:]

    def __call__(self, words: tuple[str, ...], tell: Any) -> tuple[int, list[Event]]:
        name = words[1]
        if name == "status":
            return 0, [self.states.pop(0) if len(self.states) > 1 else self.states[0]]
        self.asked.append(" ".join(words[words[0] == "bluegreen" :]))
        return self.answers.get(name.strip("-"), (0, [{"event": "result", "text": f"{name}: done", "target": "green"}]))


def quiet(text: str) -> None:
    pass


def of(*states: Event, **answers: tuple[int, list[Event]]) -> tuple[TwoDatabases, list[str]]:
    """The databases of release 2, and what they ask."""
    manage = Manage(*states, **answers)
    return TwoDatabases(manage, "2"), manage.asked


CHECK, PREPARE = "migrate_release --check", "prepare --release 2"


@pytest.mark.parametrize(
    ("state", "asked"),
    [
        (STANDING, [CHECK, PREPARE]),
        (OURS, [CHECK, PREPARE]),  # a run that was killed: prepare finds out that there is nothing to do
        (OURS | {"release": "1"}, [CHECK, PREPARE]),  # rolled back from
        (SWITCHED | {"release": "1"}, ["finalize --yes", CHECK, PREPARE]),
        (SWITCHED, []),
    ],
)
def test_the_idle_database_becomes_the_release_s_own(state: Event, asked: list[str]) -> None:
    databases, done = of(state)
    assert databases.prepare(False, quiet) and databases.colour == "green" and done == asked
    databases, done = of(state)
    databases.prepare(True, quiet)
    assert CHECK not in done


@pytest.mark.parametrize("phase", ["fencing", "committing"])
def test_what_an_interrupted_switch_has_left_is_recovered_first(phase: str) -> None:
    left = OURS | {"writable": None, "phases": {"blue": phase, "green": "target"}}
    databases, done = of(left, SWITCHED)
    assert databases.prepare(False, quiet) == "green takes the writes already"
    databases, again = of(left, SWITCHED)
    databases.switch_back("2", quiet)
    assert (done, again) == (["recover"], ["recover", "rollback"])


def test_the_step_says_what_was_copied() -> None:
    copied = {
        "event": "result",
        "text": "",
        "target": "green",
        "copied": "3 tables, 1,200 rows, 1.2 MB in 2.0 s (600 kB/s)",
    }
    databases, _ = of(STANDING, prepare=(0, [copied]))
    assert databases.prepare(False, quiet) == "green: 3 tables, 1,200 rows, 1.2 MB in 2.0 s (600 kB/s)"


def test_what_is_refused_says_why_and_each_finding() -> None:
    found = {"event": "finding", "verdict": "refuse", "table": "t", "column": "c", "reason": "renamed.", "cure": "Do."}
    fine = found | {"verdict": "allow", "table": "other"}
    databases, _ = of(STANDING, prepare=(4, [found, fine, {"event": "result", "why": "1 finding is refused."}]))
    with pytest.raises(StepFailed, match="1 finding is refused") as caught:
        databases.prepare(False, quiet)
    assert caught.value.details == "t.c: renamed. Do."
    databases, done = of(STANDING, check=(1, [event("CommandError: The live release cannot run on it.\n")]))
    with pytest.raises(StepFailed, match="The live release cannot run on it"):
        databases.prepare(False, quiet)
    assert done == [CHECK]


def test_a_switch_says_for_how_long_writes_were_held() -> None:
    databases, _ = of(OURS, switch=(0, [MOVED]))
    assert databases.switch(quiet) == "green takes the writes, which were held for 41 ms; a rollback would lose nothing"
    late = MOVED | {"lossless": False}
    databases, _ = of(OURS, switch=(ExitCode.NEEDS_OPERATOR, [late]))
    assert databases.switch(quiet).endswith("for now, a rollback would lose rows")
    for code in (ExitCode.REFUSED, ExitCode.ROLLED_BACK, ExitCode.NEEDS_OPERATOR):
        databases, _ = of(OURS, switch=(code, [{"event": "result", "why": "Writes have not finished."}]))
        with pytest.raises(StepFailed, match="Writes have not finished"):
            databases.switch(quiet)


def test_the_writes_go_back_if_the_release_that_is_left_has_them_and_no_row_is_lost() -> None:
    back = (0, [MOVED | {"writable": "blue"}])
    databases, done = of(SWITCHED, rollback=back)
    assert "blue takes the writes" in databases.switch_back("2", quiet) and done == ["rollback"]
    for state, release in ((SWITCHED, "3"), (OURS, "2"), (STANDING, "2"), (SWITCHED | {"ready": False}, "2")):
        databases, done = of(state)
        assert databases.switch_back(release, quiet) == "" and done == []
    databases, done = of(SWITCHED | {"lossless": False, "faults": ["The slot is lost."]})
    said = databases.switch_back("2", quiet)
    assert said == "green keeps the writes, as a rollback would lose rows: The slot is lost." and done == []


def test_a_database_that_does_not_answer_fails_the_step() -> None:
    databases, _ = of(STANDING | {"unreachable": ["green"], "faults": ["Cannot connect to the green database."]})
    with pytest.raises(StepFailed, match="Cannot connect to the green"):
        databases.prepare(False, quiet)


def test_lines_that_are_no_events_are_kept_and_progress_is_shown() -> None:
    assert event("DATABASE_URL_BLUE is invalid") == {"event": "text", "text": "DATABASE_URL_BLUE is invalid"}
    assert event("[1]") == {"event": "text", "text": "[1]"}
    assert shown({"event": "progress", "name": "copy", "text": "3 of 5 tables"}) == "copy: 3 of 5 tables"
    assert shown({"event": "step", "name": "schema", "outcome": "running"}) == "schema"
    assert shown({"event": "sql", "text": "select 1"}) == ""
