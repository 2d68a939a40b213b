"""Runs before the app, from the image that is to be served (docker-compose.yml, ./run switch).

It brings the image's static files to nginx's volume. Those of earlier images stay for 30 days, for pages that are still
open in browsers. And it sees to the name by which nginx finds the app, current.sock: it goes to web.sock if what it
names does not answer.
"""

import os
import shutil
import socket
import time
from pathlib import Path

SOURCE, TARGET, SOCKETS = Path("/app/staticfiles"), Path("/srv/static"), Path("/run/web")
ERRORS = Path("/app/errors")  # the pages that nginx shows by itself, which are not static files
KEPT = 30 * 86400  # seconds


def copy() -> None:
    """Each file takes its place at once, by rename(2): nginx never serves half of one."""
    for source, target in ((SOURCE, TARGET), (ERRORS, TARGET / "errors")):
        for path in source.rglob("*"):
            if path.is_dir():
                continue
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place.parent / ".new")
            os.replace(place.parent / ".new", place)


def prune() -> None:
    """Removes what no image of late has brought, and the manifest that earlier ones did."""
    (TARGET / "staticfiles.json").unlink(missing_ok=True)
    for path in TARGET.rglob("*"):
        if path.is_file() and time.time() - path.stat().st_mtime > KEPT:
            path.unlink()


def answers(path: Path) -> bool:
    """Whether somebody listens on the socket."""
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(str(path))
        except OSError:
            return False
    return True


def point() -> None:
    name = SOCKETS / "current.sock"
    if not answers(name):
        (SOCKETS / ".next").unlink(missing_ok=True)
        (SOCKETS / ".next").symlink_to("web.sock")
        os.replace(SOCKETS / ".next", name)


copy()
prune()
point()
