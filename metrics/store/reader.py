"""The reading side: adds up the slots of a folder. It takes no lease, and keeps no writer waiting."""

import logging
import mmap
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from metrics.store import exemplars
from metrics.store.exemplars import Exemplar
from metrics.store.format import HEADER, Corrupt, Key, Mapping, records
from metrics.store.leases import leased, open_file, slot_paths
from metrics.store.slots import Slot

logger = logging.getLogger(__name__)


class SlotView:
    """One slot as the reader sees it."""

    def __init__(self, path: Path) -> None:
        """Opens the file for reading. Raises Corrupt, OSError."""
        self._file = open_file(path, os.O_RDONLY)
        self._stat = os.fstat(self._file)
        self._mapping: Mapping | None = None
        self._read = HEADER
        self._torn = 0
        self.records: list[tuple[Key, int]] = []  # each with the index of its value
        self.help: dict[str, str] = {}
        # Filled by the Reader: the indexes of the values, and of the totals they add to; pairs of the two for gauges.
        self.cells: list[int] = []
        self.totals: list[int] = []
        self.gauges: list[tuple[int, int]] = []
        self.exemplars: list[tuple[int, int, int]] = []  # the total of a bucket, and the cells of its exemplar

    def shows(self, path: Path) -> bool:
        """Whether `path` is still the file that was opened."""
        return os.path.lexists(path) and os.path.samestat(self._stat, os.lstat(path))

    def update(self, decode: Callable[[bytes], Key]) -> bool:
        """Reads new records; returns whether there were any. Raises Corrupt, OSError."""
        if not stat.S_ISREG(self._stat.st_mode):
            raise Corrupt("not a regular file")
        size = os.fstat(self._file).st_size
        if self._mapping is None or size // 8 * 8 != len(self._mapping):
            if self._mapping and size < len(self._mapping):
                raise Corrupt("it was truncated")
            if not any(os.pread(self._file, HEADER, 0)):
                return False  # its process is just creating it
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
            # A processor that reorders writes may show the new end before the record; if the writer lives, try again.
            if self._torn == self._read or not self.leased():
                raise
            self._torn = self._read
        return len(self.records) > before

    def leased(self) -> bool:
        """Whether a live process has leased the slot."""
        return leased(self._file)

    def numbers(self) -> "memoryview[float]":
        """Returns the file as numbers; empty if the slot was never initialized."""
        return self._mapping.cells if self._mapping else memoryview(b"").cast("d")

    def close(self) -> None:
        if self._mapping:
            self._mapping.close()
        os.close(self._file)


class Reader:
    """Adds up the slots of a folder. Not thread-safe."""

    def __init__(self, folder: Path, corrupt: Callable[[], None]) -> None:
        """`corrupt` is called for each file that had to be skipped."""
        self.keys: list[Key] = []
        self.help: dict[str, str] = {}
        self.version = 0  # changes whenever `keys` does
        self._folder = folder
        self._corrupt = corrupt
        self._views: dict[Path, SlotView] = {}
        self._local: list[tuple[Key, int]] = []  # the totals that the local values add to
        self._decoded: dict[bytes, Key] = {}
        self._reported: set[str] = set()

    def read(self, local: Sequence[tuple[Key, str, float, float]] = ()) -> tuple[list[float], dict[int, float]]:
        """Returns the totals, one for each of `keys`, and the gauges that have a value, by their index in `keys`.

        `local` are values that are in no slot: key, help, value, stamp. Whatever a file holds, this does not raise.
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
                if stamp and (live or self.keys[total].persistent):
                    gauges.setdefault(total, []).append((stamp, numbers[cell]))
        for (key, total), (_, _, number, stamp) in zip(self._local, local):
            if key.type == "gauge":
                gauges.setdefault(total, []).append((stamp, number))
            else:
                totals[total] += number
        return totals, {total: merge(self.keys[total].mode, found) for total, found in gauges.items()}

    def exemplars(self) -> dict[int, Exemplar]:
        """Returns the latest exemplar of each bucket that has any, by its index in `keys`. Call read() before."""
        found: dict[int, Exemplar] = {}
        for view in self._views.values():
            numbers = view.numbers()
            for total, cell, id_cell in view.exemplars:
                one = Exemplar.read(numbers, cell, id_cell)
                if one and (total not in found or one.at > found[total].at):
                    found[total] = one
        return found

    def _refresh(self, local: Sequence[tuple[Key, str, float, float]]) -> None:
        """Opens new files, reads new records, and closes files that are gone."""
        changed = [key for key, *_ in local] != [key for key, _ in self._local]
        before, self._views = self._views, {}
        try:
            found = slot_paths(self._folder)
        except OSError as error:
            found = []
            self._report(f"{self._folder} cannot be read ({error.strerror}): the scrape includes no slots")
        for path in found:
            view = before.get(path)
            try:
                if view is None or not view.shows(path):
                    view = SlotView(path)
                    changed = True
                changed |= view.update(self._decode)
                self._views[path] = view
            except Corrupt as error:
                self._skip(path, error)
            except OSError as error:
                self._report(f"{path} cannot be read ({error.strerror}): skipped")
        for path, view in before.items():
            if self._views.get(path) is not view:
                view.close()
                changed = True
        if changed:
            self._index(local)

    def _skip(self, path: Path, error: Corrupt) -> None:
        """Sets a corrupt file aside; while a live process has it, that is left to the next lease."""
        try:
            if slot := Slot.claim(path):
                slot.close()
            else:
                self._report(f"{path} is corrupt ({error}) and in use by a live process: skipped")
        except Corrupt:
            self._corrupt()
        except OSError as failure:
            self._report(f"{path} is corrupt ({error}) and cannot be renamed ({failure.strerror}): skipped")

    def _report(self, message: str) -> None:
        """Logs and counts each problem once, not at each scrape."""
        if message not in self._reported:
            self._reported.add(message)
            logger.warning(message)
            self._corrupt()

    def _decode(self, line: bytes) -> Key:
        if line not in self._decoded:
            self._decoded[line] = Key.decode(line)
        return self._decoded[line]

    def _index(self, local: Sequence[tuple[Key, str, float, float]]) -> None:
        """Renumbers the keys, in the order of slots and records."""
        totals: dict[Key, int] = {}
        self.help = {}
        for view in self._views.values():
            view.cells, view.totals, view.gauges, view.exemplars = [], [], [], []
            noted = {key: cell for key, cell in view.records if key.type == exemplars.TYPE}
            for key, cell in view.records:
                if key in noted:
                    continue
                total = totals.setdefault(key, len(totals))
                if noted:
                    mark = key._replace(type=exemplars.TYPE)
                    number, id_ = noted.get(mark), noted.get(mark._replace(mode="id"))
                    if number and id_:
                        view.exemplars.append((total, number, id_))
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
    """Combines the values of several processes, given as (stamp, value), as a gauge's multiprocess_mode says."""
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
