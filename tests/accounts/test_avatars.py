"""What may become an avatar, what may not, and how it is stored and served."""

import io
import re
import resource
import struct
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection, models
from django.test import Client
from django.urls import reverse
from hypothesis import example, given
from hypothesis import settings as budget
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile
from pytest_django import DjangoCaptureOnCommitCallbacks, Settings

from accounts import avatars
from accounts.models import User
from tests.support.servers import PATIENCE

PROFILE = "/accounts/profile/"
RED, BLUE = (220, 30, 30), (30, 30, 220)


def picture(kind: str = "PNG", size: tuple[int, int] = (300, 200), mode: str = "RGB", **options: Any) -> bytes:
    """A picture whose left half is red and whose right half is blue."""
    drawn = Image.new("RGB", size, RED)
    drawn.paste(BLUE, (size[0] // 2, 0, *size))
    target = io.BytesIO()
    drawn.convert(mode).save(target, kind, **options)
    return target.getvalue()


def make(data: bytes, name: str = "me.png", kind: str = "image/png") -> Image.Image:
    """The avatar made of `data`."""
    return Image.open(io.BytesIO(avatars.make(SimpleUploadedFile(name, data, kind))))


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def in_png(kind: bytes, content: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    data = picture()
    return data[:33] + chunk(kind, content) + data[33:]


def in_jpeg(marker: int, content: bytes) -> bytes:
    """A JPEG with one more segment at its start."""
    return (
        picture("JPEG")[:2]
        + bytes([0xFF, marker])
        + struct.pack(">H", len(content) + 2)
        + content
        + picture("JPEG")[2:]
    )


def archive() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        file.writestr("evil.html", "<script>alert(1)</script>")
    return target.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@cache
def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in about 500 KB."""
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(3751 * 1000)) for _ in range(30)) + packer.flush()
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def scan_bomb() -> bytes:
    """A progressive JPEG with ten times as many scans."""
    data = picture("JPEG", progressive=True)
    scans = data.index(b"\xff\xda")
    return data[:scans] + data[scans:-2] * 10 + data[-2:]


def text_bomb() -> bytes:
    """A PNG of 10 KB with 9 MB of text."""
    return picture()[:33] + chunk(b"zTXt", b"Title\0\0" + zlib.compress(bytes(900_000))) * 10 + picture()[33:]


def two_sizes() -> bytes:
    """A WebP that says it is huge, and then that it is small."""
    sizes = b"".join(b"VP8X\x0a\0\0\0\0\0\0\0" + size for size in (b"\xff\x3f\0" * 2, b"\x2b\1\0\xc7\0\0"))
    body = b"WEBP" + sizes + picture("WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (40, 40), color) for color in (RED, BLUE)]
    target = io.BytesIO()
    frames[0].save(target, kind, save_all=True, append_images=frames[1:])
    return target.getvalue()


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "an archive after a PNG": (lambda: picture() + archive(), "other data after the image"),
    "an archive after a JPEG": (lambda: picture("JPEG") + archive(), "other data after the image"),
    "an archive after a WebP": (lambda: picture("WEBP") + archive(), "other data after the image"),
    "a script after a PNG": (lambda: picture() + b"<?php system($_GET[0]);", "other data after the image"),
    "a page after a JPEG": (lambda: picture("JPEG") + b"<html><script>alert(1)</script>", "other data after the image"),
    "one byte after a PNG": (lambda: picture() + b"x", "other data after the image"),
    "an archive in a PNG's text": (lambda: in_png(b"tEXt", b"Comment\0" + archive()), "ZIP archive|in its metadata"),
    "an archive in a PNG's pixels": (
        lambda: picture()[:-12] + chunk(b"IDAT", archive()) + picture()[-12:],
        "ZIP archive",
    ),
    "a page in a PNG's text": (lambda: in_png(b"tEXt", b"Comment\0<!DOCTYPE html><p>"), "in its metadata"),
    "a script in a JPEG's comment": (lambda: in_jpeg(0xFE, b"x<ScRiPt>alert(1)</script>"), "in its metadata"),
    "PHP in a JPEG's EXIF": (lambda: in_jpeg(0xE1, b"Exif\0\0<?php phpinfo();"), "in its metadata"),
    "a PDF in a JPEG's comment": (lambda: in_jpeg(0xFE, b"%PDF-1.7 ..."), "in its metadata"),
    "a page in a WebP's XMP": (lambda: picture("WEBP", xmp=b"<html>"), "in its metadata"),
    "a script as a JPEG": (lambda: b"\xff\xd8\xff\xe0/*JFIF*/=alert(1)//", "not a valid|broken or incomplete"),
    "a PNG with a JPEG's start": (lambda: b"\xff\xd8\xff" + picture(), "not a valid|broken or incomplete"),
    "a bomb of pixels": (bomb, "too many pixels"),
    "a bomb of pixels as WebP": (lambda: picture("WEBP", (16_000, 1_100), quality=0, method=0), "16,000 x 1,100"),
    "a bomb of scans": (scan_bomb, "scans"),
    "a bomb of segments": (
        lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 100_000 + picture("JPEG")[2:],
        "too many chunks or segments",
    ),
    "a bomb of padding": (
        lambda: b"\xff\xd8" + b"\xff" * 1_000_000 + picture("JPEG")[2:],
        "too many chunks or segments",
    ),
    "a bomb of chunks": (
        lambda: picture()[:-12] + chunk(b"IDAT", b"") * 100_000 + picture()[-12:],
        "too many chunks or segments",
    ),
    "a bomb of text": (text_bomb, "broken or incomplete"),
    "an SVG": (lambda: SVG, "not a valid PNG"),
    "an SVG with a declaration": (lambda: b'<?xml version="1.0"?>' + SVG, "not a valid PNG"),
    "a GIF": (lambda: picture("GIF"), "not a valid PNG"),
    "a BMP": (lambda: picture("BMP"), "not a valid PNG"),
    "a TIFF": (lambda: picture("TIFF"), "not a valid PNG"),
    "an archive": (archive, "not a valid PNG"),
    "a text": (lambda: b"hello", "not a valid PNG"),
    "an animated PNG": (lambda: animation("PNG"), "animated"),
    "an animated WebP": (lambda: animation("WEBP"), "animated"),
    "half a PNG": (lambda: picture()[:200], "incomplete"),
    "half a JPEG": (lambda: picture("JPEG")[:-200], "incomplete"),
    "half a WebP": (lambda: picture("WEBP")[:-20], "incomplete"),
    "the header of a PNG": (lambda: picture()[:8], "not a valid PNG|incomplete"),
    "the header of a JPEG": (lambda: b"\xff\xd8\xff", "not a valid PNG|incomplete"),
    "the header of a WebP": (lambda: b"RIFF\x04\0\0\0WEBP", "not a valid PNG|broken or incomplete"),
    "a PNG of no size": (lambda: picture()[:16] + bytes(8) + picture()[24:], "not a valid PNG"),
    "a PNG with two headers": (lambda: picture()[:33] + picture()[8:], "header"),
    "a WebP with two sizes": (two_sizes, "too many pixels"),
    "a PNG with broken pixels": (lambda: picture().replace(b"IDAT", b"IDAT\xff\xff", 1), "broken or incomplete"),
    "a PNG without pixels": (
        lambda: picture()[:33] + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        "broken or incomplete",
    ),
    "a JPEG with a second frame": (lambda: in_jpeg(0xC0, b"\x08\0\x10\0\x10\1\1\x11\0"), "broken or incomplete"),
    "noise": (lambda: bytes(range(256)) * 40, "not a valid PNG"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_one_still_picture_is_refused_with_the_reason(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(ValidationError) as refusal:
        make(data())
    (message,) = refusal.value.messages
    assert re.search(reason, message), message
    assert message.endswith(avatars.ACCEPTED)


ACCEPTED: dict[str, Callable[[], bytes]] = {
    "a PNG": picture,
    "a PNG with transparency": lambda: picture(mode="RGBA"),
    "a PNG with a palette": lambda: picture(mode="P"),
    "a grey PNG with transparency": lambda: picture(mode="LA"),
    "a PNG of one bit": lambda: picture(mode="1"),
    "an interlaced PNG": lambda: in_png(b"tEXt", b"Title\0holiday"),
    "a JPEG": lambda: picture("JPEG"),
    "a grey JPEG": lambda: picture("JPEG", mode="L"),
    "a JPEG for print": lambda: picture("JPEG", mode="CMYK"),
    "a progressive JPEG": lambda: picture("JPEG", progressive=True),
    "a JPEG with restart markers": lambda: picture("JPEG", restart_marker_blocks=2),
    "a JPEG of a phone, with a second picture": lambda: animation("MPO"),
    "a JPEG of a Samsung phone": lambda: picture("JPEG") + b"\0\0\1\nabcSEFH\1\0\0\0\0\0\0\0\x0c\0\0\0SEFT",
    "a JPEG filled up with zeros": lambda: picture("JPEG") + bytes(100),
    "a WebP": lambda: picture("WEBP"),
    "a lossless WebP": lambda: picture("WEBP", lossless=True),
    "a WebP with transparency": lambda: picture("WEBP", mode="RGBA"),
    "a big JPEG of a phone": lambda: picture("JPEG", (5712, 4284), quality=5),
    "a picture of one pixel": lambda: picture(size=(1, 1)),
    "a very thin picture": lambda: picture(size=(1, 9000)),
    "a picture with broken EXIF data": lambda: picture("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f\0"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_pictures_as_people_have_them_become_avatars(name: str) -> None:
    avatar = make(ACCEPTED[name]())
    assert (avatar.format, avatar.size) == ("WEBP", (256, 256))
    assert not set(avatar.info) - {"loop", "background", "timestamp", "duration"}, "metadata are left"


def near(pixel: Any, color: tuple[int, int, int]) -> bool:
    return all(abs(one - other) < 25 for one, other in zip(pixel, color))


def test_an_avatar_is_cropped_to_its_middle_and_not_distorted() -> None:
    avatar = make(picture(size=(1000, 200))).convert("RGB")
    assert near(avatar.getpixel((20, 128)), RED) and near(avatar.getpixel((236, 128)), BLUE)
    assert near(avatar.getpixel((118, 128)), RED) and near(avatar.getpixel((138, 128)), BLUE)


def test_an_avatar_stands_upright_as_the_camera_was_held() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show it: what is on the left in the file belongs on top
    for kind in ("JPEG", "PNG", "WEBP"):
        avatar = make(picture(kind, exif=exif.tobytes())).convert("RGB")
        assert near(avatar.getpixel((128, 20)), RED) and near(avatar.getpixel((128, 236)), BLUE), kind


def test_sixteen_bits_of_grey_keep_their_shades() -> None:
    deep = Image.new("I;16", (64, 64), 32768)
    target = io.BytesIO()
    deep.save(target, "PNG")
    assert near(make(target.getvalue()).convert("RGB").getpixel((128, 128)), (128, 128, 128))


def test_transparency_is_kept() -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    target = io.BytesIO()
    clear.save(target, "PNG")
    assert make(target.getvalue()).convert("RGBA").getpixel((128, 128))[3] == 0  # type: ignore[index]


def halves(depth: int, colours: tuple[tuple[int, ...], tuple[int, ...]]) -> bytes:
    """A PNG of 64 x 64 pixels, grey or RGB, whose left half has the first colour, which is transparent."""
    kind = {1: 0, 3: 2}[len(colours[0])]
    row = "".join(f"{value:0{depth}b}" for colour in colours for _ in range(32) for value in colour)
    line = b"\0" + int(row, 2).to_bytes(len(row) // 8, "big")
    clear = b"".join(value.to_bytes(2, "big") for value in colours[0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, depth, kind, 0, 0, 0))
        + chunk(b"tRNS", clear)
        + chunk(b"IDAT", zlib.compress(line * 64))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("depth", "clear", "shown", "grey"),
    [
        (1, (1,), (0,), 0),
        (1, (0,), (1,), 255),
        (2, (1,), (2,), 170),
        (4, (7,), (8,), 136),
        (8, (200,), (100,), 100),
        (16, (40_000,), (20_000,), 78),
        (16, (0x1234,), (0x1235,), 18),  # told apart by the lower byte alone
        (16, (0x1234,), (0x4434,), 68),
        (16, (65_535,), (0,), 0),
        (8, (10, 20, 30), (90, 90, 90), 90),
        (16, (65_535, 65_535, 65_535), (20_000, 20_000, 20_000), 78),
        (16, (1_000, 2_000, 3_000), (20_000, 20_000, 20_000), 78),
    ],
)
def test_a_transparent_colour_is_seen_through_at_every_depth(
    depth: int, clear: tuple[int, ...], shown: tuple[int, ...], grey: int
) -> None:
    avatar = make(halves(depth, (clear, shown))).convert("RGBA")
    seen: Any = [avatar.getpixel((x, 128)) for x in (32, 224)]
    assert seen[0][3] == 0, "the left half is transparent"
    assert seen[1][3] == 255 and near(seen[1][:3], (grey, grey, grey))


def test_nothing_that_tells_of_the_sender_is_kept() -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x9286] = "SecretCamera", "SecretPlace"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = picture("JPEG", exif=exif.tobytes(), icc_profile=profile, comment=b"SecretComment", xmp=b"SecretXMP")
    assert data.count(b"Secret") == 4
    stored = avatars.make(SimpleUploadedFile("SecretName.jpg", data, "image/jpeg"))
    assert b"Secret" not in stored and b"ICCP" not in stored and b"EXIF" not in stored


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "image/gif", "application/zip"])
def test_a_picture_under_the_name_of_something_else_is_refused(kind: str) -> None:
    with pytest.raises(ValidationError, match="are not supported"):
        make(picture(), kind=kind)


@pytest.mark.parametrize("kind", ["image/jpeg", "image/webp", "application/octet-stream", ""])
def test_a_picture_under_the_name_of_another_accepted_type_is_accepted(kind: str) -> None:
    assert make(picture(), kind=kind).size == (256, 256)


@pytest.mark.parametrize(
    "name", ["a bomb of pixels", "a bomb of pixels as WebP", "a bomb of scans", "an animated PNG", "an animated WebP"]
)
def test_what_is_too_much_is_refused_before_any_decoder_sees_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    data, reason = REFUSED[name]
    with pytest.raises(ValidationError, match=reason):
        make(data())


SAMPLES = [picture(kind, (24, 16)) for kind in ("PNG", "JPEG", "WEBP")] + [
    picture("JPEG", (24, 16), progressive=True),
    picture("PNG", (24, 16), mode="P"),
    picture("WEBP", (24, 16), lossless=True),
    picture("JPEG", (24, 16), exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A picture with some bytes changed, removed, doubled or put in."""
    data = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data) - 1))
        length = draw(st.integers(0, 8))
        data[at : at + length] = draw(st.binary(max_size=8) | st.just(bytes(data[at : at + 2 * length])))
        if not data:
            break
    return bytes(data)


@given(
    st.binary(max_size=300)
    | st.sampled_from(SAMPLES)
    .map(lambda data: data[:12])
    .flatmap(lambda head: st.binary(max_size=100).map(lambda tail: head + tail))
    | mutated()
)
@budget(max_examples=300, deadline=None)
@example(b"")
def test_any_bytes_are_refused_or_become_an_avatar(data: bytes) -> None:
    try:
        avatar = make(data)
    except ValidationError as refusal:
        assert refusal.messages[0].endswith(avatars.ACCEPTED)
    else:
        assert (avatar.format, avatar.size) == ("WEBP", (256, 256))


@given(st.sampled_from(SAMPLES), st.data())
@budget(max_examples=100, deadline=None)
def test_every_beginning_of_a_picture_is_incomplete(whole: bytes, data: st.DataObject) -> None:
    with pytest.raises(ValidationError):
        make(whole[: data.draw(st.integers(0, len(whole) - 1))])


# Stored and served


@pytest.fixture
def media(settings: Settings, tmp_path: Path) -> Path:
    settings.MEDIA_ROOT = tmp_path
    return tmp_path / "avatars"


@pytest.fixture
def member(db: None) -> User:
    return User.objects.create(email="member@example.com", display_name="Member")


@pytest.fixture
def browser(member: User, media: Path, settings: Settings) -> Client:
    settings.CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache", "LOCATION": str(media)}}
    client = Client()
    client.force_login(member)
    return client


def send(client: Client, data: bytes, name: str = "me.png", kind: str = "image/png", **form: str) -> Any:
    return client.post(PROFILE, {"display_name": "Renamed", "avatar": SimpleUploadedFile(name, data, kind), **form})


def stored(media: Path) -> list[str]:
    return sorted(path.name for path in media.rglob("*") if path.is_file())


def test_an_avatar_is_stored_under_a_random_name_and_replaces_the_old_one(
    browser: Client, member: User, media: Path, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    names = []
    for _ in range(2):
        with django_capture_on_commit_callbacks(execute=True):
            assert send(browser, picture(), name="../../me.php").status_code == 302
        member.refresh_from_db()
        assert stored(media) == [str(member.avatar.name).removeprefix("avatars/")], "the old file is left"
        assert re.fullmatch(avatars.NAME, stored(media)[0])
        names += stored(media)
    assert names[0] != names[1]
    assert member.display_name == "Renamed"


def test_the_old_file_stays_until_the_change_is_committed(
    browser: Client, member: User, media: Path, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    send(browser, picture())
    with django_capture_on_commit_callbacks() as callbacks:
        send(browser, picture())
    assert len(stored(media)) == 2
    assert len(callbacks) == 1


def test_an_avatar_can_be_removed_and_goes_with_its_user(
    browser: Client, member: User, media: Path, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    send(browser, picture())
    with django_capture_on_commit_callbacks(execute=True):
        assert browser.post(PROFILE, {"display_name": "x", "remove_avatar": "on"}).status_code == 302
    member.refresh_from_db()
    assert not member.avatar and not stored(media)
    send(browser, picture())
    assert stored(media)
    with django_capture_on_commit_callbacks(execute=True):
        User.objects.all().delete()
    assert not stored(media)


def test_to_send_a_picture_and_remove_it_is_asked_about(browser: Client, media: Path) -> None:
    send(browser, picture())
    response = send(browser, picture(), remove_avatar="on")
    assert response.context["form"].errors["remove_avatar"]
    assert len(stored(media)) == 1


@pytest.mark.parametrize("name", ["an archive after a PNG", "a bomb of pixels", "an SVG", "half a JPEG"])
def test_a_refused_file_is_a_form_error_and_nothing_is_stored(
    browser: Client, member: User, media: Path, name: str
) -> None:
    response = send(browser, REFUSED[name][0]())
    assert response.status_code == 200
    (message,) = response.context["form"].errors["avatar"]
    assert message.endswith(avatars.ACCEPTED) and message.split(":")[0] in response.content.decode()
    member.refresh_from_db()
    assert (member.avatar.name, member.display_name, stored(media)) == ("", "Member", [])


def test_an_empty_file_is_a_form_error(browser: Client, media: Path) -> None:
    assert "empty" in send(browser, b"").context["form"].errors["avatar"][0]
    assert not stored(media)


class Endless(io.RawIOBase):
    """A form with a file of `size` bytes that is made as it is read; it tells how much of it was held at most."""

    def __init__(self, size: int) -> None:
        self.head = (
            b'--b\r\nContent-Disposition: form-data; name="avatar"; filename="me.png"\r\n'
            b"Content-Type: image/png\r\n\r\n" + picture()
        )
        self.tail = b"\r\n--b--\r\n"
        self.left = size
        self.length = len(self.head) + size + len(self.tail)

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, "the whole body is asked for at once"
        if self.head:
            part, self.head = self.head[:size], self.head[size:]
        elif self.left:
            part = bytes(min(size, self.left))
            self.left -= len(part)
        else:
            part, self.tail = self.tail[:size], self.tail[size:]
        return part


@contextmanager
def memory(limit: int) -> Iterator[None]:
    """Fails the block if it makes this process hold `limit` more bytes, as Python counts them."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak:,} bytes were held"


def post(client: Client, body: Endless) -> Any:
    extra: Any = {"wsgi.input": body, "CONTENT_LENGTH": str(body.length)}
    return client.generic("POST", PROFILE, CONTENT_TYPE="multipart/form-data; boundary=b", **extra)


def test_a_file_of_50_mb_is_a_form_error_and_never_held_in_memory_or_on_disk(
    browser: Client, media: Path, tmp_path: Path, settings: Settings
) -> None:
    settings.FILE_UPLOAD_TEMP_DIR = tmp_path / "not there"
    with memory(20_000_000):
        response = post(browser, Endless(50_000_000))
    (message,) = response.context["form"].errors["avatar"]
    assert message.startswith("This file is too large (50.0 MB).") and message.endswith(avatars.ACCEPTED)
    assert not stored(media)


def test_a_body_beyond_all_measure_is_not_read(browser: Client) -> None:
    body = Endless(200_000_000)
    assert post(browser, body).status_code == 400
    assert body.left == 200_000_000


def test_many_files_at_once_are_held_to_the_same_limit(browser: Client, media: Path) -> None:
    files = [SimpleUploadedFile(f"{n}.png", bytes(3_000_000), "image/png") for n in range(8)]
    with memory(80_000_000):  # of which 48 MB are the form that this test sends
        response = browser.post(PROFILE, {"display_name": "x", "avatar": files})
    assert response.status_code == 200
    assert not stored(media)


def test_a_file_of_just_the_limit_is_looked_at(browser: Client) -> None:
    room = avatars.MAX_BYTES - len(picture("JPEG"))
    assert send(browser, picture("JPEG") + bytes(room)).status_code == 302
    assert send(browser, picture("JPEG") + bytes(room + 1)).context["form"].errors["avatar"]


@pytest.mark.django_db(transaction=True)
def test_of_two_changes_at_once_the_later_one_removes_the_file_of_the_earlier(
    media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = User.objects.create(email="member@example.com")
    both = threading.Barrier(2)
    real = User.save

    def slow(*args: Any, **kwargs: Any) -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # unless one has to wait for the other, both have read the old name by now
        real(*args, **kwargs)

    monkeypatch.setattr(User, "save", slow)

    def change() -> None:
        try:
            avatars.save(User.objects.get(pk=user.pk), picture("WEBP"))
        finally:
            connection.close()

    threads = [threading.Thread(target=change) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    user.refresh_from_db()
    assert [f"avatars/{name}" for name in stored(media)] == [user.avatar.name]


@contextmanager
def full_disk() -> Iterator[None]:
    """Lets no file grow beyond 100 bytes: the kernel refuses the write, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_the_form_says_so_and_nothing_is_changed(browser: Client, member: User, media: Path) -> None:
    send(browser, picture())
    member.refresh_from_db()
    before = (member.avatar.name, stored(media))
    with full_disk():
        response = send(browser, picture(size=(400, 400)), display_name="Other")
    assert "Cannot store the picture" in response.context["form"].errors["avatar"][0]
    member.refresh_from_db()
    assert (member.avatar.name, stored(media)) == before, "a part of a file is left"
    assert member.display_name == "Renamed"
    assert send(browser, picture()).status_code == 302


def test_a_save_that_fails_leaves_no_file(browser: Client, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.Model, "save", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("the database")))
    with pytest.raises(RuntimeError, match="the database"):
        send(browser, picture())
    assert not stored(media)


def test_an_old_file_that_is_gone_already_does_not_matter(
    browser: Client, media: Path, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    send(browser, picture())
    for path in media.iterdir():
        path.unlink()
    with django_capture_on_commit_callbacks(execute=True):
        assert send(browser, picture()).status_code == 302
    assert len(stored(media)) == 1


def test_an_avatar_is_served_as_a_download_of_a_safe_type(browser: Client, member: User, media: Path) -> None:
    send(browser, picture())
    member.refresh_from_db()
    assert member.avatar.url == reverse("accounts:avatar", args=[stored(media)[0]])
    response = Client().get(member.avatar.url)
    assert response.status_code == 200
    assert b"".join(response) == (media / stored(media)[0]).read_bytes()
    assert response["Content-Type"] == "image/webp"
    assert response["Content-Disposition"] == 'attachment; filename="avatar.webp"'
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert response["Cache-Control"] == "private, max-age=31536000, immutable"
    assert "Set-Cookie" not in response and "Cookie" not in response.get("Vary", "")

    head = Client().head(member.avatar.url)
    assert (head.status_code, head["Content-Length"]) == (200, response["Content-Length"])
    head.close()
    assert Client().post(member.avatar.url).status_code == 405


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0" * 32 + ".webp",
        "0" * 32 + ".html",
        "0" * 32,
        "0" * 31 + ".webp",
        "0" * 32 + ".webp/",
        "0" * 32 + ".webp%0a",
        "../" + "0" * 32 + ".webp",
        "..%2f..%2fsettings%2fbase.py",
        "%2e%2e/secret.webp",
        "secret.webp",
    ],
)
def test_nothing_else_is_served(client: Client, media: Path, db: None, name: str) -> None:
    media.mkdir(parents=True)
    (media / "secret.webp").write_text("secret")
    (media.parent / ("0" * 32 + ".webp")).write_text("secret")
    assert client.get(f"/media/avatars/{name}").status_code == 404
