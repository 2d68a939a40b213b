"""What an image file holds, told from its bytes alone, before any decoder is let near them.

Formats: PNG (https://www.w3.org/TR/png-3/), JPEG (https://www.w3.org/Graphics/JPEG/itu-t81.pdf) and WebP (RFC 9649).
A file is walked from its first byte to its last. It has to be one still picture and nothing besides, so that no other
program could take it for something else: a ZIP archive put after it, a page or a script put into its metadata.
"""

import io
import re
import zipfile
from dataclasses import dataclass, field
from typing import Literal

# More than any encoder writes. Each of thousands of scans would cost a pass over the whole picture.
MAX_JPEG_SCANS = 32
MAX_PARTS = 20_000  # chunks, segments

# Within a JPEG's compressed data 0xFF is followed by 0x00 (a stuffed byte) or a restart marker.
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
RUNS = {byte: re.compile(byte + b"*") for byte in (b"\0", b"\xff")}
JPEG_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

# How files of other kinds begin. Cameras and editors write nothing like it into a picture's metadata.
FOREIGN = re.compile(rb"PK\x03\x04|%PDF-|<script|<html|<!doctype|<svg|<iframe|<\?php", re.IGNORECASE)


class NotAPicture(ValueError):
    """The file is refused; the text says what was wrong, for whoever sent it."""


@dataclass
class Walk:
    """What was met on the way through a file."""

    size: tuple[int, int] = (0, 0)  # width and height in pixels
    end: int = 0  # the offset after the picture's last byte
    metadata: list[bytes] = field(default_factory=list)
    parts: int = 0

    def step(self) -> None:
        """Counts a part of the file; to be called for each."""
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise NotAPicture("This picture is broken: it has more parts than a picture has.")


def inspect(data: bytes) -> tuple[str, tuple[int, int]]:
    """The format ("PNG", "JPEG" or "WEBP") and the size (width and height in pixels) of the picture in `data`.

    Raises NotAPicture if it is of another format, animated, incomplete, or more than a picture.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        name, walk = "PNG", png
    elif data.startswith(b"\xff\xd8\xff"):
        name, walk = "JPEG", jpeg
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        name, walk = "WEBP", webp
    else:
        raise NotAPicture("This file is not a PNG, JPEG or WebP picture.")
    try:
        found = walk(data)
    except IndexError:
        raise NotAPicture("This picture is incomplete: the file ends too early.") from None
    if data[found.end :].strip(b"\0"):
        raise NotAPicture("This file has something else after the end of the picture.")
    if zipfile.is_zipfile(io.BytesIO(data)):
        raise NotAPicture("This file is a ZIP archive as well as a picture.")
    if any(FOREIGN.search(part) for part in found.metadata):
        raise NotAPicture("This file has a page, a script or another file inside the picture.")
    if not all(found.size):
        raise NotAPicture("This picture is broken: it has no size.")
    return name, found.size


def png(data: bytes) -> Walk:
    """Walks the chunks: length, kind, content, checksum."""
    walk, position, kind = Walk(), 8, b""
    while kind != b"IEND":
        walk.step()
        start = position + 8
        kind, end = data[position + 4 : start], start + number(data[position : position + 4])
        content, position = cut(data, start, end), end + 4
        cut(data, end, position)
        if (kind == b"IHDR") != (start == 16):
            raise NotAPicture("This picture is broken: it has no PNG header at its start, or a second one.")
        if kind == b"IHDR":
            walk.size = number(content[:4]), number(content[4:8])
        elif kind == b"acTL":
            raise NotAPicture("This picture is animated.")
        elif kind not in (b"PLTE", b"tRNS", b"IDAT"):
            walk.metadata.append(content)
    walk.end = position
    return walk


def jpeg(data: bytes) -> Walk:
    """Walks the segments (marker, length, content) and steps over the compressed data."""
    walk = Walk()
    jpeg_picture(data, walk)
    size = walk.size
    # Phones put a second picture (depth, brightness) after the first and announce it: CIPA DC-007, Multi-Picture.
    if any(part.startswith(b"MPF\0") for part in walk.metadata):
        while data.startswith(b"\xff\xd8\xff", after(b"\0", data, walk.end)):
            walk.end = after(b"\0", data, walk.end)
            jpeg_picture(data, walk)
    # Samsung's cameras end the file with a directory: https://exiftool.org/TagNames/Samsung.html#Trailer
    rest = data[walk.end :]
    if rest.endswith(b"SEFT") and rest[-8 - number(rest[-8:-4], "little") :][:4] == b"SEFH":
        walk.metadata.append(rest)
        walk.end = len(data)
    walk.size = size
    return walk


def jpeg_picture(data: bytes, walk: Walk) -> None:
    """Walks one picture, which begins at `walk.end`, to its end marker."""
    position, scans, frames = walk.end + 2, 0, 0
    while True:
        walk.step()
        if data[position] != 0xFF:
            raise NotAPicture("This picture is broken: its JPEG segments do not follow one another.")
        position = after(b"\xff", data, position)
        marker = data[position]
        position += 1
        if marker == 0xD9:
            walk.end = position
            return
        if marker in JPEG_WITHOUT_LENGTH:
            continue
        end = position + number(cut(data, position, position + 2))
        content, position = cut(data, position + 2, end), end
        if marker in JPEG_FRAMES:
            walk.size, frames = (number(content[3:5]), number(content[1:3])), frames + 1
        elif marker == 0xDA:
            scans += 1
            found = JPEG_MARKER.search(data, position)
            if not found:
                raise IndexError
            position = found.start()
        elif marker >= 0xE0:
            walk.metadata.append(content)
        if frames > 1 or scans > MAX_JPEG_SCANS:
            raise NotAPicture("This picture is broken: it has more JPEG frames or scans than a picture has.")


def webp(data: bytes) -> Walk:
    """Walks the chunks: kind, length, content, padded to an even length."""
    walk = Walk(end=8 + number(cut(data, 4, 8), "little"))
    cut(data, 0, walk.end)
    position = 12
    while position < walk.end:
        walk.step()
        kind, start = data[position : position + 4], position + 8
        end = start + number(cut(data, position + 4, start), "little")
        content, position = cut(data, start, end), end + end % 2
        if kind in (b"ANIM", b"ANMF"):
            raise NotAPicture("This picture is animated.")
        if kind == b"VP8X":
            walk.size = bigger(walk.size, (number(content[4:7], "little") + 1, number(content[7:10], "little") + 1))
        elif kind == b"VP8 ":
            walk.size = bigger(
                walk.size, (number(content[6:8], "little") & 0x3FFF, number(content[8:10], "little") & 0x3FFF)
            )
        elif kind == b"VP8L":
            bits = number(content[1:5], "little")
            walk.size = bigger(walk.size, ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
        elif kind != b"ALPH":
            walk.metadata.append(content)
    if position > walk.end:
        raise IndexError
    return walk


def number(data: bytes, order: Literal["big", "little"] = "big") -> int:
    return int.from_bytes(data, order)


def bigger(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """The size that holds both: what a decoder will take is not to be guessed."""
    return max(one[0], other[0]), max(one[1], other[1])


def cut(data: bytes, start: int, end: int) -> bytes:
    """`data[start:end]`; raises IndexError if that is not all there."""
    if not start <= end <= len(data):
        raise IndexError
    return data[start:end]


def after(byte: bytes, data: bytes, position: int) -> int:
    """The first offset from `position` on where there is another byte than `byte`."""
    match = RUNS[byte].match(data, position)
    return match.end() if match else position
