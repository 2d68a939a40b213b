"""Counts how gunicorn's workers end. gunicorn.conf.py calls each function from the hook of that time.

The master counts, because a worker that crashes or hangs cannot. gunicorn does not pass the exit status to child_exit,
so a worker that ends in order says so before, in a page of memory that it shares with the master.
https://gunicorn.org/reference/settings/#server-hooks
"""

import mmap
import sys
from typing import Any

from metrics.registry import WORKER_EXITS

IN_ORDER, RECYCLED = 1, 2  # what the page says; 0 while the worker runs, and after a crash


def pre_fork(worker: Any) -> None:
    """In the master, before the worker exists: gives it the page."""
    worker.ending = mmap.mmap(-1, 1)


def worker_exit(worker: Any) -> None:
    """In the worker, as it ends: says so, unless an error ends it."""
    leaving = sys.exception()
    if isinstance(leaving, SystemExit) and not leaving.code:
        worker.ending[0] = RECYCLED if worker.nr >= worker.max_requests else IN_ORDER


def child_exit(worker: Any) -> None:
    """In the master, after the worker has ended: counts it, unless it was told to end."""
    ending = worker.ending[0]
    worker.ending.close()
    if worker.aborted:  # gunicorn's mark on a worker that did not report in time, whether or not SIGABRT ended it
        WORKER_EXITS.labels("timeout").inc()
    elif ending == RECYCLED:
        WORKER_EXITS.labels("recycled").inc()
    elif ending != IN_ORDER:
        WORKER_EXITS.labels("crash").inc()
