"""What a deployment can end with, apart from success."""


class DeployRefused(Exception):
    """It cannot be done, and nothing was changed. The text says what to do."""


class InvalidUsage(DeployRefused):
    """What was asked for makes no sense at all."""


class LockHeld(DeployRefused):
    """Somebody else holds the lock; the text says who, since when, for what, and how to break it."""


class StepFailed(Exception):
    """Something was begun and did not work out. `details` are the release's own words: its last log lines."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class LockLost(Exception):
    """Somebody has broken the lock: another deployment may be at work, so nothing more is touched."""
