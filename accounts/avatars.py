"""Avatars: converts an uploaded image to a small WebP file, and stores and removes that.

The upload itself is never stored. It is checked and decoded (accounts.images), rotated, cropped to a square, resized
and encoded without metadata, under a random name below MEDIA_ROOT/avatars/.
"""

import io
import logging
import secrets
import threading
import warnings
from contextlib import suppress
from functools import partial

from django.core.exceptions import ValidationError
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from PIL import Image, ImageChops, ImageOps

from accounts.images import InvalidImage, load
from accounts.models import User

logger = logging.getLogger(__name__)

SIDE = 256  # pixels
FOLDER = "avatars"
NAME = r"[0-9a-f]{32}\.webp"
CONTENT_TYPE = "image/webp"

MAX_BYTES = 5_000_000
ACCEPTED_TYPES = ("image/png", "image/jpeg", "image/webp")
ACCEPTED = "Upload a PNG, JPEG or WebP image of up to 5 MB, without animation."

# One image at a time per process, so that memory is bounded however many are uploaded at once.
_decoding = threading.Lock()


class NotStored(Exception):
    """The image is valid but cannot be stored: the disk is full or read-only. Nothing was changed."""


def make(upload: "UploadedFile[bytes]") -> bytes:
    """Returns the avatar made from an upload: the bytes of a WebP file of SIDE x SIDE pixels.

    Raises ValidationError, which says what is wrong and what is accepted.
    """
    # Browsers derive the type from the file's name. A wrong one among the accepted types is common and harmless.
    declared = upload.content_type or "application/octet-stream"
    if upload.size and upload.size > MAX_BYTES:
        raise refusal(f"This file is too large ({upload.size / 1e6:.1f} MB).", "too_large")
    if declared not in (*ACCEPTED_TYPES, "image/jpg", "image/pjpeg", "application/octet-stream"):
        raise refusal(f"Files of type {declared} are not supported.", "type")
    data = upload.read()
    try:
        # Warning filters are global to the process, so they are changed under the lock as well.
        with _decoding, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about broken metadata, which is dropped anyway
            return draw(load(data, 2 * SIDE), data)
    except InvalidImage as error:
        raise refusal(str(error), "content") from error
    except Exception as error:  # Pillow's decoders raise many kinds
        logger.info("Cannot decode an avatar: %r", error)
        raise refusal("This image is broken or incomplete.", "broken") from error


def refusal(reason: str, code: str) -> ValidationError:
    return ValidationError(f"{reason} {ACCEPTED}", code=code)


def draw(picture: Image.Image, data: bytes) -> bytes:
    """Returns the avatar made from the decoded `picture`, whose file is `data`. Raises whatever Pillow raises."""
    scale_transparent_colour(picture, data)
    if picture.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip rather than scale
        clear = picture.info.get("transparency")
        grey = picture.point(lambda value: value * (1 / 256)).convert("L")
        picture = grey if clear is None else Image.merge("LA", (grey, alpha(picture, clear)))
    if picture.mode not in ("L", "RGB", "RGBA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    box = (left, top, left + side, top + side)
    avatar = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box, reducing_gap=3.0).convert("RGBA")
    with suppress(Exception):  # browsers ignore broken EXIF data as well
        avatar = ImageOps.exif_transpose(avatar)
    avatar.info.clear()
    target = io.BytesIO()
    avatar.save(target, "WEBP", quality=85)
    return target.getvalue()


def scale_transparent_colour(picture: Image.Image, data: bytes) -> None:
    """Scales a PNG's transparent colour from the file's bit depth to that of the decoded pixels.

    Pillow does not, so no pixel would match it. https://www.w3.org/TR/png-3/#11tRNS
    """
    clear, depth = picture.info.get("transparency"), data[24]
    if picture.format != "PNG" or clear is None or picture.mode not in ("1", "L", "RGB"):
        return
    if picture.mode == "RGB":  # the decoder keeps the upper 8 of 16 bits
        picture.info["transparency"] = tuple(value >> max(0, depth - 8) for value in clear)
    elif depth < 8:
        whole = (1 << depth) - 1
        picture.info["transparency"] = min(clear, whole) * 255 // whole


def alpha(picture: Image.Image, clear: int) -> Image.Image:
    """Returns the alpha channel of a 16-bit greyscale image in which pixels of the value `clear` are transparent."""
    raw = picture.tobytes()  # little-endian
    halves = (Image.frombytes("L", picture.size, raw[start::2]) for start in (0, 1))
    low, high = (
        half.point([0 if value == part else 255 for value in range(256)])
        for half, part in zip(halves, (clear & 255, clear >> 8), strict=True)
    )
    return ImageChops.lighter(low, high)


def save(user: User, picture: bytes | None, *, also: tuple[str, ...] = ()) -> None:
    """Saves `picture`, or None to remove it, as the user's avatar, together with the fields `also`.

    The old file is removed on commit. Raises NotStored, with nothing changed.
    """
    name = store(picture) if picture else ""
    try:
        with transaction.atomic():
            # Locked, so that of two concurrent changes the second one removes the first one's file.
            old = User.objects.select_for_update().values_list("avatar", flat=True).get(pk=user.pk)
            user.avatar.name = name
            user.save(update_fields=["avatar", *also])
            transaction.on_commit(partial(remove, old), robust=True)
    except BaseException:
        remove(name)
        raise


def store(picture: bytes) -> str:
    """Writes `picture` and returns its name below MEDIA_ROOT. Raises NotStored and leaves no partial file behind."""
    name = f"{FOLDER}/{secrets.token_hex(16)}.webp"
    try:
        return default_storage.save(name, ContentFile(picture))
    except OSError as error:
        logger.exception("Cannot store an avatar")
        remove(name)
        raise NotStored from error


def remove(name: str) -> None:
    """Removes the file if it exists. A failure is only logged, as a leftover file is harmless."""
    if not name:
        return
    try:
        default_storage.delete(name)
    except OSError:
        logger.exception("Cannot remove the avatar file %s", name)
