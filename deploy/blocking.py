"""Ends a migration that makes others wait: whoever queries a table that it has locked hangs for as long as it goes on.

`lock_timeout` bounds how long the migration waits for the locks of others. Nothing in PostgreSQL bounds how long others
wait for its locks: statement_timeout and transaction_timeout would also end a long migration that is in nobody's way.
"""

import logging
import threading
import time
from types import TracebackType

from django.db import DEFAULT_DB_ALIAS, Error, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger(__name__)

EVERY = 0.25  # seconds between two looks
# The clients that wait for a lock of this session, or behind one that it waits for. Not for an advisory lock: with
# that, another migration waits for its turn. Autovacuum has no user, and can wait.
# https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SESSION
WAITING = """
SELECT activity.pid FROM pg_stat_activity AS activity JOIN pg_locks ON pg_locks.pid = activity.pid
WHERE NOT pg_locks.granted AND pg_locks.locktype <> 'advisory' AND activity.usesysid IS NOT NULL
AND %s = ANY (pg_blocking_pids(activity.pid))
"""


class BlockLimit:
    """While in the block, ends what this thread's connection does once it has made anybody wait for `seconds`.

    Its statement is cancelled. If it is between two statements and keeps its locks, its session is ended. Either way
    its transaction is rolled back, and the statement, or the next one, raises a database error; `why` then says what
    happened, as a sentence. PostgreSQL only.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.why = seconds, ""
        self.since: dict[int, float] = {}  # since when each session has been seen waiting, by the monotonic clock
        self.ending = threading.Event()

    def __enter__(self) -> "BlockLimit":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (self.session,) = cursor.fetchone()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.ending.set()
        self.thread.join()

    def run(self) -> None:
        """Looks until the block ends, over a connection of its own."""
        own = connections.create_connection(DEFAULT_DB_ALIAS)
        while not self.ending.wait(EVERY):
            try:
                self.look(own)
            except Error:  # a restarted server, say: the migration notices as well, or is looked at again
                logger.warning("Cannot see whether the migration blocks anybody", exc_info=True)
                own.close()
        own.close()

    def look(self, own: BaseDatabaseWrapper) -> None:
        """Looks once who waits, and ends what they wait for if that has taken too long. Raises a database error."""
        with own.cursor() as cursor:
            cursor.execute(WAITING, [self.session])
            now = time.monotonic()
            self.since = {pid: self.since.get(pid, now) for (pid,) in cursor.fetchall()}
            longest = now - min(self.since.values(), default=now)
            if longest < self.seconds:
                return
            end = "pg_terminate_backend" if self.why else "pg_cancel_backend"  # it holds on to its locks all the same
            count = len(self.since)
            self.why = self.why or (
                f"{count} other session{'s' if count > 1 else ''} waited {longest:.1f} s for its locks, limit "
                f"{self.seconds:g} s (MIGRATION_BLOCK_LIMIT)."
            )
            cursor.execute(f"SELECT {end}(%s)", [self.session])
