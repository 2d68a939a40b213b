"""Records a deployment in the ledger while it is carried out: on a laptop, in a pipeline or on the machine itself.

With LEDGER_URL the ledger is asked over its API (docs/api.md), else it is the database of the settings. An unavailable
ledger stops no deployment but one whose promotion it must confirm. What could not be recorded is kept in a file, and
recorded by the next deployment; the file is deleted once its row has been seen in the ledger.
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
from ledger import humanize, rules, steps
from ledger.environments import config_of
from ledger.models import FINISHED, NOTE
from settings.text import clean

TRIES = 3  # attempts to record what is left at the end
PAUSE = 2.0  # seconds between them
TEMPORARY = ("environment-busy", "frozen", "conflict")  # codes of refusals that pass by themselves
REPLAYED = ("step", "finish")  # methods of Ledger that a kept file may name
OWN_STEPS = {
    steps.MIGRATE,
    steps.PREPARE_DATABASE,
    steps.START,
}  # one of them is the first step that a run of these commands records


class Recorder:
    """One deployment's row in the ledger.

    Each step is sent as it comes. What an unavailable ledger misses is sent with the next step, and in the end kept in
    a file of `folder`. `note` shows a sentence to whoever runs the command.
    """

    poll = 5.0  # seconds between two looks at a deployment that waits for approval

    def __init__(self, ledger: Ledger, request: Request, folder: Path, note: Callable[[str], None]) -> None:
        self.ledger, self.request, self.folder, self.note = ledger, request, folder, note
        self.release: tuple[str, str, str] | None = None  # commit, when it was built (ISO 8601), image
        self.key: int | None = None  # of the row
        self.started = False  # whether the row is running, as far as is known
        self.waiting: list[list[Any]] = []  # what is not sent yet: [method of Ledger, its arguments after the key]
        self.ended: set[str] = set()  # steps that an interrupted run has recorded the end of
        self.refused = False  # whether the ledger answered, and will not take the row
        self.code = ""  # of its last refusal
        self.why = ""  # it refused or is unavailable
        self.path: Path | None = None  # the file that this deployment was kept in

    # Before anything is changed

    def check_promotion(self) -> str:
        """Checks the promotion rule and the freezes. Returns a note. Raises DeployRefused if the environment is frozen,
        the release has not succeeded where it must first, or the ledger is unavailable and cannot tell.
        """
        request = self.request
        try:
            if request.kind == "rollback":
                return "rollbacks skip the promotion check"
            if not request.break_glass and not self.resumes() and (why := self.ledger.freeze(request.environment)):
                raise DeployRefused(why)
            allowed, text = self.ledger.promotion(request.release, request.environment)
            if allowed:
                return text
            if request.hotfix:
                return f"{text.partition('.')[0]}; allowed as a hotfix"
            raise DeployRefused(f"{text} Or pass --hotfix --reason TEXT if it cannot wait.")
        except LedgerUnavailable as error:
            before = config_of(request.environment).promotes_from
            if before and request.kind == "deploy" and not request.hotfix:
                places = " or ".join(before)
                raise DeployRefused(
                    f"The ledger is unavailable, so it is unknown whether {request.release} has succeeded in {places}: "
                    f"{error}. Wait for it, or pass --hotfix --reason TEXT if it cannot wait."
                ) from None
            return f"the ledger is unavailable, so this is recorded later: {error}"

    def approve(self, release: tuple[str, str, str], wait: float, tell: Callable[[str], None]) -> str:
        """Requests the deployment where it needs approval, and waits `wait` seconds at most until it has it; `tell` is
        told what is awaited. Returns a note, empty if no approval is needed.

        `release` is commit, when it was built (ISO 8601) and image. Raises DeployRefused if it is not approved in time,
        rejected, or cannot be requested. Run again, the request that waits is taken up.
        """
        request = self.request
        if request.kind != "deploy" or self.resumes():
            return ""
        try:
            if not self.ledger.approvals(request.environment):
                return ""
            if request.break_glass:
                return "none: the glass is broken, which somebody else has to review"
            self.release = release if release[0] and release[1] else None
            key, deadline = self.request_row(), time.monotonic() + wait
            while True:
                try:
                    found = self.ledger.approval(key)
                except LedgerUnavailable as error:
                    if time.monotonic() >= deadline:
                        raise
                    tell(f"the ledger is unavailable: {error}")
                    time.sleep(self.poll)
                    continue
                if found.status == "expired":
                    key = self.request_row()  # something else went live, so it is another change
                elif found.status != "waiting" and not found.approved:
                    said = "; ".join(found.decided) or found.status
                    raise DeployRefused(f"Deployment {key} of {request.release} was {said}. Nothing was changed.")
                elif found.approved:
                    return f"deployment {key}, {'; '.join(found.decided)}"
                elif time.monotonic() >= deadline:
                    raise DeployRefused(
                        f"Deployment {key} of {request.release} to {request.environment} is waiting for approval "
                        f"({found.given} of {found.needed}): {found.page} Run the same command again once it "
                        "is approved, or pass --wait-approval DURATION to wait here."
                    )
                else:
                    left = max(0, deadline - time.monotonic())
                    tell(
                        f"{found.given} of {found.needed} approvals, for {humanize.took_seconds(left)} more; approvers "
                        f"of {request.environment} approve at {found.page}"
                    )
                    time.sleep(min(self.poll, max(0.05, left)))
        except LedgerUnavailable as error:
            if not config_of(request.environment).approvals or request.break_glass:
                return ""
            raise DeployRefused(
                f"The ledger is unavailable, so nobody can approve the deployment to {request.environment}: {error}. "
                "Wait for it, or pass --break-glass --reason TEXT if it cannot wait."
            ) from None
        except LookupError:
            raise DeployRefused(
                f"Release {request.release} is not registered, and its commit is unknown. Pass --commit SHA."
            ) from None
        except (rules.RuleViolation, rules.Invalid) as error:
            raise DeployRefused(message_of(error)) from None

    def preview_approval(self) -> str:
        """What approve() would wait for, for --dry-run; empty if nothing. Writes nothing."""
        try:
            needed = self.ledger.approvals(self.request.environment) if self.request.kind == "deploy" else 0
        except LedgerUnavailable as error:
            return f"the ledger is unavailable: {error}" if config_of(self.request.environment).approvals else ""
        if needed and self.request.break_glass:
            return "none: the glass is broken, which somebody else has to review"
        return f"waits until {needed} {'person has' if needed == 1 else 'people have'} approved it" if needed else ""

    def preview(self, known: bool) -> str:
        """What begin() would say, for --dry-run. Writes nothing. `known` is whether the release's commit is known.

        Raises DeployRefused if begin() would.
        """
        request = self.request
        try:
            left = self.ledger.in_flight(request.environment)
            if left and self.is_this(left):
                return f"resumes deployment {left.key}"
            if left and not OWN_STEPS & left.steps.keys():
                busy = f"Deployment {left.key} of {left.version} to {request.environment} is {left.status}."
                if request.kind == "deploy":
                    raise DeployRefused(f"{busy} Wait for it to end, or record it as failed if its pipeline is gone.")
                return f"not recorded: {busy}"
            if not known and not self.ledger.registered(request.release):
                return f"not recorded: release {request.release} is not registered; pass --commit SHA"
            if request.kind == "rollback" and not self.ledger.succeeded(request.release, request.environment):
                return f"not recorded: release {request.release} was never live in {request.environment}"
        except LedgerUnavailable as error:
            return f"the ledger is unavailable, so this is recorded later: {error}"
        return f"recorded in {self.ledger.name}"

    def resumes(self) -> bool:
        """Whether the ledger has this deployment from an interrupted run; False if it is unavailable."""
        try:
            left = self.ledger.in_flight(self.request.environment)
        except LedgerUnavailable:
            return False
        return left is not None and self.is_this(left) and bool(OWN_STEPS & left.steps.keys())

    def begin(self, commit: str, built_at: str, image: str) -> OpenDeployment | None:
        """Opens the row, or resumes the one of an interrupted run of the same deployment, which it returns.

        The release is registered if its `commit` and `built_at` (ISO 8601) are known. A row that another interrupted
        run left is recorded as failed, so only whoever holds the environment's lock may call this. Raises
        DeployRefused if the ledger does not take a deployment; a rollback is carried out all the same.
        """
        self.release = (commit, built_at, image) if commit and built_at else None
        try:
            self.catch_up()
            left = self.ledger.in_flight(self.request.environment)
            if left and self.is_this(left):
                self.key = left.key
                self.ended = {name for name, outcome in left.steps.items() if outcome != "running"}
                self.start(left.key)
                return left
            if left and OWN_STEPS & left.steps.keys():  # its process is gone, as the lock was free
                self.ledger.finish(left.key, "failed", None)
                self.note(f"Deployment {left.key} of {left.version} was interrupted; it is now recorded as failed.")
            self.open()
        except LedgerUnavailable as error:
            self.note(f"The ledger is unavailable, so this is recorded later: {error}.")
        except LookupError:
            self.refused = True
            self.why = f"release {self.request.release} is not registered, and its commit is unknown"
            self.note(
                f"Not recorded: {self.why}. Pass --commit SHA, or let the pipeline that builds it register it "
                "(docs/api.md)."
            )
        except (rules.RuleViolation, rules.Invalid) as error:
            if self.request.kind == "deploy":
                raise DeployRefused(message_of(error)) from None
            self.refused, self.why = True, message_of(error)
            self.note(f"Not recorded: {self.why}")
        return None

    def is_this(self, left: OpenDeployment) -> bool:
        """Whether the open deployment is this one, of an interrupted run or of a request whose answer was lost."""
        return (left.version, left.kind) == (self.request.release, self.request.kind)

    def open(self) -> None:
        """Finds the row of a request whose answer was lost, or makes one, and starts it.

        Raises LedgerUnavailable, RuleViolation, Invalid, and LookupError if the release is not registered.
        """
        left = self.ledger.in_flight(self.request.environment)
        if left and self.is_this(left):
            self.key = left.key
        else:
            self.key = self.request_row()
        if self.path:
            self.save(self.path)  # with the key, so that another attempt makes no second row
        self.start(self.key)

    def request_row(self) -> int:
        """Registers the release, if its commit is known, and makes the row. Returns its key, which is that of the same
        request if one waits for approval. Raises what open() does.
        """
        if self.release:
            try:
                self.ledger.register(self.request.release, *self.release)
            except rules.RuleViolation:
                pass  # it is registered already, in other words or by somebody who alone may
        return self.ledger.create(self.request)

    def start(self, key: int) -> None:
        """Starts the row if it is pending. A running one is asked for, too, so that a token that may not continue it is
        refused before anything is changed. Raises LedgerUnavailable and RuleViolation.
        """
        try:
            self.ledger.start(key)
        except rules.RuleViolation as error:
            if error.code != "wrong-state":
                raise
        self.started = True

    # While it is carried out

    def step(self, name: str, outcome: str, note: str = "") -> None:
        """Records a step's outcome: running, succeeded, failed or skipped; and what happened, reduced to one line of
        NOTE characters. A step that an interrupted run has ended is recorded once more, as "NAME (again)".
        """
        name = f"{name} (again)" if name in self.ended else name
        if name not in self.ended:
            self.enqueue("step", name, outcome, *filter(None, [clean(note, NOTE)]))

    def finish(self, result: str, failed_requests: int | None) -> None:
        """Records the result and the number of failed probe requests, None if there was no probe traffic.

        What still could not be recorded after TRIES attempts is kept in a file.
        """
        self.enqueue("finish", result, failed_requests)
        for _ in range(TRIES - 1):
            if not self.waiting or self.refused:
                break
            time.sleep(PAUSE)
            self.send()
        if not self.waiting:
            return
        ending = "refused.json" if self.refused else "json"
        path = self.folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{self.request.environment}.{ending}"
        try:
            self.save(path)
        except OSError as error:
            self.note(f"Cannot write {path} ({error.strerror}). Not recorded: {json.dumps(self.content())}")
            return
        if self.refused:
            self.note(f"This {self.request.kind} was not recorded: {self.why}. It is kept in {path}.")
        else:
            self.note(
                f"The ledger ({self.ledger.name}) is still unavailable. The next deployment records this one ({path})."
            )

    def enqueue(self, *call: Any) -> None:
        """Sends a call, a method of Ledger with its arguments, after those that wait."""
        self.waiting.append(list(call))
        self.send()

    def send(self) -> None:
        """Sends the ledger what waits, in order, until it is unavailable. A refused step is noted and dropped; a
        refused end stays, unless the row has ended already.
        """
        self.why = self.why if self.refused else ""
        try:
            if self.key is None and not self.refused:
                self.open()
            while self.waiting and self.key is not None and not self.refused:
                if not self.started:
                    self.start(self.key)
                method, *arguments = self.waiting[0]
                try:
                    getattr(self.ledger, method)(self.key, *arguments)
                except (rules.RuleViolation, rules.Invalid) as error:
                    self.note(f"The ledger refused the {method}: {message_of(error)}")
                    if method == "finish" and not self.recorded():
                        raise
                self.waiting.pop(0)
        except LedgerUnavailable as error:
            self.why = str(error)
        except (rules.RuleViolation, rules.Invalid, LookupError) as error:
            self.refused, self.why, self.code = True, message_of(error), getattr(error, "code", "")
            self.note(f"Not recorded: {self.why}")

    def recorded(self) -> bool:
        """Whether the ledger has the row, with its result. Raises LedgerUnavailable."""
        try:
            return self.key is not None and self.ledger.status(self.key) in FINISHED
        except LookupError:
            return False

    # What is kept for later

    def content(self) -> dict[str, Any]:
        """What a file keeps, as JSON."""
        return {
            "request": asdict(self.request),
            "release": self.release,
            "key": self.key,
            "waiting": self.waiting,
            "why": self.why,
        }

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all, as the process may end at any moment. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self.content(), indent=1) + "\n", encoding="utf-8")
        os.replace(new, path)

    def load(self, path: Path) -> "Recorder":
        """The deployment of a file. Raises OSError, ValueError, LookupError and TypeError."""
        kept = json.loads(path.read_text(encoding="utf-8"))
        late = Recorder(self.ledger, Request(**kept["request"]), self.folder, self.note)
        late.key, late.waiting, late.path = kept["key"], [list(each) for each in kept["waiting"]], path
        late.release = tuple(kept["release"]) if kept["release"] else None
        if not all(each and each[0] in REPLAYED for each in late.waiting) or late.waiting[-1][0] != "finish":
            raise ValueError("it does not end with a finish")
        if not (late.key is None or isinstance(late.key, int)):
            raise ValueError("its key is not a number")
        return late

    def catch_up(self) -> None:
        """Records earlier deployments to this environment that are kept in `folder`. Raises LedgerUnavailable."""
        for path in sorted(self.folder.glob(f"*-{self.request.environment}.json")):
            try:
                late = self.load(path)
            except (OSError, ValueError, LookupError, TypeError) as error:
                self.note(f"{path} is not a valid record ({type(error).__name__}: {error}). Correct or delete it.")
                continue
            what = f"The {late.request.kind} of {late.request.release} from {path.name[:15]}"
            if not late.recorded():
                late.send()
                if late.why and not late.refused:
                    raise LedgerUnavailable(late.why)
            if late.recorded():
                path.unlink()
                self.note(f"{what} is now recorded, as deployment {late.key}.")
            elif late.code in TEMPORARY:
                self.note(f"{what} is still not recorded: {late.why} The next deployment retries it ({path}).")
            else:
                aside = path.with_name(f"{path.stem}.refused.json")
                late.save(aside)
                path.unlink()
                self.note(f"{what} was not recorded: {late.why} It is kept in {aside}, and not retried.")


def message_of(error: Exception) -> str:
    """Why the ledger refused, with the name of the invalid field."""
    field = getattr(error, "field", "").removeprefix("#/")
    return f"{field}: {error}" if field else str(error)
