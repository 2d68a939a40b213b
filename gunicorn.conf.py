"""How gunicorn serves the app; each variable is documented in .env.example.

https://gunicorn.org/reference/settings/ tells what every setting means.
"""

import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # gunicorn may be started from another folder
from settings import env  # noqa: E402


def text(name: str, default: str = "") -> str:
    """The variable, read as the settings read theirs; a fault in it stops the process."""
    try:
        return env.text(name, default)
    except env.Refused as reason:
        raise SystemExit(str(reason)) from None


def number(name: str, default: int) -> int:
    """A whole number from the environment, 0 or more; anything else stops the process."""
    value = text(name, str(default))
    if not value.isdecimal():
        raise SystemExit(f"{name} is malformed: expected a whole number, 0 or more. See .env.example.")
    return int(value)


def cpus() -> float:
    """The processors that this process may use: the container's limit, not the host's cores.

    https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), and its like in version 1.
    """
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text().strip()
            period = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return allowed
    return allowed if quota in ("max", "-1") else min(allowed, int(quota) / int(period))


bind = [word.strip() for word in text("BIND", "127.0.0.1:8000").split(",")]
limit_request_line = 8190  # the most that it allows, and what nginx.conf lets through

# Two at the least, so that one stuck or dying worker does not stop the service; one more than there are processors, as
# a worker waits for the database now and then. Threads carry the waiting; idle keep-alive connections cost none.
worker_class = "gthread"
workers = number("WEB_CONCURRENCY", max(2, min(math.ceil(cpus()) + 1, 9)))
threads = number("THREADS", 4)

# The app is loaded once, in the master: a release that cannot start ends the process with its reason instead of
# workers dying for ever, and the workers share its memory. The price, that a reload (SIGHUP) loads no new code, is
# none here: a new release is a new container.
preload_app = True

# Off: nothing here is known to leak, and a recycled worker drops its warm caches and connections. A leak found at
# three in the morning is survived with MAX_REQUESTS=2000; the jitter keeps the workers from restarting together.
max_requests = number("MAX_REQUESTS", 0)
max_requests_jitter = max_requests // 10

# A worker that gives no sign of life for `timeout` seconds is killed; no statement may take that long (15 s, settings).
# On SIGTERM requests in flight get `graceful_timeout` seconds, which must stay below the pod's grace period.
timeout = 30
graceful_timeout = number("GRACEFUL_TIMEOUT", 25)

# Above the proxy's own idle time (60 s), so that it is always the proxy that closes: the other way round it sends a
# request into a connection that is just being closed.
keepalive = 75

# Workers touch a file to show that they live: on a disk that stalls, that would get them killed.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

# What the proxy says is judged in one place, backstagetest1.edge.
forwarded_allow_ips = ""

accesslog = "-"
logger_class = "backstagetest1.logs.GunicornLogger"
control_socket_disable = True


def on_starting(server: Any) -> None:
    """The workers share their metrics through a folder: METRICS_DIR, or one that lives as long as this server. The app
    is loaded by now.
    """
    from metrics import store

    folder = text("METRICS_DIR")
    if not folder:
        folder = server.metrics_dir = tempfile.mkdtemp(prefix="metrics-", dir=worker_tmp_dir)
    store.start(folder)

    from backstagetest1 import assets

    assets.share()


def post_fork(server: Any, worker: Any) -> None:
    from metrics import store

    store.lease()


def on_exit(server: Any) -> None:
    if folder := getattr(server, "metrics_dir", None):
        shutil.rmtree(folder, ignore_errors=True)
