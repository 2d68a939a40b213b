"""Processes of a server for the tests of the value store: played in this process, or real ones in a script."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from metrics.store import Exposition, Store
from metrics.store.internals import set_value_class
from tests.support.servers import PATIENCE, ROOT

MODES: tuple[Literal["livesum", "max", "livemin", "mostrecent", "livemostrecent"], ...] = (
    "livesum",
    "max",
    "livemin",
    "mostrecent",
    "livemostrecent",
)
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # as store.install() does

BUCKETS = (0.1, 1.0, 10.0)


class Worker:
    """One process, played: a store of its own, with the same metrics as the others have."""

    def __init__(self, folder: Path | None) -> None:
        self.store = Store()
        self.registry = CollectorRegistry()
        with self.playing():
            self.store.count_errors(self.registry)
            self.jobs = Counter("jobs", "Jobs done.", ["kind"], registry=self.registry)
            self.seconds = Histogram("job_seconds", "Time.", ["kind"], buckets=BUCKETS, registry=self.registry)
            self.gauges: dict[str, Gauge] = {
                mode: Gauge(f"{mode}_gauge", "A gauge.", multiprocess_mode=mode, registry=self.registry)
                for mode in MODES
            }
        self.exposition = Exposition(self.registry, store=self.store)
        if folder:
            self.store.share(folder)

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Metrics and children that are made in the block belong to this process."""
        before = set_value_class(self.store.value)
        try:
            yield
        finally:
            set_value_class(before)

    def count(self, kind: str, amount: float = 1) -> None:
        with self.playing():
            self.jobs.labels(kind).inc(amount)

    def observe(self, kind: str, seconds: float) -> None:
        with self.playing():
            self.seconds.labels(kind).observe(seconds)

    def die(self) -> None:
        """As by kill -9: nothing is written any more."""
        self.store.stop()

    def scrape(self) -> dict[str, float]:
        """What this process answers to a scrape: each sample's line without its value, and the value."""
        lines = self.exposition.text().decode().split("\n")[:-1]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def run_script(code: str, *arguments: object) -> str:
    """Runs Python code in a process of its own, with warnings as errors; returns what it prints, in both streams."""
    # -u: what is printed before a fork must not be printed by the child once more
    command = [sys.executable, "-u", "-W", "error", "-c", dedent(code), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
