"""Django's backend for PostgreSQL, for connections that are kept while servers come, go and freeze."""

import select
import time
from typing import Any

import psycopg2
from django.conf import settings
from django.db.backends.postgresql import base
from psycopg2 import extensions

from health.checks import Reason
from health.runner import report, watched

UNASKED = 1.0  # seconds that a statement may take before it is asked whether the database is still there
CONNECTING = 5.0  # seconds; libpq's own connect_timeout does not hold where the waiting is done here


def wait(connection: Any) -> None:
    """Waits for PostgreSQL as long as it is there. Raises psycopg2.OperationalError when it is known to be silent.

    To a statement sent to a frozen server no time-out of libpq applies: its kernel goes on acknowledging. Soon every
    thread would wait for it, and none would be left for the page that explains, for the status page and for the probes.
    So the thread that waits asks what the health check knows, which has a connection of its own and cannot be held up.
    A statement may take as long as its statement_timeout allows while the server answers others.
    https://www.psycopg.org/docs/advanced.html#support-for-coroutine-libraries
    """
    started = time.monotonic()
    connecting = connection.status == extensions.STATUS_SETUP
    while (state := connection.poll()) != extensions.POLL_OK:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT)
        waited = time.monotonic() - started
        if poll.poll(50 if waited < 0.05 else 500):
            continue
        if connecting and waited > CONNECTING:
            raise psycopg2.OperationalError(f"PostgreSQL did not complete the connection in {CONNECTING:g} s")
        if known_silent(ask=waited > UNASKED):
            raise psycopg2.OperationalError("PostgreSQL does not answer")


def known_silent(*, ask: bool) -> bool:
    """Whether the health check has had no answer for HEALTH_DOWN_AFTER. It is not waited for; where nobody has asked
    for it before, it begins only if `ask`.
    """
    if "database" not in settings.HEALTH_CHECKS or not (ask or watched("database")):
        return False
    found = report(["database"], wait=0).checks.get("database")
    return bool(found and found.reason is Reason.TIMEOUT and not found.late)


extensions.set_wait_callback(wait)


class DatabaseWrapper(base.DatabaseWrapper):
    def is_usable(self) -> bool:
        """Whether the server answers and takes writes.

        Django asks before a kept connection's first use in a request (CONN_HEALTH_CHECKS), and at the end of a request
        in which the database raised an error. After a failover the old primary answers every SELECT and refuses every
        write: so each thread of each process leaves it at its next request, and connects anew to where the name points.
        It is what libpq asks for target_session_attrs=read-write; it covers default_transaction_read_only, too.
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
