"""Where a deployment is written down by whoever carries it out: on a laptop, in a pipeline or on the machine itself.

With LEDGER_URL the ledger is asked over its API (docs/api.md), else it is the database of the settings. A ledger that
is unavailable stops no deployment but one whose promotion it must confirm. What it could not be told is kept in a file,
and told at the next opportunity; the file goes when its row has been seen in the ledger.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.errors import DeployRefused
from deploy.ledger_client import Ledger, LedgerUnavailable, OpenDeployment, Request
from ledger import rules, steps
from ledger.models import FINISHED

TRIES = 3  # for what is still to be told at the end
PAUSE = 2.0  # seconds between them
AGAIN = ("environment-busy", "conflict")  # refusals that pass by themselves
KEPT = ("step", "finish")  # methods of Ledger that a kept file may name
STEPS_OF_OURS = {steps.MIGRATE, steps.START}  # one of them is the first that a deployment of these commands has


class Recorder:
    """One deployment's row. The ledger is told of each step as it comes. While it is unavailable, what it is to be told
    is kept, after the end in a file of `folder`, and told by the next deployment from there.
    """

    def __init__(self, ledger: Ledger, request: Request, folder: Path, note: Callable[[str], None]) -> None:
        self.ledger, self.request, self.folder, self.note = ledger, request, folder, note
        self.release: tuple[str, str, str] | None = None  # commit, when it was built, image
        self.key: int | None = None
        self.started = False  # as far as is known
        self.waiting: list[list[Any]] = []  # [method of Ledger, its arguments after the key]
        self.ended: set[str] = set()
        self.hopeless = False  # the ledger has answered, and does not take it
        self.code = self.why = ""  # of its last refusal, or why it is unavailable
        self.path: Path | None = None  # of the file that it was kept in

    def check_promotion(self) -> str:
        """Checks the promotion rule. Returns a note. Raises DeployRefused if the release has not succeeded where it
        must first, or if the ledger is unavailable and cannot say so.
        """
        request = self.request
        try:
            if request.kind == "rollback":
                return "rollbacks skip the promotion check"
            gate = self.ledger.gate(request.environment)
            if not gate:
                return f"{request.environment} takes every release"
            if self.ledger.succeeded(request.release, gate):
                return f"{request.release} has succeeded in {gate}"
            if request.hotfix:
                return f"{request.release} has not succeeded in {gate}, but is a hotfix"
            raise DeployRefused(
                f"Release {request.release} has not succeeded in {gate}. Deploy it there first, or pass "
                "--hotfix --reason TEXT if it cannot wait."
            )
        except LedgerUnavailable as error:
            if request.environment == "production" and request.kind == "deploy" and not request.hotfix:
                raise DeployRefused(
                    f"The ledger is unavailable, so it is unknown whether {request.release} has succeeded in staging: "
                    f"{error}. Wait for it, or pass --hotfix --reason TEXT if it cannot wait."
                ) from None
            return f"the ledger is unavailable, so this is recorded later: {error}"

    def preview(self, known: bool) -> str:
        """What begin() would raise or say, without writing anything. `known` is whether the release's commit is known.
        Raises DeployRefused.
        """
        request = self.request
        try:
            left = self.ledger.in_flight(request.environment)
            if left and self.is_of_this(left):
                return f"deployment {left.key} is resumed"
            if left and not STEPS_OF_OURS & left.steps.keys():
                busy = f"Deployment {left.key} of {left.version} to {request.environment} is {left.status}."
                if request.kind == "deploy":
                    raise DeployRefused(f"{busy} Wait for its end, or report it as failed if its pipeline is gone.")
                return f"not recorded: {busy}"
            if not known and not self.ledger.registered(request.release):
                return f"not recorded: release {request.release} is not registered; pass --commit SHA"
            if request.kind == "rollback" and not self.ledger.succeeded(request.release, request.environment):
                return f"not recorded: release {request.release} was never live in {request.environment}"
        except LedgerUnavailable as error:
            return f"the ledger is unavailable, so this is recorded later: {error}"
        return f"recorded in {self.ledger.name}"

    def begin(self, commit: str, built_at: str, image: str) -> OpenDeployment | None:
        """Begins the row, or resumes the one that an interrupted run of the same has left, which it returns.

        Only whoever holds the environment's lock may call it. Raises DeployRefused.
        """
        self.release = (commit, built_at, image) if commit and built_at else None
        try:
            self.catch_up()
            left = self.ledger.in_flight(self.request.environment)
            if left and self.is_of_this(left):
                self.adopt(left)
                self.resume(left.key)
                return left
            if left and STEPS_OF_OURS & left.steps.keys():  # its process is gone: the lock was free
                self.ledger.finish(left.key, "failed", None)
                self.note(f"Deployment {left.key} of {left.version} was interrupted; it is now recorded as failed.")
            self.open()
        except LedgerUnavailable as error:
            self.note(f"The ledger is unavailable, so this is recorded later: {error}.")
        except LookupError:
            self.hopeless = True
            self.why = f"release {self.request.release} is not registered, and its commit is unknown"
            self.note(
                f"Not recorded: {self.why}. Pass --commit SHA, or let the pipeline that builds it register it "
                "(docs/api.md)."
            )
        except (rules.RuleViolation, rules.Invalid) as error:
            if self.request.kind == "deploy":
                raise DeployRefused(named(error)) from None
            self.hopeless, self.why = True, named(error)  # no rule of the ledger bars a rollback
            self.note(f"Not recorded: {self.why}")
        return None

    def is_of_this(self, left: OpenDeployment) -> bool:
        """Whether the row in flight is this deployment's, by a run that was interrupted or an answer that was lost."""
        return (left.version, left.kind) == (self.request.release, self.request.kind)

    def adopt(self, left: OpenDeployment) -> None:
        self.key, self.ended = left.key, {name for name, outcome in left.steps.items() if outcome != "running"}

    def resume(self, key: int) -> None:
        """Starts it if it is pending. Asked also if it is running, so that a token that may not continue it is refused
        now, before anything is changed. Raises rules.RuleViolation.
        """
        try:
            self.ledger.start(key)
        except rules.RuleViolation as error:
            if error.code != "wrong-state":
                raise
        self.started = True

    def open(self) -> None:
        """Gets the row: the one that was made when its answer was lost, or a new one."""
        left = self.ledger.in_flight(self.request.environment)
        if left and self.is_of_this(left):
            self.key = left.key
        else:
            if self.release:
                try:
                    self.ledger.register(self.request.release, *self.release)
                except rules.RuleViolation:
                    pass  # whoever built it has registered it, in other words; or only they may
            self.key = self.ledger.create(self.request)
        if self.path:
            self.write(self.path)  # or the next one would make another row, should this one not get to the end
        self.resume(self.key)

    def step(self, name: str, outcome: str) -> None:
        name = f"{name} (again)" if name in self.ended else name
        if name not in self.ended:
            self.say("step", name, outcome)

    def finish(self, result: str, failed_requests: int | None) -> None:
        self.say("finish", result, failed_requests)
        for _ in range(TRIES - 1):
            if not self.waiting or self.hopeless:
                break
            time.sleep(PAUSE)
            self.tell()
        if not self.waiting:
            return
        ending = "refused.json" if self.hopeless else "json"
        path = self.folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{self.request.environment}.{ending}"
        try:
            self.write(path)
        except OSError as error:
            self.note(f"{path} cannot be written ({error.strerror}). Not recorded: {json.dumps(self.kept())}")
            return
        if self.hopeless:
            self.note(f"This {self.request.kind} is not in the ledger: {self.why}. It is kept in {path}.")
        else:
            self.note(
                f"The ledger ({self.ledger.name}) is still unavailable. The next deployment here records it ({path})."
            )

    def say(self, *what: Any) -> None:
        self.waiting.append(list(what))
        self.tell()

    def tell(self) -> None:
        """Tells the ledger what waits, in its order. What it refuses is noted; its end stays, if it has none yet."""
        self.why = "" if not self.hopeless else self.why
        try:
            if self.key is None and not self.hopeless:
                self.open()
            while self.waiting and self.key is not None and not self.hopeless:
                if not self.started:
                    self.resume(self.key)
                method, *words = self.waiting[0]
                try:
                    getattr(self.ledger, method)(self.key, *words)
                except (rules.RuleViolation, rules.Invalid) as error:
                    self.note(f"The ledger refused the {method}: {named(error)}")
                    if method == "finish" and not self.seen():
                        raise
                self.waiting.pop(0)
        except LedgerUnavailable as error:
            self.why = str(error)
        except (rules.RuleViolation, rules.Invalid, LookupError) as error:
            self.hopeless, self.why, self.code = True, named(error), getattr(error, "code", "")
            self.note(f"Not recorded: {self.why}")

    def seen(self) -> bool:
        """Whether the ledger has the row, ended. Raises LedgerUnavailable."""
        try:
            return self.key is not None and self.ledger.status(self.key) in FINISHED
        except LookupError:
            return False

    # What is kept

    def kept(self) -> dict[str, Any]:
        return {
            "request": asdict(self.request),
            "release": self.release,
            "key": self.key,
            "waiting": self.waiting,
            "why": self.why,
        }

    def write(self, path: Path) -> None:
        """Raises OSError. Whole or not at all: a process may end at any moment."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self.kept(), indent=1) + "\n", encoding="utf-8")
        os.replace(new, path)

    def read(self, path: Path) -> "Recorder":
        """The deployment that was kept there. Raises OSError, ValueError, KeyError and TypeError."""
        kept = json.loads(path.read_text(encoding="utf-8"))
        late = Recorder(self.ledger, Request(**kept["request"]), self.folder, self.note)
        late.key, late.waiting, late.path = kept["key"], [list(each) for each in kept["waiting"]], path
        late.release = tuple(kept["release"]) if kept["release"] else None
        if not all(each and each[0] in KEPT for each in late.waiting) or late.waiting[-1][0] != "finish":
            raise ValueError("it does not end with a finish")
        if not (late.key is None or isinstance(late.key, int)):
            raise ValueError("its key is not a number")
        return late

    def catch_up(self) -> None:
        """Tells the ledger of earlier deployments from here that it was unavailable for. Raises LedgerUnavailable."""
        for path in sorted(self.folder.glob(f"*-{self.request.environment}.json")):
            try:
                late = self.read(path)
            except (OSError, ValueError, LookupError, TypeError) as error:
                self.note(f"{path} is not a kept deployment ({type(error).__name__}: {error}). Correct or delete it.")
                continue
            what = f"The {late.request.kind} of {late.request.release} from {path.name[:15]}"
            if not late.seen():
                late.tell()
                if late.why and not late.hopeless:
                    raise LedgerUnavailable(late.why)
            if late.seen():
                path.unlink()
                self.note(f"{what} is now in the ledger, as deployment {late.key}.")
            elif late.code in AGAIN:
                self.note(f"{what} is still not in the ledger: {late.why} It is tried again next time ({path}).")
            else:
                aside = path.with_name(f"{path.stem}.refused.json")
                late.write(aside)
                path.unlink()
                self.note(f"{what} is not in the ledger: {late.why} It is kept in {aside}, and not tried again.")


def named(error: Exception) -> str:
    """What the ledger refused, with the name of the field that is wrong."""
    field = getattr(error, "field", "").removeprefix("#/")
    return f"{field}: {error}" if field else str(error)
