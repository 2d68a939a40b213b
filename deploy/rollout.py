"""How a release goes live: the same steps, in the same order and by the same names, on every target.

    promotion check, lock, migrate, start, smoke test, switch, watch, mark good or roll back

With a database per colour, the release's own database is prepared instead of migrating the live one, and the writes
move there just before the traffic: whoever has the traffic can run on the schema of either.

blue-green   the release starts in a second colour, is tested there, and gets all the traffic at once
rolling      one instance is tested without traffic; then all are replaced one by one, which is the switch

Each step looks at what is there already, so an interrupted or killed run is resumed by the same command. A release that
proves bad is rolled back once: the previous one gets the traffic before the bad one is stopped. Nothing is retried.
"""

import math
import time
from abc import ABC
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from deploy import probe_traffic, smoke, watch
from deploy.console import Output
from deploy.errors import DeployRefused, ExitCode, LockHeld, LockLost, NoAnswer, StepFailed, Unseen
from deploy.objectives import Evidence, check_budget
from deploy.probe_traffic import Source, Traffic
from deploy.recorder import Recorder
from deploy.shell import last_line
from deploy.targets.base import RollbackScript, Target
from ledger import steps
from ledger.environments import WatchConfig
from metrics.prometheus import Prometheus

PROMOTION_CHECK, ERROR_BUDGET, APPROVAL, LOCK = (
    "promotion check",
    "error budget",
    "approval",
    "lock",
)  # steps of the run, which the ledger has no rows for
RETRY = 1.0  # seconds between two attempts to get the lock
ALONE = 2.0  # seconds in which the release alone must have answered the probe traffic, for a switch to be done
MOVING = 15.0  # seconds to wait for that


RESULTS: dict[int, str] = {ExitCode.DONE: "succeeded", ExitCode.ROLLED_BACK: "rolled_back"}  # any other: failed


@dataclass(frozen=True)
class Options:
    """What is to be shipped, and how."""

    version: str
    strategy: str
    purpose: str  # for whoever meets the lock
    watch: float = 0.0  # seconds
    timeout: float = 120.0  # seconds that an instance gets to become ready
    unsafe_migrations: bool = False
    settings: bool = False  # whether it gets new settings, perhaps as its only change
    wait: float = 0.0  # seconds to wait for the lock
    wait_approval: float = 0.0  # seconds to wait for approval
    commit: str = ""
    built_at: str = ""
    image: str = ""
    limits: WatchConfig = WatchConfig()  # what it is judged by
    prometheus: Prometheus | None = None  # that of the environment
    hold: bool = False  # whether a spent error budget holds deployments


class Run(ABC):
    """One run of a command, from the promotion check to the released lock. Its kinds differ in their steps."""

    kind: ClassVar[str]  # as the ledger has it

    def __init__(self, target: Target, recorder: Recorder, output: Output, options: Options) -> None:
        self.target, self.recorder, self.output, self.options = target, recorder, output, options
        self.traffic = Traffic(target.url())
        self.counters = watch.Counters()  # of the live release, when the run began
        self.baseline = math.nan  # p95 latency of the live release in seconds; NaN if unknown
        self.before = ""  # the version that was live when the run began
        self.earlier: Counter[Source] = Counter()  # the answers from outside that came before the switch
        self.revision = ""  # of what has the traffic, as its answers name it; empty if unknown
        self.switched = False  # whether the release has, or may have, traffic
        self.touched = False  # whether anything may have been changed
        self.at = PROMOTION_CHECK
        self.evidence = Evidence()  # of the watch

    def run(self) -> int:
        """Carries it out. Raises DeployRefused if nothing was changed, and StepFailed if the look before it failed."""
        note = self.recorder.check_promotion()
        self.output.begin(PROMOTION_CHECK)
        self.output.end("succeeded", note)
        if note := self.check_budget():
            self.output.begin(ERROR_BUDGET)
            self.output.end("succeeded", note)
        self.get_approval()
        self.step(LOCK, self.acquire_lock, recorded=False)
        try:
            self.target.validate()  # again: whoever had the lock may have changed it
            if self.nothing_to_do():
                self.output.line(f"{self.options.version} is already live and verified; nothing to do.")
                self.output.event("result", result="unchanged", version=self.options.version, exit_code=ExitCode.DONE)
                return ExitCode.DONE
            self.preflight()
            return self.deploy()
        except KeyboardInterrupt:
            self.interrupted()
            return ExitCode.NEEDS_OPERATOR if self.touched else ExitCode.REFUSED
        finally:
            self.traffic.stop()
            self.target.lock.release()

    def check_budget(self) -> str:
        """Returns a note about the error budget; empty if it does not matter. Raises DeployRefused."""
        return ""

    def get_approval(self) -> None:
        """Waits for the approval of a deployment that needs it, before the lock: it may take long. Raises
        DeployRefused and StepFailed.
        """
        if not self.recorder.preview_approval() or self.nothing_to_do():
            return
        self.output.begin(APPROVAL)
        release = (self.options.commit, self.options.built_at, self.options.image)
        try:
            note = self.recorder.approve(release, self.options.wait_approval, self.output.tell)
        except DeployRefused as error:
            self.output.end("failed", str(error))
            raise
        self.output.end("succeeded" if note else "skipped", note)

    def preflight(self) -> None:
        """Raises DeployRefused if the environment is in no state for such a run; by default, any will do."""

    def nothing_to_do(self) -> bool:
        """Whether the release is live and verified. Raises StepFailed."""
        return self.target.already_live()

    def deploy(self) -> int:
        """Prepares, ships and settles the release, or rolls it back if a step fails.

        Requires the lock. Every outcome is recorded in the ledger and returned as an exit code. Raises DeployRefused if
        the ledger does not take the deployment, before anything is changed, and KeyboardInterrupt.
        """
        self.prepare()
        try:
            self.ship()
            return self.settle()
        except (LockLost, Unseen) as error:
            return self.end(ExitCode.NEEDS_OPERATOR, str(error))
        except NoAnswer as error:  # no evidence against the release, and nothing could be rolled back either
            return self.end(
                ExitCode.NEEDS_OPERATOR,
                f"Stopped during: {self.at}. {error} Nothing was rolled back. Run the same command to resume, or "
                "manage.py rollback to roll back.",
            )
        except StepFailed as error:
            self.output.details(error.details)
            return self.roll_back(str(error))

    def prepare(self) -> None:
        """Opens the ledger's row, or resumes an interrupted run's, and starts the probe traffic and the baseline.

        Raises DeployRefused if the ledger does not take the deployment, and StepFailed.
        """
        options = self.options
        self.before = self.target.live_version()
        left = self.recorder.begin(options.commit, options.built_at, options.image)
        if left:
            completed = [name for name, outcome in left.steps.items() if outcome == "succeeded"]
            self.output.note(f"Resuming deployment {left.key} (completed: {', '.join(completed) or 'none'}).")
        if problem := self.traffic.start():
            self.output.note(f"No probe traffic: {problem}.")
        self.touched = True
        self.target.be_patient(self.look_around)
        self.counters = self.read_counters()

    def ship(self) -> None:
        """Starts the release, tests it and gives it the traffic. Raises StepFailed and LockLost."""
        self.step(steps.START, lambda: self.target.start(self.options.timeout, self.output.tell))
        # By an interrupted run; new settings may be of the version that is live.
        self.switched = not self.options.settings and self.target.live_version() == self.options.version
        self.measure(self.counters)
        self.step(steps.SMOKE_TEST, self.smoke_test)
        self.change_over()

    def change_over(self) -> None:
        """Gives the release the traffic. Raises StepFailed and LockLost."""
        self.step(steps.SWITCH, self.switch)

    def settle(self) -> int:
        """Watches the release under traffic and marks it as good. Raises StepFailed, LockLost and Unseen."""
        if self.options.watch > 0:
            self.step(steps.WATCH, self.watch)
        self.step(steps.MARK_GOOD, self.mark_good)
        return self.end(ExitCode.DONE)

    def dry_run(self) -> int:
        """Shows what run() would do, and changes nothing. Raises what run() would raise before it changes anything."""
        options = self.options
        self.output.note(
            f"Dry run: {options.purpose}, {options.strategy}. Live: {self.target.live_version() or 'none'}."
        )
        self.planned(PROMOTION_CHECK, self.recorder.check_promotion())
        if note := self.check_budget():
            self.planned(ERROR_BUDGET, note)
        if note := self.recorder.preview_approval():
            self.planned(APPROVAL, note)
        self.target.lock.check_free()
        self.planned(LOCK, "free")
        self.planned("ledger", self.recorder.preview(bool(options.commit)))
        return self.plan()

    def plan(self) -> int:
        """Shows the steps for dry_run()."""
        if self.target.already_live():
            self.output.note(f"{self.options.version} is already live and verified; nothing to do.")
            return ExitCode.DONE
        self.preflight()
        for name, what in self.plan_of_steps():
            self.planned(name, what)
        if self.options.watch:
            self.planned(steps.WATCH, f"{self.options.watch:g} s: containers, errors, latency, probe traffic")
        return ExitCode.DONE

    def plan_of_steps(self) -> list[tuple[str, str]]:
        """(step, what it would do) up to the switch."""
        return list(self.target.plan())

    def planned(self, name: str, what: str) -> None:
        """Shows one line of the plan."""
        self.output.note(f"  {name:<16} {what}")

    # Steps

    def step(self, name: str, act: Callable[[], str], recorded: bool = True) -> None:
        """Does one step and shows how it ended: skipped if `act` returns no note. `recorded` tells the ledger, too.

        Raises LockLost if the lock was broken, and what `act` raises.
        """
        self.at = name
        if self.touched and not self.target.lock.held():
            raise LockLost(f"Somebody broke the lock, so this run stopped. Live: {self.live_now()}.")
        self.output.begin(name)
        if recorded:
            self.recorder.step(name, "running")
        try:
            note = act()
        except (StepFailed, DeployRefused, Unseen) as error:
            self.ended(name, "failed", str(error), recorded)
            raise
        except KeyboardInterrupt:
            self.output.quiet()  # to the ledger it is running, until somebody resumes or replaces it
            raise
        self.ended(name, "succeeded" if note else "skipped", note, recorded)

    def ended(self, name: str, outcome: str, note: str, recorded: bool) -> None:
        """Shows how the step ended, and tells the ledger if it is `recorded`."""
        self.output.end(outcome, note)
        if recorded:
            asked = self.evidence.record() if name == steps.WATCH else ""
            self.recorder.step(name, outcome, f"{note} {asked}")

    def acquire_lock(self) -> str:
        """Acquires the environment's lock, within the seconds of --wait. Returns a note. Raises LockHeld."""
        deadline = time.monotonic() + self.options.wait
        while True:
            try:
                taken_over = self.target.lock.acquire(self.options.purpose)
                return f"acquired{f' ({taken_over})' if taken_over else ''}"
            except LockHeld as error:
                if time.monotonic() >= deadline:
                    raise
                self.output.tell(str(error))
                time.sleep(RETRY)

    def read_counters(self) -> watch.Counters:
        """The request counters of the live release, as far as its metrics have any."""
        try:
            return watch.read_counters(self.target, self.target.live_instances())
        except StepFailed:
            return watch.Counters()

    def measure(self, before: watch.Counters) -> None:
        """Sets the baseline: the live release's p95 latency since `before`, as its first responses were slower, or
        since its start if too few came since.
        """
        found = self.read_counters()
        recent = found.since(before)
        self.baseline = (recent if recent.responses >= watch.ENOUGH else found).quantile(0.95)

    def smoke_test(self) -> str:
        """Tests each of the release's instances. Returns the last one's note. Raises StepFailed with its logs."""
        note = ""
        others = self.target.other_instances()
        other = partial(self.target.ask, others[0]) if others else None
        for instance in self.target.new_instances():
            try:
                ask = partial(self.target.ask, instance)
                note = smoke.test(ask, self.options.version, other, self.output.tell)
            except StepFailed as error:
                raise StepFailed(f"{instance}: {error}", error.details or self.target.logs()) from None
        return note

    def switch(self) -> str:
        """Gives the release the traffic, and waits until it alone answers. Returns a note; empty if there is nothing to
        switch. Raises StepFailed.
        """
        self.comparison = watch.Comparison(self.target, self.baseline, self.options.limits)
        self.switched = True  # or about to be: a switch that fails half-way is rolled back, too
        note = self.target.switch(self.options.timeout, self.look)
        if not self.traffic.threads:
            self.traffic.start()  # the site may have failed until now
        return f"{note}; {self.follow(self.options.version, self.look)}" if note else ""

    def follow(self, version: str, tell: Callable[[str], None]) -> str:
        """Waits until the version alone answers the probe traffic, over kept and over new connections, for MOVING
        seconds at most. Returns who answered since, as a note. Raises what `tell` raises.
        """
        if not self.traffic.threads:
            return "who answers is unknown without probe traffic"
        began, self.earlier = time.monotonic(), self.traffic.sources()
        revision = self.revision = self.target.live_revision()

        def alone() -> bool:
            found = self.traffic.sources(ALONE)
            return {each.kept for each in found} == {True, False} and all(each.of(version, revision) for each in found)

        time.sleep(ALONE)
        while not alone() and time.monotonic() - began < MOVING:
            tell(f"waiting until {version} alone answers")
            time.sleep(min(0.2, ALONE))
        answers, done = self.traffic.sources() - self.earlier, alone()
        after = self.traffic.last_from_others(version, revision, began)
        mine = {each: answers.pop(each) for each in list(answers) if each.of(version, revision)}
        told = {"revision": revision, "after": round(after, 2), "from_others": answers.total()}
        self.output.event("answers", version=version, **told, answers=by_release(answers + Counter(mine)))
        kept, new = (sum(number for each, number in mine.items() if each.kept == kept) for kept in (True, False))
        who = f"{kept} answers over kept and {new} over new connections came from {version}"
        who += f", {answers.total()} from {watch.named(answers)}" if answers else ""
        if not done:
            return f"{version} is not alone in answering the probe traffic after {MOVING:.0f} s: {who}"
        same = ""
        if version == self.before and self.kind == "deploy" and not (revision and all(each.revision for each in mine)):
            same = ", as what was live before is called, too"
        return f"{version} alone answers the probe traffic after {after:.1f} s: {who}{same}"

    def look(self, text: str) -> None:
        """Shows the text. Raises StepFailed once visitors notice a release that gets the traffic bit by bit."""
        self.output.tell(text)
        failed, tried, median = self.traffic.lately(watch.WINDOW)
        against = watch.failures(failed, tried, self.options.limits) or self.comparison.slow(
            watch.Counters(), tried, median, []
        )
        if against:
            raise StepFailed(f"{against}.", self.target.logs())

    def look_around(self, text: str) -> None:
        """Shows why the release cannot be seen for the moment. Raises StepFailed if visitors notice it meanwhile."""
        self.output.tell(text)
        failed, tried, _ = self.traffic.lately(watch.WINDOW)
        if self.at in (steps.SWITCH, steps.WATCH) and (against := watch.failures(failed, tried, self.options.limits)):
            raise StepFailed(f"{against}.", self.target.logs())

    def watch(self) -> str:
        """Watches the release for the seconds of --watch. Returns a note. Raises StepFailed and LockLost, and Unseen if
        nothing is wrong with it but too few answers from outside came from it.
        """
        began, options = time.monotonic(), self.options
        version, url = options.version, self.traffic.parts.geturl()
        self.evidence = Evidence(options.prometheus, self.recorder.request.environment, version, options.limits)
        note = watch.watch(
            self.target,
            options.watch,
            self.baseline,
            self.traffic,
            self.target.lock.held,
            self.output.tell,
            self.evidence,
        )
        if not url:
            return f"{note}; not seen from outside, as the environment has no url"
        answers = self.traffic.sources() - self.earlier
        recent = self.traffic.sources(min(watch.WINDOW, time.monotonic() - began))
        if why := watch.unseen(answers, recent, version, self.revision):
            raise Unseen(
                f"{version} is live, but not marked as good: {why}. Check that {url} leads to it and that this machine "
                "can reach it, then run the same command again to watch it once more."
            )
        count = sum(number for source, number in answers.items() if source.of(version, self.revision))
        return f"{note}, {count} answers from outside"

    def mark_good(self) -> str:
        """Marks the release as good. Returns a note. Raises StepFailed."""
        return self.target.mark_good()

    # Ends

    def roll_back(self, why: str) -> int:
        """Gives the traffic back to the previous release if it has lost it, then stops the bad one. Never raises but
        KeyboardInterrupt: what fails here needs a person.
        """
        self.output.note(f"{self.options.version} failed: {why}", "red")
        try:
            self.step(steps.ROLL_BACK, lambda: self.return_traffic(why))
            self.target.mark_bad(self.options.version)
            self.target.cleanup()
            live = self.target.live_version()
            if not live or live == self.options.version != self.before:
                raise StepFailed(f"Live: {live or 'none'}.")
        except LockLost as error:
            return self.end(ExitCode.NEEDS_OPERATOR, str(error))
        except StepFailed as error:
            self.output.details(error.details)
            return self.end(ExitCode.NEEDS_OPERATOR, f"{why} The rollback failed as well: {error}")
        return self.end(ExitCode.ROLLED_BACK, f"{why} {live} is live.")

    def return_traffic(self, why: str) -> str:
        """Gives the traffic back, if the release has it, and waits until the previous one alone answers. Returns a
        note. Raises StepFailed.
        """
        live = self.target.roll_back(why, self.output.tell)
        note = f"{live} is live" + (f"; {self.follow(live, self.output.tell)}" if self.switched else "")
        if (
            databases := self.target.databases
        ):  # last, as the release before fits both schemas, and the bad one does not
            note = "; ".join(filter(None, (note, databases.switch_back(self.options.version, self.output.tell))))
        return note

    def end(self, code: int, why: str = "") -> int:
        """Records the result that the exit code stands for in the ledger, shows it with the count of failed probe
        requests, and returns `code`. What never had traffic was not rolled back; it failed.
        """
        result = RESULTS.get(code, "failed") if self.switched or not code else "failed"
        self.traffic.stop()
        traffic = self.traffic
        self.recorder.finish(result, traffic.failed if traffic.total else None)
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
            answers=by_release(traffic.sources()),
        )
        if why:
            self.output.line(why, "red")
        counted = f"{traffic.failed} of {traffic.total} probe requests failed" if traffic.total else "no probe traffic"
        first = f" (first failure: {traffic.first})" if traffic.first else ""
        self.output.line(f"{self.options.version}: {result.replace('_', ' ')}; {counted}{first}.", "bold")
        return code

    def interrupted(self) -> None:
        """Says in which state an interruption leaves the environment, and how to go on."""
        self.output.quiet()
        if not self.touched:
            self.output.note("Interrupted; nothing was changed.")
            return
        watched = " It is no longer watched." if self.switched else ""
        self.output.note(
            f"Interrupted during: {self.at}. Live: {self.live_now()}.{watched} Run the same command to resume, or "
            "manage.py rollback to roll back.",
            "yellow",
        )

    def live_now(self) -> str:
        """The live version in a message, or why it is unknown."""
        try:
            return self.target.live_version() or "none"
        except StepFailed as error:
            return f"unknown ({error})"


class Deploy(Run):
    """A new release: the database is migrated first."""

    kind = "deploy"

    def check_budget(self) -> str:
        """Checks that the environment has error budget left, if a spent one holds deployments. A hotfix passes, and so
        does a run that resumes: half a deployment is worse than a bad one. Raises DeployRefused.
        """
        if not self.options.hold:
            return ""
        passes = "allowed as a hotfix" if self.recorder.request.hotfix else ""
        if not passes and self.recorder.resumes():
            passes = "the deployment has begun, so it is resumed"
        environment = self.recorder.request.environment
        return check_budget(self.options.prometheus, environment, pass_because=passes)

    def preflight(self) -> None:
        """Raises DeployRefused if the environment is in no state for a release. rollback.sh looks for itself."""
        self.target.preflight()

    def ship(self) -> None:
        """Migrates the database with the release's own image, then ships it. Raises StepFailed and LockLost."""
        self.step(steps.PREPARE_DATABASE if self.target.databases else steps.MIGRATE, self.migrate)
        super().ship()

    def change_over(self) -> None:
        """Moves the writes to the release's own database, if it has one, then gives it the traffic.

        In between, the live release writes there: it can run on the new schema, which is checked before migrating,
        while the release could not run on the old one. Raises StepFailed and LockLost.
        """
        if databases := self.target.databases:
            self.step(steps.SWITCH_DATABASE, lambda: databases.switch(self.output.tell))
        super().change_over()

    def migrate(self) -> str:
        """Migrates. Returns a note, with what visitors noticed of it. Raises StepFailed, also if too many of them did:
        then the migrations are stopped, which rolls their transaction back. A hotfix is for a site that may be failing
        anyway, so nothing stops its migrations. The note is empty if only the settings change.
        """
        if self.options.settings and self.options.version == self.before:
            return ""
        traffic = self.traffic
        tried, failed, slow = traffic.total, traffic.failed, traffic.slow
        tell = self.output.tell if self.recorder.request.hotfix else self.look_at_visitors
        databases, unsafe = self.target.databases, self.options.unsafe_migrations
        note = databases.prepare(unsafe, tell) if databases else self.target.migrate(unsafe, tell)
        tried, failed, slow = traffic.total - tried, traffic.failed - failed, traffic.slow - slow
        if failed or slow:
            note += (
                f"; {failed + slow} of {tried} probe requests failed or took over {probe_traffic.SLOW:g} s during the "
                "migrations"
            )
        return note

    def look_at_visitors(self, text: str) -> None:
        """Shows the text. Raises StepFailed once visitors notice the migrations."""
        self.output.tell(text)
        failed, tried, _ = self.traffic.lately(watch.WINDOW)
        if against := watch.failures(failed, tried, self.options.limits):
            raise StepFailed(f"{against} during the migrations, so these were stopped.")


class Rollback(Run):
    """A return to an earlier release, by the steps of a deployment. The database schema stays as it is; with a database
    per colour the writes return to the database that the release before the live one has used.
    """

    kind = "rollback"

    def plan_of_steps(self) -> list[tuple[str, str]]:
        """The target's steps without the migrations."""
        names = (steps.MIGRATE, steps.PREPARE_DATABASE)
        return [(name, what) for name, what in super().plan_of_steps() if name not in names]

    def change_over(self) -> None:
        """Gives the release the traffic, then returns the writes from the live one's own database, if it has one.

        In this order, as the release before can run on the schema of the live one, and not the other way round. Raises
        StepFailed and LockLost.
        """
        super().change_over()
        if databases := self.target.databases:
            self.step(steps.SWITCH_DATABASE, lambda: databases.switch_back(self.before, self.output.tell))

    def mark_good(self) -> str:
        """Marks the release as good, and the one that was live before as bad. Returns a note. Raises StepFailed."""
        note = super().mark_good()
        if self.before:
            self.target.mark_bad(self.before)
        return note


class ScriptedRollback(Run):
    """A return to an earlier release by the target's own script, which has steps of its own."""

    kind = "rollback"

    def __init__(
        self, target: Target, recorder: Recorder, output: Output, options: Options, script: RollbackScript
    ) -> None:
        super().__init__(target, recorder, output, options)
        self.script = script
        self.code, self.said = 0, ""  # the script's exit code and output

    def nothing_to_do(self) -> bool:
        """Never: the version may be live with other settings than those to return to, which the script finds out."""
        return False

    def ship(self) -> None:
        """Runs the script. Raises StepFailed if it cannot run."""
        self.at = steps.ROLL_BACK
        self.output.begin(steps.ROLL_BACK)
        self.code, self.said = self.script(self.recorder.request.reason, self.options.timeout, False)

    def settle(self) -> int:
        """Shows what the script printed, and ends with its exit code."""
        outcome, note = "failed" if self.code else "succeeded", last_line(self.said)
        self.output.details(self.said)
        if not self.code:
            note = f"{note}; {self.follow(self.options.version, self.output.tell)}"
        self.ended(steps.ROLL_BACK, outcome, note, recorded=True)
        self.switched = True  # the script gives it the traffic, and takes it back
        return self.end(self.code, note if self.code else "")

    def plan(self) -> int:
        """Shows what the script would do. Raises StepFailed if it cannot run."""
        code, said = self.script(self.recorder.request.reason, self.options.timeout, True)
        self.output.details(said)
        return code


class Verify(Run):
    """A look whether what is live is good, which marks it: the first release, or settings that kubectl has applied.

    Nothing is shipped, so the ledger gets no row.
    """

    kind = "verify"

    def run(self) -> int:
        """Carries it out. Raises DeployRefused and StepFailed if it cannot begin."""
        self.get_approval()
        self.step(LOCK, self.acquire_lock, recorded=False)
        try:
            self.target.validate()
            if self.target.already_live():
                return self.report("unchanged", ExitCode.DONE, "It was verified already.")
            self.target.adopt()
            try:
                self.verify()
            except Unseen as error:
                return self.report("failed", ExitCode.NEEDS_OPERATOR, str(error))
            except (StepFailed, LockLost) as error:
                self.output.details(getattr(error, "details", ""))
                return self.report("failed", ExitCode.NEEDS_OPERATOR, f"{error} It is still live, and not marked.")
            return self.report("succeeded", ExitCode.DONE)
        except KeyboardInterrupt:
            self.output.quiet()
            return self.report("interrupted", ExitCode.REFUSED, "Nothing was changed.")
        finally:
            self.traffic.stop()
            self.target.lock.release()

    def verify(self) -> None:
        """Tests and watches what is live, and marks it. What visitors see counts from the beginning, also if they see
        errors only. Raises StepFailed, LockLost and Unseen.
        """
        self.revision = self.target.live_revision()
        if problem := self.traffic.start(judged=True):
            self.output.note(f"Probe traffic: {problem}.")
        self.step(steps.SMOKE_TEST, self.smoke_test, recorded=False)
        if self.options.watch > 0:
            self.step(steps.WATCH, self.watch, recorded=False)
        self.step(steps.MARK_GOOD, self.mark_good, recorded=False)

    def report(self, result: str, code: int, why: str = "") -> int:
        """Shows the result and returns `code`."""
        self.traffic.stop()
        counts = {"probe_requests": self.traffic.total, "failed_requests": self.traffic.failed}
        self.output.event("result", result=result, version=self.options.version, why=why, exit_code=code, **counts)
        first = f" First failure: {self.traffic.first}." if self.traffic.first else ""
        self.output.line(f"{self.options.version}: {result}. {why}{first}".strip(), "red" if code else "bold")
        if code == ExitCode.NEEDS_OPERATOR:
            self.output.note(f"To roll back: manage.py rollback -e {self.recorder.request.environment}")
        return code

    def dry_run(self) -> int:
        """Shows what run() would do, and changes nothing. Raises LockHeld."""
        self.output.note(f"Dry run: {self.options.purpose}.")
        self.target.lock.check_free()
        self.planned(LOCK, "free")
        self.planned(steps.SMOKE_TEST, "health, version, pages with the public host, an asset and metrics")
        if self.options.watch:
            self.planned(steps.WATCH, f"{self.options.watch:g} s: containers, errors, latency, probe traffic")
        self.planned(steps.MARK_GOOD, "")
        return ExitCode.DONE


def by_release(answers: Counter[Source]) -> dict[str, dict[str, int]]:
    """Answers by the release that gave them, over kept and over new connections, for JSON."""
    found: dict[str, dict[str, int]] = {}
    for source, number in answers.items():
        found.setdefault(source.release, {"kept": 0, "new": 0})["kept" if source.kept else "new"] += number
    return found


def rollback(target: Target, recorder: Recorder, output: Output, options: Options) -> Run:
    """A return to an earlier release, in the way that the target has for it."""
    if script := target.rollback_script:
        return ScriptedRollback(target, recorder, output, options, script)
    return Rollback(target, recorder, output, options)
