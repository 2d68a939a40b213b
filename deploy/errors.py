"""How a command ends, and the errors that end it."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of `manage.py deploy`, `rollback` and `lock`; scripts/rollback.sh uses the same."""

    DONE = 0
    USAGE = 2
    LOCKED = 3
    REFUSED = 4  # nothing was changed
    ROLLED_BACK = 5  # it failed, and the previous release is live
    NEEDS_OPERATOR = 6  # it failed or was interrupted, and somebody has to look


class DeployRefused(Exception):
    """It cannot be done, and nothing was changed. The text says what to do."""

    exit_code = ExitCode.REFUSED


class InvalidUsage(DeployRefused):
    """The command's arguments make no sense, alone or together."""

    exit_code = ExitCode.USAGE


class LockHeld(DeployRefused):
    """Somebody else holds the lock. The text says who, since when, for what, and how to break it."""

    exit_code = ExitCode.LOCKED


class StepFailed(Exception):
    """Something was begun and failed. `details` are the release's own words: its last log lines."""

    exit_code = ExitCode.REFUSED  # when it reaches the command: it came from a look, before anything was begun

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class TimedOut(StepFailed):
    """A program ran for longer than it may."""


class NoAnswer(StepFailed):
    """What the release runs on has not answered for as long as reads are repeated. Nothing is known of the release."""


class Unseen(Exception):
    """The release is live and nothing is wrong with it, but too few answers came from it to call it good."""


class LockLost(Exception):
    """Somebody has broken this run's lock. Another deployment may be at work, so nothing more is touched."""
