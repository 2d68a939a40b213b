"""How gunicorn serves the app. .env.example documents each variable.

https://gunicorn.org/reference/settings/
"""

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # gunicorn may be started from another folder
from settings import env  # noqa: E402

T = TypeVar("T")


def setting(reader: Callable[[str, T], T], name: str, default: T) -> T:
    """Returns a variable as a function of settings.env reads it; an invalid one stops the process with one line."""
    try:
        return reader(name, default)
    except env.ConfigError as reason:
        raise SystemExit(str(reason)) from None


def cpus() -> float:
    """Returns the number of processors that this process may use: the container's limit, not the host's cores.

    https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), and its equivalent in version 1.
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


bind = env.split(setting(env.text, "BIND", "127.0.0.1:8000"))
limit_request_line = 8190  # gunicorn's maximum, and what nginx.conf accepts

# At least two, so that one stuck or dying worker does not stop the service; one more than there are processors, as
# workers wait for the database now and then. Threads do the waiting; idle keep-alive connections take none.
worker_class = "gthread"
workers = setting(env.whole, "WEB_CONCURRENCY", max(2, min(math.ceil(cpus()) + 1, 9)))
threads = setting(env.whole, "THREADS", 4)

# The app is loaded once, in the master: a release that cannot start exits with its reason instead of restarting workers
# for ever, and the workers share its memory. The drawback, that a reload (SIGHUP) loads no new code, does not matter
# here: a new release is a new container.
preload_app = True

# Off: nothing here is known to leak, and a recycled worker loses its warm caches and connections. MAX_REQUESTS=2000
# buys time against a leak found at night; the jitter keeps the workers from restarting together.
max_requests = setting(env.whole, "MAX_REQUESTS", 0)
max_requests_jitter = max_requests // 10

# A worker that does not report for `timeout` seconds is killed; no statement may take that long (15 s).
# On SIGTERM requests in flight get `graceful_timeout` seconds, which must stay below the pod's grace period.
timeout = 30
graceful_timeout = setting(env.whole, "GRACEFUL_TIMEOUT", 25)

# Above the proxy's own idle timeout (60 s), so that the proxy always closes first; otherwise it would send requests
# into connections that are just being closed.
keepalive = 75

# Workers touch a file as a heartbeat: on a disk that stalls, they would be killed for it.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

# Only backstagetest1.proxy decides which proxy headers to trust.
forwarded_allow_ips = ""

accesslog = "-"
logger_class = "backstagetest1.logs.GunicornLogger"
control_socket_disable = True


metrics_dir = setting(env.text, "METRICS_DIR", "")  # not gunicorn's, which ignores names that it does not know
close_file = setting(env.text, "CLOSE_CONNECTIONS_FILE", "")  # nor is this


def on_starting(server: Any) -> None:
    """Prepares the folder through which the workers share their metrics: METRICS_DIR, or a new one that is removed with
    the server. The app is loaded by now.
    """
    from metrics import store

    folder = metrics_dir
    if not folder:
        folder = server.metrics_dir = tempfile.mkdtemp(prefix="metrics-", dir=worker_tmp_dir)
    store.start(folder)

    from backstagetest1 import assets

    assets.share()


def pre_fork(server: Any, worker: Any) -> None:
    from metrics import exits

    exits.pre_fork(worker)


def post_fork(server: Any, worker: Any) -> None:
    from backstagetest1 import telemetry
    from metrics import store

    store.lease()
    telemetry.start()


def pre_request(worker: Any, request: Any) -> None:
    """Closes the connection after the answer while new connections lead elsewhere: to the colour that has the traffic,
    or to other instances than this draining one. Nothing else moves clients that keep theirs.

    Through the request, because gunicorn drops a Connection header that the app sets.
    """
    from health.draining import draining

    if left() or draining():
        request.force_close()


def left() -> bool:
    """Whether the traffic has left this instance: the file CLOSE_CONNECTIONS_FILE is not empty."""
    try:
        return bool(close_file) and os.stat(close_file).st_size > 0
    except OSError:
        return False


def worker_exit(server: Any, worker: Any) -> None:
    from backstagetest1 import telemetry
    from metrics import exits

    exits.worker_exit(worker)
    telemetry.stop()


def child_exit(server: Any, worker: Any) -> None:
    from metrics import exits

    exits.child_exit(worker)


def on_exit(server: Any) -> None:
    if folder := getattr(server, "metrics_dir", None):
        shutil.rmtree(folder, ignore_errors=True)
