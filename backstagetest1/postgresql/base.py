"""Django's backend for PostgreSQL, made for persistent connections while servers restart, fail over and freeze."""

import math
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from django.conf import settings
from django.db.backends.postgresql import base
from psycopg2 import extensions

from health.reasons import Reason
from health.runner import has_run, report

GRACE = 1.0  # seconds that a statement may take before the health check is consulted
CONNECT_TIMEOUT = 5.0  # seconds; libpq's own connect_timeout does not apply while wait() does the waiting


class Limit(threading.local):
    """When this thread stops waiting for an answer, by time.monotonic()."""

    until = math.inf


limit = Limit()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Makes each statement of this thread raise psycopg2.OperationalError if it has no answer by then."""
    before = limit.until
    limit.until = min(before, time.monotonic() + seconds)
    try:
        yield
    finally:
        limit.until = before


def wait(connection: Any) -> None:
    """Waits for PostgreSQL while it responds. Raises psycopg2.OperationalError once the health check finds it silent.

    None of libpq's timeouts applies to a statement sent to a frozen server, because the server's kernel goes on
    acknowledging packets. Soon every thread would be waiting, and none would be left for the error page, the status
    page and the probes. So a waiting thread consults the health check, which has its own connection and never blocks.
    While the server answers others, a statement may take as long as its statement_timeout allows.
    https://www.psycopg.org/docs/advanced.html#support-for-coroutine-libraries
    """
    started = time.monotonic()
    connecting = connection.status == extensions.STATUS_SETUP
    while (state := connection.poll()) != extensions.POLL_OK:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT)
        waited, left = time.monotonic() - started, limit.until - time.monotonic()
        if poll.poll(max(0, min(50 if waited < 0.05 else 500, left * 1000))):
            continue
        if left <= 0:
            raise psycopg2.OperationalError("PostgreSQL timed out")
        if connecting and waited > CONNECT_TIMEOUT:
            raise psycopg2.OperationalError(f"PostgreSQL timed out while connecting, after {CONNECT_TIMEOUT:g} s")
        if known_silent(ask=waited > GRACE):
            raise psycopg2.OperationalError("PostgreSQL does not respond")


def known_silent(*, ask: bool) -> bool:
    """Whether the health check has had no answer for HEALTH_DOWN_AFTER. This does not wait for the check, and starts it
    only if it is running already or if `ask`.
    """
    if "database" not in settings.HEALTH_CHECKS or not (ask or has_run("database")):
        return False
    found = report(["database"], wait=0).checks.get("database")
    return bool(found and found.reason is Reason.TIMEOUT and not found.late)


extensions.set_wait_callback(wait)


class DatabaseWrapper(base.DatabaseWrapper):
    def is_usable(self) -> bool:
        """Whether the server responds and accepts writes.

        Django asks before a persistent connection's first use in a request (CONN_HEALTH_CHECKS), and at the end of a
        request in which the database raised an error. After a failover the old primary answers every SELECT and rejects
        every write; with this, each thread of each process leaves it at its next request and reconnects to wherever the
        host name points now. libpq's target_session_attrs=read-write asks the same, which covers
        default_transaction_read_only as well.
        https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-TARGET-SESSION-ATTRS
        """
        if self.connection is None:
            return False
        try:
            with self.connection.cursor() as cursor:
                cursor.execute("SHOW transaction_read_only")
                return bool(cursor.fetchone() == ("off",))
        except psycopg2.Error:
            return False
