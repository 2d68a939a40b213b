"""Programs that the deployer runs: kubectl, docker, git, rollback.sh."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.errors import StepFailed

SHOWN, READ = 20, 400  # lines of a release's log: what people see, of what is read
PROBES = "/health/"  # their paths: a log is full of them, and only says that a pod is not ready


def call(
    words: Sequence[str],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    given: str = "",
) -> subprocess.CompletedProcess[str]:
    """Runs a program with `given` as its input, for at most `timeout` seconds, and returns how it ended.

    `env` is added to this process's environment. Raises StepFailed if the program is not found or times out; its exit
    code is the caller's to judge.
    """
    try:
        return subprocess.run(
            words,
            input=given,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd=cwd,
            env={**os.environ, **(env or {})},
        )
    except FileNotFoundError:
        raise StepFailed(f"{words[0]} not found; install it.") from None
    except subprocess.TimeoutExpired:
        raise StepFailed(f"{' '.join(words[:4])} ... timed out after {timeout:g} s.") from None


def telling_lines(log: str) -> str:
    """The last 20 lines of a release's log, without probes and without requests that it answered with less than 500.

    A release that serves logs little else, so its errors would be out of sight.
    """
    return "\n".join([line for line in log.splitlines() if not tells_nothing(line)][-SHOWN:]).strip()


def tells_nothing(line: str) -> bool:
    """Whether this line of the app's JSON log is of a probe, or of a request without a server error."""
    try:
        entry = json.loads(line)
        if entry["logger"] == "gunicorn.access":
            return bool(entry["status"] < 500 or entry["path"].startswith(PROBES))
        return bool(entry["logger"] == "django.request" and f": {PROBES}" in entry["message"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return False


def last_line(text: str) -> str:
    """The last line of a program's output, which usually says why it ended."""
    return (text.strip().splitlines() or ["no output"])[-1].strip()
