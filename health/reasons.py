"""Why a check failed, as far as an anonymous client may know: a short list of reasons, and how errors map to them."""

import errno
import re
from enum import StrEnum

import psycopg2
import redis


class Reason(StrEnum):
    """The class of a failure. The log has the exception. docs/health.md lists what each means."""

    TIMEOUT = "timeout"
    REFUSED = "refused"
    AUTHENTICATION = "authentication"
    WRONG_ANSWER = "wrong answer"
    PENDING_MIGRATIONS = "pending migrations"
    READ_ONLY = "read-only"
    DISK_FULL = "disk full"
    NOT_WRITABLE = "not writable"
    ERROR = "error"


class Unhealthy(Exception):
    """Raised by a check that knows what is wrong; `detail` goes to the log only."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


# While psycopg2 connects, errors have no code: only messages from libpq and the server.
MESSAGES = {
    Reason.AUTHENTICATION: "authentication failed|no password supplied|no pg_hba|role .* (does not|is not)",
    Reason.REFUSED: "refused|starting up|shutting down|recovery mode|too many|slots are reserved|closed",
    Reason.TIMEOUT: "timed out|timeout",
    Reason.DISK_FULL: "no space left|file too large|quota exceeded",
}
# https://www.postgresql.org/docs/current/errcodes-appendix.html
SQLSTATES = {"25006": Reason.READ_ONLY, "53100": Reason.DISK_FULL}
ERRNOS = {
    errno.ENOSPC: Reason.DISK_FULL,
    errno.EDQUOT: Reason.DISK_FULL,
    errno.EFBIG: Reason.DISK_FULL,
    errno.EROFS: Reason.NOT_WRITABLE,
    errno.EACCES: Reason.NOT_WRITABLE,
    errno.EPERM: Reason.NOT_WRITABLE,
}


def reason(error: BaseException) -> Reason:
    """Returns the reason for `error`, by its type or that of what caused it; Reason.ERROR if neither says enough."""
    cause: BaseException | None = error
    while cause:
        match cause:
            case Unhealthy():
                return cause.reason
            case TimeoutError() | redis.TimeoutError():
                return Reason.TIMEOUT
            case ConnectionError() | redis.BusyLoadingError():
                return Reason.REFUSED
            case redis.AuthenticationError() | redis.exceptions.NoPermissionError():
                return Reason.AUTHENTICATION
            case redis.ReadOnlyError():
                return Reason.READ_ONLY
            case psycopg2.Error() if cause.pgcode in SQLSTATES:
                return SQLSTATES[cause.pgcode]
            case OSError() if cause.errno in ERRNOS:
                return ERRNOS[cause.errno]
            case psycopg2.Error() | redis.ConnectionError():
                for found, pattern in MESSAGES.items():
                    if re.search(pattern, str(cause), re.IGNORECASE):
                        return found
        cause = cause.__cause__ or cause.__context__
    return Reason.ERROR
