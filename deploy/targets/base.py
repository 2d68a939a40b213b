"""Where a release runs, as a strategy sees it: what can be done there, and nothing of how.

A strategy never talks to docker or kubectl but through a Target. Every method may be called again after a run was
interrupted: it looks at what is there, and does what is left to do.
"""

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

Tell = Callable[[str], None]  # shows what is being waited for


class Refused(Exception):
    """It cannot be done, and nothing was changed. The text says what to do."""


class Misused(Refused):
    """What was asked for makes no sense at all."""


class Busy(Refused):
    """Somebody else holds the lock; the text says who, since when, for what, and how to break it."""


class Failed(Exception):
    """Something was begun and did not work out. `details` are the release's own words: its last log lines."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class Lost(Exception):
    """Somebody has broken the lock: another deployment may be at work, so nothing more is touched."""


@dataclass(frozen=True)
class Answer:
    """What an instance answered to GET `path`. `status` is 0 if nothing came; `error` says then why."""

    path: str
    status: int
    seconds: float
    body: str = field(default="", repr=False)
    error: str = ""


class Lock(Protocol):
    """One deployment per environment at a time."""

    def take(self, purpose: str) -> str:
        """Takes it, renews it until free(), and returns a note if another's was found dead. Raises Busy."""

    def refuse_taken(self) -> None:
        """Raises Busy if take() would. Changes nothing."""

    def held(self) -> bool:
        """Whether it is still ours: somebody may have broken it."""

    def free(self) -> None:
        """Gives it back. Harmless if it is not held."""

    def put(self, message: str) -> None:
        """Locks by hand, until clear(). Raises Busy."""

    def clear(self) -> str:
        """Removes whoever's lock there is, and returns whose it was; empty if there was none."""


class Target(Protocol):
    """One release on its way to one environment. Versions are image tags."""

    @property
    def lock(self) -> Lock: ...

    def refuse_unfit(self) -> None:
        """Raises Refused or Misused if the release cannot be brought there. Changes nothing."""

    def running(self) -> str:
        """The version that has the traffic; empty if there is none."""

    def settled(self) -> bool:
        """Whether the release has the traffic and was found good: there is nothing left to do."""

    def way_back(self) -> str:
        """The version to go back to: found good before the one that has the traffic, and nobody rolled back from it.
        Empty if there is none.
        """

    def origin(self) -> tuple[str, str]:
        """The commit that the release was built from, and when (ISO 8601); empty where that is not known."""

    def url(self) -> str:
        """Where people reach the environment; empty if that is nowhere from here."""

    def plan(self) -> Sequence[tuple[str, str]]:
        """(step, what would be done) for --dry-run."""

    def migrate(self, unsafe: bool, tell: Tell) -> str:
        """Migrates the database with the release's own image. Returns a note. Raises Failed."""

    def start(self, timeout: float, tell: Tell) -> str:
        """Brings the release up without traffic until it is ready, which may take `timeout` seconds. Returns a note.
        Raises Failed.
        """

    def instances(self) -> list[str]:
        """The release's instances, for ask()."""

    def ask(self, instance: str, paths: Sequence[str]) -> list[Answer]:
        """GETs each path from inside the instance. Raises Failed if that itself cannot be done."""

    def serving(self) -> list[str]:
        """The instances that have the traffic, for ask()."""

    def trouble(self) -> str:
        """What is wrong with the release's containers: they end, restart, are not ready. Empty if nothing is."""

    def logs(self) -> str:
        """The release's last log lines."""

    def switch(self, timeout: float, tell: Tell) -> str:
        """Gives the release the traffic, at once or instance after instance, each of which may take `timeout` seconds
        to get ready. What `tell` raises ends it. Returns a note; empty if there is nothing to switch. Raises Failed.
        """

    def back(self, reason: str, tell: Tell) -> str:
        """Gives the traffic to what had it before, and returns its version. Raises Failed."""

    def rollback(self, reason: str, timeout: float, dry_run: bool) -> tuple[int, str] | None:
        """Goes back to the release in a way of the target's own: the exit code, and what was said. None if it has no
        such way: the steps of a deployment do.
        """

    def discard(self) -> None:
        """Ends the release's instances, which have no traffic."""

    def keep(self) -> str:
        """Marks the release as good and ends what nobody needs any more. Returns a note."""

    def withdraw(self, version: str) -> None:
        """Marks a version as one that was gone back from."""


def call(
    words: Sequence[str],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    given: str = "",
) -> subprocess.CompletedProcess[str]:
    """Runs a program with `given` as its input, and returns how it ended. Raises Failed if it cannot run or hangs."""
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
        raise Failed(f"{words[0]} not found; install it.") from None
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(words[:4])} ... timed out after {timeout:g} s.") from None


# Runs inside an instance, whatever release that is of, so it needs nothing but Python. It asks as the proxy in front
# does, so that neither the Host check nor the redirect to TLS is in its way: over the proxy's socket, or from whichever
# of the instance's own addresses is among TRUSTED_PROXIES.
ASK = r"""
import http.client, json, os, socket, sys, time
address, host, paths = sys.argv[1], sys.argv[2], sys.argv[3:]
hosts = [name.strip().lstrip(".") for name in os.environ.get("ALLOWED_HOSTS", "").split(",") if name.strip()]
token, path = os.environ.get("METRICS_TOKEN", ""), os.environ.get("METRICS_TOKEN_FILE", "")
if path:
    token = open(path, encoding="utf-8-sig").read().strip()
ways = [address] if address.startswith("/") else ["127.0.0.1"]
try:
    ways += [] if address.startswith("/") else [socket.gethostbyname(socket.gethostname())]
except OSError:
    pass
def ask(way, path):
    began, answer = time.monotonic(), {"path": path, "status": 0, "body": "", "error": ""}
    link = http.client.HTTPConnection(hosts[0] if hosts else host, timeout=5)
    try:
        if way.startswith("/"):
            link.sock = socket.socket(socket.AF_UNIX)
            link.sock.settimeout(5)
            link.sock.connect(way)
        else:
            link.sock = socket.create_connection((way, int(address)), 5)
        headers = {"X-Forwarded-Proto": "https", "Connection": "close"}
        if path == "/metrics":
            headers = {"Connection": "close", **({"Authorization": "Bearer " + token} if token else {})}
        link.request("GET", path, headers=headers)
        response = link.getresponse()
        answer["body"], answer["status"] = response.read(2_000_000).decode(errors="replace"), response.status
    except (OSError, http.client.HTTPException) as error:
        answer["error"] = str(error) or type(error).__name__
    finally:
        link.close()
    return answer | {"seconds": time.monotonic() - began}
for path in paths:
    answer = ask(ways[0], path)
    if answer["status"] in (301, 308) and len(ways) > 1:
        answer = ask(ways[1], path)
    print(json.dumps(answer))
"""


def answers(done: subprocess.CompletedProcess[str]) -> list[Answer]:
    """What ASK has printed. Raises Failed if it could not run."""
    if done.returncode:
        raise Failed(f"The instance does not answer: {last_line(done.stderr)}")
    return [Answer(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]


def last_line(text: str) -> str:
    """What a program said last: usually why it ended."""
    return (text.strip().splitlines() or ["it said nothing"])[-1].strip()
