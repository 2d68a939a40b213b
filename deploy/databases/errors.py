"""What can go wrong with one of the two databases."""

from deploy.errors import StepFailed


class DatabaseError(StepFailed):
    """A database refused a statement, or did not answer.

    `code` is PostgreSQL's SQLSTATE, or empty: https://www.postgresql.org/docs/current/errcodes-appendix.html.
    `in_doubt` tells that the statement was sent and no answer came, so that it may have taken effect, or still may.
    """

    def __init__(self, message: str, *, code: str = "", in_doubt: bool = False, details: str = "") -> None:
        super().__init__(message, details)
        self.code, self.in_doubt = code, in_doubt


class Unreachable(DatabaseError):
    """No connection could be made, or it was lost."""


class TimedOut(DatabaseError):
    """No answer came within the time given, measured by this process's clock."""
