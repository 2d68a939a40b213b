"""manage.py deployments and api_token, the admin's pages about the ledger, and the ledger on SQLite."""

import io
import json
import os
import re
import sqlite3
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from ledger import tokens
from ledger.humanize import age, took
from ledger.models import ApiToken, Deployment, Environment
from tests.support.ledgers import START, begun, deployed, release
from tests.support.servers import PATIENCE, ROOT

pytestmark = pytest.mark.django_db


def run(*words: str) -> tuple[str, str]:
    """What the command prints to standard output and to standard error."""
    out, err = io.StringIO(), io.StringIO()
    call_command(*words, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


# deployments


def test_the_history_is_a_plain_table_where_there_is_no_terminal() -> None:
    deployed("testing", "1.0", "failed")
    deployed("production", "1.1", hotfix=True, reason="down")
    lines = run("deployments")[0].splitlines()
    assert [line.rstrip() for line in lines] == lines or all("\x1b" not in line for line in lines)
    assert lines[0].split()[:4] == ["Id", "When", "Environment", "Version"]
    assert len(lines) == 3 and "x failed" in lines[2] and "hotfix" in lines[1] and "1 min 0 s" in lines[1]


def test_the_history_is_in_colour_when_told_so() -> None:
    deployed("testing", "1.0")
    assert "\x1b[32m" in run("deployments", "--force-color")[0]


def plain(text: str) -> str:
    """Without the codes for colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("width", [200, 80, 40])
def test_a_narrow_terminal_cuts_no_version_and_no_status(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    deployed("staging", "1.18.0-rc.1")
    deployed("production", "1.18.0-rc.1", "rolled_back")
    tokens.make("deploy-to-production", Environment.objects.filter(name="production"))
    out = plain(run("deployments", "--force-color")[0])
    assert max(len(line.rstrip()) for line in out.splitlines()) <= width and "…" not in out
    if width > 40:
        for part in ("production", "1.18.0-rc.1", "< rolled back", "+ succeeded"):
            assert part in out, part
    assert ("Not shown at this width: Commit" in out) == (width <= 80)
    out = plain(run("api_token", "--force-color", "list")[0])
    assert max(len(line.rstrip()) for line in out.splitlines()) <= width and "…" not in out
    if width > 40:
        assert "deploy-to-production" in out and "never" in out


def test_the_history_as_json_is_one_object_a_line() -> None:
    deployed("testing", "1.0", at=START)
    deployed("staging", "1.0", at=START + timedelta(hours=1))
    begun("testing", "1.1")
    rows = [json.loads(line) for line in run("deployments", "--json", "-e", "testing")[0].splitlines()]
    assert [(row["release"], row["status"], row["previous"]) for row in rows] == [
        ("1.1", "running", "1.0"),
        ("1.0", "succeeded", None),
    ]
    assert rows[1]["created"] == "2026-03-01T12:00:00+00:00" and rows[1]["duration_seconds"] == 60
    assert len(run("deployments", "--json", "--limit", "2")[0].splitlines()) == 2
    assert run("deployments", "--json", "--status", "failed")[0] == ""


def test_an_empty_history_says_what_to_do() -> None:
    assert "api_token create" in run("deployments")[0] and "demo_data" in run("deployments")[0]
    deployed("testing", "1.0")
    assert "Leave out --environment" in run("deployments", "--environment", "staging")[0]


@pytest.mark.parametrize("words", [("deployments",), ("api_token", "list")])
def test_without_the_database_it_says_what_to_look_at(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise OperationalError("could not connect to db.internal")

    monkeypatch.setattr(connection, "cursor", away)
    with pytest.raises(CommandError, match="OperationalError.*manage.py health") as error:
        run(*words)
    assert error.value.returncode == 1 and "db.internal" not in str(error.value)


@pytest.mark.parametrize("words", [("--limit", "0"), ("--environment", "moon"), ("--status", "done")])
def test_wrong_usage_ends_with_two(words: tuple[str, ...]) -> None:
    with pytest.raises(CommandError) as error:
        run("deployments", *words)
    assert error.value.returncode == 2 or isinstance(error.value, CommandError)


@pytest.mark.parametrize(
    ("seconds", "says"), [(0.4, "0 s"), (59, "59 s"), (185, "3 min 5 s"), (3840, "1 h 4 min"), (None, "")]
)
def test_durations_read_well(seconds: float | None, says: str) -> None:
    assert took(None if seconds is None else timedelta(seconds=seconds)) == says


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (-3, "just now"),
        (60, "1 min ago"),
        (7200, "2 h ago"),
        (86_400 * 3, "3 d ago"),
        (86_400 * 8, "2026-02-21 12:00Z"),
    ],
)
def test_ages_read_well(seconds: float, says: str) -> None:
    assert age(START, START - timedelta(seconds=seconds)) == says


# api_token


def test_a_token_is_shown_once_and_alone_on_standard_output() -> None:
    out, err = run("api_token", "create", "ci", "--environment", "testing", "--environment", "staging", "--days", "90")
    token = out.strip()
    found = tokens.find(token)
    assert found and found.name == "ci" and token not in err and "shown only now" in err
    assert {each.name for each in found.environments.all()} == {"testing", "staging"}
    assert found.expires and timedelta(days=89) < found.expires - timezone.now() <= timedelta(days=90)
    listed = run("api_token", "list")[0]
    assert "ci" in listed and "active" in listed and token not in listed


def test_a_revoked_token_is_worth_nothing_and_its_name_stays_taken() -> None:
    token = run("api_token", "create", "ci", "--environment", "testing")[0].strip()
    assert run("api_token", "revoke", "ci")[0] == "Token ci is revoked.\n"
    assert "already" in run("api_token", "revoke", "ci")[0]
    assert tokens.find(token) is None and "revoked" in run("api_token", "list")[0]
    with pytest.raises(CommandError, match="already"):
        run("api_token", "create", "ci", "--environment", "testing")
    with pytest.raises(CommandError, match="not found"):
        run("api_token", "revoke", "another")


def test_without_tokens_the_list_says_how_to_make_one() -> None:
    assert "api_token create" in run("api_token", "list")[0]


@pytest.mark.parametrize(
    "words",
    [
        ("create", "ci"),
        ("create", "ci", "--environment", "moon"),
        ("create", " ", "--environment", "testing"),
        ("create", "ci", "--register", "--take-over"),
    ],
)
def test_a_token_needs_a_name_and_a_place(words: tuple[str, ...]) -> None:
    with pytest.raises(CommandError):
        run("api_token", *words)
    assert not ApiToken.objects.exists()


def test_a_token_has_the_rights_that_it_was_made_with() -> None:
    run("api_token", "create", "build", "--register")
    run("api_token", "create", "rescue", "--environment", "staging", "--take-over")
    rights = {row.name: (row.may_register, row.may_take_over) for row in ApiToken.objects.all()}
    assert rights == {"build": (True, False), "rescue": (False, True)}
    listed = run("api_token", "list")[0]
    assert "register" in listed and "staging, take over" in listed


def test_a_rotated_token_keeps_its_rights_and_the_old_secret_ends() -> None:
    old = run("api_token", "create", "ci", "--environment", "testing", "--register")[0].strip()
    new = run("api_token", "rotate", "ci", "--days", "7")[0].strip()
    found = tokens.find(new)
    assert tokens.find(old) is None and found and found.may_register and found.expires
    assert [place.name for place in found.environments.all()] == ["testing"]
    ApiToken.objects.update(expires=timezone.now())
    with pytest.raises(CommandError, match="--days"):
        run("api_token", "rotate", "ci")
    run("api_token", "rotate", "ci", "--days", "1")
    run("api_token", "revoke", "ci")
    with pytest.raises(CommandError, match="No active token"):
        run("api_token", "rotate", "ci", "--days", "1")


def test_a_release_registered_by_mistake_is_withdrawn_by_a_command() -> None:
    release("1.0")
    assert "can be registered again" in run("withdraw_release", "1.0")[0]
    with pytest.raises(CommandError, match="not registered"):
        run("withdraw_release", "1.0")
    begun("testing", "1.0")
    with pytest.raises(CommandError, match="stays in the history"):
        run("withdraw_release", "1.0")


@pytest.mark.parametrize("command", ["deployments", "api_token", "withdraw_release"])
def test_the_help_has_examples_and_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call_command(command, "--help")
    text = capsys.readouterr().out
    assert f"manage.py {command}" in text and "examples:" in text and "exit codes:" in text


def test_what_succeeds_is_not_shown_as_an_error() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    err = Terminal()
    with mock.patch.object(sys, "stderr", err):
        words = ("create", "ci", "--environment", "testing")
        call_command("api_token", "--force-color", *words, stdout=io.StringIO(), stderr=err)
    assert "shown only now" in err.getvalue()
    assert not re.search("\x1b\\[[0-9;]*31", err.getvalue()), "red"


# Wrong usage


WRONG = [
    (("deploy", "1.0", "-e", "nowhere"), "--environment 'nowhere' is not valid. Expected development, testing,"),
    (("deploy", "1.0", "-e", "stagin"), "--environment 'stagin' is not valid. Did you mean staging?"),
    (("rollback",), "Missing -e/--environment."),
    (("deploy", "1.0", "-e", "staging", "--hotfx"), "Unknown option --hotfx. Did you mean --hotfix?"),
    (("deploy", "1.0", "2.0", "-e", "staging"), "Unexpected argument '2.0'."),
    (("deploy", "1.0", "-e", "staging", "--wait", "soon"), "--wait: invalid seconds value: 'soon'."),
    (("deployments", "--status", "faild"), "--status 'faild' is not valid. Did you mean failed?"),
    (("api_token", "creat", "ci"), "ACTION 'creat' is not valid. Did you mean create?"),
    (
        ("api_token", "create", "ci", "--enviroment", "x"),
        "Unknown option --enviroment. Did you mean --environment?",
    ),
    (("health", "--jsn"), "Unknown option --jsn. Did you mean --json?"),
    (("demo_data", "--profile", "mock", "--ones"), "Unknown option --ones. Did you mean --once?"),
    (("migrate", "--plann"), "Unknown option --plann. Did you mean --plan?"),
]
# Runs manage.py with each of the lines of words that it is given, and prints how each ended: one start for all.
SAID = """
import contextlib, io, json, sys
import manage
for line in sys.stdin.read().splitlines():
    sys.argv, code, out, err = ["manage.py", *json.loads(line)], 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            manage.main()
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


@pytest.fixture(scope="module")
def said_of_wrong_usage() -> dict[tuple[str, ...], tuple[int, str, str]]:
    """The exit code and both streams, by the words."""
    done = subprocess.run(
        [sys.executable, "-c", SAID],
        input="\n".join(json.dumps(words) for words, _ in WRONG),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return {words: tuple(json.loads(line)) for (words, _), line in zip(WRONG, done.stdout.splitlines(), strict=True)}


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_wrong_usage_is_one_line_with_what_was_meant(
    words: tuple[str, ...], said: str, said_of_wrong_usage: dict[tuple[str, ...], tuple[int, str, str]]
) -> None:
    code, out, err = said_of_wrong_usage[words]
    assert code == 2 and out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"manage.py {words[0]}") and said in line and line.endswith("--help.")


# The admin


@pytest.mark.parametrize("page", ["change", "delete", "add"])
@pytest.mark.parametrize("model", ["deployment", "release", "environment", "apitoken"])
def test_the_admin_shows_the_ledger_and_changes_nothing(client: Client, model: str, page: str) -> None:
    client.force_login(User.objects.create_superuser("root@example.com", "x"))
    row = deployed("testing", "1.0")
    tokens.make("ci", [])
    pk = {"deployment": row.pk, "release": row.release_id, "environment": 2, "apitoken": ApiToken.objects.get().pk}
    args = [] if page == "add" else [pk[model]]
    response = client.post(reverse(f"admin:ledger_{model}_{page}", args=args), {"post": "yes", "actor": "nobody"})
    assert response.status_code == 403
    assert Deployment.objects.get().actor == "pipeline" and ApiToken.objects.count() == 1


# SQLite

ON_SQLITE = """
import django; django.setup()
from datetime import timedelta
from django.core.management import call_command
from django.db import IntegrityError, transaction
from ledger import demo
from ledger import rules
from ledger.models import Deployment, Environment, Release, Step
call_command("migrate", verbosity=0)
print(demo.load("mock"))
done = Deployment.objects.filter(status="succeeded").first()
running = Deployment.objects.get(status="running")
def row(**fields):
    given = {"release": running.release, "strategy": "rolling", "actor": "x", "created": running.created}
    Deployment.objects.create(**given | fields)
new = rules.register("9.0", "4f2a9c1", done.created)[0]
for act in (
    lambda: Deployment.objects.filter(pk=done.pk).update(actor="nobody"),
    lambda: Deployment.objects.filter(pk=done.pk)._raw_delete("default"),
    lambda: done.steps.update(outcome="failed"),
    lambda: done.steps.create(position=99, name="late", started=done.created),
    lambda: Step.objects.all()._raw_delete("default"),
    lambda: Release.objects.update(commit="0000000"),
    lambda: Release.objects.filter(pk=done.release_id)._raw_delete("default"),
    lambda: Deployment.objects.filter(pk=running.pk).update(token="x"),
    lambda: Deployment.objects.filter(pk=running.pk).update(actor="nobody"),
    lambda: Deployment.objects.filter(pk=running.pk).update(status="pending", started=None),
    lambda: row(environment_id=4, hotfix=True, break_glass=True, reason="down"),
    lambda: row(environment_id=4, release=new, status="waiting"),
    lambda: row(environment_id=4, release=new, kind="rollback"),
    lambda: row(environment_id=4, release=new, hotfix=True, break_glass=True, reason=" "),
    lambda: row(environment_id=4, hotfix=True, reason="down"),
    lambda: row(environment_id=2, strategy="canary"),
):
    try:
        with transaction.atomic():
            act()
    except IntegrityError as error:
        print(str(error).partition(":")[0] if "ledger_" not in str(error) else
              next(word for word in str(error).replace(":", " ").split() if word.startswith("ledger_")))
try:
    rules.create("production", "9.0", "rolling", "x")
except rules.RuleViolation as error:
    print(error.code)
"""


def test_sqlite_holds_the_same_rules(tmp_path: Path) -> None:
    (tmp_path / "lite.py").write_text(
        f"from settings.dev import *\nDATABASES['default']['NAME'] = {str(tmp_path / 'db')!r}\n"
    )
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "lite", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-W", "error", "-c", ON_SQLITE]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [
        *["ledger_append_only"] * 6,
        "ledger_release_used",
        *["ledger_fixed"] * 2,
        "ledger_order",
        "ledger_deployment.environment_id",
        "ledger_promotion",
        "ledger_rollback",
        "ledger_hotfix_has_a_reason",
        "ledger_approval",
        "ledger_known_strategy",
        "not-promotable",
    ]
    with sqlite3.connect(tmp_path / "db") as connection:
        triggers = {
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE name LIKE 'ledger_%' AND type = 'trigger'"
            )
        }
    connection.close()
    assert len(triggers) == 25, "a migration that alters a table must install the triggers again: docs/api.md"
