"""deploy.recorder: what is written down when the ledger is there, when it is not, and when an answer is lost."""

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import DataError, IntegrityError, InterfaceError, OperationalError, connection, transaction
from pytest_django.live_server_helper import LiveServer

from deploy.errors import DeployRefused
from deploy.ledger_client import DatabaseLedger, LedgerUnavailable, OpenDeployment, RemoteLedger, Request
from deploy.recorder import Recorder
from ledger import rules, versions
from ledger.models import NOTE, Deployment, Release
from tests.support.ledgers import START, begun, deployed, release, token
from tests.support.servers import PATIENCE, ROOT
from tests.support.web import Page, serving

pytestmark = pytest.mark.django_db


class Flaky(DatabaseLedger):
    """A ledger that is down for the methods of `down`, and whose answers to those of `lost` do not arrive, once."""

    def __init__(self) -> None:
        self.down: set[str] = set()
        self.lost: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in ("down", "lost") or not callable(found) or name.startswith("_"):
            return found

        def ask(*words: Any) -> Any:
            if name in self.down or "all" in self.down:
                raise LedgerUnavailable("it is down")
            answer = found(*words)
            if name in self.lost:
                self.lost.discard(name)
                raise LedgerUnavailable("no answer")
            return answer

        return ask


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """And all the time that a busy machine's API needs."""
    monkeypatch.setattr("deploy.recorder.PAUSE", 0)
    monkeypatch.setattr("deploy.ledger_client.TIMEOUT", PATIENCE)


class Notes(list[str]):
    def __contains__(self, text: object) -> bool:
        return any(str(text) in each for each in self)


def record(book: Any, folder: Path, version: str = "1.0", **more: Any) -> tuple[Recorder, Notes]:
    notes = Notes()
    return Recorder(book, Request("testing", version, "rolling", "ann", **more), folder, notes.append), notes


def test_what_happened_is_recorded_with_the_step_in_one_line(tmp_path: Path) -> None:
    book = Flaky()
    one, _ = record(book, tmp_path)
    one.begin("4f2a9c1", START.isoformat(), "")
    book.down = {"all"}
    one.step("watch", "running")
    one.step("watch", "failed", "5 of 20\nwere 5xx" + "." * NOTE)
    one.finish("failed", 0)
    book.down = set()
    carry_out(book, tmp_path, "1.1")
    first = Deployment.objects.order_by("pk")[0].steps.get()
    assert first.note.startswith("5 of 20 were 5xx..") and len(first.note) == NOTE


def carry_out(book: Any, folder: Path, version: str = "1.0", **more: Any) -> Notes:
    """A deployment from its beginning to its end."""
    one, notes = record(book, folder, version, **more)
    one.begin("4f2a9c1", START.isoformat(), "")
    one.step("migrate", "running")
    one.step("migrate", "succeeded")
    one.finish("succeeded", 0)
    return notes


def rows() -> list[tuple[str, str]]:
    return [(row.release.version, row.status) for row in Deployment.objects.order_by("pk")]


def files(folder: Path) -> list[str]:
    return (
        sorted(re.sub(r"^\d{8}T\d{6}\.\d{6}-", "", path.name) for path in folder.iterdir()) if folder.exists() else []
    )


# When the ledger is unavailable


def test_what_the_ledger_missed_is_recorded_by_the_next_deployment(tmp_path: Path) -> None:
    book = Flaky()
    book.down = {"all"}
    assert "The ledger (the database) is still unavailable" in carry_out(book, tmp_path)
    assert files(tmp_path) == ["testing.json"] and rows() == []
    book.down = set()
    notes = carry_out(book, tmp_path, "1.1")
    assert rows() == [("1.0", "succeeded"), ("1.1", "succeeded")] and files(tmp_path) == []
    assert "is now recorded, as deployment" in notes
    assert [step.outcome for step in Deployment.objects.order_by("pk")[0].steps.all()] == ["succeeded"]


@pytest.mark.parametrize("method", ["register", "create", "start", "step", "finish", "status"])
@pytest.mark.parametrize("kind", ["down", "lost"])
def test_a_kept_record_goes_only_when_its_row_is_seen_and_makes_no_second_one(
    tmp_path: Path, method: str, kind: str
) -> None:
    book = Flaky()
    book.down = {"all"}
    carry_out(book, tmp_path)
    book.down = {method} if kind == "down" else set()
    book.lost = {method} if kind == "lost" else set()
    one, notes = record(book, tmp_path, "1.1")
    one.begin("4f2a9c1", START.isoformat(), "")
    assert files(tmp_path) == ["testing.json"] and "The ledger is unavailable" in notes
    book.down = set()
    carry_out(book, tmp_path, "1.1")
    assert rows() == [("1.0", "succeeded"), ("1.1", "succeeded")] and files(tmp_path) == []


@pytest.mark.parametrize("method", ["register", "create", "start", "step", "finish"])
def test_an_answer_that_is_lost_makes_no_second_row(tmp_path: Path, method: str) -> None:
    book = Flaky()
    book.lost = {method}
    carry_out(book, tmp_path)
    carry_out(book, tmp_path, "1.1")
    assert rows() == [("1.0", "succeeded"), ("1.1", "succeeded")] and files(tmp_path) == []


def test_what_the_ledger_refuses_later_is_kept_aside(tmp_path: Path) -> None:
    book = Flaky()
    book.down = {"all"}
    carry_out(book, tmp_path, kind="rollback")  # to what was never live there
    book.down = set()
    notes = carry_out(book, tmp_path, "1.1")
    assert rows() == [("1.1", "succeeded")] and files(tmp_path) == ["testing.refused.json"]
    assert "was not recorded: Release 1.0 was never live in testing" in notes and "It is kept in" in notes
    assert "never live" not in carry_out(book, tmp_path, "1.2"), "it is not tried for ever"


def test_a_refusal_that_passes_is_tried_again(tmp_path: Path) -> None:
    book = Flaky()
    book.down = {"all"}
    carry_out(book, tmp_path)
    book.down = set()
    other = begun("testing", "0.9")
    with pytest.raises(DeployRefused, match="Deployment .* of 0.9 to testing is running"):
        record(book, tmp_path, "1.1")[0].begin("4f2a9c1", START.isoformat(), "")
    assert files(tmp_path) == ["testing.json"]
    rules.finish(other.pk, "failed")
    carry_out(book, tmp_path, "1.1")
    assert rows()[1:] == [("1.0", "succeeded"), ("1.1", "succeeded")] and files(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"request": {}}',
        '{"request": {"environment": "testing", "release": "1.0", "strategy": "rolling", "actor": "a", "more": 1}}',
        '{"request": {"environment": "testing", "release": "1.0", "strategy": "rolling", "actor": "a"},"release": null,'
        ' "key": null, "waiting": [["register", "9.9"], ["finish", "succeeded", 0]]}',
        '{"request": {"environment": "testing", "release": "1.0", "strategy": "rolling", "actor": "a"},"release": null,'
        ' "key": null, "waiting": []}',
        "\udcff",
    ],
)
def test_a_kept_file_that_is_malformed_stops_nothing_and_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / "20261128T120000-testing.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    notes = carry_out(DatabaseLedger(), tmp_path, "1.1")
    assert rows() == [("1.1", "succeeded")] and path.exists()
    assert f"{path} is not a valid record" in notes


def test_a_record_that_cannot_be_kept_is_shown(tmp_path: Path) -> None:
    book = Flaky()
    book.down = {"all"}
    (tmp_path / "file").write_text("")
    notes = carry_out(book, tmp_path / "file")
    assert "Cannot write" in notes and '"release": "1.0"' in notes


# What it answers


@pytest.mark.parametrize("error", [DataError("value too long\nLINE 1"), IntegrityError("duplicate key")])
def test_a_database_that_refuses_is_not_taken_to_be_down(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuses(*_: Any) -> None:
        raise error

    monkeypatch.setattr(rules, "start", refuses)
    with pytest.raises((rules.Invalid, rules.RuleViolation), match=str(error).splitlines()[0]) as found:
        DatabaseLedger().start(1)
    assert "LINE" not in str(found.value)


@pytest.mark.parametrize("error", [OperationalError("refused"), InterfaceError("connection already closed")])
def test_a_database_that_cannot_answer_is(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def away(*_: Any) -> None:
        raise error

    monkeypatch.setattr(rules, "start", away)
    with pytest.raises(LedgerUnavailable, match=type(error).__name__):
        DatabaseLedger().start(1)


def test_a_deployment_that_the_ledger_cannot_hold_is_refused_by_the_name_of_its_field(tmp_path: Path) -> None:
    one, _ = record(DatabaseLedger(), tmp_path, "x" * 80)
    with pytest.raises(
        DeployRefused, match="version: 'x+' is not a valid version; expected an image tag of at most 64"
    ):
        one.begin("4f2a9c1", START.isoformat(), "")
    one, _ = record(DatabaseLedger(), tmp_path, reason="y" * 600)
    with pytest.raises(DeployRefused, match="500"):
        one.begin("4f2a9c1", START.isoformat(), "")
    assert rows() == []


@pytest.mark.parametrize("busy", [True, False])
def test_no_rule_of_the_ledger_bars_a_rollback(tmp_path: Path, busy: bool) -> None:
    deployed("testing", "1.0")
    if busy:
        begun("testing", "2.0")
    notes = carry_out(DatabaseLedger(), tmp_path, "1.0" if busy else "3.0", kind="rollback", reason="z" * 600)
    assert "Not recorded: " in notes and files(tmp_path) == ["testing.refused.json"]
    assert json.loads(next(tmp_path.iterdir()).read_text())["waiting"][-1][:2] == ["finish", "succeeded"]


def test_a_dry_run_says_what_the_ledger_would(tmp_path: Path) -> None:
    deployed("testing", "1.0")
    assert record(DatabaseLedger(), tmp_path)[0].preview(False) == "recorded in the database"
    assert "is not registered" in record(DatabaseLedger(), tmp_path, "9")[0].preview(False)
    release("2.0")
    assert "never live" in record(DatabaseLedger(), tmp_path, "2.0", kind="rollback")[0].preview(True)
    left = begun("testing", "3.0")
    with pytest.raises(DeployRefused, match=f"Deployment {left.pk} of 3.0 to testing is running"):
        record(DatabaseLedger(), tmp_path)[0].preview(True)
    assert "resumes" in record(DatabaseLedger(), tmp_path, "3.0")[0].preview(True)
    assert isinstance(DatabaseLedger().in_flight("testing"), OpenDeployment)


# Over the API


@pytest.mark.django_db(transaction=True)
def test_the_api_is_asked_the_same(live_server: LiveServer, tmp_path: Path) -> None:
    book = RemoteLedger(live_server.url, token("testing"))
    assert not book.registered("1.0")
    assert "Not recorded: release 7 is not registered" in record_of_unknown(book, tmp_path)
    carry_out(book, tmp_path)
    assert rows() == [("1.0", "succeeded")] and book.registered("1.0")
    assert book.status(Deployment.objects.get().pk) == "succeeded"
    with pytest.raises(LookupError):
        book.status(999)
    one, _ = record(book, tmp_path, "x" * 80)
    with pytest.raises(DeployRefused, match="(version|release): .*is not a valid version"):
        one.begin("4f2a9c1", START.isoformat(), "")


def record_of_unknown(book: RemoteLedger, folder: Path) -> Notes:
    one, notes = record(book, folder, "7")
    one.begin("", "", "")
    return notes


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """A server that redirects to itself, and the tokens that it was sent."""
    seen: list[str] = []

    class Moved(Page):
        def do_GET(self) -> None:
            seen.append(f"{self.path} {self.headers.get('Authorization', '')}")
            self.send_response(301)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

    with serving(Moved) as port:
        yield f"http://127.0.0.1:{port}", seen


def test_a_redirect_does_not_get_the_token(elsewhere: tuple[str, list[str]]) -> None:
    url, seen = elsewhere
    with pytest.raises(LedgerUnavailable, match="answers 301, a redirect; LEDGER_URL must be the final address"):
        RemoteLedger(url, "secret").promotion("1.0", "production")
    assert seen == ["/api/environments/production/promotable/1.0 Bearer secret"]


# One rule for versions


VALID = ["1.4.0", "v1", "_", "1.0-rc.1", "a" * 64, "0123456789abcdef0123456789abcdef01234567", "1..2", "A_b.-"]
INVALID = ["", "1.0+b1", "latest", "a" * 65, ".1", "-1", "1 0", "1/0", "1:0", "1.0\n", "é", "../x", "$(id)", "1.0\x00"]


@pytest.mark.parametrize("version", [*VALID, *INVALID])
def test_every_door_has_the_same_rule_for_versions(version: str) -> None:
    valid = version in VALID
    if valid:
        assert release(versions.validate(version)).version == version
    else:
        with pytest.raises(ValueError, match="is not a valid version"):
            versions.validate(version)
        with pytest.raises(rules.Invalid, match="is not a valid version"):
            release(version)
        if "\x00" not in version:  # which psycopg refuses by itself
            with pytest.raises((IntegrityError, DataError)), transaction.atomic():
                Release.objects.create(version=version, commit="4f2a9c1", built_at=START)
    if "\x00" not in version:
        rule = re.search(r"^readonly VERSION='(.*)'$", (ROOT / "scripts" / "rollback.sh").read_text(), re.MULTILINE)
        assert rule and rule[1] == versions.PATTERN
        done = subprocess.run(["bash", "-c", "[[ $1 =~ ^$2$ && $1 != latest ]]", "-", version, rule[1]])
        assert (done.returncode == 0) == valid
    assert connection.vendor == "postgresql"


def test_what_makes_versions_makes_valid_ones() -> None:
    versions.validate(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
    workflows = "".join(path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    made = set(re.findall(r"APP_VERSION=(\S+)|manage deploy (\S+)", workflows))
    assert made == {("$GITHUB_SHA", ""), ("", '"$GITHUB_SHA"')} and versions.validate("0" * 40)
    assert versions.PATTERN in (ROOT / "scripts" / "image.sh").read_text(), "./run image takes no other tag"
