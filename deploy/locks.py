"""One deployment at a time: a file on the machine that runs the stack, or a Lease in the cluster.

Both say who has the lock, since when and for what. A lock put by hand stays until it is cleared.
"""

import fcntl
import getpass
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from deploy.errors import LockHeld, StepFailed
from deploy.shell import last_line

SECONDS = 60  # after which a Lease that is not renewed is nobody's
RENEWED = 15.0  # seconds between two renewals
NOTES = "backstagetest1"  # the prefix of the annotations; scripts/rollback.sh reads and writes the same


def holder() -> str:
    """Who runs this: the person, or the pipeline that a CI system names; with the machine."""
    who = os.environ.get("GITHUB_ACTOR") or os.environ.get("GITLAB_USER_LOGIN")
    try:
        who = who or getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in a container
        who = str(os.getuid())
    # rollback.sh compares it as kubectl prints it, and the ledger keeps it.
    return "".join(
        letter if letter.isprintable() and letter != " " else "-" for letter in f"{who}@{socket.gethostname()}"
    )


class FileLock:
    """flock(2) tells whether the holder lives, as the lock ends with its process. `path` is the lock; `also` is the
    file that ./run switch locks, which works on the same containers.
    """

    def __init__(self, path: Path, also: Path, clear: str) -> None:
        self.path, self.also, self.how = path, also, clear
        self.files: list[IO[str]] = []

    def take(self, purpose: str) -> str:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.open(self.path)
        try:
            if not self.lock(file):
                raise LockHeld(f"{self.whose(self.read())}. Wait for it (--wait), or end its process.")
            found = self.read()
            if found.get("by_hand"):
                raise LockHeld(f"{self.whose(found)}. Remove the lock with: {self.how}")
            other = self.open(self.also)
            self.files = [file, other]
            if not self.lock(other):
                raise LockHeld("./run switch is running here. Wait for it (--wait).")
        except LockHeld:
            file.close()
            self.free(keep=True)
            raise
        self.write({"holder": holder(), "process": os.getpid(), "purpose": purpose})
        return f"{self.whose(found, held='had held')}, and its process has died" if found else ""

    def check_free(self) -> None:
        for path in (self.path, self.also):
            if not path.exists():
                continue
            with self.open(path) as file:
                if not self.lock(file):
                    raise LockHeld(
                        f"{self.whose(self.read()) if path == self.path else './run switch is running here'}."
                    )
        if (found := self.read()).get("by_hand"):
            raise LockHeld(f"{self.whose(found)}. Remove the lock with: {self.how}")

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
                raise LockHeld(
                    f"{self.whose(found)}, and its process is alive. End it first: kill {found.get('process')}"
                )
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

    def whose(self, found: dict[str, Any], held: str = "has held") -> str:
        return (
            f"{found.get('holder', 'Somebody')} {held} the lock since {found.get('since', 'just now')} "
            f"for: {found.get('purpose', 'an unknown purpose')}"
        )


class LeaseLock:
    """https://kubernetes.io/docs/concepts/architecture/leases/

    A thread renews it. A Lease that was not renewed for a minute is taken over, by a write that only one can win.
    Clocks may differ by less than that minute.
    """

    def __init__(self, name: str, kubectl: Callable[..., "subprocess.CompletedProcess[str]"], clear: str) -> None:
        self.name, self.kubectl, self.how = name, kubectl, clear
        self.identity = f"{holder()} manage.py {os.getpid()}"
        self.renewed = 0.0  # by the monotonic clock; 0 if it is not ours
        self.ending = threading.Event()
        self.thread: threading.Thread | None = None

    def take(self, purpose: str) -> str:
        note = self.write(purpose)
        self.renewed = time.monotonic()
        self.ending.clear()
        self.thread = threading.Thread(target=self.renew, daemon=True)
        self.thread.start()
        return note

    def check_free(self) -> None:
        self.unless_taken()

    def unless_taken(self) -> dict[str, Any]:
        """The Lease, which nobody holds; empty if there is none. Raises LockHeld."""
        found = self.read()
        if found and self.alive(found):
            how = (
                f"Remove the lock with: {self.how}" if self.by_hand(found) else f"Wait for it (--wait), or: {self.how}"
            )
            raise LockHeld(f"{self.whose(found)}. {how}")
        return found

    def write(self, purpose: str, by_hand: bool = False) -> str:
        found = self.unless_taken()
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        notes = {f"{NOTES}/purpose": purpose} | ({f"{NOTES}/by-hand": "true"} if by_hand else {})
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name, "annotations": notes},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": SECONDS,
                "acquireTime": now,
                "renewTime": now,
            },
        }
        if found:
            lease["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]  # type: ignore[index]
        done = self.kubectl(
            "replace" if found else "create", "--validate=false", "--filename", "-", given=json.dumps(lease)
        )
        if done.returncode:
            if any(word in done.stderr for word in ("AlreadyExists", "already exists", "Conflict", "modified")):
                raise LockHeld("Somebody else has just taken the lock. Wait for it (--wait).")
            raise StepFailed(f"The lock cannot be taken: {last_line(done.stderr)}")
        dead = found and found["spec"].get("holderIdentity")
        return f"{self.whose(found, held='had held')}, and no longer renews it: its process has died" if dead else ""

    def read(self) -> dict[str, Any]:
        done = self.kubectl("get", "lease", self.name, "--output", "json", "--ignore-not-found")
        if done.returncode:
            raise StepFailed(f"The lock cannot be read: {last_line(done.stderr)}")
        return dict(json.loads(done.stdout)) if done.stdout.strip() else {}

    def by_hand(self, found: dict[str, Any]) -> bool:
        return bool(found["metadata"].get("annotations", {}).get(f"{NOTES}/by-hand"))

    def alive(self, found: dict[str, Any]) -> bool:
        spec = found["spec"]
        if not spec.get("holderIdentity"):
            return False
        renewed = datetime.fromisoformat(spec.get("renewTime") or "1970-01-01T00:00:00+00:00")
        age = (datetime.now(UTC) - renewed).total_seconds()
        return self.by_hand(found) or age <= spec.get("leaseDurationSeconds", SECONDS)

    def renew(self) -> None:
        while not self.ending.wait(RENEWED):
            now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
            try:
                done = self.patch("/spec/renewTime", now)
            except StepFailed:
                continue  # the cluster is away for a moment; held() tells when that is too long
            if not done.returncode:
                self.renewed = time.monotonic()
            elif "request" in done.stderr or "NotFound" in done.stderr or "not found" in done.stderr:
                self.renewed = 0.0  # another has it, or it was cleared

    def patch(self, path: str, value: str) -> "subprocess.CompletedProcess[str]":
        """Only if it is ours: RFC 6902's test makes it one step."""
        steps = [
            {"op": "test", "path": "/spec/holderIdentity", "value": self.identity},
            {"op": "replace", "path": path, "value": value},
        ]
        return self.kubectl("patch", "lease", self.name, "--type", "json", "--patch", json.dumps(steps))

    def held(self) -> bool:
        return bool(self.renewed) and time.monotonic() - self.renewed < SECONDS

    def free(self) -> None:
        if self.thread:
            self.ending.set()
            self.thread.join(60)
            self.thread = None
        if self.renewed:
            self.renewed = 0.0
            try:
                self.patch("/spec/holderIdentity", "")
            except StepFailed:
                pass  # it is nobody's in a minute

    def put(self, message: str) -> None:
        self.write(message, by_hand=True)

    def clear(self) -> str:
        found = self.read()
        if not found or not found["spec"].get("holderIdentity"):
            return ""
        done = self.kubectl("delete", "lease", self.name, "--ignore-not-found")
        if done.returncode:
            raise StepFailed(f"The lock cannot be removed: {last_line(done.stderr)}")
        return self.whose(found)

    def whose(self, found: dict[str, Any], held: str = "has held") -> str:
        purpose = found["metadata"].get("annotations", {}).get(f"{NOTES}/purpose", "an unknown purpose")
        spec = found["spec"]
        return f"{spec['holderIdentity']} {held} the lock since {spec.get('acquireTime')} for: {purpose}"
