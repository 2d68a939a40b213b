"""Programs that the deployer runs: kubectl, docker, git, rollback.sh."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.errors import NoAnswer, StepFailed, TimedOut

SHOWN, READ = 20, 400  # lines of a release's log: what people see, of what is read
PROBES = "/health/"  # their paths: a log is full of them, and only says that a pod is not ready
PATIENCE = 60.0  # seconds for which reads of a server that does not answer are repeated
PAUSE = 1.0  # seconds between two of them


def call(
    words: Sequence[str],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    given: str = "",
) -> subprocess.CompletedProcess[str]:
    """Runs a program with `given` as its input, for at most `timeout` seconds, and returns how it ended.

    `env` is added to this process's environment. Raises StepFailed if the program is not found, and TimedOut; its exit
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
        raise TimedOut(f"{' '.join(words[:4])} ... timed out after {timeout:g} s.") from None


def begin(words: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None) -> subprocess.Popen[str]:
    """Starts a program whose output, errors included, is to be read line by line. `env` is its whole environment.

    It gets a session of its own, so that Ctrl-C here leaves it to the caller how it ends.
    """
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=cwd,
        env=env,
        start_new_session=True,
    )


class Patience:
    """Retries reads while a server does not answer: an outage is no evidence against a release.

    `server` is its name in messages, and `unanswered` says why a read got no answer; empty if it got one. `seconds` is
    how long a read is repeated; at first not at all. `tell` shows why, and what it raises ends the wait.
    """

    def __init__(self, server: str, unanswered: Callable[[subprocess.CompletedProcess[str]], str]) -> None:
        self.server, self.unanswered = server, unanswered
        self.seconds = 0.0
        self.tell: Callable[[str], None] = lambda text: None
        self.lost = 0.0  # seconds without answers so far

    def read(self, attempt: Callable[[], subprocess.CompletedProcess[str]]) -> subprocess.CompletedProcess[str]:
        """How `attempt` ended once it was answered. Raises NoAnswer, and what `attempt` and `tell` raise."""
        began = looked = time.monotonic()
        while why := self.unanswered(done := attempt()):
            left = began + self.seconds - time.monotonic()
            if left <= 0:
                lasted = f"has not answered for {self.seconds:.0f} s" if self.seconds else "does not answer"
                raise NoAnswer(f"{self.server} {lasted}: {why}")
            self.tell(
                f"{self.server[0].lower()}{self.server[1:]} does not answer: {why}; trying again, {left:.0f} s left"
            )
            time.sleep(min(PAUSE, left))
            self.lost += time.monotonic() - looked
            looked = time.monotonic()
        return done

    def pause(self) -> None:
        """Waits before another attempt."""
        time.sleep(PAUSE)

    def clock(self) -> float:
        """Seconds that went by with answers, for deadlines of what cannot go on, or be seen, without."""
        return time.monotonic() - self.lost


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
