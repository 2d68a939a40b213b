"""Decodes an uploaded image with Pillow, within bounds of time and memory.

A file must hold one still image and nothing else, so that no other program can take it for a different kind of file
because of a ZIP archive appended to it, or a page or script in its metadata.
"""

import io
import re
import zipfile
from collections.abc import Iterator

from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

# Decoding an image of this size takes up to 200 MB of memory; the formats differ in bytes per pixel, and Pillow's own
# MAX_IMAGE_PIXELS is one for all.
MAX_PIXELS = {"PNG": 16_777_216, "WEBP": 12_500_000, "JPEG": 32_000_000}
# A PNG's compressed texts, in bytes: Pillow allows 64 MB by default, which a file of 60 kB can hold.
PngImagePlugin.MAX_TEXT_MEMORY = 5_000_000
# Pillow has no cap on chunks and segments, but reads a few times for each. No encoder writes as many as this; without a
# cap a file of 5 MB takes seconds.
MAX_READS = 80_000
# Nor does it cap the scans of a JPEG, each of which is a pass over the whole image. libjpeg takes a start of scan only
# with a length that fits its 1 to 4 components, and 0xFF is escaped in compressed data, so this finds every scan.
MAX_SCANS = 32
SCAN = re.compile(rb"\xff\xda\0(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")

# What an image ends with; Pillow stops before it. A WebP has its length in its header.
MARKS = {"PNG": b"\0\0\0\0IEND\xae\x42\x60\x82", "JPEG": b"\xff\xd9"}
# How other kinds of files start. Cameras and editors write nothing like it into metadata.
FOREIGN = re.compile(rb"PK\x03\x04|%PDF-|<script|<html|<!doctype|<svg|<iframe|<\?php", re.IGNORECASE)


class InvalidImage(ValueError):
    """The file is refused; the message tells the uploader why."""


class Source(io.BytesIO):
    """The file as Pillow reads it. Counts the reads; `header` is the offset up to which it was read."""

    reads = header = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Raises InvalidImage at more than MAX_READS reads."""
        self.reads += 1
        if self.reads > MAX_READS:
            raise InvalidImage("This image is broken: too many chunks or segments.")
        found = super().read(size)
        self.header = max(self.header, self.tell())
        return found


def load(data: bytes, side: int) -> ImageFile.ImageFile:
    """Returns the decoded image; a JPEG may be scaled down while it is decoded, to no less than `side` pixels a side.

    Raises InvalidImage if `data` is not a single PNG, JPEG or WebP image or exceeds a limit, and whatever else Pillow
    raises if it is broken or incomplete.
    """
    source = Source(data)
    try:
        image = Image.open(source, formats=list(MAX_PIXELS))  # reads the header only
    except UnidentifiedImageError:
        raise InvalidImage("This file is not a valid PNG, JPEG or WebP image.") from None
    except Image.DecompressionBombError:
        raise InvalidImage("This image has too many pixels.") from None
    # Pillow calls a JPEG with more images appended MPO; the first image is used.
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    if kind != "JPEG" and getattr(image, "is_animated", False):
        raise InvalidImage("This image is animated.")
    width, height = image.size
    if width * height > MAX_PIXELS[kind]:
        raise InvalidImage(
            f"This image has {width:,} x {height:,} pixels; the limit for {kind} is {MAX_PIXELS[kind]:,}."
        )
    if kind == "JPEG" and len(SCAN.findall(data)) > MAX_SCANS:
        raise InvalidImage("This image is broken: too many scans.")
    if kind == "PNG" and data.count(b"\0\0\0\rIHDR") > 1:
        raise InvalidImage("This image is broken: more than one header.")
    rest = data[end(data, kind, source.header) :].strip(b"\0")
    if rest and not (kind == "JPEG" and appended_by_camera(rest, "mp" in image.info)):
        raise InvalidImage("This file contains other data after the image.")
    if zipfile.is_zipfile(io.BytesIO(data)):
        raise InvalidImage("This file is also a ZIP archive.")
    image.draft(None, (side, side))
    image.load()
    if any(FOREIGN.search(part) for part in (rest, *metadata(image))):
        raise InvalidImage("This file contains a web page, a script or another file in its metadata.")
    return image


def end(data: bytes, kind: str, header: int) -> int:
    """Returns the offset after the image's last byte. Raises EOFError if the file ends before it."""
    if kind == "WEBP":
        found = 8 + int.from_bytes(data[4:8], "little")
    else:
        start = data.find(MARKS[kind], header)
        found = start + len(MARKS[kind]) if start >= 0 else len(data) + 1
    if found > len(data):
        raise EOFError("the file ends too early")
    return found


def appended_by_camera(rest: bytes, announced: bool) -> bool:
    """Returns whether `rest` is what cameras append to a JPEG: further images that its header has announced (depth,
    brightness: CIPA DC-007), or Samsung's directory (https://exiftool.org/TagNames/Samsung.html#Trailer).
    """
    images = announced and rest.startswith(b"\xff\xd8\xff") and rest.endswith(MARKS["JPEG"])
    return images or b"SEFH" in rest and rest.endswith(b"SEFT")


def metadata(image: ImageFile.ImageFile) -> Iterator[bytes]:
    """Yields the metadata that Pillow keeps: text, comments, EXIF, XMP, ICC profiles, unknown chunks."""
    parts = [*image.info.values(), *getattr(image, "applist", ()), *getattr(image, "private_chunks", ())]
    for part in parts:
        for each in part if isinstance(part, tuple) else (part,):
            yield each if isinstance(each, bytes) else str(each).encode("latin-1", "replace")
