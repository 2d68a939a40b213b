"""The order of a run's steps, on a target that has no way of its own to roll back, and what each end calls for."""

import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.core.management.base import OutputWrapper

from deploy.console import Output
from deploy.errors import DeployRefused, ExitCode, StepFailed
from deploy.ledger_client import DatabaseLedger, Request
from deploy.locks import FileLock
from deploy.probe_traffic import Sample
from deploy.recorder import Recorder
from deploy.rollout import Deploy, Options, Rollback, Run, rollback
from tests.support.ledgers import deployed

pytestmark = pytest.mark.django_db


class Recording:
    """A target that notes what it is told to do. Version 1 is live; the method `fails` fails."""

    rollback_script = None
    databases: Any = None

    def __init__(self, folder: Path, version: str, fails: str = "") -> None:
        self.version, self.fails, self.live = version, fails, "1"
        self.done: list[str] = []
        self.lock = FileLock(folder / "deploy.lock", "testing")

    def act(self, name: str, note: str) -> str:
        self.done.append(name)
        if name == self.fails:
            raise StepFailed(f"{name} failed.", "its last words")
        return note

    def migrate(self, *_: Any) -> str:
        return self.act("migrate", "migrated")

    def start(self, *_: Any) -> str:
        return self.act("start", "started")

    def switch(self, *_: Any) -> str:
        self.live = self.version
        return self.act("switch", "switched")

    def roll_back(self, *_: Any) -> str:
        self.live = "1"
        return self.act("roll_back", "1")

    def mark_good(self) -> str:
        return self.act("mark_good", "marked")

    def mark_bad(self, version: str) -> None:
        self.done.append(f"mark_bad {version}")

    def cleanup(self) -> None:
        self.done.append("cleanup")

    def live_revision(self) -> str:
        return ""

    def live_version(self) -> str:
        return self.live

    def plan(self) -> list[tuple[str, str]]:
        return [("migrate", "would migrate"), ("start", "would start")]

    def be_patient(self, tell: Any) -> None:
        pass

    def validate(self) -> None:
        pass

    def preflight(self) -> None:
        if self.fails == "preflight":
            raise DeployRefused("It is paused.")

    def already_live(self) -> bool:
        return False

    def new_instances(self) -> list[str]:
        return []

    def live_instances(self) -> list[str]:
        return []

    def other_instances(self) -> list[str]:
        return []

    def url(self) -> str:
        return ""


class Pair:
    """Two databases that note what they are told to do, among what the target is told."""

    def __init__(self, target: Recording) -> None:
        self.target = target

    def prepare(self, *_: Any) -> str:
        return self.target.act("prepare", "prepared")

    def switch(self, *_: Any) -> str:
        return self.target.act("switch database", "green takes the writes")

    def switch_back(self, release: str, *_: Any) -> str:
        return self.target.act(f"switch back from {release}", "blue takes the writes")


def prepared(folder: Path, kind: Any, fails: str = "") -> tuple[Run, Recording, io.StringIO]:
    """A run to version 2, what it does to its target, and what it prints."""
    target: Any = Recording(folder, "2", fails)
    printed = io.StringIO()
    output = Output(OutputWrapper(printed), as_json=False, no_color=True, force_color=False)
    name = "deploy" if kind is Deploy else "rollback"
    request = Request("testing", "2", "blue-green", "ann", kind=name)
    deployed("testing", "2")
    deployed("testing", "1")
    recorder = Recorder(DatabaseLedger(), request, folder / "unrecorded", output.note)
    options = Options(
        "2",
        "blue-green",
        f"{name} of 2",
        commit="abcdef0",
        built_at="2026-03-01T12:00:00+00:00",
    )
    return kind(target, recorder, output, options), target, printed


def prepared_with_two_databases(folder: Path, kind: Any, fails: str = "") -> tuple[Run, Recording, io.StringIO]:
    """The same, with a database per colour."""
    run, target, printed = prepared(folder, kind, fails)
    target.databases = Pair(target)
    return run, target, printed


def test_a_deployment_prepares_ships_and_settles(tmp_path: Path) -> None:
    run, target, printed = prepared(tmp_path, Deploy)
    assert run.run() == ExitCode.DONE
    assert target.done == ["migrate", "start", "switch", "mark_good"] and not target.lock.held()
    assert printed.getvalue().endswith("2: succeeded; no probe traffic.\n")


def test_a_rollback_migrates_nothing_and_marks_what_it_leaves(tmp_path: Path) -> None:
    run, target, _ = prepared(tmp_path, rollback)
    assert isinstance(run, Rollback) and run.run() == ExitCode.DONE
    assert target.done == ["start", "switch", "mark_good", "mark_bad 1"]


def test_what_prevents_a_deployment_is_reported_before_it_begins(
    tmp_path: Path,
) -> None:
    run, target, _ = prepared(tmp_path, Deploy, "preflight")
    for begin in (run.run, run.dry_run):
        with pytest.raises(DeployRefused, match="It is paused"):
            begin()
    assert target.done == [] and not target.lock.held()
    run, target, _ = prepared(tmp_path, rollback, "preflight")
    assert run.run() == ExitCode.DONE, "rollback.sh makes the checks"


def test_the_plan_of_a_rollback_has_no_migrations(tmp_path: Path) -> None:
    run, target, printed = prepared(tmp_path, rollback)
    assert run.dry_run() == ExitCode.DONE and target.done == []
    assert "would start" in printed.getvalue() and "would migrate" not in printed.getvalue()


@pytest.mark.parametrize(
    ("kind", "fails", "done"),
    [
        (Deploy, "migrate", ["migrate"]),
        (Deploy, "start", ["migrate", "start"]),
        (Deploy, "mark_good", ["migrate", "start", "switch", "mark_good"]),
        (rollback, "switch", ["start", "switch"]),
    ],
)
def test_a_step_that_fails_is_rolled_back_once(tmp_path: Path, kind: Any, fails: str, done: list[str]) -> None:
    run, target, printed = prepared(tmp_path, kind, fails)
    assert run.run() == ExitCode.ROLLED_BACK
    assert target.done == [*done, "roll_back", "mark_bad 2", "cleanup"]
    assert f"2 failed: {fails} failed." in printed.getvalue() and "its last words" in printed.getvalue()
    assert f"{fails} failed. 1 is live." in printed.getvalue()


def test_a_rollback_that_fails_needs_a_person(tmp_path: Path) -> None:
    run, target, printed = prepared(tmp_path, Deploy, "start")
    target.roll_back = lambda *_: target.act("start", "")  # type: ignore[method-assign]
    assert run.run() == ExitCode.NEEDS_OPERATOR
    assert "The rollback failed as well: start failed." in printed.getvalue()


@pytest.mark.parametrize(
    ("hotfix", "failed", "told"),
    [
        (False, 3, ""),
        (
            False,
            30,
            "30 of 40 probe requests in the last 10 s failed during the migrations, so these were stopped.",
        ),
        (True, 30, ""),
    ],
)
def test_what_visitors_notice_of_the_migrations_is_reported_and_stops_them(
    tmp_path: Path, hotfix: bool, failed: int, told: str
) -> None:
    run, target, printed = prepared(tmp_path, Deploy)
    run.recorder.request = replace(run.recorder.request, hotfix=hotfix, reason="Down")
    traffic: Any = run.traffic

    def migrate(unsafe: bool, tell: Any) -> str:
        traffic.total, traffic.failed, traffic.slow = 140, 1 + failed, 2
        traffic.recent.extend(Sample(time.monotonic(), each < failed, 0.1, None) for each in range(40))
        tell("migrating")
        return "2 migrations applied"

    traffic.total, traffic.failed = 100, 1
    target.migrate = migrate  # type: ignore[method-assign]
    if told:
        assert run.run() == ExitCode.ROLLED_BACK and told in printed.getvalue()
        assert "start" not in target.done
    else:
        assert run.run() == ExitCode.DONE
        said = f"2 migrations applied; {failed + 2} of 40 probe requests failed or took over 2 s during the migrations"
        assert said in printed.getvalue()


def test_the_writes_move_to_a_release_s_own_database_before_its_traffic(
    tmp_path: Path,
) -> None:
    run, target, printed = prepared_with_two_databases(tmp_path, Deploy)
    assert run.run() == ExitCode.DONE
    assert target.done == ["prepare", "start", "switch database", "switch", "mark_good"]
    assert "green takes the writes" in printed.getvalue()


def test_with_a_rollback_the_writes_move_back_after_the_traffic(tmp_path: Path) -> None:
    run, target, _ = prepared_with_two_databases(tmp_path, rollback)
    assert run.run() == ExitCode.DONE
    assert target.done == [
        "start",
        "switch",
        "switch back from 1",
        "mark_good",
        "mark_bad 1",
    ]


@pytest.mark.parametrize(
    ("fails", "done"),
    [
        ("prepare", ["prepare"]),
        ("start", ["prepare", "start"]),
        ("switch database", ["prepare", "start", "switch database"]),
        ("switch", ["prepare", "start", "switch database", "switch"]),
        ("mark_good", ["prepare", "start", "switch database", "switch", "mark_good"]),
    ],
)
def test_a_release_that_fails_loses_the_traffic_then_the_writes(tmp_path: Path, fails: str, done: list[str]) -> None:
    run, target, printed = prepared_with_two_databases(tmp_path, Deploy, fails)
    assert run.run() == ExitCode.ROLLED_BACK
    assert target.done == [
        *done,
        "roll_back",
        "switch back from 2",
        "mark_bad 2",
        "cleanup",
    ]
    assert "; blue takes the writes" in printed.getvalue()


def test_writes_that_cannot_return_need_a_person(tmp_path: Path) -> None:
    run, target, printed = prepared_with_two_databases(tmp_path, Deploy, "start")
    target.databases.switch_back = lambda *_: target.act("start", "")
    assert run.run() == ExitCode.NEEDS_OPERATOR
    assert "The rollback failed as well: start failed." in printed.getvalue()
