"""The value store against a plain model: any order of starts, counts, deaths, forks and scrapes."""

import math
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from metrics.store.internals import value_of
from tests.support.store_worker import BUCKETS, Worker

pytestmark = pytest.mark.slow

KINDS = st.sampled_from(["a", "b", "c", "long " * 4000])  # the last makes files grow
AMOUNTS = st.integers(0, 1000)
SECONDS = st.sampled_from([0.0, 0.1, 0.5, 2.0, 10.0, 64.0])
NUMBERS = st.integers(-5, 5).map(float)


class Server(RuleBasedStateMachine):
    """A folder and the processes that share it, beside what a scrape should show."""

    workers = Bundle("workers")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="slots-"))
        self.outside = Worker(self.folder)  # scrapes and never counts
        self.alive: list[Worker] = []
        self.leased: set[Worker] = set()
        self.most_leased = 0
        self.jobs: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = {}
        self.gauges: dict[str, dict[Worker, float]] = {mode: {} for mode in ("livesum", "max", "livemin")}
        self.recent: dict[Worker, tuple[int, float]] = {}
        self.most_recent = 0.0
        self.clock = 0
        self.shown: Counter[str] = Counter()

    def lease(self, worker: Worker) -> None:
        """What every write does to a process that has no slot yet: its gauges are there, at zero."""
        if worker not in self.leased:
            self.leased.add(worker)
            self.most_leased = max(self.most_leased, len(self.leased))
            for values in self.gauges.values():
                values[worker] = 0.0
            self.recent[worker] = (0, 0.0)

    @rule(target=workers, at_once=st.booleans())
    def start(self, at_once: bool) -> Worker:
        worker = Worker(self.folder)
        if at_once:
            worker.store.lease()
            self.lease(worker)
        self.alive.append(worker)
        return worker

    @rule(worker=workers, kind=KINDS, amount=AMOUNTS)
    def count(self, worker: Worker, kind: str, amount: int) -> None:
        worker.count(kind, amount)
        self.lease(worker)
        self.jobs[kind] += amount

    @rule(worker=workers, kind=KINDS, seconds=SECONDS)
    def observe(self, worker: Worker, kind: str, seconds: float) -> None:
        worker.observe(kind, seconds)
        self.lease(worker)
        self.seconds.setdefault(kind, []).append(seconds)

    @rule(worker=workers, mode=st.sampled_from(["livesum", "max", "livemin"]), number=NUMBERS)
    def set(self, worker: Worker, mode: str, number: float) -> None:
        worker.gauges[mode].set(number)
        self.lease(worker)
        self.gauges[mode][worker] = number

    @rule(worker=workers, number=NUMBERS)
    def add(self, worker: Worker, number: float) -> None:
        worker.gauges["livesum"].inc(number)
        self.lease(worker)
        self.gauges["livesum"][worker] += number

    @rule(worker=workers, number=NUMBERS)
    def set_most_recent(self, worker: Worker, number: float) -> None:
        self.clock += 10
        for mode in ("mostrecent", "livemostrecent"):
            value_of(worker.gauges[mode]).set(number, self.clock)
        self.lease(worker)
        self.recent[worker] = (self.clock, number)
        self.most_recent = number

    @rule(worker=consumes(workers))
    def die(self, worker: Worker) -> None:
        worker.die()
        self.alive.remove(worker)
        self.leased.discard(worker)
        for values in self.gauges.values():
            values.pop(worker, None)
        self.recent.pop(worker, None)

    @rule(worker=workers)
    def become_its_own_child(self, worker: Worker) -> None:
        """As after fork, with the parent gone: the slot is given up, and nothing is inherited."""
        worker.store.forget()
        self.leased.discard(worker)
        for values in self.gauges.values():
            values.pop(worker, None)
        self.recent.pop(worker, None)

    @rule(worker=workers)
    def scrape(self, worker: Worker) -> None:
        self.check(worker)

    @rule()
    def scrape_from_outside(self) -> None:
        self.check(self.outside)

    def check(self, worker: Worker) -> None:
        found = worker.scrape()
        jobs = {kind: found.get(f'jobs_total{{kind="{kind}"}}', 0) for kind in self.jobs}
        assert jobs == dict(self.jobs)
        assert all(jobs[kind] >= count for kind, count in self.shown.items())
        self.shown = Counter(jobs)
        for kind, seconds in self.seconds.items():
            # Added up in another order: each addition rounds by half an ulp at most.
            most = len(seconds) * math.ulp(sum(seconds))
            assert abs(found[f'job_seconds_sum{{kind="{kind}"}}'] - math.fsum(seconds)) <= most
            assert found[f'job_seconds_count{{kind="{kind}"}}'] == len(seconds)
            for bound in (*BUCKETS, float("inf")):
                line = f'job_seconds_bucket{{kind="{kind}",le="{"+Inf" if bound == float("inf") else bound}"}}'
                assert found[line] == sum(one <= bound for one in seconds)
        # Who looks and has no slot yet shows its own gauges at zero as well.
        own = [0.0] if worker not in self.leased else []
        for mode, merge in (("livesum", sum), ("max", max), ("livemin", min)):
            assert found[f"{mode}_gauge"] == merge([*self.gauges[mode].values(), *own])
        assert found["livemostrecent_gauge"] == max([(0, 0.0), *self.recent.values()])[1]
        assert found["mostrecent_gauge"] == self.most_recent

    @invariant()
    def there_is_one_file_for_each_that_lived_at_once(self) -> None:
        assert sorted(path.name for path in self.folder.iterdir()) == [
            f"slot-{number:02}.db" for number in range(self.most_leased)
        ]

    def teardown(self) -> None:
        for worker in [*self.alive, self.outside]:
            worker.die()
        shutil.rmtree(self.folder)


Server.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestServer = Server.TestCase
