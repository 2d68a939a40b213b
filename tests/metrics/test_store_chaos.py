"""Workers killed at random moments: no count is lost but the one that was being made. CHAOS_SEED repeats a run; without
one CI takes the same each time, and the nightly workflow another each night.
"""

import http.client
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.support.servers import PATIENCE, Gunicorn, Postgres, Redis, eventually
from tests.support.store_worker import run_script

pytestmark = pytest.mark.slow


@pytest.fixture
def seed() -> int:
    fresh = 1 if os.environ.get("CI") == "true" else random.SystemRandom().randrange(1 << 32)
    chosen = int(os.environ.get("CHAOS_SEED") or fresh)
    print(f"CHAOS_SEED={chosen}")
    return chosen


KILLING = """
import mmap, os, random, signal, sys, time
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from metrics import store

folder, seed, lives, at_once = sys.argv[1], *map(int, sys.argv[2:])
random.seed(seed)
R = CollectorRegistry()
store.install(R)
JOBS = Counter("jobs", "Jobs.", registry=R)
TIMES = Histogram("times", "Times.", registry=R)
KINDS = Counter("kinds", "New series all the time.", ["kind"], registry=R)
LIVE = Gauge("live", "Processes.", multiprocess_mode="livesum", registry=R)
record = store.recorder((JOBS,), (TIMES,))
store.start(folder)
# What each life has done, for sure: these numbers are not the store's.
done = memoryview(mmap.mmap(-1, 8 * lives)).cast("Q")
series = memoryview(mmap.mmap(-1, 8 * lives)).cast("Q")

def live(life):
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    LIVE.inc()
    while os.getppid() == parent:
        for _ in range(50):
            record(2.0)
            done[life] += 1
        if series[life] < 40:
            KINDS.labels(f"series {series[life]} of {life}, of some length so that files grow").inc()
            series[life] += 1

def scrape():
    lines = exposition.text().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

exposition = store.Exposition(R)
running, shown = [], 0
for life in range(lives):
    running.append(live(life))
    if len(running) == at_once:
        time.sleep(random.random() * 0.03)
        pid = running.pop(random.randrange(at_once))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    found = scrape()
    assert found["jobs_total"] >= shown, (found["jobs_total"], shown)
    shown = found["jobs_total"]
assert 0 < found["live"] <= at_once, found["live"]
for pid in running:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
found = scrape()
lost_or_more = found["jobs_total"] - sum(done)
assert 0 <= lost_or_more <= lives, lost_or_more
assert 0 <= found["times_count"] - sum(done) <= lives
assert abs(found["times_sum"] - 2 * sum(done)) <= 2 * lives
kinds = [value for name, value in found.items() if name.startswith("kinds_total{")]
assert 0 <= len(kinds) - sum(series) <= lives and set(kinds) <= {0.0, 1.0}
assert 0 <= sum(kinds) - sum(series) <= lives
assert found.get("live", 0) == 0
assert found['metrics_store_errors_total{reason="corrupt"}'] == 0
print(sorted(os.listdir(folder)))
"""


def test_counts_are_exact_to_one_for_each_process_killed_while_counting(tmp_path: Path, seed: int) -> None:
    shown = run_script(KILLING, tmp_path, seed, 60, 3)
    # No fourth: the process that scraped counted nothing.
    assert shown == "['slot-00.db', 'slot-01.db', 'slot-02.db']\n"


class Load:
    """Clients that ask for one page until they are told to stop, each request on a connection of its own."""

    def __init__(self, app: Gunicorn, clients: int) -> None:
        self.app = app
        self.answered = self.failed = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            link = http.client.HTTPConnection("127.0.0.1", self.app.port, timeout=PATIENCE)
            try:
                link.request("GET", "/pid/", headers={"Connection": "close"})
                response = link.getresponse()
                body = response.read()
                complete = response.status == 200 and body.isdigit()
            except (OSError, http.client.HTTPException):
                complete = False
            finally:
                link.close()
            with self._lock:
                self.answered += complete
                self.failed += not complete

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)


def scrape(app: Gunicorn) -> dict[str, float]:
    link = http.client.HTTPConnection("127.0.0.1", app.port, timeout=PATIENCE)
    try:
        link.request("GET", "/metrics", headers={"Connection": "close"})
        response = link.getresponse()
        lines = response.read().decode().split("\n")[:-1]
        assert response.status == 200
    finally:
        link.close()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("sync", 2),
        ("gthread", 2),
        pytest.param("sync", 4, marks=pytest.mark.full),
        pytest.param("gthread", 4, marks=pytest.mark.full),
    ],
)
def test_the_scrape_counts_the_requests_sent_through_recycling_reload_and_kill(
    own_postgres: Postgres, own_redis: Redis, seed: int, kind: str, workers: int, full: bool
) -> None:
    chance = random.Random(seed)
    threads = 1 if kind == "sync" else 4
    environment = {
        "DJANGO_SETTINGS_MODULE": "tests.support.more_settings",
        "DATABASE_URL": own_postgres.url,
        "REDIS_URL": own_redis.url,
        "GUNICORN_CMD_ARGS": f"--worker-class {kind}",
        "THREADS": str(threads),
        "MAX_REQUESTS": "60",
        "GRACEFUL_TIMEOUT": "10",
    }
    requests = 'http_requests_total{endpoint="/pid/",method="GET",status="200"}'
    durations = 'http_request_duration_seconds_count{endpoint="/pid/",method="GET"}'
    with Gunicorn(workers, **environment) as app:
        lives = set(app.workers())
        load = Load(app, clients=4)
        events = [signal.SIGKILL] * (4 if full else 2) + [signal.SIGHUP] * (2 if full else 1)
        chance.shuffle(events)
        shown = 0.0
        try:
            for event in events:
                time.sleep(chance.uniform(0.05, 0.6))
                if event == signal.SIGKILL:
                    victim = chance.choice(eventually(app.workers))
                    os.kill(victim, event)
                else:
                    os.kill(app.pid, event)
                now = eventually(lambda: scrape(app)).get(requests, 0.0)
                assert now >= shown, "a total never falls"
                shown = now
                lives |= set(app.workers())
            eventually(lambda: load.answered > 300)
        finally:
            load.stop()
        eventually(lambda: len(app.workers()) == workers)
        kills = events.count(signal.SIGKILL)
        for _ in range(2 * workers):
            found = scrape(app)
            # What was answered was counted; what a killed worker was at may have been counted, and not answered.
            for name in (requests, durations):
                assert 0 <= found[name] - load.answered <= kills * threads, (found[name], load.answered, load.failed)
            assert found['metrics_store_errors_total{reason="corrupt"}'] == 0
        files = sorted(path.name for path in (app.folder / "metrics").iterdir())
        assert workers < len(files) <= 3 * workers
        assert files == [f"slot-{number:02}.db" for number in range(len(files))]
        assert len(lives | set(app.workers())) > workers + kills
        print(
            f"{kind} {workers}: {load.answered} answered, {load.failed} failed, {found[requests]} counted, {files[-1]}"
        )
