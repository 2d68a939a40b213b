"""The process_* metrics: gunicorn's master and its workers counted as one, read from /proc.

prometheus_client's own collector would report only the worker that answers the scrape.
https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics
https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
"""

import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

# Fields of /proc/PID/stat after the program's name
UTIME, STIME, CUTIME, CSTIME, STARTTIME, VSIZE, RSS = 11, 12, 13, 14, 19, 20, 21


def process() -> Iterable[Metric]:
    """Returns process_*, and nothing on systems without /proc.

    CPU time includes that of workers that have ended, so that it never decreases. Open file descriptors are those of
    the process that has the most, because the limit applies to each process.
    """
    if not Path("/proc/self/stat").exists():
        return []
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    pids = _process_group()
    stats = {pid: stat for pid in pids if (stat := _stat(pid))}
    cpu = sum(stat[UTIME] + stat[STIME] for stat in stats.values()) + sum(stats[pids[0]][CUTIME : CSTIME + 1])
    boot = next(int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line[:6] == "btime ")
    limit = next(
        line for line in Path("/proc/self/limits").read_text().splitlines() if line.startswith("Max open file")
    )
    soft = limit.split()[3]
    return [
        CounterMetricFamily("process_cpu_seconds", "CPU time of the master and all its workers.", cpu / ticks),
        GaugeMetricFamily(
            "process_resident_memory_bytes",
            "Resident memory of the master and its workers; pages they share count for each.",
            sum(stat[RSS] for stat in stats.values()) * page,
        ),
        GaugeMetricFamily(
            "process_virtual_memory_bytes",
            "Virtual memory of the master and its workers.",
            sum(stat[VSIZE] for stat in stats.values()),
        ),
        GaugeMetricFamily(
            "process_start_time_seconds",
            "Start time of the master, in seconds since the epoch.",
            boot + stats[pids[0]][STARTTIME] / ticks,
        ),
        GaugeMetricFamily(
            "process_open_fds", "Open file descriptors of the process that has the most.", _most_fds(pids)
        ),
        GaugeMetricFamily(
            "process_max_fds",
            "Maximum number of open file descriptors per process.",
            float("inf") if soft == "unlimited" else int(soft),
        ),
        GaugeMetricFamily("process_workers", "Worker processes.", max(1, len(stats) - 1)),
    ]


def _stat(pid: int) -> list[int]:
    """Returns the numbers of /proc/PID/stat after the program's name and state; none if the process has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return [0, *(int(word) for word in text.rpartition(")")[2].split()[1:])]


def _process_group() -> list[int]:
    """Returns the ids of gunicorn's master and its workers, the master first; without gunicorn, this process alone."""
    me, parent = os.getpid(), os.getppid()
    try:
        forked = Path(f"/proc/{parent}/cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes()
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return [me]
    return [parent, *(int(pid) for pid in children)] if forked else [me]


def _most_fds(pids: list[int]) -> int:
    """Returns the greatest number of open file descriptors that one of the processes has."""
    most = 0
    for pid in pids:
        try:
            most = max(most, len(os.listdir(f"/proc/{pid}/fd")))
        except OSError:  # it has ended meanwhile
            continue
    return most
