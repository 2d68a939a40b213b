"""The file format of a slot: a header, then records, each with a key and a value. See docs/metrics-store.md."""

import json
import mmap
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple, Self

# Header, eight-byte words in the machine's own byte order: 0 magic, 1 end of the last published record, 2 number of
# leases so far, 3 process id of the last lease; the rest is zero. Words 2 and 3 are for people.
MAGIC = int.from_bytes(b"MSLOTS\x00\x01", "big")
HEADER = 64
# A record: its whole size, the CRC-32 of its payload, value, stamp; then the payload, padded with blanks to 8 bytes.
RECORD = struct.Struct("=IIdd")
TYPES = ("counter", "gauge", "histogram", "summary", "exemplar")


class Corrupt(Exception):
    """The file is not a slot, or not a whole one; the message says what is wrong."""


class Key(NamedTuple):
    """What a value measures. `suffix` is what a sample's name adds to the family's; `labels` are sorted by name."""

    type: str
    mode: str
    family: str
    suffix: str
    labels: tuple[tuple[str, str], ...]

    def encode(self) -> bytes:
        """Returns one line of JSON. Lone surrogates, which UTF-8 cannot encode, become "?" so that no scrape breaks."""
        fields = [self.type, self.mode, self.family, self.suffix, dict(self.labels)]
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")

    @classmethod
    def decode(cls, line: bytes) -> Self:
        """Parses what encode() wrote. Raises Corrupt."""
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
    def persistent(self) -> bool:
        """Whether the value outlives its writer: true of all but gauges, and of gauges of mode mostrecent."""
        return self.type != "gauge" or self.mode == "mostrecent"


class Record(NamedTuple):
    """A published record. `cell` is the index of its value among the file's eight-byte numbers; its stamp is next."""

    cell: int
    end: int
    line: bytes
    help: str | None


def records(data: mmap.mmap, start: int, end: int) -> Iterator[Record]:
    """Yields the records between two offsets in bytes. Raises Corrupt at the first that is not whole."""
    while start < end:
        size = checksum = 0
        if start + RECORD.size <= end:
            size, checksum, _, _ = RECORD.unpack_from(data, start)
        if size <= RECORD.size or size % 8 or start + size > end:
            raise Corrupt(f"the record at byte {start} has the wrong size")
        payload = data[start + RECORD.size : start + size]
        if zlib.crc32(payload) != checksum:
            raise Corrupt(f"the record at byte {start} has the wrong checksum")
        line, newline, text = payload.rstrip(b" ").partition(b"\n")
        yield Record(start // 8 + 1, start + size, line, text.decode("utf-8", "replace") if newline else None)
        start += size


class Mapping:
    """A slot's file mapped into memory, as bytes and as numbers. Eight aligned bytes are read and written at once."""

    def __init__(self, file: int, size: int, access: int) -> None:
        """Maps the first `size` bytes of the descriptor `file`; `access` is one of mmap's ACCESS_ constants."""
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
        """Returns the offset at which the last published record ends; 0 if the slot was never initialized.

        Raises Corrupt.
        """
        if not any(self.words[: HEADER // 8]):
            return 0
        if self.words[0] != MAGIC:
            raise Corrupt("not a slot of this version")
        end = self.words[1]
        if end < HEADER or end % 8:
            raise Corrupt("its header is invalid")
        if end > len(self):
            raise Corrupt(f"{end - len(self)} bytes are missing at its end")
        return end
