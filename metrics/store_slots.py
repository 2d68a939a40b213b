"""Slots: the files in which processes keep the values of their metrics. Format and protocol: docs/metrics-store.md.

A slot is leased by one live process, which alone writes it (Slot), and read by all (Reader). Nobody ever waits for
anybody: a lease is a lock that is tried, not awaited, and a reader takes none.
"""

import errno
import fcntl
import json
import logging
import mmap
import os
import re
import stat
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

logger = logging.getLogger(__name__)

# Header, eight-byte words in the machine's own byte order: 0 magic, 1 end of the last published record, 2 leases so
# far, 3 process id of the last lease; the rest is zero. Words 2 and 3 are for people.
MAGIC = int.from_bytes(b"MSLOTS\x00\x01", "big")
HEADER = 64
# A record: size of all of it, CRC-32 of the payload, value, stamp; then the payload, padded with blanks to eight bytes.
RECORD = struct.Struct("=IIdd")
INITIAL_SIZE = 64 * 1024
MOST_SLOTS = 1000  # far above any number of processes
TYPES = ("counter", "gauge", "histogram", "summary")
NAME = re.compile(r"slot-\d{2,3}\.db")

# Locks of an "open file description". Unlike those of flock() they can be asked about without being taken; unlike
# fcntl()'s older ones they are not lost when another descriptor of the file is closed. See fcntl_locking(2).
_SET_LOCK = getattr(fcntl, "F_OFD_SETLK", None)
_GET_LOCK = getattr(fcntl, "F_OFD_GETLK", None)
# struct flock: type, whence, start, length, process id
_FLOCK = struct.Struct("@hhqqi4x")
_WHOLE_FILE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


class Corrupt(Exception):
    """A file that is no slot, or no whole one; the message says in what."""


class Key(NamedTuple):
    """What a value is of. `suffix` is what the sample's name has after the family's; `labels` are sorted by name."""

    type: str
    mode: str
    family: str
    suffix: str
    labels: tuple[tuple[str, str], ...]

    def encode(self) -> bytes:
        """One line of JSON. What UTF-8 cannot say (lone surrogates) becomes "?", so that no label breaks a scrape."""
        fields = [self.type, self.mode, self.family, self.suffix, dict(self.labels)]
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")

    @classmethod
    def decode(cls, line: bytes) -> Self:
        """Raises Corrupt."""
        try:
            kind, mode, family, suffix, labels = json.loads(line)
            words = [kind, mode, family, suffix, *labels.keys(), *labels.values()]
            if suffix == "_bucket":
                float(labels["le"])
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            raise Corrupt("a key is malformed") from None
        if kind not in TYPES or not family or not all(isinstance(word, str) for word in words):
            raise Corrupt("a key is malformed")
        return cls(kind, mode, family, suffix, tuple(sorted(labels.items())))

    @property
    def lasts(self) -> bool:
        """Whether the value outlives its writer: all but gauges, and of those the one that was set most recently."""
        return self.type != "gauge" or self.mode == "mostrecent"


class Record(NamedTuple):
    """A published record. `cell` is the index of its value among the file's eight-byte numbers; its stamp is next."""

    cell: int
    end: int
    line: bytes
    help: str | None


def records(data: mmap.mmap, start: int, end: int) -> Iterator[Record]:
    """The records between two offsets in bytes. Raises Corrupt at the first that is not whole."""
    while start < end:
        size = checksum = 0
        if start + RECORD.size <= end:
            size, checksum, _, _ = RECORD.unpack_from(data, start)
        if size <= RECORD.size or size % 8 or start + size > end:
            raise Corrupt(f"the record at byte {start} has a wrong size")
        payload = data[start + RECORD.size : start + size]
        if zlib.crc32(payload) != checksum:
            raise Corrupt(f"the record at byte {start} has a wrong checksum")
        line, newline, text = payload.rstrip(b" ").partition(b"\n")
        yield Record(start // 8 + 1, start + size, line, text.decode("utf-8", "replace") if newline else None)
        start += size


def lock(file: int) -> bool:
    """Takes the lease of an open file; False if another has it. It ends when this opening's last descriptor closes."""
    if _SET_LOCK is None:
        raise OSError(errno.ENOSYS, "this system has no open file description locks; Linux has")
    try:
        fcntl.fcntl(file, _SET_LOCK, _WHOLE_FILE)
    except (BlockingIOError, PermissionError):
        return False
    return True


def leased(file: int) -> bool:
    """Whether somebody has the lease: asks and takes nothing, so that a starting worker is never turned away by it."""
    if _GET_LOCK is None:
        return False
    return bool(_FLOCK.unpack(fcntl.fcntl(file, _GET_LOCK, _WHOLE_FILE))[0] != fcntl.F_UNLCK)


def open_file(path: Path, flags: int) -> int:
    """A descriptor of a file that is no link, and is not waited for. Raises Corrupt, OSError."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise Corrupt("not a regular file") from None
        raise


def open_leased(path: Path) -> int | None:
    """A descriptor of the file with its lease, made if missing; None if another has it. Raises Corrupt, OSError."""
    while True:
        file = open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise Corrupt("not a regular file")
            free = lock(file)
            # Between open() and the lock another process may have set it aside.
            if not free or (os.path.lexists(path) and os.path.samestat(found, os.lstat(path))):
                if not free:
                    os.close(file)
                return file if free else None
        except BaseException:
            os.close(file)
            raise
        os.close(file)


class Mapping:
    """A slot's file in memory, as bytes and as numbers. Eight aligned bytes are read and written in one go."""

    def __init__(self, file: int, size: int, access: int) -> None:
        self.data = mmap.mmap(file, size // 8 * 8, access=access)
        self.cells = memoryview(self.data).cast("d")
        self.words = memoryview(self.data).cast("Q")

    def __len__(self) -> int:
        return len(self.data)

    def close(self) -> None:
        self.cells.release()
        self.words.release()
        self.data.close()

    def end(self) -> int:
        """Where the last published record ends; 0 if the slot was never made ready. Raises Corrupt."""
        if not any(self.words[: HEADER // 8]):
            return 0
        if self.words[0] != MAGIC:
            raise Corrupt("not a slot of this version")
        end = self.words[1]
        if end < HEADER or end % 8:
            raise Corrupt("its header is wrong")
        if end > len(self):
            raise Corrupt(f"{end - len(self)} bytes are missing at its end")
        return end


class Slot:
    """A leased slot: the writing side. Not for two threads at once."""

    def __init__(self, file: int) -> None:
        """Takes over an open file with its lease: totals are kept, gauges reset. Raises Corrupt, OSError."""
        size = os.fstat(file).st_size
        if not any(os.pread(file, HEADER, 0)):
            size = max(size, INITIAL_SIZE)
            os.posix_fallocate(file, 0, size)
        elif size < HEADER:
            raise Corrupt("shorter than a header")
        self._file = file
        self._outgrown: list[Mapping] = []
        self._families: set[str] = set()
        self.cells_of: dict[bytes, int] = {}
        self._mapping = Mapping(file, size, mmap.ACCESS_WRITE)
        try:
            self._take_over()
        except BaseException:
            self._mapping.close()
            raise

    def _take_over(self) -> None:
        words, cells = self._mapping.words, self._mapping.cells
        end = self._mapping.end()
        gauges = []
        for record in records(self._mapping.data, HEADER, end):
            key = Key.decode(record.line)
            self.cells_of[record.line] = record.cell
            self._families.add(key.family)
            if not key.lasts:
                gauges.append(record.cell)
        if not end:
            words[1] = HEADER
            words[0] = MAGIC
        for cell in gauges:
            cells[cell + 1] = 0.0  # the stamp first: without it there is no value
            cells[cell] = 0.0
        words[2] += 1
        words[3] = os.getpid()

    @classmethod
    def claim(cls, path: Path) -> Self | None:
        """The slot in this file; None if another process has it. Raises Corrupt once it is set aside, OSError."""
        with ExitStack() as stack:
            try:
                file = open_leased(path)
                if file is None:
                    return None
                stack.callback(os.close, file)
                slot = cls(file)
            except Corrupt as error:
                set_aside(path, error)
                raise
            stack.pop_all()
            return slot

    @classmethod
    def lease(cls, folder: Path, corrupt: Callable[[], None]) -> Self:
        """The first slot of `folder` that nobody has, or a new one. Raises OSError.

        `corrupt` is called for each file that had to be set aside.
        """
        for number in range(MOST_SLOTS):
            for _ in range(2):
                try:
                    if slot := cls.claim(folder / f"slot-{number:02}.db"):
                        return slot
                    break
                except Corrupt:
                    corrupt()
        raise OSError(errno.EMFILE, f"all {MOST_SLOTS} slots are taken")

    @property
    def cells(self) -> "memoryview[float]":
        """The file as numbers. Growth makes a new view; those handed out before stay good until close()."""
        return self._mapping.cells

    def add(self, key: Key, line: bytes, help_text: str) -> int:
        """Publishes a record with value and stamp 0; returns the index of its value. `line` is key.encode().

        Raises OSError if there is no room; then nothing has changed.
        """
        # A family's help stands in the first of its records only.
        payload = line if key.family in self._families else line + b"\n" + help_text.encode("utf-8", "replace")
        payload += b" " * (-len(payload) % 8)
        start: int = self._mapping.words[1]
        end = start + RECORD.size + len(payload)
        if end > len(self._mapping):
            self._grow(end)
        RECORD.pack_into(self._mapping.data, start, end - start, zlib.crc32(payload), 0.0, 0.0)
        self._mapping.data[start + RECORD.size : end] = payload
        self._mapping.words[1] = end  # publishes it: a process that dies before this line has written nothing
        self._families.add(key.family)
        self.cells_of[line] = start // 8 + 1
        return start // 8 + 1

    def _grow(self, least: int) -> None:
        size = len(self._mapping)
        while size < least:
            size *= 2
        # Not ftruncate(): to write to a page for which the disk then has no room ends the process (SIGBUS).
        os.posix_fallocate(self._file, 0, size)
        mapping = Mapping(self._file, size, mmap.ACCESS_WRITE)
        self._outgrown.append(self._mapping)
        self._mapping = mapping

    def close(self) -> None:
        """Lets go of the file. The lease ends, unless another process has the same opening (a parent, after fork)."""
        for mapping in [*self._outgrown, self._mapping]:
            mapping.close()
        os.close(self._file)


def set_aside(path: Path, error: Corrupt) -> None:
    """Renames a corrupt file; one that was set aside under the same name gives way. Raises OSError."""
    os.replace(path, f"{path}.corrupt")
    logger.warning("%s is corrupt (%s): set aside as %s.corrupt, without its totals", path, error, path.name)


def clear(folder: Path) -> bool:
    """Removes the slots of a folder, and nothing else. False, with nothing done, if a live process has one of them.

    A file that has a slot's name and is none is set aside. Raises OSError.
    """
    with ExitStack() as stack:
        slots = []
        for path in paths(folder):
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


def paths(folder: Path) -> list[Path]:
    """The files of a folder that have a slot's name, in order. Raises OSError."""
    return [folder / name for name in sorted(os.listdir(folder)) if NAME.fullmatch(name)]


class View:
    """The reading side of one slot."""

    def __init__(self, path: Path) -> None:
        """Raises Corrupt, OSError."""
        self._file = open_file(path, os.O_RDONLY)
        self._stat = os.fstat(self._file)
        self._mapping: Mapping | None = None
        self._read = HEADER
        self._torn = 0
        self.records: list[tuple[Key, int]] = []  # each with the index of its value
        self.help: dict[str, str] = {}
        # Filled by the Reader: indexes of values, and the totals to which they add; pairs of the same for gauges.
        self.cells: list[int] = []
        self.totals: list[int] = []
        self.gauges: list[tuple[int, int]] = []

    def of(self, path: Path) -> bool:
        """Whether `path` is still this file."""
        return os.path.lexists(path) and os.path.samestat(self._stat, os.lstat(path))

    def update(self, decode: Callable[[bytes], Key]) -> bool:
        """Reads the records that are new; returns whether there are any. Raises Corrupt, OSError."""
        if not stat.S_ISREG(self._stat.st_mode):
            raise Corrupt("not a regular file")
        size = os.fstat(self._file).st_size
        if self._mapping is None or size // 8 * 8 != len(self._mapping):
            if self._mapping and size < len(self._mapping):
                raise Corrupt("it was cut short")
            if not any(os.pread(self._file, HEADER, 0)):
                return False  # its process is just making it
            if size < HEADER:
                raise Corrupt("shorter than a header")
            if self._mapping:
                self._mapping.close()
            self._mapping = Mapping(self._file, size, mmap.ACCESS_READ)
        before = len(self.records)
        try:
            for record in records(self._mapping.data, self._read, self._mapping.end()):
                key = decode(record.line)
                self.records.append((key, record.cell))
                if record.help is not None:
                    self.help.setdefault(key.family, record.help)
                self._read = record.end
        except Corrupt:
            # A processor that reorders writes may show the new end before the record: its writer lives, so look again.
            if self._torn == self._read or not self.leased():
                raise
            self._torn = self._read
        return len(self.records) > before

    def leased(self) -> bool:
        """Whether a live process has the slot."""
        return leased(self._file)

    def numbers(self) -> "memoryview[float]":
        """The file as numbers; empty if the slot was never made ready."""
        return self._mapping.cells if self._mapping else memoryview(b"").cast("d")

    def close(self) -> None:
        if self._mapping:
            self._mapping.close()
        os.close(self._file)


class Reader:
    """Adds up the slots of a folder. Not for two threads at once."""

    def __init__(self, folder: Path, corrupt: Callable[[], None]) -> None:
        """`corrupt` is called for each file that has to be left out."""
        self.keys: list[Key] = []
        self.help: dict[str, str] = {}
        self.version = 0  # another one whenever `keys` is another list
        self._folder = folder
        self._corrupt = corrupt
        self._views: dict[Path, View] = {}
        self._local: list[tuple[Key, int]] = []  # the totals to which the local values add
        self._decoded: dict[bytes, Key] = {}
        self._reported: set[str] = set()

    def read(self, local: Sequence[tuple[Key, str, float, float]] = ()) -> tuple[list[float], dict[int, float]]:
        """The totals, one for each of `keys`, and the gauges that have a value, by their index in `keys`.

        `local` are values that stand in no slot: key, help, value, stamp. Never raises for what a file holds.
        """
        self._refresh(local)
        totals = [0.0] * len(self.keys)
        gauges: dict[int, list[tuple[float, float]]] = {}
        for view in self._views.values():
            numbers = view.numbers()
            for total, number in zip(view.totals, map(numbers.__getitem__, view.cells)):
                totals[total] += number
            live = bool(view.gauges) and view.leased()
            for total, cell in view.gauges:
                stamp = numbers[cell + 1]
                if stamp and (live or self.keys[total].lasts):
                    gauges.setdefault(total, []).append((stamp, numbers[cell]))
        for (key, total), (_, _, number, stamp) in zip(self._local, local):
            if key.type == "gauge":
                gauges.setdefault(total, []).append((stamp, number))
            else:
                totals[total] += number
        return totals, {total: merge(self.keys[total].mode, found) for total, found in gauges.items()}

    def _refresh(self, local: Sequence[tuple[Key, str, float, float]]) -> None:
        """Opens the files that are new, reads the records that are, and lets go of what is gone."""
        changed = [key for key, *_ in local] != [key for key, _ in self._local]
        before, self._views = self._views, {}
        try:
            found = paths(self._folder)
        except OSError as error:
            found = []
            self._report(f"{self._folder} cannot be read ({error.strerror}): no slot is counted")
        for path in found:
            view = before.get(path)
            try:
                if view is None or not view.of(path):
                    view = View(path)
                    changed = True
                changed |= view.update(self._decode)
                self._views[path] = view
            except Corrupt as error:
                self._leave_out(path, error)
            except OSError as error:
                self._report(f"{path} cannot be read ({error.strerror}): it is left out")
        for path, view in before.items():
            if self._views.get(path) is not view:
                view.close()
                changed = True
        if changed:
            self._index(local)

    def _leave_out(self, path: Path, error: Corrupt) -> None:
        """Sets a corrupt file aside; if a live process still has it, that is left to the next lease."""
        try:
            if slot := Slot.claim(path):
                slot.close()
            else:
                self._report(f"{path} is corrupt ({error}) while a process uses it: it is left out")
        except Corrupt:
            self._corrupt()
        except OSError as failure:
            self._report(f"{path} is corrupt ({error}) and cannot be set aside ({failure.strerror}): it is left out")

    def _report(self, message: str) -> None:
        """One line and one count for each trouble, not for each scrape."""
        if message not in self._reported:
            self._reported.add(message)
            logger.warning(message)
            self._corrupt()

    def _decode(self, line: bytes) -> Key:
        if line not in self._decoded:
            self._decoded[line] = Key.decode(line)
        return self._decoded[line]

    def _index(self, local: Sequence[tuple[Key, str, float, float]]) -> None:
        """Numbers the keys anew, in the order of slots and records."""
        totals: dict[Key, int] = {}
        self.help = {}
        for view in self._views.values():
            view.cells, view.totals, view.gauges = [], [], []
            for key, cell in view.records:
                total = totals.setdefault(key, len(totals))
                if key.type == "gauge":
                    view.gauges.append((total, cell))
                else:
                    view.cells.append(cell)
                    view.totals.append(total)
            self.help = view.help | self.help
        self._local = [(key, totals.setdefault(key, len(totals))) for key, *_ in local]
        for key, text, *_ in local:
            self.help.setdefault(key.family, text)
        self.keys = list(totals)
        self.version += 1


def merge(mode: str, found: Sequence[tuple[float, float]]) -> float:
    """One value of several processes', given as pairs of stamp and value, as a gauge's multiprocess_mode says."""
    values = [value for _, value in found]
    match mode.removeprefix("live"):
        case "max":
            return max(values)
        case "min":
            return min(values)
        case "mostrecent":
            return max(found)[1]
        case _:
            return sum(values)
