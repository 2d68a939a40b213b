"""Programs that the deployer runs: kubectl, docker, git, rollback.sh."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.errors import StepFailed


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


def last_line(text: str) -> str:
    """The last line of a program's output, which usually says why it ended."""
    return (text.strip().splitlines() or ["no output"])[-1].strip()
