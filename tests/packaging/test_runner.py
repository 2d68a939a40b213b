"""python manage.py test, and coverage run manage.py test: the same suite, by pytest."""

import os
import subprocess
import sys
from pathlib import Path

import coverage
import pytest
from django.core.management import call_command

from tests.support.runner import PytestRunner, target
from tests.support.servers import PATIENCE, ROOT

TEXT = "packaging.test_text"


def manage(*words: str, program: tuple[str, ...] = (sys.executable,), **env: str) -> "subprocess.CompletedProcess[str]":
    """manage.py test, as typed in a new terminal."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "DATABASE_URL", "REDIS_URL") if name in os.environ}
    return subprocess.run(
        [*program, "manage.py", "test", *words, "--parallel", "0"],
        cwd=ROOT,
        env=keep | env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("health", "tests/health"),
        ("tests.health", "tests/health"),
        ("tests/health", "tests/health"),
        ("health.test_checks", "tests/health/test_checks.py"),
        ("tests.health.test_checks.test_one", "tests/health/test_checks.py::test_one"),
        ("tests/health/test_checks.py::test_one", "tests/health/test_checks.py::test_one"),
        ("nowhere", "nowhere"),
    ],
)
def test_a_label_is_a_path_a_room_or_dotted(label: str, expected: str) -> None:
    assert target(label) == expected


@pytest.mark.parametrize(
    ("words", "expected"), [((), "auto"), (("--parallel",), "auto"), (("--parallel", "3"), "3"), (("--pdb",), "--pdb")]
)
def test_it_runs_in_as_many_processes_as_run_test_unless_told(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], expected: str
) -> None:
    seen: list[PytestRunner] = []
    monkeypatch.setattr(PytestRunner, "run_tests", lambda self, _: seen.append(self))
    call_command("test", *words)
    assert seen[0].words[-1] == expected


@pytest.mark.slow
def test_options_are_handed_over_and_a_run_that_did_not_pass_is_a_failure() -> None:
    words = PytestRunner(failfast=True, parallel="3", test_name_patterns=["one", "*two*"], verbosity=0).words
    assert words == ["--quiet", "--quiet", "--exitfirst", "-k", "(one) or (two)", "--numprocesses", "3"]
    done = manage(TEXT, "--failfast", "-k", "no_such_test")
    assert done.returncode == 1 and "19 deselected" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_it_is_pytest_with_the_suite_s_settings_and_its_coverage_is_that_of_manage_py(tmp_path: Path) -> None:
    data = tmp_path / "coverage"
    program = (sys.executable, "-m", "coverage", "run", "--source=.")
    done = manage(TEXT, "-k", "clean", "--keepdb", "-v", "2", program=program, COVERAGE_FILE=str(data))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "settings: settings.testing" in done.stdout and " deselected" in done.stdout
    assert "tests/packaging/test_text.py::" in done.stdout, "as verbose as asked for"
    found = coverage.CoverageData(str(data))
    found.read()
    text = ROOT / "settings" / "text.py"
    begin = text.read_text().partition("def clean(")[0].count("\n") + 1
    assert found.has_arcs() and max(found.lines(str(text)) or []) > begin + 1, "the body of what only tests call"
