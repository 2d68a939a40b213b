"""A database to rehearse on: what only reads is asked of the real one, what would change anything is shown."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from psycopg2 import extensions, sql

from deploy.databases.errors import DatabaseError
from deploy.databases.links import masked
from deploy.databases.side import CONNECT, Session, Side

READS = re.compile(r"\s*(select|show|with)\b", re.IGNORECASE)
# Functions that change something, although they are called by SELECT.
CHANGES = re.compile(
    r"\b(setval|nextval|pg_create_logical_replication_slot|pg_drop_replication_slot|pg_reload_conf|"
    r"pg_terminate_backend|pg_cancel_backend|update|insert|delete)\b",
    re.IGNORECASE,
)
ABSENT = ("42P01", "3F000", "42704", "42883")  # SQLSTATEs of what an earlier statement would have made


class Rehearsal(Side):
    """A Side that changes nothing. `show` gets each statement that would have, with its values, without passwords.

    Its session is read-only, so that what is taken for a read by mistake fails.
    """

    def __init__(self, side: Side, show: Callable[[str], None]) -> None:
        super().__init__(side.colour, side.url, default_transaction_read_only="on")
        self.show = show

    def run(
        self, statement: str | sql.Composable, args: Sequence[Any] | None = None, *, timeout: float = 10.0
    ) -> list[tuple[Any, ...]]:
        """Returns the rows of a statement that reads, and none of one that would change something, which it shows."""
        text = self.text(statement, args)
        if not READS.match(text) or CHANGES.search(text):
            self.show(f"-- on {self.colour}\n{masked(text.strip())};")
            return []
        try:
            return super().run(statement, args, timeout=timeout)
        except DatabaseError as error:
            if error.code in ABSENT:
                return []
            raise

    @contextmanager
    def session(self, **settings: str) -> Iterator[Session]:
        """This side itself, as it takes no locks."""
        yield self

    def text(self, statement: str | sql.Composable, args: Sequence[Any] | None) -> str:
        """The statement as it would be sent."""
        connection = self._connected(time.monotonic() + CONNECT)
        cursor = connection.cursor()
        found = cursor.mogrify(statement, args)
        return found.decode(extensions.encodings[connection.encoding]) if isinstance(found, bytes) else str(found)
