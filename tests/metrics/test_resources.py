"""The memory of the container and the disk of the media."""

import shutil
from pathlib import Path

import pytest
from pytest_django import Settings

from metrics import resources

CURRENT, CACHES, LIMIT = 700_000_000, 200_000_000, 1_000_000_000
FILES = {
    2: ("memory.current", "memory.max", "memory.stat", "inactive_file"),
    1: ("memory.usage_in_bytes", "memory.limit_in_bytes", "memory.stat", "total_inactive_file"),
}
UNLIMITED = {2: "max", 1: "9223372036854771712"}
MEMBERSHIPS = {2: "0::{}\n", 1: "5:cpu,cpuacct:/\n4:memory:{}\n0::/elsewhere\n"}


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a made-up tree of cgroups."""
    monkeypatch.setattr(resources, "CGROUPS", tmp_path)
    return tmp_path


def member(monkeypatch: pytest.MonkeyPatch, version: int, path: str) -> None:
    """Has /proc say that this process is in that cgroup."""
    read = Path.read_text
    text = MEMBERSHIPS[version].format(path)
    monkeypatch.setattr(Path, "read_text", lambda self: text if str(self) == "/proc/self/cgroup" else read(self))


def fill(folder: Path, version: int, limit: str, current: int = CURRENT) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    use, most, stat, droppable = FILES[version]
    (folder / use).write_text(f"{current}\n")
    (folder / most).write_text(f"{limit}\n")
    others = {
        "inactive_file": 5,
        "total_inactive_file": 6,
        "active_file": 7,
    }  # of version 1: the first is without children
    lines = [f"{name} {value}\n" for name, value in (others | {droppable: CACHES}).items()]
    (folder / stat).write_text("".join(lines))


def memory() -> dict[str, float]:
    return {family.name: sample.value for family in resources.container_memory() for sample in family.samples}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("inside", [True, False])
def test_memory_in_use_and_its_limit(cgroup: Path, monkeypatch: pytest.MonkeyPatch, version: int, inside: bool) -> None:
    """Inside: a container's root is its own cgroup, whatever path /proc names."""
    member(monkeypatch, version, "/kubepods/pod1/container")
    root = cgroup / ("memory" if version == 1 else "")
    fill(root if inside else root / "kubepods/pod1/container", version, str(LIMIT))
    expected = {"container_memory_used_bytes": CURRENT - CACHES, "container_memory_limit_bytes": LIMIT}
    assert memory() == expected
    fill(root if inside else root / "kubepods/pod1/container", version, str(LIMIT), CACHES - 4096)
    assert memory()["container_memory_used_bytes"] == 0, "the kernel updates the two at different times"


@pytest.mark.parametrize("version", [1, 2])
def test_without_a_limit_nothing_is_told(cgroup: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    member(monkeypatch, version, "/user.slice")
    fill(cgroup / ("memory" if version == 1 else "") / "user.slice", version, UNLIMITED[version])
    assert memory() == {}


def test_without_cgroups_nothing_is_told(cgroup: Path) -> None:
    assert memory() == {}


def test_the_own_cgroup_of_this_machine_can_be_read() -> None:
    found = memory()
    assert not found or 0 < found["container_memory_used_bytes"] <= found["container_memory_limit_bytes"]


def test_the_room_for_uploads_is_that_of_their_file_system(settings: Settings, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = tmp_path / "not" / "there" / "yet"
    found = {family.name: sample.value for family in resources.media_disk() for sample in family.samples}
    usage = shutil.disk_usage(tmp_path)
    assert found["media_disk_size_bytes"] == usage.total
    assert abs(found["media_disk_free_bytes"] - usage.free) < 0.5 * usage.total
