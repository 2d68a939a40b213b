"""Prepares the volumes that the app shares with nginx. Runs before the app, from the same image (docker-compose.yml).

It copies the image's static files to nginx's volume. Those of earlier images stay for 30 days, for pages that are still
open in browsers. It also points current.sock, through which nginx reaches the app, to web.sock, unless something
answers there.
"""

import os
import shutil
import socket
import time
from pathlib import Path

SOURCE, TARGET, SOCKETS = Path("/app/staticfiles"), Path("/srv/static"), Path("/run/web")
ERRORS = Path("/app/errors")  # nginx serves these pages by itself; they are not static files
KEPT = 30 * 86400  # seconds


def copy() -> None:
    """Copies the static files and error pages, each by rename(2), so that nginx never serves half of one."""
    for source, target in ((SOURCE, TARGET), (ERRORS, TARGET / "errors")):
        for path in source.rglob("*"):
            if path.is_dir():
                continue
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place.parent / ".new")
            os.replace(place.parent / ".new", place)


def prune() -> None:
    """Deletes files that no image has brought for KEPT seconds, and the manifest that earlier images brought."""
    (TARGET / "staticfiles.json").unlink(missing_ok=True)
    for path in TARGET.rglob("*"):
        if path.is_file() and time.time() - path.stat().st_mtime > KEPT:
            path.unlink()


def answers(path: Path) -> bool:
    """Returns whether a process listens on the socket."""
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(str(path))
        except OSError:
            return False
    return True


def point() -> None:
    """Points current.sock to web.sock, unless something answers on it."""
    name = SOCKETS / "current.sock"
    if not answers(name):
        (SOCKETS / ".next").unlink(missing_ok=True)
        (SOCKETS / ".next").symlink_to("web.sock")
        os.replace(SOCKETS / ".next", name)
        (SOCKETS / "web.close").unlink(missing_ok=True)  # the mark that the traffic had left it


copy()
prune()
point()
