"""Where a release runs, as rollout.py sees it: what can be done there, and nothing of how.

Only a Target talks to docker or kubectl. Every method may be called again after an interrupted run: it looks at what is
there and does what is left to do. A method that returns a note returns what happened, for the terminal and the ledger.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from deploy.locks import Holding
from deploy.targets.probe import Answer

Progress = Callable[[str], None]  # shows what is being waited for; what it raises ends the wait


class Databases(Protocol):
    """The two databases of a deployment. What a method returns is a note, empty if there was nothing to do."""

    def prepare(self, unsafe: bool, tell: Progress) -> str:
        """Gives the release its own database: migrated, and in step both ways with the one that takes the writes.
        `unsafe` skips the check of the unapplied migrations. Raises StepFailed.
        """

    def switch(self, tell: Progress) -> str:
        """Moves the writes to the release's database. Raises StepFailed; then they are where they were."""

    def switch_back(self, release: str, tell: Progress) -> str:
        """Moves the writes back if `release`, which has lost the traffic, has them in the database that was prepared
        for it. They stay if that would lose rows. Raises StepFailed.
        """


# Returns to the release: the reason, the seconds that an instance gets to become ready, whether it is a dry run -> the
# exit code and the output. Raises StepFailed if it cannot run.
RollbackScript = Callable[[str, float, bool], tuple[int, str]]


class Lock(Protocol):
    """One deployment per environment at a time. Every method may raise StepFailed if a cluster cannot be asked."""

    def acquire(self, purpose: str) -> str:
        """Acquires it until release(). Returns a note if a run that died held it. Raises LockHeld."""

    def check_free(self) -> None:
        """Raises LockHeld if acquire() would. Changes nothing."""

    def status(self) -> Holding | None:
        """Who holds it; None if it is free."""

    def held(self) -> bool:
        """Whether this run still holds it: somebody may have broken it."""

    def release(self) -> None:
        """Gives it back. Does nothing if this run does not hold it."""

    def acquire_by_hand(self, reason: str) -> None:
        """Acquires it until force_release(), beyond this process. Raises LockHeld."""

    def force_release(self) -> Holding | None:
        """Releases it, whoever holds it, and returns who that was. Raises LockHeld if it cannot be broken."""


class Target(Protocol):
    """One release on its way to one environment, by one strategy. Versions are image tags."""

    @property
    def lock(self) -> Lock:
        """The environment's lock."""

    @property
    def databases(self) -> Databases | None:
        """The two databases, if the release gets, or leaves, one of its own; None if all releases share one."""

    def be_patient(self, tell: Progress) -> None:
        """From now on, repeats reads for a minute while what the release runs on does not answer, and raises NoAnswer
        only then: that says nothing about the release. `tell` shows why; what it raises ends the wait.
        """

    def validate(self) -> None:
        """Raises DeployRefused or InvalidUsage if the release cannot be brought there. Changes nothing."""

    def preflight(self) -> None:
        """Raises DeployRefused if the environment is in no state for a new release, such as a paused Deployment, a used
        up quota or missing rights. Changes nothing. Raises StepFailed.
        """

    def live_version(self) -> str:
        """The version that has the traffic; empty if there is none. Raises StepFailed."""

    def live_revision(self) -> str:
        """What the answers of the instances that have the traffic name beside the version; empty if that is unknown.
        Raises StepFailed.
        """

    def already_live(self) -> bool:
        """Whether the release has the traffic and was verified good: there is nothing left to do. Raises StepFailed."""

    def previous_good(self) -> str:
        """The version to roll back to: verified good before the live one, and not rolled back from since. Empty if
        there is none.
        """

    def choose_revision(self) -> str:
        """Chooses the revision of the release to roll back to, where it may have several, such as other settings: the
        one of previous_good() if that is its version. Returns its name in the ledger; empty if there is but one.
        """

    def origin(self) -> tuple[str, str]:
        """The commit that the release was built from, and when (ISO 8601); empty where that is unknown."""

    def digest(self) -> str:
        """The digest of the release's image (sha256:...), if that is known here; else empty."""

    def url(self) -> str:
        """Where people reach the environment; empty if it cannot be reached from here."""

    def plan(self) -> Sequence[tuple[str, str]]:
        """(step, what it would do) for --dry-run."""

    def migrate(self, unsafe: bool, tell: Progress) -> str:
        """Migrates the database with the release's own image. `unsafe` skips the check of the unapplied migrations.
        Returns a note. Raises StepFailed.
        """

    def start(self, timeout: float, tell: Progress) -> str:
        """Starts the release without traffic and waits until it is ready, `timeout` seconds at most. Returns a note.
        Raises StepFailed.
        """

    def adopt(self) -> None:
        """Takes what is live for the release, so that it can be tested and watched as it is. Raises StepFailed."""

    def new_instances(self) -> list[str]:
        """The release's instances, for ask()."""

    def live_instances(self) -> list[str]:
        """The instances that have the traffic, for ask()."""

    def other_instances(self) -> list[str]:
        """The ready instances of another release, with traffic or without, to compare with. Raises StepFailed."""

    def ask(self, instance: str, paths: Sequence[str]) -> list[Answer]:
        """Sends a GET for each path from inside the instance. Raises StepFailed if that itself is not possible."""

    def failure_reason(self) -> str:
        """Why the release's containers are not well: they exit or restart. Empty if they are well."""

    def logs(self) -> str:
        """The release's last log lines."""

    def switch(self, timeout: float, tell: Progress) -> str:
        """Gives the release the traffic, at once or instance by instance; each gets `timeout` seconds to become ready.
        Returns a note; empty if there is nothing to switch. Raises StepFailed.
        """

    def roll_back(self, reason: str, tell: Progress) -> str:
        """Gives the traffic back to what had it before the release. Returns its version. Raises StepFailed."""

    @property
    def rollback_script(self) -> RollbackScript | None:
        """The target's own way to return to the release, if it has one; else the steps of a deployment do that."""

    def cleanup(self) -> None:
        """Stops the release's instances, if they have no traffic."""

    def mark_good(self) -> str:
        """Marks the release as verified and stops what is no longer needed. Returns a note. Raises StepFailed."""

    def mark_bad(self, version: str) -> None:
        """Marks a version as one that was rolled back from."""
