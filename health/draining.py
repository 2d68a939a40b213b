"""Draining: this instance still serves, and asks to be sent nothing new.

The flag is a file, so that every worker sees it at once and anything can set it: `manage.py drain`, or `touch` where
starting Python takes too long. It is void when it is older than this server, for a file outlives the container that
was drained where its folder is a volume of the pod, and the next container would never be ready.
https://kubernetes.io/docs/concepts/containers/container-lifecycle-hooks/#hook-details (preStop)
"""

import os
import time
from pathlib import Path

from django.conf import settings

# gunicorn loads the app in its master (preload_app), so a worker that is replaced while it drains knows the flag too.
LOADED = time.time()
GRAIN = 0.02  # seconds by which a file system's clock may be behind


def draining() -> bool:
    """Whether the flag is set."""
    return raised(settings.HEALTH_DRAIN_FILE)


def raised(path: str) -> bool:
    """Whether the flag at `path` is valid: the file is there, newer than this server, and of this user or root."""
    try:
        flag = os.stat(path)
    except OSError:
        return False
    return flag.st_mtime >= LOADED - GRAIN and flag.st_uid in (os.geteuid(), 0)


def drain() -> None:
    """Sets the flag. Raises OSError."""
    path = Path(settings.HEALTH_DRAIN_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def undo() -> bool:
    """Removes the flag; False if there was none. Raises OSError."""
    try:
        Path(settings.HEALTH_DRAIN_FILE).unlink()
    except FileNotFoundError:
        return False
    return True
