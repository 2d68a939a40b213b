"""The lock of the compose target: a file on the machine that runs the stack. (In a cluster it is a Lease.)

flock(2) tells whether the holder lives: the kernel lets go of it with the process. What the file says is for people:
who, since when, for what. One that was put by hand has no process, and stays until it is cleared.
"""

import fcntl
import getpass
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from deploy.targets import Busy


def holder() -> str:
    """Who runs this: the person, or the pipeline that a CI system names; with the machine."""
    who = os.environ.get("GITHUB_ACTOR") or os.environ.get("GITLAB_USER_LOGIN")
    try:
        who = who or getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in a container
        who = str(os.getuid())
    return f"{who}@{socket.gethostname()}"


class FileLock:
    """`path` is the lock; `also` a file that ./run switch locks in its own way, which is at work on the same things."""

    def __init__(self, path: Path, also: Path, clear: str) -> None:
        self.path, self.also, self.how = path, also, clear
        self.files: list[IO[str]] = []

    def take(self, purpose: str) -> str:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.open(self.path)
        try:
            if not self.lock(file):
                raise Busy(f"{self.whose(self.read())}. Wait for it (--wait), or end that process.")
            found = self.read()
            if found.get("by_hand"):
                raise Busy(f"{self.whose(found)}. Remove the lock with: {self.how}")
            other = self.open(self.also)
            self.files = [file, other]
            if not self.lock(other):
                raise Busy("./run switch is at work here. Wait for it (--wait).")
        except Busy:
            file.close()
            self.free(keep=True)
            raise
        self.write({"holder": holder(), "process": os.getpid(), "purpose": purpose})
        return f"{self.whose(found)}; its process has died" if found else ""

    def held(self) -> bool:
        return bool(self.files) and self.read().get("process") == os.getpid()

    def free(self, keep: bool = False) -> None:
        if self.files and not keep and self.held():
            self.write({})
        for file in self.files:
            file.close()
        self.files = []

    def put(self, message: str) -> None:
        self.take(message)
        self.write({"holder": holder(), "by_hand": True, "purpose": message})
        self.free(keep=True)

    def clear(self) -> str:
        found = self.read()
        if not found:
            return ""
        with self.open(self.path) as file:
            if not self.lock(file):
                raise Busy(f"{self.whose(found)}, and it lives. End that process: kill {found.get('process')}")
            self.write({})
        return self.whose(found)

    def open(self, path: Path) -> IO[str]:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+")

    def lock(self, file: IO[str]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def read(self) -> dict[str, Any]:
        """What the file says; nothing if nobody holds the lock, or if its writing was cut off."""
        try:
            found = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, said: dict[str, Any]) -> None:
        # In place: another file of that name would have a lock of its own.
        text = json.dumps(said | {"since": datetime.now(UTC).isoformat(timespec="seconds")} if said else {})
        self.path.write_text(text + "\n")

    def whose(self, found: dict[str, Any]) -> str:
        return (
            f"{found.get('holder', 'somebody')} has the lock since {found.get('since', 'just now')} "
            f"for: {found.get('purpose', 'something')}"
        )
