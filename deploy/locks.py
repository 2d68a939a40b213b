"""One deployment at a time: a file on the machine that runs the stack, or a Lease in the cluster.

Both say who holds the lock, since when and for what. A lock acquired by hand (`manage.py lock acquire`) never expires.
"""

import fcntl
import json
import os
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from audit.operators import holder
from deploy.errors import LockHeld, StepFailed
from deploy.kubectl import Done, Kubectl, unanswered
from deploy.shell import last_line

SECONDS = 60  # after which a Lease that is not renewed can be taken over
RENEWED = 15.0  # seconds between two renewals
NOTES = "backstagetest1"  # the prefix of the annotations; scripts/rollback.sh reads and writes the same
CONFLICTS = ("AlreadyExists", "already exists", "Conflict", "modified")  # kubectl, if another write came first


@dataclass(frozen=True)
class Holding:
    """Who holds, or held, a lock. `since` is a time in ISO 8601; `by_hand` that it never expires."""

    holder: str
    since: str
    purpose: str
    by_hand: bool = False

    def __str__(self) -> str:
        return self.sentence("has held")

    def sentence(self, verb: str) -> str:
        """As a sentence without a full stop; `verb` is "has held", or "had held" of the past."""
        return f"{self.holder} {verb} the lock since {self.since} for: {self.purpose}"


class FileLock:
    """A lock on this machine, at `path`.

    The operating system's lock on the file ends with the holder's process, however that ends, so it tells whether the
    holder is alive: https://man7.org/linux/man-pages/man2/flock.2.html. `environment` is named in messages.
    """

    def __init__(self, path: Path, environment: str) -> None:
        self.path, self.environment = path, environment
        self.file: IO[str] | None = None

    def acquire(self, purpose: str) -> str:
        """Acquires it. Returns a note if the last holder's process died. Raises LockHeld."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.open(self.path)
        try:
            if not self.flock(file):
                raise LockHeld(f"{holding(self.read())}. Wait for it (--wait), or end its process.")
            found = self.read()
            if found.get("by_hand"):
                raise LockHeld(f"{holding(found)}. {how_to_release(self.environment)}")
        except LockHeld:
            file.close()
            raise
        self.file = file
        self.write({"holder": holder(), "process": os.getpid(), "purpose": purpose})
        return f"{holding(found).sentence('had held')}, and its process has died" if found else ""

    def check_free(self) -> None:
        """Raises LockHeld if acquire() would. Changes nothing."""
        if not self.path.exists():
            return
        with self.open(self.path) as file:
            if not self.flock(file):
                raise LockHeld(f"{holding(self.read())}.")
        if (found := self.read()).get("by_hand"):
            raise LockHeld(f"{holding(found)}. {how_to_release(self.environment)}")

    def status(self) -> Holding | None:
        """Who holds it; None if it is free, or if its holder died."""
        found = self.read()
        if not found or found.get("by_hand"):
            return holding(found) if found else None
        with self.open(self.path) as file:
            return None if self.flock(file) else holding(found)

    def held(self) -> bool:
        """Whether this run still holds it."""
        return self.file is not None and self.read().get("process") == os.getpid()

    def release(self) -> None:
        """Gives it back. Does nothing if this run does not hold it."""
        if self.held():
            self.write({})
        self.close()

    def acquire_by_hand(self, reason: str) -> None:
        """Acquires it until force_release(), beyond this process. Raises LockHeld."""
        self.acquire(reason)
        self.write({"holder": holder(), "by_hand": True, "purpose": reason})
        self.close()

    def force_release(self) -> Holding | None:
        """Releases it, whoever holds it, and returns who that was. Raises LockHeld if the holder's process is alive."""
        found = self.read()
        if not found:
            return None
        with self.open(self.path) as file:
            if not self.flock(file):
                raise LockHeld(f"{holding(found)}, and its process is alive. End it first: kill {found.get('process')}")
            self.write({})
        return holding(found)

    def close(self) -> None:
        """Closes the file, which ends the operating system's lock on it."""
        if self.file:
            self.file.close()
        self.file = None

    def open(self, path: Path) -> IO[str]:
        """The file, which is created if need be. It is not truncated."""
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+")

    def flock(self, file: IO[str]) -> bool:
        """Whether the operating system's lock on the file could be acquired; it does not wait for it."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def read(self) -> dict[str, Any]:
        """What the file says; empty if nobody holds the lock, or if its writing was cut off."""
        try:
            found = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, content: dict[str, Any]) -> None:
        """Writes who holds the lock, and the time; an empty `content` says that nobody does."""
        # In place: another file of that name would have a lock of its own.
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self.path.write_text(json.dumps(content | {"since": since} if content else {}) + "\n")


def holding(found: dict[str, Any]) -> Holding:
    """What a lock file says. It may be incomplete."""
    return Holding(
        str(found.get("holder", "Somebody")),
        str(found.get("since", "just now")),
        str(found.get("purpose", "an unknown purpose")),
        bool(found.get("by_hand")),
    )


def how_to_release(environment: str) -> str:
    """The sentence that ends the message of a lock that somebody has to release."""
    return f"Release it with: manage.py lock release -e {environment}"


class LeaseLock:
    """A lock in the cluster: a Lease that a thread renews. https://kubernetes.io/docs/concepts/architecture/leases/

    A Lease that was not renewed for SECONDS is taken over, by a write that only one run can win. Clocks may differ by
    less than that. `environment` is named in messages.

    While the API server does not answer, nothing can be renewed, and whoever reaches it again first may take the Lease
    over. So a run that could not renew it for SECONDS holds it only if a renewal succeeds now, before anything else is
    changed: it succeeds only if nobody else has held the Lease meanwhile.
    """

    def __init__(self, name: str, kubectl: Kubectl, environment: str) -> None:
        self.name, self.kubectl, self.environment = name, kubectl, environment
        self.identity = f"{holder()} manage.py {os.getpid()}"
        self.renewed = 0.0  # by the monotonic clock; 0 if this run does not hold it
        self.ending = threading.Event()
        self.thread: threading.Thread | None = None

    def acquire(self, purpose: str) -> str:
        """Acquires it and renews it until release(). Returns a note if it was taken over from a run that died.

        Raises LockHeld, and StepFailed if the cluster cannot be asked.
        """
        note = self.write(purpose)
        self.renewed = time.monotonic()
        self.ending.clear()
        self.thread = threading.Thread(target=self.renew, daemon=True)
        self.thread.start()
        return note

    def check_free(self) -> None:
        """Raises LockHeld if acquire() would, and StepFailed if the cluster cannot be asked. Changes nothing."""
        self.free_lease()

    def free_lease(self) -> dict[str, Any]:
        """The Lease, which nobody holds; empty if there is none. Raises LockHeld and StepFailed."""
        found = self.read()
        if found and self.alive(found):
            who, how = self.holding(found), how_to_release(self.environment)
            raise LockHeld(f"{who}. {how if who.by_hand else f'Wait for it (--wait). If its process is gone: {how}'}")
        return found

    def status(self) -> Holding | None:
        """Who holds it; None if it is free or expired. Raises StepFailed."""
        found = self.read()
        return self.holding(found) if found and self.alive(found) else None

    def write(self, purpose: str, by_hand: bool = False) -> str:
        """Creates the Lease, or replaces one that nobody holds. `by_hand` makes it one that never expires.

        The resourceVersion that was read goes along, so of two writes at once one is refused:
        https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions
        Returns a note if it was taken over from a run that died. Raises LockHeld, and StepFailed if the cluster cannot
        be asked or refuses.
        """
        found = self.free_lease()
        now = timestamp()
        metadata: dict[str, Any] = {"name": self.name, "annotations": {f"{NOTES}/purpose": purpose}}
        if by_hand:
            metadata["annotations"][f"{NOTES}/by-hand"] = "true"
        if found:
            metadata["resourceVersion"] = found["metadata"]["resourceVersion"]
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": SECONDS,
            "acquireTime": now,
            "renewTime": now,
        }
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        done = self.kubectl.run(
            "replace" if found else "create", "--validate=false", "--filename", "-", given=json.dumps(lease)
        )
        if unanswered(done) and self.read().get("spec", {}).get("acquireTime") == now:
            done.returncode = 0  # it had arrived
        if done.returncode:
            if any(word in done.stderr for word in CONFLICTS):
                raise LockHeld("Someone else has just taken the lock. Wait for it (--wait).")
            raise StepFailed(f"Cannot acquire the lock: {last_line(done.stderr)}")
        if not found or not found["spec"].get("holderIdentity"):
            return ""
        return f"{self.holding(found).sentence('had held')}, and no longer renews it: its process has died"

    def read(self) -> dict[str, Any]:
        """The Lease; empty if there is none. Raises StepFailed."""
        return self.kubectl.get("lease", self.name)

    def holding(self, found: dict[str, Any]) -> Holding:
        """What a Lease says."""
        notes, spec = found["metadata"].get("annotations", {}), found["spec"]
        return Holding(
            str(spec["holderIdentity"]),
            str(spec.get("acquireTime")),
            notes.get(f"{NOTES}/purpose", "an unknown purpose"),
            bool(notes.get(f"{NOTES}/by-hand")),
        )

    def alive(self, found: dict[str, Any]) -> bool:
        """Whether somebody holds the Lease: it has a holder, and was renewed in time or acquired by hand."""
        spec = found["spec"]
        if not spec.get("holderIdentity"):
            return False
        renewed = datetime.fromisoformat(spec.get("renewTime") or "1970-01-01T00:00:00+00:00")
        age = (datetime.now(UTC) - renewed).total_seconds()
        return self.holding(found).by_hand or age <= spec.get("leaseDurationSeconds", SECONDS)

    def renew(self) -> None:
        """Renews the Lease every RENEWED seconds until release(); held() tells if that fails for too long."""
        while not self.ending.wait(RENEWED):
            try:
                self.judge(self.patch("/spec/renewTime", timestamp()))
            except StepFailed:
                continue  # the cluster may be unreachable for a moment

    def judge(self, done: Done) -> None:
        """Draws the conclusion from a renewal that ended so."""
        if not done.returncode:
            self.renewed = time.monotonic()
        elif not unanswered(done) and ("request" in done.stderr or "not found" in done.stderr.lower()):
            self.renewed = 0.0  # another run has it, or it was released by force

    def patch(self, path: str, value: str) -> Done:
        """Changes one field of the Lease, only if this run holds it: the "test" of RFC 6902 makes that one step.

        Returns how kubectl ended. Raises StepFailed if it is not found or times out.
        """
        operations = [
            {"op": "test", "path": "/spec/holderIdentity", "value": self.identity},
            {"op": "replace", "path": path, "value": value},
        ]
        return self.kubectl.run("patch", "lease", self.name, "--type", "json", "--patch", json.dumps(operations))

    def held(self) -> bool:
        """Whether this run still holds it, by the last renewal, or by another one if that is too long ago.

        Raises StepFailed, and NoAnswer if the API server does not answer that one.
        """
        if not self.renewed or time.monotonic() - self.renewed < SECONDS:
            return bool(self.renewed)
        self.judge(self.kubectl.patience.read(lambda: self.patch("/spec/renewTime", timestamp())))
        return bool(self.renewed) and time.monotonic() - self.renewed < SECONDS

    def release(self) -> None:
        """Gives it back. Does nothing if this run does not hold it."""
        if self.thread:
            self.ending.set()
            self.thread.join(60)
            self.thread = None
        if self.renewed:
            self.renewed = 0.0
            try:
                self.patch("/spec/holderIdentity", "")
            except StepFailed:
                pass  # it expires in a minute

    def acquire_by_hand(self, reason: str) -> None:
        """Acquires it until force_release(), beyond this process. Raises LockHeld and StepFailed."""
        self.write(reason, by_hand=True)

    def force_release(self) -> Holding | None:
        """Releases it, whoever holds it, and returns who that was. A run that held it stops before its next step.

        Raises StepFailed.
        """
        found = self.read()
        if not found or not found["spec"].get("holderIdentity"):
            return None
        done = self.kubectl.run("delete", "lease", self.name, "--ignore-not-found")
        if done.returncode:
            raise StepFailed(f"Cannot release the lock: {last_line(done.stderr)}")
        return self.holding(found)


def timestamp() -> str:
    """The time as a Lease has it: RFC 3339, UTC, microseconds (MicroTime in the Kubernetes API)."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
