"""Draining: the instance still serves requests, but asks the load balancer for no new ones.

The flag is a file, so that every worker sees it at once and anything can set it: `manage.py drain`, or `touch` where
starting Python takes too long. A flag older than this server is ignored: on a volume of the pod the file outlives the
drained container, and the next container would never become ready.
https://kubernetes.io/docs/concepts/containers/container-lifecycle-hooks/#hook-details (preStop)
"""

import os
import time
from pathlib import Path

from django.conf import settings

# gunicorn loads the app in its master (preload_app), so a worker that is replaced while it drains knows the flag too.
LOADED = time.time()
CLOCK_SLACK = 0.02  # seconds by which the file system's clock may lag


def draining() -> bool:
    """Whether this instance is draining."""
    return is_set(settings.HEALTH_DRAIN_FILE)


def is_set(path: str) -> bool:
    """Whether the flag at `path` is set: the file exists, is newer than this server, and is this user's or root's."""
    try:
        flag = os.stat(path)
    except OSError:
        return False
    return flag.st_mtime >= LOADED - CLOCK_SLACK and flag.st_uid in (os.geteuid(), 0)


def drain() -> None:
    """Sets the flag. Raises OSError."""
    path = Path(settings.HEALTH_DRAIN_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def undo() -> bool:
    """Removes the flag; returns False if there was none. Raises OSError."""
    try:
        Path(settings.HEALTH_DRAIN_FILE).unlink()
    except FileNotFoundError:
        return False
    return True
