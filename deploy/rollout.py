"""How a release goes to an environment: the same steps, in the same order and with the same words, for every target.

    promotion rule, lock, migrations, bring up, smoke test, switch, watch, keep or go back, unlock

blue-green   a second colour comes up beside the one that serves, is tried, and then gets the traffic at once
rolling      one instance comes up without traffic and is tried; then all are replaced one after the other: the switch

Every step finds out what is there already, so a run that was interrupted, killed too, is simply run again. A release
that proves bad is left once: the one before gets the traffic before the bad one is stopped, and nothing is tried again.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from deploy import smoke, watch
from deploy.console import Output
from deploy.errors import DeployRefused, LockLost, StepFailed
from deploy.probe_traffic import Traffic
from deploy.recorder import Recorder
from deploy.shell import last_line
from deploy.targets.base import Target
from ledger import steps

DONE, FAULT, USAGE, LOCKED, REFUSED, WENT_BACK, NEEDS_A_PERSON = 0, 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Options:
    version: str
    strategy: str
    purpose: str  # for whoever meets the lock
    watch: float = 0.0  # seconds
    timeout: float = 120.0  # seconds for the release to get ready
    unsafe_migrations: bool = False
    migrate: bool = True  # not on the way back
    wait: float = 0.0  # seconds for the lock
    commit: str = ""
    built_at: str = ""
    image: str = ""


class Run:
    """One deployment, from its beginning to its end."""

    def __init__(self, target: Target, record: Recorder, output: Output, options: Options) -> None:
        self.target, self.record, self.output, self.options = target, record, output, options
        self.traffic = Traffic(target.url())
        self.baseline = math.nan
        self.before = ""
        self.switched = self.touched = False
        self.at = "promotion rule"

    def run(self) -> int:
        """The exit code. Raises DeployRefused (nothing was changed) and KeyboardInterrupt (of whoever stops it)."""
        note = self.record.check_promotion()
        self.output.begin("promotion rule")
        self.output.end("succeeded", note)
        self.step("lock", self.lock, recorded=False)
        try:
            self.target.validate()  # once more: whoever had the lock may have changed it
            if self.target.already_live():
                self.output.line(f"{self.options.version} is already live and verified; nothing to do.")
                self.output.event("result", result="unchanged", version=self.options.version, exit_code=DONE)
                return DONE
            return self.deploy()
        except KeyboardInterrupt:
            self.interrupted()
            return NEEDS_A_PERSON if self.touched else REFUSED
        finally:
            self.traffic.stop()
            self.target.lock.free()

    def deploy(self) -> int:
        options = self.options
        self.before = self.target.live_version()
        left = self.record.begin(options.commit, options.built_at, options.image)
        if left:
            done = [name for name, outcome in left.steps.items() if outcome == "succeeded"]
            self.output.note(f"Resuming deployment {left.key} (completed: {', '.join(done) or 'nothing'}).")
        if problem := self.traffic.start():
            self.output.note(f"No probe traffic: {problem}.")
        try:
            self.touched = True
            usual = self.sample()
            if not options.migrate:
                self.output.begin(steps.GO_BACK)
                if script := self.target.rollback_script:
                    return self.gone_back(*script(self.record.request.reason, options.timeout, False))
                self.output.quiet()
            else:
                self.step(steps.MIGRATE, lambda: self.target.migrate(options.unsafe_migrations, self.output.tell))
            self.step(steps.START, lambda: self.target.start(options.timeout, self.output.tell))
            self.switched = self.target.live_version() == options.version  # by a run that was interrupted
            self.measure(usual)
            self.step(steps.SMOKE_TEST, self.smoke)
            self.step(steps.SWITCH, self.switch)
            if options.watch > 0:
                self.step(steps.WATCH, self.watch)
            self.step(steps.KEEP, self.target.mark_good)
        except LockLost as error:
            return self.end("failed", NEEDS_A_PERSON, str(error))
        except StepFailed as error:
            self.output.details(error.details)
            return self.go_back(str(error))
        if not options.migrate and self.before:
            self.target.mark_bad(self.before)
        return self.end("succeeded", DONE, "")

    # Steps

    def step(self, name: str, act: Callable[[], str], recorded: bool = True) -> None:
        self.at = name
        if self.touched and not self.target.lock.held():
            raise LockLost(f"Somebody has broken the lock, so this run stops. Serving: {self.target.live_version()}.")
        self.output.begin(name)
        if recorded:
            self.record.step(name, "running")
        outcome, note = "failed", ""
        try:
            note = act()
            outcome = "succeeded" if note else "skipped"
        except (StepFailed, DeployRefused) as error:
            note = str(error)
            raise
        except KeyboardInterrupt:
            self.output.quiet()
            recorded = False  # it still runs, by the ledger, until somebody goes on
            raise
        finally:
            if outcome != "failed" or note:
                self.output.end(outcome, note)
                if recorded:
                    self.record.step(name, outcome)

    def lock(self) -> str:
        until = time.monotonic() + self.options.wait
        while True:
            try:
                dead = self.target.lock.take(self.options.purpose)
                return f"taken{f' ({dead})' if dead else ''}"
            except DeployRefused as error:
                if time.monotonic() >= until:
                    raise
                self.output.tell(str(error))
                time.sleep(1)

    def sample(self) -> watch.Sample:
        """Of the release that serves, as far as its metrics tell. It may not have any."""
        try:
            return watch.sample(self.target, self.target.live_instances())
        except StepFailed:
            return watch.Sample()

    def measure(self, before: watch.Sample) -> None:
        """What is usual for the release that serves: of late, if that says enough, as its first answers were slower."""
        found = self.sample()
        lately = found.since(before)
        self.baseline = (lately if lately.answers >= watch.ENOUGH else found).quantile(0.95)

    def smoke(self) -> str:
        note = ""
        for instance in self.target.new_instances():
            try:
                note = smoke.test(lambda paths: self.target.ask(instance, paths), self.options.version)
            except StepFailed as error:
                raise StepFailed(f"{instance}: {error}", error.details or self.target.logs()) from None
        return note

    def switch(self) -> str:
        self.switched = True  # or about to be: a switch that fails half-way is gone back from, too
        return self.target.switch(self.options.timeout, self.look)

    def look(self, text: str) -> None:
        """Shows the text. Raises StepFailed as soon as visitors notice a release that gets the traffic bit by bit."""
        self.output.tell(text)
        if against := watch.verdict(watch.Sample(), self.baseline, *self.traffic.lately(watch.WINDOW)):
            raise StepFailed(f"{against}.", self.target.logs())

    def watch(self) -> str:
        return watch.watch(
            self.target, self.options.watch, self.baseline, self.traffic, self.target.lock.held, self.output.tell
        )

    # Ends

    def gone_back(self, code: int, said: str) -> int:
        """The end of a rollback in the target's own way."""
        self.output.details(said)
        self.record.step(steps.GO_BACK, "failed" if code else "succeeded")
        self.output.end("failed" if code else "succeeded", last_line(said))
        result = {DONE: "succeeded", WENT_BACK: "rolled_back"}.get(code, "failed")
        return self.end(result, code, last_line(said) if code else "")

    def go_back(self, why: str) -> int:
        """The release before gets the traffic, if it has lost it; then the bad one is stopped."""
        self.output.note(f"{self.options.version} is bad: {why}", "red")
        try:
            self.step(steps.GO_BACK, lambda: f"{self.target.roll_back(why, self.output.tell)} serves")
            self.target.mark_bad(self.options.version)
            self.target.cleanup()
            serving = self.target.live_version()
            if not serving or serving == self.options.version:
                raise StepFailed(f"{serving or 'nobody'} has the traffic")
        except LockLost as error:
            return self.end("failed", NEEDS_A_PERSON, str(error))
        except StepFailed as error:
            self.output.details(error.details)
            return self.end("failed", NEEDS_A_PERSON, f"{why} Going back failed as well: {error}")
        return self.end("rolled_back" if self.switched else "failed", WENT_BACK, f"{why} {serving} serves.")

    def end(self, result: str, code: int, why: str) -> int:
        self.traffic.stop()
        traffic = self.traffic
        self.record.finish(result, traffic.failed if traffic.total else None)
        self.output.event(
            "result",
            result=result,
            version=self.options.version,
            before=self.before,
            why=why,
            exit_code=code,
            probe_requests=traffic.total,
            failed_requests=traffic.failed,
            first_failure=traffic.first,
        )
        if why:
            self.output.line(why, "red")
        counted = f"{traffic.failed} of {traffic.total} probe requests failed" if traffic.total else "no probe traffic"
        first = f" (the first: {traffic.first})" if traffic.first else ""
        self.output.line(f"{self.options.version}: {result.replace('_', ' ')}; {counted}{first}.", "bold")
        return code

    def interrupted(self) -> None:
        self.output.quiet()
        if not self.touched:
            self.output.note("Interrupted; nothing was changed.")
            return
        try:
            serving = self.target.live_version() or "nobody"
        except StepFailed as error:
            serving = f"unknown ({error})"
        watched = " It is not watched any more." if self.switched else ""
        self.output.note(
            f"Interrupted in the step {self.at}. Serving: {serving}.{watched} Run the same command to resume, or "
            "manage.py rollback to roll back.",
            "yellow",
        )
