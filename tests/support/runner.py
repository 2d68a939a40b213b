"""`manage.py test`: the suite is pytest's, so Django's command hands its options over to pytest.

pytest gets a process of its own. Here, Django is set up by manage.py's settings already; the suite's are
settings.testing, and pytest starts the servers that these name before it reads them.
"""

import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from configparser import ConfigParser
from pathlib import Path
from typing import Any

try:
    import coverage
except ImportError as error:
    sys.exit(f"{error}. The tests need requirements-dev.txt: ./run test installs it.")

ROOT = Path(__file__).resolve().parents[2]
VERBOSITY = {0: ("--quiet", "--quiet"), 1: (), 2: ("--verbose",), 3: ("--verbose", "--verbose")}


class PytestRunner:
    """A Django test runner (TEST_RUNNER): https://docs.djangoproject.com/en/5.2/topics/testing/advanced/"""

    def __init__(
        self,
        *,
        verbosity: int = 1,
        failfast: bool = False,
        parallel: str | int = "",
        test_name_patterns: Sequence[str] = (),
        pdb: bool = False,
        **_: Any,
    ) -> None:
        words = [*VERBOSITY[verbosity], *(["--exitfirst"] if failfast else [])]
        if test_name_patterns:
            words += ["-k", " or ".join(f"({pattern.strip('*')})" for pattern in test_name_patterns)]
        # A debugger needs the terminal, which xdist's workers do not have.
        words += ["--pdb"] if pdb else ["--numprocesses", str(parallel or "auto")]
        self.words = words

    @classmethod
    def add_arguments(cls, parser: ArgumentParser) -> None:
        parser.add_argument("-k", dest="test_name_patterns", action="append", default=[], help="run tests by name")
        parser.add_argument("--failfast", action="store_true", help="stop at the first failure")
        parser.add_argument("--parallel", nargs="?", default="", const="", metavar="N", help="how many processes")
        parser.add_argument("--pdb", action="store_true", help="start a debugger at the first failure")
        parser.add_argument("--keepdb", action="store_true", help="ignored: each run has a new database server")

    def run_tests(self, test_labels: Sequence[str], **_: Any) -> int:
        """Returns pytest's exit code: 0 when all passed. If this is measured, so are pytest, its workers and each
        Python that a test starts with their environment, and all of it counts here.
        """
        env = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
        command = [sys.executable, "-m", "pytest", *self.words, *map(target, test_labels)]
        measuring = coverage.Coverage.current()
        with tempfile.TemporaryDirectory(prefix="coverage-") as folder:
            if measuring:
                env |= configured(measuring, Path(folder))
            code = wait(subprocess.Popen(command, cwd=ROOT, env=env))
            for file in Path(folder).glob("data.*"):
                found = coverage.CoverageData(str(file))
                found.read()
                assert measuring
                measuring.get_data().update(found)
        return code


def configured(measuring: coverage.Coverage, folder: Path) -> dict[str, str]:
    """The variables that have a Python measure itself as this process is measured, with its data in the folder.

    https://coverage.readthedocs.io/en/latest/subprocess.html
    """
    file = ConfigParser(interpolation=None)
    patterns = measuring.get_option("run:omit")
    assert isinstance(patterns, list)
    file["run"] = {
        "branch": str(measuring.get_option("run:branch")),
        "parallel": "true",
        "patch": "_exit",  # which is how workers of xdist end
        "source": str(ROOT),
        "omit": "\n".join(pattern if pattern.startswith("*") else f"{ROOT}/{pattern}" for pattern in patterns),
    }
    with (folder / "rc").open("w") as written:
        file.write(written)
    return {"COVERAGE_PROCESS_START": str(folder / "rc"), "COVERAGE_FILE": str(folder / "data")}


def wait(process: "subprocess.Popen[bytes]") -> int:
    """Returns how it ended. A Ctrl-C is for it, too: it stops its servers before it ends."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            pass


def target(label: str) -> str:
    """A file, a folder or a test for pytest: a label may be a path, a room, or dotted.

    >>> target("health"), target("health.test_checks"), target("tests.health")
    ('tests/health', 'tests/health/test_checks.py', 'tests/health')
    >>> target("tests/health/test_checks.py::test_one"), target("tests.health.test_checks.test_one")
    ('tests/health/test_checks.py::test_one', 'tests/health/test_checks.py::test_one')
    """
    if "/" in label or "::" in label:
        return label
    parts = label.removeprefix("tests.").split(".")
    for length in range(len(parts), 0, -1):
        path = "/".join(["tests", *parts[:length]])
        if (ROOT / f"{path}.py").is_file():
            return "::".join([f"{path}.py", *parts[length:]])
        if length == len(parts) and (ROOT / path).is_dir():
            return path
    return label
