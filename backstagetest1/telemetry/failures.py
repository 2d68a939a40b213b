"""What the log says while a collector or Sentry does not answer: a line a minute, not one for each attempt."""

import logging
import time


class Failures(logging.Filter):
    """Lets through one line a minute, as a warning: the service itself has no fault."""

    def __init__(self) -> None:
        super().__init__()
        self.next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self.next:
            return False
        self.next = now + 60
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


def limit(name: str) -> None:
    """Limits what the logger `name` says."""
    logging.getLogger(name).filters[:] = [Failures()]
