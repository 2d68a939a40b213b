"""./run, the one entry point: its help, and one clear line when something is amiss."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import PATIENCE, ROOT

# Stands for python3 and, once it has "made" .venv, for .venv/bin/python; it notes each call.
PYTHON = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in
*dotenv.py*) exec "$REAL" "$@" ;;
--version) echo "Python 3.9.1" ;;
*sys.version_info*) exit "${OLD:-0}" ;;
*ensurepip*) exit "${BARE:-0}" ;;
"-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip"*) [ -z "$OFFLINE" ] || { echo "ERROR: No matching distribution found" >&2; exit 1; } ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with ./run, the locks, and a python3 that only says that it was called."""
    for name in ("run", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    python = tmp_path / "python3"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(folder / "calls"), "HOME": str(folder)}
    environment["REAL"] = sys.executable
    return subprocess.run(
        ["./run", *words], cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=PATIENCE
    )


def installs(clone: Path) -> int:
    return (clone / "calls").read_text().count("--require-hashes")


def test_the_help_lists_every_command_and_nothing_else() -> None:
    commands = (ROOT / "run").read_text().split("\n# Not commands")[0]
    done = run(ROOT)
    assert done.returncode == 0
    assert re.findall(r"^  ([a-z]+) ", done.stdout, re.M) == re.findall(r"^([a-z_]+)\(\) {", commands, re.M)


@pytest.mark.parametrize("word", ["nope", "install", "die", "../run", "serve() {"])
def test_an_unknown_command_is_refused_with_the_help(word: str) -> None:
    done = run(ROOT, word)
    assert done.returncode == 2
    assert f'Unknown command "{word}".' in done.stderr and "serve" in done.stderr


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1", "80 80", "08"])
def test_an_invalid_port_is_refused(port: str, clone: Path) -> None:
    done = run(clone, "serve", PORT=port)
    assert (done.returncode, done.stderr) == (
        2,
        f"PORT={port} is not a valid port; expected 1 to 65535, as in PORT=8080 ./run serve\n",
    )


def test_a_port_that_is_taken_is_reported_with_another_to_try() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(ROOT, "serve", PORT=str(port))
    assert done.returncode == 1
    assert done.stderr == (
        f"Cannot listen on 127.0.0.1:{port} (Address already in use); try PORT={port % 65535 + 1} ./run serve\n"
    )


@pytest.mark.parametrize(
    ("amiss", "code", "says"),
    [
        ({"OLD": "1"}, 2, "Python 3.9.1 is too old; requires 3.11 or newer."),
        ({"BARE": "1"}, 2, "python3 has no venv module; install it (Debian, Ubuntu: apt install python3-venv)"),
        ({"PYTHON": "python9"}, 2, "python9 not found; install Python 3.11 or newer"),
        ({"OFFLINE": "1"}, 1, "Cannot install requirements-dev.txt. Check the network;"),
    ],
)
def test_what_is_missing_is_one_clear_line(amiss: dict[str, str], code: int, says: str, clone: Path) -> None:
    done = run(clone, "test", **amiss)
    assert done.returncode == code
    assert says in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("words", ["up", "down", "logs", "backup", "restore .", "deployments", "e2e"])
@pytest.mark.parametrize(
    ("fails", "code", "says"),
    [("compose", 2, "docker compose not found; install the plugin"), ("info", 1, "Cannot reach the Docker engine")],
)
def test_a_command_of_the_stack_that_docker_cannot_do_says_why(
    words: str, fails: str, code: int, says: str, clone: Path
) -> None:
    docker = clone / "docker"
    docker.write_text(f'#!/bin/sh\n[ "$1" != {fails} ]\n')
    docker.chmod(0o755)
    file = clone / "backup.tar"
    file.touch()
    done = run(clone, *words.replace(" .", f" {file}").split())
    assert done.returncode == code
    assert done.stderr.startswith(says) and done.stderr.count("\n") == 1


def test_it_installs_again_only_when_a_lock_changed(clone: Path) -> None:
    for _ in range(2):
        assert run(clone, "test").returncode == 0
        assert installs(clone) == 1
    (clone / "requirements-dev.txt").write_text("changed")
    assert run(clone, "test").returncode == 0
    assert installs(clone) == 2


def test_an_install_that_failed_is_tried_again(clone: Path) -> None:
    assert run(clone, "test", OFFLINE="1").returncode == 1
    assert run(clone, "test").returncode == 0


def test_dotenv_is_read_as_compose_reads_it_and_the_environment_goes_before(clone: Path) -> None:
    (clone / ".env").write_text('# a comment\nPORT="http"\nHOST=$(touch pwned)\nnot a line\n')
    assert "PORT=http is not a valid port" in run(clone, "serve").stderr
    assert "PORT=0 is not a valid port" in run(clone, "serve", PORT="0").stderr
    assert not (clone / "pwned").exists()


# Stands for .venv/bin/pip-audit: prints $REPORT and, with --strict only, fails for a library that it could not look up.
PIP_AUDIT = """#!/bin/sh
printf '%s' "$REPORT"
case "$*:$SKIPPED" in *--strict*:?*) echo "$SKIPPED could not be audited" >&2; exit 1 ;; esac
exit "${FOUND:-0}"
"""
SOUND = {"name": "django", "version": "5.2.1", "vulns": []}
HOLE = {"name": "pillow", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}


@pytest.mark.parametrize(
    ("pins", "found", "variables", "says"),
    [
        (2, [SOUND, SOUND], {}, ""),
        (2, [SOUND, HOLE], {"FOUND": "1"}, "pillow 1.0: PYSEC-1; fixed in 1.1"),
        (2, [SOUND, SOUND], {"SKIPPED": "django"}, "django could not be audited"),  # offline: every library is
        (2, [SOUND], {}, "1 of 2 pinned libraries were audited"),
        (0, [], {}, "0 of 0 pinned libraries were audited"),
        (2, None, {}, "nothing was audited"),
    ],
)
def test_an_audit_succeeds_only_if_everything_was_audited(
    pins: int, found: list[object] | None, variables: dict[str, str], says: str, clone: Path
) -> None:
    folder = clone / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").symlink_to(sys.executable)
    (folder / "pip-audit").write_text(PIP_AUDIT)
    (folder / "pip-audit").chmod(0o755)
    for name in ("requirements", "requirements-dev", "requirements-bench", "requirements-scan"):
        lock = clone / f"{name}.txt"
        lock.write_text("".join(f"library-{n}==1.0 \\\n    --hash=sha256:00\n" for n in range(pins)))
        digest = hashlib.sha256(lock.read_bytes()).hexdigest()
        (clone / ".venv" / f"{name}.txt.sha256").write_text(f"{digest}  -\n")  # as installed
    report = "" if found is None else json.dumps({"dependencies": found, "fixes": []})
    done = run(clone, "audit", REPORT=report, **variables)
    assert done.returncode == (1 if says else 0), done.stderr
    assert says in done.stderr


# What docker compose reads from .env (its documentation's "Env-file syntax"), with E=env and EMPTY= in the environment.
# None is a variable that is not set; REFUSED is a file that is not read at all.
REFUSED = "refused"
DOTENV: dict[str, str | None] = {
    "X=a": "a",
    "X = a": "a",
    "X: a": "a",
    "export X=a": "a",
    "X=a # comment": "a",
    "X=a#b": "a#b",
    "X=#b": "#b",
    "X=": "",
    "X": None,
    "not a line": None,
    "# X=a": None,
    "X=  a b  ": "a b",
    "X=a=b=c": "a=b=c",
    "X='a # b'": "a # b",
    'X="a # b" # comment': "a # b",
    r"X='it\'s'": "it's",
    r'X="a\"b"': 'a"b',
    r'X="a\nb"': "a\nb",
    r"X='a\nb'": r"a\nb",
    r"X=a\nb": r"a\nb",
    'X="a\nb"': "a\nb",
    "X=$E": "env",
    'X="${E}"': "env",
    "X='$E'": "$E",
    "X=$NO": "",
    "X=${NO:-d}": "d",
    "X=${EMPTY:-d}": "d",
    "X=${EMPTY-d}": "",
    "X=${NO:-${E}}": "env",
    "X=${E:+y}": "y",
    "X=${NO:+y}": "",
    "X=${NO:?needed}": REFUSED,
    "X=a$$b": "a$b",
    "X=p$1": "p$1",
    "X=`touch pwned`": "`touch pwned`",
    "A=1\nX=${A}2": "12",
    "E=mine\nX=$E": "env",
    "\ufeffX=a": "a",
    "X=a\r\nY=b\r\n": "a",
    "X=a\r": "a",
    'X="a': REFUSED,
    "a.b=1\nX=a": "a",
}
# Prints X for each file of cases: one shell for the whole table.
SHOW = """#!/usr/bin/env bash
set -- help
source ./run >/dev/null
for file in cases/*; do
  (cp "$file" .env && dotenv && printf '%s\\0' "${X-<unset>}") 2>>errors || printf 'refused\\0'
done
"""


def test_dotenv_is_read_by_run_as_in_the_table(clone: Path) -> None:
    (clone / "show").write_text(SHOW)
    (clone / "cases").mkdir()
    for number, text in enumerate(DOTENV):
        (clone / "cases" / f"{number:03}").write_bytes(text.encode())
    environment = {"PATH": f"{clone}:{os.environ['PATH']}", "CALLS": str(clone / "calls"), "HOME": str(clone)}
    done = subprocess.run(
        ["bash", "show"],
        cwd=clone,
        env=environment | {"REAL": sys.executable, "E": "env", "EMPTY": ""},
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.decode().split("\0")[:-1]
    assert dict(zip(DOTENV, found, strict=True)) == {
        text: "<unset>" if value is None else value for text, value in DOTENV.items()
    }
    errors = (clone / "errors").read_text().splitlines()
    assert len(errors) == 2 and all(line.startswith(".env is not readable: line 1 ") for line in errors)
    assert not (clone / "pwned").exists()


def test_docker_compose_reads_dotenv_as_in_the_table(tmp_path: Path) -> None:
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop("docker compose not found; install it")
    (tmp_path / "compose.yaml").write_text('services: {s: {image: i, environment: {X: "${X-<unset>}"}}}\n')
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "E": "env", "EMPTY": ""}
    for text, expected in DOTENV.items():
        (tmp_path / ".env").write_bytes(text.encode())
        command = ["docker", "compose", "config", "--format", "json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=PATIENCE)
        assert (done.returncode != 0) == (expected == REFUSED), (text, done.stderr)
        if expected != REFUSED:
            found = json.loads(done.stdout)["services"]["s"]["environment"]["X"].replace("$$", "$")
            assert found == ("<unset>" if expected is None else expected), text


def test_the_version_of_the_working_tree_is_what_git_says(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "version.sh", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.1.0"\n')

    def version(**variables: str) -> dict[str, str]:
        env = {"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": str(tmp_path.parent), **variables}
        done = subprocess.run(
            [tmp_path / "scripts" / "version.sh"], env=env, capture_output=True, text=True, check=True
        )
        return dict(line.split("=", 1) for line in done.stdout.splitlines())

    def git(*words: str) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    assert version() == {"APP_VERSION": "0.1.0", "APP_COMMIT": "unknown", "APP_CREATED": ""}
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    found = version()
    assert found["APP_COMMIT"].startswith(found["APP_VERSION"]) and len(found["APP_COMMIT"]) == 40
    git("tag", "v1.4.0")
    assert version()["APP_VERSION"] == "1.4.0"
    (tmp_path / "pyproject.toml").write_text("changed")
    dirty = version()
    assert (
        re.fullmatch(r"1\.4\.0-dirty\.\d{8}T\d{6}Z", dirty["APP_VERSION"])
        and dirty["APP_COMMIT"] == found["APP_COMMIT"]
    )
    assert version(APP_VERSION="2.0")["APP_VERSION"] == "2.0"
