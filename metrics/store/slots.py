"""A leased slot: the writing side. One live process leases a slot and alone writes to it."""

import errno
import mmap
import os
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from metrics.store.format import HEADER, MAGIC, RECORD, Corrupt, Key, Mapping, records
from metrics.store.leases import open_leased, set_aside

INITIAL_SIZE = 64 * 1024  # bytes
MOST_SLOTS = 1000  # far above any number of processes


class Slot:
    """A leased slot. Not thread-safe."""

    def __init__(self, file: int) -> None:
        """Takes over a descriptor with its lease: totals are kept, gauges reset. Raises Corrupt, OSError."""
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
        """Indexes the records of the slot's former life and resets its gauges. Raises Corrupt."""
        words, cells = self._mapping.words, self._mapping.cells
        end = self._mapping.end()
        gauges = []
        for record in records(self._mapping.data, HEADER, end):
            key = Key.decode(record.line)
            self.cells_of[record.line] = record.cell
            self._families.add(key.family)
            if not key.persistent:
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
        """Leases the slot in this file; returns None if another process has it.

        Raises Corrupt once the file is set aside, OSError.
        """
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
        """Leases the first free slot of `folder`, or a new one. Raises OSError.

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
        """The file as numbers. Growth makes a new view; earlier views stay valid until close()."""
        return self._mapping.cells

    def add(self, key: Key, line: bytes, help_text: str) -> int:
        """Publishes a record with value and stamp 0; returns the index of its value. `line` is key.encode().

        Raises OSError if there is no room; then nothing was changed.
        """
        # Only the first record of a family has its help.
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
        """Doubles the file until it has `least` bytes. Raises OSError if the disk has no room."""
        size = len(self._mapping)
        while size < least:
            size *= 2
        # Not ftruncate(): writing to a page for which the disk has no room would kill the process (SIGBUS).
        os.posix_fallocate(self._file, 0, size)
        mapping = Mapping(self._file, size, mmap.ACCESS_WRITE)
        self._outgrown.append(self._mapping)
        self._mapping = mapping

    def close(self) -> None:
        """Closes the file. The lease ends, unless another process shares the file description (a parent after fork)."""
        for mapping in [*self._outgrown, self._mapping]:
            mapping.close()
        os.close(self._file)
