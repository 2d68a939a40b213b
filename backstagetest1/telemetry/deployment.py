"""The deployment that brought this release here, as the ledger of this instance's database knows it."""

import threading
import time

from django.conf import settings
from django.db import DatabaseError, connection

from ledger.models import Deployment

KEPT = 60.0  # seconds until the ledger is asked again: a rollback may return to processes that were kept warm

_found = ""
_next = 0.0  # by time.monotonic()
_asking = threading.Lock()


def current() -> str:
    """Returns the id of the latest deployment of this version to this environment; "" if it is not known.

    Never waits: the ledger is asked in a thread, at most once a minute, and until it has answered the last id counts.
    """
    if time.monotonic() >= _next and _asking.acquire(blocking=False):
        try:
            threading.Thread(target=_look_up, name="look up the deployment", daemon=True).start()
        except RuntimeError:  # the process may not start more threads
            _asking.release()
    return _found


def _look_up() -> None:
    """Runs in the thread: asks the ledger, and releases the lock."""
    global _found, _next
    try:
        _found = latest()
    except DatabaseError:
        pass  # whoever needs the database reports it
    finally:
        connection.close()
        _next = time.monotonic() + KEPT
        _asking.release()


def latest() -> str:
    """Returns what current() does, from the ledger; one query. Raises DatabaseError."""
    found = Deployment.objects.filter(environment__name=settings.ENVIRONMENT, release__version=settings.VERSION)
    return str(found.newest_first().values_list("pk", flat=True).first() or "")
