"""Avatars: from a file that anybody may have sent to a small picture of our own making, and back out again.

What was sent is never stored. It is checked (accounts.images), decoded, turned upright, cropped to a square, scaled,
and written anew as WebP without any metadata, under a random name below MEDIA_ROOT/avatars/.
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
ACCEPTED = "Accepted are still pictures as PNG, JPEG or WebP, of up to 5 MB."

# One picture at a time in a process: its memory is then bounded, however many are sent at once.
_decoding = threading.Lock()


class NotStored(Exception):
    """The picture is fine, and could not be stored: the disk is full or read-only. Nothing was changed."""


def make(upload: "UploadedFile[bytes]") -> bytes:
    """The avatar, a WebP file of SIDE x SIDE pixels, made from what was sent.

    Raises ValidationError, which says what is wrong and what is accepted.
    """
    # What a browser says comes from the file's name. A wrong name among the accepted ones is common and does no harm.
    declared = upload.content_type or "application/octet-stream"
    if upload.size and upload.size > MAX_BYTES:
        raise refusal(f"This file has {upload.size / 1e6:.1f} MB.", "too_large")
    if declared not in (*ACCEPTED_TYPES, "image/jpg", "image/pjpeg", "application/octet-stream"):
        raise refusal("By its name this file is not a PNG, JPEG or WebP picture.", "type")
    data = upload.read()
    try:
        # The filters of warnings are the whole process's, so they too are changed under the lock.
        with _decoding, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about broken metadata, which are dropped anyhow
            return draw(load(data, 2 * SIDE), data)
    except InvalidImage as error:
        raise refusal(str(error), "content") from error
    except Exception as error:  # the decoders raise nearly every kind
        logger.info("An avatar could not be decoded: %r", error)
        raise refusal("This image is broken or incomplete.", "broken") from error


def refusal(reason: str, code: str) -> ValidationError:
    return ValidationError(f"{reason} {ACCEPTED}", code=code)


def draw(picture: Image.Image, data: bytes) -> bytes:
    """Returns the decoded `picture`, whose file is `data`, drawn anew as an avatar. Raises whatever Pillow raises."""
    see_through(picture, data)
    if picture.mode.startswith("I"):  # 16 bits a pixel, which a conversion would cut off and not scale
        clear = picture.info.get("transparency")
        grey = picture.point(lambda value: value * (1 / 256)).convert("L")
        picture = grey if clear is None else Image.merge("LA", (grey, opacity(picture, clear)))
    if picture.mode not in ("L", "RGB", "RGBA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    box = (left, top, left + side, top + side)
    avatar = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box, reducing_gap=3.0).convert("RGBA")
    with suppress(Exception):  # a picture whose EXIF data are broken is shown as it lies, as browsers do
        avatar = ImageOps.exif_transpose(avatar)
    avatar.info.clear()
    target = io.BytesIO()
    avatar.save(target, "WEBP", quality=85)
    return target.getvalue()


def see_through(picture: Image.Image, data: bytes) -> None:
    """Turns a PNG's transparent colour (tRNS, https://www.w3.org/TR/png-3/#11tRNS) from the file's depth into that of
    the decoded pixels, which Pillow leaves as it stands: no pixel would be found to have it.
    """
    clear, depth = picture.info.get("transparency"), data[24]
    if picture.format != "PNG" or clear is None or picture.mode not in ("1", "L", "RGB"):
        return
    if picture.mode == "RGB":  # of 16 bits the decoder keeps the upper 8
        picture.info["transparency"] = tuple(value >> max(0, depth - 8) for value in clear)
    elif depth < 8:
        whole = (1 << depth) - 1
        picture.info["transparency"] = min(clear, whole) * 255 // whole


def opacity(picture: Image.Image, clear: int) -> Image.Image:
    """The alpha channel of a grey picture with 16 bits a pixel, of which those that are `clear` are transparent."""
    raw = picture.tobytes()  # the lower byte first
    halves = (Image.frombytes("L", picture.size, raw[start::2]) for start in (0, 1))
    low, high = (
        half.point([0 if value == part else 255 for value in range(256)])
        for half, part in zip(halves, (clear & 255, clear >> 8), strict=True)
    )
    return ImageChops.lighter(low, high)


def save(user: User, picture: bytes | None, *, also: tuple[str, ...] = ()) -> None:
    """Saves the user's fields `also`, and `picture` as the avatar, or none; the old file goes once that is committed.

    Raises NotStored, with nothing changed.
    """
    name = store(picture) if picture else ""
    try:
        with transaction.atomic():
            # Locked, so that of two changes at once the second one knows and removes the first one's file.
            old = User.objects.select_for_update().values_list("avatar", flat=True).get(pk=user.pk)
            user.avatar.name = name
            user.save(update_fields=["avatar", *also])
            transaction.on_commit(partial(remove, old), robust=True)
    except BaseException:
        remove(name)
        raise


def store(picture: bytes) -> str:
    """Writes `picture` and returns its name below MEDIA_ROOT. Raises NotStored, leaving no part of a file behind."""
    name = f"{FOLDER}/{secrets.token_hex(16)}.webp"
    try:
        return default_storage.save(name, ContentFile(picture))
    except OSError as error:
        logger.exception("An avatar could not be stored")
        remove(name)
        raise NotStored from error


def remove(name: str) -> None:
    """Removes the file, if there is one of that name. A failure is logged: what is left over does no harm."""
    if not name:
        return
    try:
        default_storage.delete(name)
    except OSError:
        logger.exception("An avatar's file could not be removed: %s", name)
