"""What the parts share: processes to measure, a client to load them with, and figures made into a table."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from tests.support.servers import ROOT, Gunicorn

T = TypeVar("T")

STARTED = time.monotonic()

PEERS = ("django-prometheus", "django-health-check", "django-watchman", "dockerflow")


@dataclass(frozen=True)
class Options:
    """How much to do: `quick` shows that all works, and its figures are rough; `patience` is in seconds.

    `programs` are the folders of other versions of PostgreSQL.
    """

    quick: bool = False
    patience: float = 15.0
    programs: tuple[Path, ...] = ()

    def times(self, full: int, quick: int) -> int:
        return quick if self.quick else full


def say(text: str) -> None:
    """Tells on standard error what is being done."""
    print(f"[{time.monotonic() - STARTED:4.0f} s] {text}", file=sys.stderr, flush=True)


def installed(variant: str) -> bool:
    """Whether the peer's package is here; ours and what is made by hand always are."""
    try:
        return variant not in PEERS or bool(version(variant))
    except PackageNotFoundError:
        return False


def present(variants: Iterable[str]) -> list[str]:
    """The variants that can be measured; says which cannot."""
    chosen = list(variants)
    for variant in chosen:
        if not installed(variant):
            say(f"{variant} is not installed and is left out; ./run bench installs it")
    return [variant for variant in chosen if installed(variant)]


def in_turns(things: Sequence[T], rounds: int) -> Iterator[T]:
    """Each of `things` once a round, in an order that turns by one from round to round: A B C, B C A, ..."""
    for turn in range(rounds):
        yield from (things[(turn + index) % len(things)] for index in range(len(things)))


def ratio(values: Sequence[float], against: Sequence[float]) -> float:
    """The median of the pairs' ratios: what disturbs one round disturbs both of a pair."""
    return median(value / other for value, other in zip(values, against, strict=True))


# Tables


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def goal(text: str, met: bool) -> str:
    return f"{text}: {'met' if met else '**missed**'}"


def us(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} µs" if abs(seconds) < 1e-4 else f"{seconds * 1e6:,.0f} µs"


def ms(seconds: float) -> str:
    return f"{seconds * 1000:,.2f} ms" if seconds < 0.1 else f"{seconds * 1000:,.0f} ms"


# Processes


class Child(AbstractContextManager["Child"]):
    """bench.child, with the site in the given variant; it knows no environment but what it is given."""

    def __init__(self, variant: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.child"],
            cwd=ROOT,
            env=clean() | {"BENCH_VARIANT": variant} | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.answer()

    def tell(self, name: str, times: int) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps([name, times]) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"bench.child ended with {self.process.wait()}: see above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.process.stdout.close()


class Site(Gunicorn):
    """gunicorn, with threads as in production, serving bench.site in the given variant."""

    def __init__(self, variant: str, workers: int = 2, /, **env: str) -> None:
        super().__init__(workers, **env)
        self.env |= {"BENCH_VARIANT": variant, "DJANGO_SETTINGS_MODULE": "bench.site.settings"} | env

    def environment(self) -> dict[str, str]:
        return clean() | {"HOME": str(self.folder)} | self.env

    def command(self) -> list[str]:
        program = [sys.executable, "-m", "gunicorn", "--config", str(ROOT / "bench/site/gunicorn_conf.py")]
        return [*program, "--chdir", str(ROOT), "django.core.wsgi:get_wsgi_application()"]

    def ready(self) -> bool:
        with Client(self.port, timeout=5) as client:
            return client.get("/route1/1/") == 200

    def cpu(self) -> float:
        """The CPU time, in seconds, that its workers have used so far."""
        return sum(cpu(pid) for pid in self.workers())


def clean() -> dict[str, str]:
    """This process's environment without what would change what is measured."""
    foreign = re.compile(
        r"(BENCH|METRICS|HEALTH|PROMETHEUS|DJANGO|GUNICORN)_|DATABASE_URL|REDIS_URL|WEB_CONCURRENCY|THREADS"
    )
    return {name: value for name, value in os.environ.items() if not foreign.match(name)}


def cpu(pid: int) -> float:
    """The CPU time of a process in seconds; https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html"""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def shared_values(variant: str, stack: ExitStack) -> dict[str, str]:
    """The environment that makes workers share their metrics: a folder, which goes when the stack does."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
    return {"METRICS_DIR" if variant.startswith("ours") else "PROMETHEUS_MULTIPROC_DIR": folder}


# Load


class Client(AbstractContextManager["Client"]):
    """One connection to 127.0.0.1 that is kept alive. http.client would cost more CPU than what it measures."""

    def __init__(self, port: int, timeout: float = 60) -> None:
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get(self, path: str) -> int:
        """The answer's status, once all of it is here. Raises OSError (TimeoutError) if it does not come."""
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAccept: application/json, text/plain\r\n\r\n"
        self.socket.sendall(head.encode())
        data = self.more(b"")
        while b"\r\n\r\n" not in data:
            data = self.more(data)
        top, _, body = data.partition(b"\r\n\r\n")
        if found := re.search(rb"(?i)\r\ncontent-length: *(\d+)", top):
            while len(body) < int(found[1]):
                body = self.more(body)
        else:
            while not body.endswith(b"0\r\n\r\n"):  # chunked
                body = self.more(body)
        return int(top.split(None, 2)[1])

    def more(self, data: bytes) -> bytes:
        read = self.socket.recv(65536)
        if not read:
            raise ConnectionError("the server closed the connection")
        return data + read

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def load(port: int, path: str, number: int, connections: int = 4) -> list[float]:
    """How long each of `number` requests took, in seconds. All must be answered with 200."""

    def ask(_: int) -> list[float]:
        took = []
        with Client(port) as client:
            for _ in range(max(1, number // connections)):
                started = time.perf_counter()
                status = client.get(path)
                took.append(time.perf_counter() - started)
                if status != 200:
                    raise RuntimeError(f"{path} was answered with {status}")
        return took

    with ThreadPoolExecutor(connections) as pool:
        return [time for times in pool.map(ask, range(connections)) for time in times]
