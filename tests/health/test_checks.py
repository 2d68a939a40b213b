"""What the three addresses promise to whoever asks, the settings around them, and the checks of files."""

import asyncio
import errno
import os
import re
import runpy
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.cache import cache
from django.core.files.storage import default_storage
from django.core.management import CommandError, call_command
from django.test import AsyncClient, Client, RequestFactory
from django.urls import reverse
from django.utils.module_loading import import_string
from pytest_django import DjangoAssertNumQueries, Settings

from health import checks, draining, readiness, reasons, runner, views
from health.middleware import PROBES
from tests.support.servers import ROOT, ROOT_USER

PATHS = ["/health/", "/health/live/", "/health/ready/"]


class Good(checks.Check):
    def run(self) -> None:
        pass


class Bad(checks.Check):
    def run(self) -> None:
        raise ConnectionRefusedError("db.internal:5432")


class Stuck(checks.Check):
    go = threading.Event()

    def run(self) -> None:
        self.go.wait(30)


def new_server(settings: Settings, folder: Path) -> None:
    """One that has not been ready yet."""
    settings.HEALTH_READY_FILE = str(folder / "run" / secrets.token_hex(4))
    readiness.state.__init__()  # type: ignore[misc]


@pytest.fixture(autouse=True)
def quick(settings: Settings, tmp_path: Path) -> Iterator[None]:
    """Two checks that need no server, and a drain flag of the test's own."""
    settings.HEALTH_CHECKS = {"database": f"{__name__}.Good", "cache": f"{__name__}.Good"}
    settings.HEALTH_READY = ["database"]
    settings.HEALTH_CACHE_SECONDS = 0
    settings.HEALTH_DRAIN_FILE = str(tmp_path / "run" / "drain")
    new_server(settings, tmp_path)
    yield
    runner.stop()


def test_an_unhealthy_check_is_503_and_a_healthy_one_200(settings: Settings) -> None:
    """The view in docs/guide.md always answers 200."""
    assert Client().get("/health/").status_code == 200
    settings.HEALTH_CHECKS["cache"] = f"{__name__}.Bad"
    response = Client().get("/health/")
    assert (response.status_code, response.json()["status"]) == (503, "unhealthy")
    assert response.json()["checks"] == {"database": "healthy", "cache": "unhealthy: refused"}
    assert Client().get("/health/ready/").status_code == 200, "readiness does not need the cache"


@pytest.mark.parametrize("path", PATHS)
def test_a_probe_by_ip_over_plain_http_is_answered_and_not_redirected(path: str, settings: Settings) -> None:
    """A probe's Host is the pod's IP, which ALLOWED_HOSTS would answer with 400 and the TLS redirect with 301."""
    settings.ALLOWED_HOSTS = ["backstagetest1.com"]
    settings.SECURE_SSL_REDIRECT = True
    for host in ("10.1.2.3:8000", "[fe80::1]", "evil.example", "no host at all", ""):
        response = Client().get(path, headers={"host": host})
        assert response.status_code == 200, host
        assert not response.cookies
    assert Client().get("/", headers={"host": "10.1.2.3:8000"}).status_code in (301, 400), "others are not exempt"


@pytest.mark.parametrize("path", [*PATHS, *(path.rstrip("/") for path in PATHS)])
def test_an_answer_is_json_and_not_to_be_stored(path: str) -> None:
    response = Client().get(path)
    assert response.status_code == 200
    assert response["Content-Type"] == "application/json"
    assert response["Cache-Control"] == "no-store"
    assert int(response["Content-Length"]) == len(response.content)
    assert {"status", "timestamp", "version"} <= set(response.json())


@pytest.mark.parametrize("view", [views.health, views.live, views.ready])
def test_head_is_get_without_the_body(view: views.Probe) -> None:
    get, head = (view(RequestFactory().generic(method, "/")) for method in ("GET", "HEAD"))
    assert (head.status_code, head.content) == (200, b"")
    assert abs(int(head["Content-Length"]) - len(get.content)) < 5  # durations differ by a digit


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"])
@pytest.mark.parametrize("path", PATHS)
def test_any_other_method_is_405(path: str, method: str, settings: Settings) -> None:
    settings.HEALTH_CHECKS = {}  # nothing is asked
    response = Client(enforce_csrf_checks=True).generic(method, path)
    assert (response.status_code, response["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/health/other/", "/health/live/x", "/healthy", "/Health/", "/health//"])
def test_a_path_that_is_no_probe_is_left_to_the_site(path: str) -> None:
    assert Client().get(path).status_code == 404


def test_the_urls_have_names_and_the_views_of_the_middleware() -> None:
    for name, view in {"health": views.health, "live": views.live, "ready": views.ready}.items():
        assert PROBES[reverse(f"health:{name}")] is view


def test_the_middleware_stands_before_all_that_refuses_or_redirects(settings: Settings) -> None:
    assert settings.MIDDLEWARE.index("health.middleware.ProbeMiddleware") == 1
    assert settings.MIDDLEWARE[0] == "backstagetest1.proxy.ProxyMiddleware", "it has no answer of its own"


def test_liveness_asks_nothing(settings: Settings, django_assert_num_queries: DjangoAssertNumQueries, db: None) -> None:
    """Liveness that asks the database restarts every pod when the database is down."""
    settings.HEALTH_CHECKS = {"database": f"{__name__}.Bad"}
    runner.stop()
    with django_assert_num_queries(0):
        assert Client().get("/health/live/").status_code == 200
    assert not runner._workers


def test_the_probes_are_answered_under_asgi_too(settings: Settings) -> None:
    settings.MIDDLEWARE = ["health.middleware.ProbeMiddleware"]
    settings.HEALTH_CHECKS["database"] = f"{__name__}.Bad"

    async def ask() -> list[int]:
        return [(await AsyncClient().get(path)).status_code for path in [*PATHS, "/nowhere/"]]

    assert async_to_sync(ask)() == [503, 200, 503, 404]


def test_a_stuck_check_does_not_hold_up_the_event_loop(settings: Settings) -> None:
    settings.MIDDLEWARE = ["health.middleware.ProbeMiddleware"]
    settings.HEALTH_CHECKS = {"stuck": f"{__name__}.Stuck"}
    settings.HEALTH_CHECK_TIMEOUT = 20

    async def ask() -> int:
        report = asyncio.create_task(AsyncClient().get("/health/"))
        await asyncio.sleep(0.1)
        assert (await AsyncClient().get("/health/live/")).status_code == 200
        assert not report.done()
        Stuck.go.set()
        return (await report).status_code

    assert async_to_sync(ask)() == 200


# Draining


def ready() -> tuple[int, str]:
    response = Client().get("/health/ready/")
    return response.status_code, response.json()["status"]


def test_draining_takes_the_instance_out_and_leaves_it_alive(capsys: pytest.CaptureFixture[str]) -> None:
    assert ready() == (200, "healthy")
    call_command("drain")
    assert "Draining: /health/ready/ now returns 503" in capsys.readouterr().out
    assert ready() == (503, "draining")
    assert Client().get("/health/").status_code == Client().get("/health/live/").status_code == 200
    call_command("drain")
    assert ready() == (503, "draining")
    call_command("drain", "--undo")
    assert "No longer draining" in capsys.readouterr().out
    assert ready() == (200, "healthy")
    call_command("drain", "--undo")
    assert "Not draining; nothing to do" in capsys.readouterr().out


def test_the_flag_of_an_earlier_server_is_void(settings: Settings) -> None:
    """preStop also runs before a container that fails its liveness probe is restarted in the same pod."""
    call_command("drain", verbosity=0)
    os.utime(settings.HEALTH_DRAIN_FILE, (draining.LOADED - 1, draining.LOADED - 1))
    assert ready() == (200, "healthy")
    call_command("drain", verbosity=0)
    assert ready() == (503, "draining")


def test_another_users_file_is_no_flag(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary folder is everybody's."""
    call_command("drain", verbosity=0)
    if ROOT_USER:
        os.chown(settings.HEALTH_DRAIN_FILE, 54321, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert ready() == (200, "healthy")


@pytest.mark.parametrize("arguments", [[], ["--undo"]])
def test_a_flag_that_cannot_be_written_is_reported_in_one_line(arguments: list[str], settings: Settings) -> None:
    settings.HEALTH_DRAIN_FILE = "/proc/self/status/drain"
    with pytest.raises(CommandError, match=r"The flag .* cannot be .*\. Set HEALTH_DRAIN_FILE to a file"):
        call_command("drain", *arguments)


def test_two_instances_on_one_machine_have_flags_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for bind in ("127.0.0.1:8000", "127.0.0.1:8001", "unix:/run/a.sock"):
        monkeypatch.setenv("BIND", bind)
        found.add(runpy.run_path(str(ROOT / "settings" / "base.py"))["HEALTH_DRAIN_FILE"])
    assert len(found) == 3
    assert {os.path.dirname(path) for path in found} == {"/tmp"}


# Once ready


@pytest.fixture
def away(settings: Settings) -> Callable[[bool], None]:
    """Takes the database away from this instance, and gives it back."""

    def take(gone: bool) -> None:
        settings.HEALTH_CHECKS = {"database": f"{__name__}.{'Bad' if gone else 'Good'}", "cache": f"{__name__}.Good"}

    return take


def test_what_has_never_been_ready_does_not_get_it_without_its_database(away: Callable[[bool], None]) -> None:
    """So a release that cannot reach it, or waits for its migrations, never gets traffic."""
    away(True)
    assert [ready() for _ in range(3)] == [(503, "unhealthy")] * 3
    away(False)
    assert ready() == (200, "healthy")


def test_what_has_been_ready_stays_so_and_says_that_it_is_degraded(away: Callable[[bool], None]) -> None:
    """All instances share the database; if all became unready, visitors would get no page at all."""
    assert ready() == (200, "healthy")
    away(True)
    response = Client().get("/health/ready/")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert response.json()["checks"] == {"database": "unhealthy: refused"}
    assert Client().get("/health/").status_code == 503, "which is the truth, for whoever wants to know"
    call_command("drain", verbosity=0)
    assert ready() == (503, "draining")
    call_command("drain", "--undo", verbosity=0)
    away(False)
    assert ready() == (200, "healthy")


def test_a_worker_that_starts_during_the_outage_knows_that_the_server_was_ready(
    away: Callable[[bool], None], settings: Settings
) -> None:
    assert ready() == (200, "healthy")
    away(True)
    readiness.state.__init__()  # type: ignore[misc]
    assert ready() == (200, "degraded")
    os.utime(settings.HEALTH_READY_FILE, (draining.LOADED - 1, draining.LOADED - 1))
    assert ready() == (503, "unhealthy"), "an earlier server was, in the same pod"


def test_a_mark_that_cannot_be_written_is_remembered(away: Callable[[bool], None], settings: Settings) -> None:
    settings.HEALTH_READY_FILE = "/proc/self/status/ready"
    assert ready() == (200, "healthy")
    away(True)
    assert ready() == (200, "degraded")


class Time:
    """time.monotonic() for health.readiness: a step with each look."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Time:
    found = Time()
    settings.CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache", "LOCATION": secrets.token_hex(4)}}
    monkeypatch.setattr(readiness, "time", found)
    return found


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("well", (503, "unhealthy")),
        ("gone", (200, "degraded")),
        ("well until a moment later", (200, "degraded")),
        ("of another release", (200, "degraded")),
        ("another worker here", (200, "degraded")),
        ("without a cache", (200, "degraded")),
    ],
)
def test_an_instance_leaves_only_if_it_alone_has_lost_its_database(
    away: Callable[[bool], None], clock: Time, settings: Settings, peer: str, expected: tuple[int, str]
) -> None:
    assert ready() == (200, "healthy")
    away(True)
    told = set()
    for turn in range(12):  # a minute of probes
        if peer == "well" or (peer == "well until a moment later" and turn < 2):
            cache.set(readiness.key(), f"peer {turn}", 60)
        elif peer == "of another release":
            cache.set(readiness.key() + "-next", f"peer {turn}", 60)
        elif peer == "another worker here":
            cache.set(readiness.key(), f"{readiness.INSTANCE_ID} {turn}", 60)
        elif peer == "without a cache":
            settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
        told.add(ready())
        if turn < 3:
            assert told == {(200, "degraded")}, "nobody leaves at the first sign"
        clock.now += 5
    assert ready() == expected
    assert told == {(200, "degraded"), expected}
    away(False)
    assert ready() == (200, "healthy")


def test_who_is_well_signs_and_who_is_not_does_not(away: Callable[[bool], None], clock: Time) -> None:
    ready()
    first = cache.get(readiness.key())
    ready()
    assert first.startswith(readiness.INSTANCE_ID) and cache.get(readiness.key()) == first
    clock.now += 5
    ready()
    second = cache.get(readiness.key())
    assert second != first
    away(True)
    clock.now += 5
    ready()
    assert cache.get(readiness.key()) == second


# The checks of files


def problem(check: type[checks.Check]) -> str:
    try:
        check().run()
    except Exception as error:
        return str(reasons.reason(error))
    return "healthy"


def test_media_that_can_be_written_are_healthy_and_left_clean(settings: Settings, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = tmp_path / "media"
    assert problem(checks.Storage) == problem(checks.Disk) == "healthy"
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system without a byte to spare."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = shutil.which("mount")
    assert mount, "mount is missing: it is part of every Linux (util-linux)"
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    try:
        try:
            (folder / "ballast").write_bytes(bytes(64 * 1024))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_reported(settings: Settings, full_disk: Path) -> None:
    settings.MEDIA_ROOT = full_disk
    assert problem(checks.Storage) == problem(checks.Disk) == "disk full"
    assert [path.name for path in full_disk.iterdir()] == ["ballast"]


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "disk full"),
        (errno.EDQUOT, "disk full"),
        (errno.EROFS, "not writable"),
        (errno.EACCES, "not writable"),
        (errno.EIO, "error"),
    ],
)
def test_what_the_storage_raises_has_a_reason(number: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: Any) -> str:
        raise OSError(number, os.strerror(number), "/srv/media/secret")

    monkeypatch.setattr(default_storage._wrapped, "save", save)  # type: ignore[attr-defined]
    assert problem(checks.Storage) == told


def test_a_disk_below_the_threshold_is_full(settings: Settings, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = tmp_path / "not" / "made" / "yet"
    settings.HEALTH_MIN_FREE_MB = 1e12
    assert problem(checks.Disk) == "disk full"


# The documentation


def test_the_document_explains_every_reason_and_no_other() -> None:
    text = (ROOT / "docs" / "health.md").read_text()
    section = text.partition("### Reasons")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z -]+)` \|", section, re.MULTILINE) == [str(reason) for reason in reasons.Reason]


def test_the_documents_figures_and_paths_are_the_settings(settings: Settings) -> None:
    text = (ROOT / "docs" / "health.md").read_text()
    base = runpy.run_path(str(ROOT / "settings" / "base.py"))
    assert f"`HEALTH_CHECK_TIMEOUT` ({base['HEALTH_CHECK_TIMEOUT']} s)" in text
    assert f"`HEALTH_CACHE_SECONDS` ({base['HEALTH_CACHE_SECONDS']:g} s" in " ".join(text.split())
    assert f"`HEALTH_DOWN_AFTER` ({base['HEALTH_DOWN_AFTER']:g} s)" in text
    assert "the checks in `HEALTH_READY`: " + " and ".join(base["HEALTH_READY"]) in text
    for path in re.findall(r'"(health\.checks\.\w+)"', text):
        assert issubclass(import_string(path), checks.Check)
