"""What the machine grants this instance: the memory of its container, and room on the disk of the media."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from django.conf import settings
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 62  # version 1 has no word for "no limit", but a number near the greatest one


def container_memory() -> Iterable[Metric]:
    """Returns container_memory_used_bytes and container_memory_limit_bytes, of this process's cgroup; no series
    without a limit.

    Used memory is what the kernel counts against the limit, less the files in its cache that it can drop at once: the
    same figure as the kubelet's working set, by which it evicts pods.
    https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    used = GaugeMetricFamily("container_memory_used_bytes", "Memory in use in the container, without droppable caches.")
    limit = GaugeMetricFamily("container_memory_limit_bytes", "Memory limit of the container.")
    if found := _memory():
        used.add_metric([], found[0])
        limit.add_metric([], found[1])
    return [used, limit]


def _memory() -> tuple[int, int] | None:
    """Returns bytes in use and their limit, from version 2 of cgroups, or else 1; None without a limit."""
    for controller, names, droppable in (
        ("", ("memory.current", "memory.max"), "inactive_file"),
        ("memory", ("memory.usage_in_bytes", "memory.limit_in_bytes"), "total_inactive_file"),
    ):
        try:
            folder = _folder(controller)
            current, limit = ((folder / name).read_text().strip() for name in names)
            lines = (folder / "memory.stat").read_text().splitlines()
        except OSError:  # another version, or the root, which has no limit
            continue
        if limit == "max" or int(limit) >= UNLIMITED:
            return None
        caches = next(int(line.split()[1]) for line in lines if line.startswith(f"{droppable} "))
        return max(0, int(current) - caches), int(limit)
    return None


def _folder(controller: str) -> Path:
    """Returns the folder of this process's cgroup; an empty `controller` means version 2. Raises OSError.

    In a container the root is its own cgroup, and the path in /proc may be that of the host.
    https://man7.org/linux/man-pages/man7/cgroups.7.html
    """
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            folder = CGROUPS / controller / path.lstrip("/")
            return folder if folder.is_dir() else CGROUPS / controller
    return CGROUPS / controller


def media_disk() -> Iterable[Metric]:
    """Returns media_disk_free_bytes and media_disk_size_bytes, of the file system of MEDIA_ROOT."""
    folder = Path(settings.MEDIA_ROOT).absolute()
    while not folder.exists():
        folder = folder.parent  # the first upload creates it
    usage = shutil.disk_usage(folder)
    return [
        GaugeMetricFamily("media_disk_free_bytes", "Room for uploads on the disk of the media.", usage.free),
        GaugeMetricFamily("media_disk_size_bytes", "Size of the disk of the media.", usage.total),
    ]
