"""Slot files in their folder, and the lease on each: a lock that one process holds as long as it lives.

Nobody waits for a lease: it is tried, and whoever does not get it tries the next file. Readers take none.
"""

import errno
import fcntl
import logging
import os
import re
import stat
import struct
import sys
from contextlib import ExitStack
from pathlib import Path

from metrics.store.format import HEADER, MAGIC, Corrupt

logger = logging.getLogger(__name__)

NAME = re.compile(r"slot-\d{2,3}\.db")

# Locks of an "open file description". Unlike those of flock(), they can be queried without being taken; unlike the
# older ones of fcntl(), they are not lost when another descriptor of the file is closed. See fcntl_locking(2):
# https://man7.org/linux/man-pages/man2/F_GETLK.2const.html
_SET_LOCK = getattr(fcntl, "F_OFD_SETLK", None)
_GET_LOCK = getattr(fcntl, "F_OFD_GETLK", None)
# struct flock: type, whence, start, length, process id
_FLOCK = struct.Struct("@hhqqi4x")
_WHOLE_FILE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def lock(file: int) -> bool:
    """Takes the lease on an open file; returns False if another process has it. It ends when the last descriptor of
    this open file description is closed. Raises OSError.
    """
    if _SET_LOCK is None:
        raise OSError(errno.ENOSYS, "this system has no open file description locks; Linux has")
    try:
        fcntl.fcntl(file, _SET_LOCK, _WHOLE_FILE)
    except (BlockingIOError, PermissionError):
        return False
    return True


def leased(file: int) -> bool:
    """Whether a process has the lease. This takes nothing, so it never turns away a worker that is starting."""
    if _GET_LOCK is None:
        return False
    return bool(_FLOCK.unpack(fcntl.fcntl(file, _GET_LOCK, _WHOLE_FILE))[0] != fcntl.F_UNLCK)


def open_file(path: Path, flags: int) -> int:
    """Returns a descriptor without following a link or blocking on a pipe. Raises Corrupt, OSError."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise Corrupt("not a regular file") from None
        raise


def open_leased(path: Path) -> int | None:
    """Returns a descriptor of the file with its lease, creating the file if it is missing; None if another process has
    the lease. Raises Corrupt, OSError.
    """
    while True:
        file = open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise Corrupt("not a regular file")
            free = lock(file)
            # Between open() and the lock another process may have set the file aside.
            if not free or (os.path.lexists(path) and os.path.samestat(found, os.lstat(path))):
                if not free:
                    os.close(file)
                return file if free else None
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def set_aside(path: Path, error: Corrupt) -> None:
    """Renames a corrupt file, replacing one that was set aside under the same name before. Raises OSError."""
    os.replace(path, f"{path}.corrupt")
    logger.warning("%s is corrupt (%s): renamed to %s.corrupt; its totals are lost", path, error, path.name)


def slot_paths(folder: Path) -> list[Path]:
    """Returns the files of a folder that are named like a slot, in order. Raises OSError."""
    return [folder / name for name in sorted(os.listdir(folder)) if NAME.fullmatch(name)]


def clear(folder: Path) -> bool:
    """Removes the slots of a folder, and nothing else. Returns False, with nothing removed, if a live process has one.

    A file that is named like a slot but is not one is set aside. Raises OSError.
    """
    with ExitStack() as stack:
        slots = []
        for path in slot_paths(folder):
            try:
                file = open_leased(path)
                if file is None:
                    return False
                stack.callback(os.close, file)
                head = os.pread(file, HEADER, 0)
                if any(head) and int.from_bytes(head[:8], sys.byteorder) != MAGIC:
                    raise Corrupt("not a slot of this version")
            except Corrupt as error:
                set_aside(path, error)
            else:
                slots.append(path)
        for path in slots:
            path.unlink()
    return True
