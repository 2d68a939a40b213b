"""The two databases of this instance's environment on its card: which one takes the writes, and whether a rollback
loses anything. A thread reads them, so a page waits for them no longer than for Prometheus.
"""

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from django.conf import settings

from board import answers
from deploy.databases.side import Side
from deploy.databases.status import Status, status
from ledger.environments import EnvironmentConfig
from ledger.humanize import took

LIMIT = 1.0  # seconds for each statement
KEY = "databases", ""


@dataclass(frozen=True)
class Databases:
    """Both databases as they were a moment ago. `writable` takes the writes; empty if that is unknown, or none does.

    `other` is the colour that follows, empty while the two are not linked; `lag` is how far it is behind, `switched`
    whether a rollback leads there, rather than a switch. That would lose nothing if `lossless`, since `since` and until
    `until`, as far as that is known. `silent` are those that do not answer. `fault`: both take the writes, or none.
    """

    writable: str = ""
    other: str = ""
    switched: bool = False
    lag: timedelta | None = None
    lossless: bool = False
    since: datetime | None = None
    until: datetime | None = None
    silent: tuple[str, ...] = ()
    fault: str = ""
    known: bool = True  # False until they were read
    shown: bool = True  # False for an environment whose releases share one database

    @property
    def behind(self) -> str:
        """The lag, for people."""
        if self.lag is None:
            return "behind by an unknown amount"
        return f"{took(self.lag)} behind" if self.lag >= timedelta(seconds=1) else "less than 1 s behind"

    @classmethod
    def of(cls, found: Status) -> "Databases":
        """Those of a status."""
        link = found.link
        if len(found.writable_colours) > 1:
            fault = "Both databases take the writes"
        elif found.phases and not found.writable and not found.unreachable:
            fault = "No database takes the writes"
        else:
            fault = ""
        writable = "" if fault else found.writable
        if link is None or not writable:
            return cls(writable, silent=found.unreachable, fault=fault)
        switched = writable == link.target
        back = next((each for each in found.directions if each.sender == writable), None)
        lag = None if back is None or back.lag_seconds is None else timedelta(seconds=back.lag_seconds)
        return cls(
            writable,
            link.source if switched else link.target,
            switched,
            lag,
            found.lossless,
            found.since,
            found.until,
            found.unreachable,
        )


def begin() -> None:
    """Lets a thread read this instance's databases, if there are two."""
    if settings.DATABASE_URLS:
        answers.begin(KEY, partial(read, settings.DATABASE_URLS))


def result(config: EnvironmentConfig, until: float) -> Databases | None:
    """Returns the databases of an environment, once begin() was called, as they were last read; None if this instance
    does not know them. If they were never read, waits until then, by the monotonic clock.
    """
    if not settings.DATABASE_URLS or config.name != settings.ENVIRONMENT:
        return None
    found: Databases | None = answers.result(KEY, until).value
    found = found or Databases(known=False)
    # Linked in spite of the file: deployed with --database per-colour.
    return found if config.database == "per-colour" or found.other else replace(found, shown=False)


def read(urls: Mapping[str, str]) -> Databases:
    """Reads the two databases and writes nothing."""
    with ExitStack() as stack:
        sides = [stack.enter_context(closing(Side(colour, url))) for colour, url in urls.items()]
        for side in sides:
            side.limit = LIMIT
        return Databases.of(status(*sides, wait=None))
