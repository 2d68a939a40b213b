"""What scripts/rollback.sh shares with the Python deployer, and the form it keeps. Nothing is run but its constants."""

import re
import subprocess

import pytest

from deploy import kubectl, locks, shell
from deploy.targets.kubernetes import objects
from ledger import versions
from tests.support.servers import ROOT

SOURCE = (ROOT / "scripts" / "rollback.sh").read_text()


def constant(name: str) -> str:
    """The value that bash gives it. Constants precede the first function."""
    constants = SOURCE.partition("\nusage() {\n")[0]
    words = ("bash", "-c", f'{constants}\nprintf %s "${name}"')
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def test_both_languages_give_up_on_the_same_waiting_reasons() -> None:
    listed = constant("FATAL_WAITING_REASONS")
    assert sorted(listed.split()) == sorted(objects.FATAL_WAITING_REASONS)
    assert all(f" {reason}\n" in listed for reason in objects.FATAL_WAITING_REASONS), "as failure_reason looks it up"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("APP", objects.APP),
        ("GOOD", objects.VERIFIED),
        ("BAD", objects.WITHDRAWN),
        ("HASH", objects.HASH),
        ("REVISION", objects.REVISION),
        ("BEFORE", objects.BEFORE),
        ("SCHEMA_BREAK", objects.BREAK),
        ("LIVE_SINCE", objects.LIVE),
        ("CAUSE", objects.CAUSE),
        ("PACE", objects.PACE),
        ("CLOSE", objects.CLOSE),
        ("LOST_LOG", objects.GONE),
        ("LEASE", f"{objects.APP}-deploy"),
        ("LEASE_SECONDS", str(locks.SECONDS)),
        ("PURPOSE", f"{locks.NOTES}/purpose"),
        ("BY_HAND", f"{locks.NOTES}/by-hand"),
        ("VERSION", versions.PATTERN),
        ("NO_CONNECTION", kubectl.NO_CONNECTION),
        ("NO_ANSWER", kubectl.NO_ANSWER),
        ("CUT_OFF", kubectl.CUT_OFF),
        ("FINAL", kubectl.FINAL),
        ("PATIENCE_SECONDS", f"{shell.PATIENCE:.0f}"),
    ],
)
def test_both_languages_call_a_thing_the_same(name: str, value: str) -> None:
    assert constant(name) == value


def test_it_needs_no_newer_bash_than_a_mac_has() -> None:
    newer = r"mapfile|readarray|declare -[A-Za-z]*[An]|local -n|\$\{[^}]*(\^|,,|@[A-Z])|&>>|\|&|coproc|EPOCH|\[\[ -v "
    assert [line for line in SOURCE.splitlines() if re.search(newer, line)] == []


def test_all_it_does_is_in_functions_of_lines_that_fit_a_screen() -> None:
    assert [line for line in SOURCE.splitlines() if len(line) > 120] == []
    rest = re.sub(r"^\w+\(\) \{(?:.*\}$|(?s:.*?)^\}$)", "", SOURCE, flags=re.MULTILINE)
    rest = re.sub(r"^readonly [^\n']*(?:'[^']*'[^\n']*)*$", "", rest, flags=re.MULTILINE)
    code = [line.partition(" #")[0] for line in rest.splitlines() if line and not line.startswith("#")]
    assert code == ["set -euo pipefail", "export LC_ALL=C", 'main "$@"']
