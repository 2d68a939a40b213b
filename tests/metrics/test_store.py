"""The values that gunicorn's workers share: leases, totals, what a scrape shows, and what happens to bad files."""

import fcntl
import os
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Metric, Summary, generate_latest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser
from prometheus_client.registry import Collector

from metrics import store
from metrics.store import Exposition, Store, StoreError, noter
from metrics.store.format import HEADER, MAGIC, RECORD
from metrics.store.internals import value_of
from metrics.store.slots import INITIAL_SIZE
from metrics.views import COUNTER_HEAD
from tests.support.servers import PATIENCE
from tests.support.store_worker import Worker, run_script

parse: Callable[[str], Iterable[Metric]] = parser.text_string_to_metric_families
generate_openmetrics: Callable[[Collector], bytes] = openmetrics.generate_latest
JOBS = 'jobs_total{kind="a"}'


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    """Makes processes that share a folder, and ends them after the test."""
    made: list[Worker] = []

    def make() -> Worker:
        made.append(Worker(tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.die()


def slots(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is counted


def test_each_process_shows_the_totals_of_all(worker: Callable[[], Worker]) -> None:
    one, two = worker(), worker()
    one.count("a", 3)
    two.count("a", 4)
    two.count("b", 0.5)
    for scrape in (one.scrape(), two.scrape()):
        assert scrape[JOBS] == 7
        assert scrape['jobs_total{kind="b"}'] == 0.5


def test_histograms_are_stored_plain_and_cumulated_over_all_processes(worker: Callable[[], Worker]) -> None:
    one, two = worker(), worker()
    for seconds in (0.05, 0.1, 5):
        one.observe("a", seconds)
    for seconds in (0.5, 100, 10):
        two.observe("a", seconds)
    scrape = one.scrape()
    assert [scrape[f'job_seconds_bucket{{kind="a",le="{le}"}}'] for le in ("0.1", "1.0", "10.0", "+Inf")] == [
        2,
        3,
        5,
        6,
    ]
    assert scrape['job_seconds_count{kind="a"}'] == 6
    assert scrape['job_seconds_sum{kind="a"}'] == pytest.approx(115.65)


def test_a_successor_takes_over_the_slot_with_its_totals_and_resets_its_gauges(
    worker: Callable[[], Worker], tmp_path: Path
) -> None:
    first = worker()
    first.count("a", 5)
    first.gauges["livesum"].set(8)
    first.die()
    second = worker()
    second.count("a", 1)
    assert slots(tmp_path) == ["slot-00.db"]
    assert second.scrape()[JOBS] == 6
    assert second.scrape()["livesum_gauge"] == 0


def test_gauges_of_the_dead_do_not_count_except_the_one_set_most_recently(worker: Callable[[], Worker]) -> None:
    dead, live = worker(), worker()
    for value, one in ((9.0, dead), (2.0, live)):
        for gauge in one.gauges.values():
            gauge.set(value)
    dead.gauges["mostrecent"].set(7)
    dead.gauges["livemostrecent"].set(7)
    dead.gauges["livemin"].set(-7)
    before = live.scrape()
    assert [before[f"{mode}_gauge"] for mode in live.gauges] == [11, 9, -7, 7, 7]
    dead.die()
    after = live.scrape()
    assert [after[f"{mode}_gauge"] for mode in live.gauges] == [2, 2, 2, 7, 2]
    successor = worker()
    successor.store.lease()
    assert live.scrape()["mostrecent_gauge"] == 7


def test_a_gauge_that_no_live_process_has_is_not_shown(worker: Callable[[], Worker]) -> None:
    dead, live = worker(), worker()
    with dead.playing():
        Gauge("rare", "Rare.", ["kind"], multiprocess_mode="livesum", registry=dead.registry).labels("a").set(1)
    outside = Exposition(CollectorRegistry(), others=True, store=live.store)
    assert b'rare{kind="a"} 1.0' in outside.text()
    dead.die()
    assert b"rare{" not in outside.text()
    worker().store.lease()
    assert b"rare{" not in outside.text()


def test_what_was_counted_before_start_is_carried_into_the_slot(tmp_path: Path) -> None:
    early = Worker(None)
    early.count("a", 2)
    early.gauges["max"].set(3)
    assert slots(tmp_path) == []
    early.store.start(str(tmp_path))
    try:
        assert slots(tmp_path) == ["slot-00.db"]
        other = Worker(tmp_path)
        assert other.scrape()[JOBS] == 2
        assert other.scrape()["max_gauge"] == 3
    finally:
        early.die()


def test_a_process_that_only_looks_takes_no_slot(worker: Callable[[], Worker], tmp_path: Path) -> None:
    looking = worker()
    assert looking.scrape()["livesum_gauge"] == 0
    assert value_of(looking.gauges["livesum"]).get() == 0
    assert slots(tmp_path) == []


def test_threads_lose_no_increment(worker: Callable[[], Worker]) -> None:
    one = worker()
    with one.playing():
        record = store.recorder((one.jobs.labels("a"),), (one.seconds.labels("a"),))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: [record(0.5) for _ in range(5000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    scrape = one.scrape()
    assert scrape[JOBS] == scrape['job_seconds_count{kind="a"}'] == 40_000
    assert scrape['job_seconds_sum{kind="a"}'] == 20_000


def test_the_fast_ways_count_like_the_metrics_own(worker: Callable[[], Worker]) -> None:
    slow, fast = worker(), worker()
    for one in (slow, fast):
        with one.playing():
            one.jobs.labels("a"), one.seconds.labels("a")
    add, observe = store.adder(fast.gauges["livesum"]), store.observer(fast.seconds.labels("a"))
    record = store.recorder((fast.jobs.labels("a"),), (fast.seconds.labels("a"),))
    amounts = (0, 0.1, 0.10001, 1, 9.99, 10, 1e9, float("inf"), -1)
    for amount in amounts:
        slow.jobs.labels("a").inc()
        slow.seconds.labels("a").observe(amount)
        slow.seconds.labels("a").observe(amount)
        slow.gauges["livesum"].inc(2)
        record(amount)
        observe(amount)
        add(2)
    assert generate_latest(slow.registry) == generate_latest(fast.registry)


def test_values_made_while_the_file_grows_keep_what_they_had(worker: Callable[[], Worker], tmp_path: Path) -> None:
    one, other = worker(), worker()
    with one.playing():
        add = store.adder(one.jobs.labels("a"))
    add(1)
    for number in range(2000):
        one.count(f"kind number {number}")
        add(1)
    grown = (tmp_path / "slot-00.db").stat()
    assert grown.st_size > INITIAL_SIZE
    assert (
        grown.st_blocks * 512 >= grown.st_size
    ), "a hole in the file would be filled when it is written, or not (SIGBUS)"
    scrape = other.scrape()
    assert scrape[JOBS] == 2001
    assert sum(value for name, value in scrape.items() if name.startswith("jobs_total")) == 4001


# The number of files


def test_files_are_as_many_as_the_most_processes_that_lived_at_once(
    worker: Callable[[], Worker], tmp_path: Path
) -> None:
    old = [worker(), worker()]
    for _ in range(5):  # a reload: the new ones start before the old ones end
        new = [worker(), worker()]
        for one in old + new:
            one.count("a")
        for one in old:
            one.die()
        old = new
    assert slots(tmp_path) == [f"slot-0{number}.db" for number in range(4)]
    assert old[0].scrape()[JOBS] == 20


def test_two_thousand_lives_leave_as_much_to_read_as_two(tmp_path: Path) -> None:
    def live() -> None:
        one = Store()
        value = one.value("counter", "jobs", "jobs_total", ("kind",), ("a",), "Jobs done.")
        one.share(tmp_path)
        value.inc(1)
        one.stop()

    def content() -> list[tuple[str, int]]:
        return [(path.name, path.stat().st_size) for path in sorted(tmp_path.iterdir())]

    live()
    live()
    after_two = content()
    for _ in range(1998):
        live()
    assert content() == after_two
    assert Worker(tmp_path).scrape()[JOBS] == 2000


def test_a_scrape_asks_about_leases_and_takes_none(
    worker: Callable[[], Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, dead = worker(), worker()
    live.count("a")
    dead.count("a")
    live.gauges["livesum"].set(1)
    dead.gauges["livesum"].set(1)
    dead.die()
    asked = []
    real = fcntl.fcntl

    def spy(file: int, command: int, argument: bytes) -> object:
        asked.append(command)
        return real(file, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", spy)
    assert live.scrape()["livesum_gauge"] == 1
    assert set(asked) == {fcntl.F_OFD_GETLK}  # type: ignore[attr-defined,unused-ignore]


def test_merging_files_at_exit_would_count_double_where_a_lease_does_not(
    worker: Callable[[], Worker], tmp_path: Path
) -> None:
    """The road not taken: an exiting worker's file is merged into an archive, and a scrape comes in between."""
    for name in ("archive", "merging"):
        (tmp_path / name).mkdir()
    key = mmap_key("jobs", "jobs_total", ["kind"], ["a"], "Jobs done.")

    def write(path: Path, total: float) -> None:
        file = MmapedDict(str(path))  # type: ignore[no-untyped-call]
        file.write_value(key, total, 0)  # type: ignore[no-untyped-call]
        file.close()  # type: ignore[no-untyped-call]

    def total() -> float | None:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(tmp_path / "merging"))  # type: ignore[no-untyped-call]
        return registry.get_sample_value("jobs_total", {"kind": "a"})

    live = tmp_path / "merging" / "counter_100.db"
    write(live, 5)
    assert total() == 5
    write(tmp_path / "archive" / "new", 5)
    (tmp_path / "archive" / "new").rename(tmp_path / "merging" / "counter_archive.db")
    between_rename_and_unlink = total()
    live.unlink()
    assert (between_rename_and_unlink, total()) == (10, 5)

    dying, scraping = worker(), worker()
    dying.count("a", 5)
    seen = [scraping.scrape()[JOBS]]
    dying.die()
    seen.append(scraping.scrape()[JOBS])
    worker().store.lease()
    seen.append(scraping.scrape()[JOBS])
    assert seen == [5, 5, 5]


# What a scrape shows


class Fixed(Collector):
    """A collector with a value of its own, not stored."""

    def collect(self) -> Iterable[Metric]:
        metric = Metric("computed", "Computed.", "gauge")
        metric.add_sample("computed", {"of": "this process"}, 1.5)
        return [metric]


def awkward_metrics(registry: CollectorRegistry) -> None:
    """One of everything that prometheus_client can show."""
    awkward = ["plain", 'quo"te', "back\\slash", "new\nline", "percent %s %d", "brace } x", "Grüße 你好", "", " blank "]
    Counter("no_children", "Nothing yet.", ["kind"], registry=registry)
    Histogram("no_children_either", "Nothing yet.", ["kind"], registry=registry)
    counter = Counter("awkward", "Help with a\nline, a \\ and a %s.", ["zed", "alpha"], registry=registry)
    for power, label in enumerate(awkward):
        counter.labels(label, "x").inc(10.0**power + 0.25)
    numbers = Gauge("numbers", "Numbers.", ["which"], multiprocess_mode="max", registry=registry)
    for number in (0.0, -1, 0.1, 999999, 1e6, 123456789, 1.5e300, -2e9, float("inf"), float("-inf"), float("nan")):
        numbers.labels(str(number)).set(number)
    histogram = Histogram("awkward_seconds", "Time.", ["kind"], buckets=(1e-9, 0.5, 3, 2e7), registry=registry)
    for label in awkward:
        histogram.labels(label).observe(0.75)
    negative = Histogram("negative", "Bounds below zero: no sum.", buckets=(-1, 0, 1), registry=registry)
    negative.observe(-0.5)
    Histogram("bare_bytes", "Without labels.", unit="bytes", registry=registry).observe(3)
    Summary("short", "A summary.", ["kind"], registry=registry).labels("a").observe(0.3)
    Info("build", "A build.", registry=registry).info({"version": "1.2"})
    Enum("state", "A state.", states=["up", "down"], registry=registry).state("down")
    Gauge("asked", "Asks a function.", multiprocess_mode="livesum", registry=registry).set_function(lambda: 42)
    asked = Gauge("asked_too", "Asks for a child.", ["of"], multiprocess_mode="livesum", registry=registry)
    asked.labels("one").set_function(lambda: 43)
    registry.register(Fixed())


def test_one_processes_scrape_is_byte_for_byte_that_of_prometheus_client(worker: Callable[[], Worker]) -> None:
    one = worker()
    with one.playing():
        awkward_metrics(one.registry)
    one.count("a")
    assert one.exposition.text() == generate_latest(one.registry)
    assert generate_openmetrics(one.exposition) == generate_openmetrics(one.registry)


def test_the_fast_text_of_several_processes_is_what_prometheus_client_makes_of_the_families(
    worker: Callable[[], Worker],
) -> None:
    one, two, three = worker(), worker(), worker()
    for process in (one, two):
        with process.playing():
            awkward_metrics(process.registry)
        process.count("a")
    three.observe("only here", 1)
    two.die()
    for process in (one, three):
        everything = Exposition(process.registry, others=True, store=process.store)
        assert everything.text() == generate_latest(everything)
        assert b'awkward_total{alpha="x",zed="plain"} 2.5\n' in everything.text()
        assert b'kind="only here"' in everything.text()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=5), st.floats(min_value=0)), min_size=1, max_size=5, unique_by=lambda x: x[0])
)
def test_any_label_and_number_reads_as_prometheus_client_writes_it(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, float]]
) -> None:
    one = Worker(tmp_path_factory.mktemp("slots"))
    try:
        for label, number in pairs:
            one.count(label, number)
        if all(label == label.encode("utf-8", "replace").decode() for label, _ in pairs):
            assert one.exposition.text() == generate_latest(one.registry)
        else:
            assert one.exposition.text()
    finally:
        one.die()


def test_before_start_values_are_this_processes_own(tmp_path: Path) -> None:
    alone = Worker(None)
    alone.count("a", 2)
    alone.observe("a", 0.5)
    alone.gauges["max"].set(4)
    assert alone.scrape()[JOBS] == 2
    assert alone.exposition.text() == generate_latest(alone.registry)
    assert list(alone.exposition.collect()) == list(alone.registry.collect())


def test_series_appear_in_a_scrape_that_was_laid_out_before(worker: Callable[[], Worker]) -> None:
    one, two = worker(), worker()
    one.count("a")
    assert 'jobs_total{kind="b"}' not in one.scrape()
    two.count("b")
    assert one.scrape()['jobs_total{kind="b"}'] == 1
    with one.playing():
        Counter("late", "Registered late.", registry=one.registry).inc()
    assert one.scrape()["late_total"] == 1


def test_only_the_registrys_own_metrics_are_shown_unless_others_are_asked_for(worker: Callable[[], Worker]) -> None:
    one = worker()
    one.count("a")
    few = CollectorRegistry()
    few.register(one.jobs)
    assert Exposition(few, store=one.store).text() == generate_latest(few)
    assert b"livesum_gauge" in Exposition(few, others=True, store=one.store).text()


def test_a_metric_whose_type_changed_between_versions_shows_as_this_process_knows_it(
    worker: Callable[[], Worker], caplog: pytest.LogCaptureFixture
) -> None:
    old, new = worker(), worker()
    with old.playing():
        Gauge("changing", "As a gauge.", multiprocess_mode="livesum", registry=old.registry).set(5)
    with new.playing():
        Histogram("changing", "As a histogram.", buckets=(1,), registry=new.registry).observe(0.5)
    assert new.exposition.text() == generate_latest(new.exposition)
    assert b"# TYPE changing histogram" in new.exposition.text()
    assert b"changing 5" not in new.exposition.text()
    assert [record.message for record in caplog.records] == [
        "changing is stored with another type or mode than this histogram: those values are skipped"
    ]


@pytest.mark.parametrize("mode", ["all", "liveall"])
def test_gauges_per_process_are_refused(mode: str) -> None:
    one = Worker(None)
    with one.playing(), pytest.raises(ValueError, match=f"Gauge depth: multiprocess_mode '{mode}' .* Choose livesum"):
        Gauge("depth", "Depth.", multiprocess_mode=mode, registry=one.registry)  # type: ignore[arg-type]


def test_exemplars_are_dropped_without_harm(worker: Callable[[], Worker]) -> None:
    one = worker()
    with one.playing():
        one.jobs.labels("a").inc(2, exemplar={"trace": "x"})
        one.seconds.labels("a").observe(0.5, exemplar={"trace": "x"})
    assert one.scrape()[JOBS] == 2
    assert b"trace" not in generate_openmetrics(one.exposition)


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=5))
def test_a_bucket_shows_the_latest_trace_of_all_processes(
    tmp_path_factory: pytest.TempPathFactory, ids: list[bytes]
) -> None:
    """Whatever bits an id has: as numbers, some are no numbers (NaN)."""
    folder = tmp_path_factory.mktemp("slots")
    workers = [Worker(folder), Worker(folder)]
    try:
        for turn, trace in enumerate(ids):
            one = workers[turn % 2]
            one.observe("a", 0.5)
            with one.playing():
                noter(one.seconds.labels("a"), one.store)(0.5, trace.hex())
        for one in workers:
            text = COUNTER_HEAD.sub(rb"\1 ", one.exposition.text(exemplars=True)).decode() + "# EOF\n"
            (family,) = [each for each in parse(text) if each.name == "job_seconds"]
            found = {sample.labels["le"]: sample.exemplar for sample in family.samples if sample.exemplar}
            assert list(found) == ["1.0"]
            assert (found["1.0"].labels, found["1.0"].value) == ({"trace_id": ids[-1].hex()}, 0.5)
            assert abs(time.time() - float(found["1.0"].timestamp or 0)) < PATIENCE
            assert one.scrape()['job_seconds_count{kind="a"}'] == len(ids)
            assert b"trace" not in one.exposition.text() + generate_openmetrics(one.exposition)
    finally:
        for one in workers:
            one.die()


def test_a_successors_exemplars_begin_where_the_former_workers_ended(worker: Callable[[], Worker]) -> None:
    one = worker()
    one.observe("a", 0.5)
    with one.playing():
        noter(one.seconds.labels("a"), one.store)(0.5, "ab" * 16)
    one.die()
    two = worker()
    two.observe("a", 0.5)
    assert b"ab" * 16 in two.exposition.text(exemplars=True)
    with two.playing():
        noter(two.seconds.labels("a"), two.store)(0.7, "cd" * 16)
    assert b"cd" * 16 in (text := two.exposition.text(exemplars=True)) and b"ab" * 16 not in text


# Start


def test_start_empties_the_folder_of_slots_and_of_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = Worker(tmp_path)
    before.count("a")
    before.die()
    others = ["notes.txt", "slot-00.db.corrupt", "slot-0.db", "slot-00.dbx", "counter_12.db"]
    for name in others:
        (tmp_path / name).write_text("not ours")
    (tmp_path / "slot-01.db").write_text("not ours, under a name of ours" * 10)
    (tmp_path / "slot-02.db").touch()
    master = Store()
    master.start(str(tmp_path))
    master.stop()
    assert slots(tmp_path) == sorted([*others, "slot-01.db.corrupt"])
    assert [record.message.partition(" is ")[2] for record in caplog.records] == [
        "corrupt (not a slot of this version): renamed to slot-01.db.corrupt; its totals are lost"
    ]


def test_start_beside_a_live_server_carries_its_totals_on(
    worker: Callable[[], Worker], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead, live = worker(), worker()
    dead.count("a", 2)
    live.count("a", 3)
    dead.die()
    upgraded = Worker(None)
    upgraded.store.start(str(tmp_path))
    assert upgraded.scrape()[JOBS] == 5
    assert "is in use by a live process: keeping its totals" in caplog.text
    upgraded.die()


def test_start_makes_the_folder_for_its_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "metrics"
    one = Worker(None)
    one.store.start(str(folder))
    one.count("a")
    one.die()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "slot-00.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("folder", ["", "file", "file/below", "/proc/metrics"])
def test_a_folder_that_cannot_be_used_is_refused_by_the_variables_name(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    path = str(tmp_path / folder) if folder else ""
    with pytest.raises(StoreError, match=r"^METRICS_DIR.* Expected a folder.* See \.env\.example\.$"):
        Store().start(path)


def test_a_second_start_is_refused(tmp_path: Path) -> None:
    one = Store()
    one.start(str(tmp_path))
    with pytest.raises(StoreError, match="is already started"):
        one.start(str(tmp_path))


# Bad files


def record_bytes(payload: bytes, size: int | None = None) -> bytes:
    return RECORD.pack(size or RECORD.size + len(payload), zlib.crc32(payload), 1.0, 1.0) + payload


def slot_bytes(*records: bytes, end: int | None = None) -> bytes:
    body = b"".join(records)
    head = struct.pack("=QQ", MAGIC, HEADER + len(body) if end is None else end)
    return head.ljust(HEADER, b"\0") + body


GOOD = b'["counter","","jobs","_total",{"kind":"a"}]\nHelp.'.ljust(56)
BAD_FILES = {
    "foreign text": b"hello, this is somebody's file\n" * 10,
    "foreign and short": b"hello",
    "a header cut short": slot_bytes()[:20],
    "an end before the header's": slot_bytes(end=8),
    "an odd end": slot_bytes(record_bytes(GOOD), end=HEADER + 1),
    "an end beyond the file": slot_bytes(record_bytes(GOOD), end=1 << 60),
    "a record of size 0": slot_bytes(bytes(80)),
    "a record larger than the file": slot_bytes(record_bytes(GOOD, 8000)),
    "a record without payload": slot_bytes(record_bytes(b"")),
    "records out of step with eight bytes": slot_bytes(record_bytes(GOOD + b"    "), record_bytes(GOOD + b"    ")),
    "a wrong checksum": slot_bytes(record_bytes(GOOD)[:-1] + b"!"),
    "no JSON": slot_bytes(record_bytes(b"[[[[[[[[")),
    "deep JSON": slot_bytes(record_bytes(b"[" * 100_000)),
    "too few fields": slot_bytes(record_bytes(b'["counter"]'.ljust(16))),
    "a number for a label": slot_bytes(record_bytes(b'["counter","","jobs","_total",{"kind":1}]'.ljust(48))),
    "a list for labels": slot_bytes(record_bytes(b'["counter","","jobs","_total",["kind"]]'.ljust(40))),
    "no bound": slot_bytes(record_bytes(b'["histogram","","x","_bucket",{}]'.ljust(40))),
    "a bound that is no number": slot_bytes(record_bytes(b'["histogram","","x","_bucket",{"le":"high"}]'.ljust(48))),
    "a type that there is not": slot_bytes(record_bytes(b'["counters","","jobs","_total",{}]'.ljust(40))),
    "a name that is none": slot_bytes(record_bytes(b'["counter","","","_total",{}]'.ljust(32))),
}


def test_the_bytes_that_these_tests_write_are_a_good_slot(worker: Callable[[], Worker], tmp_path: Path) -> None:
    (tmp_path / "slot-00.db").write_bytes(slot_bytes(record_bytes(GOOD)))
    one = worker()
    assert one.scrape()[JOBS] == 1
    one.count("a")
    assert one.scrape()[JOBS] == 2
    assert slots(tmp_path) == ["slot-00.db"]


@pytest.mark.parametrize("bad", BAD_FILES)
def test_a_corrupt_file_is_set_aside_at_a_scrape_with_one_line_and_a_count(
    worker: Callable[[], Worker], tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: str
) -> None:
    one = worker()
    one.count("a")
    (tmp_path / "slot-01.db").write_bytes(BAD_FILES[bad])
    for _ in range(3):
        assert one.scrape()[JOBS] == 1
    assert slots(tmp_path) == ["slot-00.db", "slot-01.db.corrupt"]
    assert (tmp_path / "slot-01.db.corrupt").read_bytes() == BAD_FILES[bad]
    (line,) = (record.message for record in caplog.records)
    assert line.startswith(f"{tmp_path}/slot-01.db is corrupt (") and "renamed to slot-01.db.corrupt" in line
    assert one.scrape()['metrics_store_errors_total{reason="corrupt"}'] == 1


@pytest.mark.parametrize("bad", BAD_FILES)
def test_a_corrupt_file_is_set_aside_at_a_lease_with_one_line_and_a_count(
    worker: Callable[[], Worker], tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: str
) -> None:
    (tmp_path / "slot-00.db").write_bytes(BAD_FILES[bad])
    one = worker()
    one.count("a")
    assert slots(tmp_path) == ["slot-00.db", "slot-00.db.corrupt"]
    assert one.scrape()[JOBS] == 1
    assert one.scrape()['metrics_store_errors_total{reason="corrupt"}'] == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "socket"])
@pytest.mark.parametrize("found_by", ["lease", "scrape"])
def test_what_is_no_regular_file_is_set_aside(
    worker: Callable[[], Worker], tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, found_by: str
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    path = tmp_path / "slot-00.db"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(other)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        before = os.getcwd()
        os.chdir(tmp_path)  # a socket's path is short
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
        finally:
            os.chdir(before)
    one = worker()
    if found_by == "scrape":
        one.scrape()
        assert path.with_name("slot-00.db.corrupt").lstat()
    one.count("a")
    assert one.scrape()[JOBS] == 1
    assert other.read_bytes() == b"precious"
    assert [record.message.partition(" is ")[2] for record in caplog.records] == [
        "corrupt (not a regular file): renamed to slot-00.db.corrupt; its totals are lost"
    ]


def test_a_file_that_is_broken_while_a_process_uses_it_is_left_out_with_one_line(
    worker: Callable[[], Worker], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = worker(), worker()
    one.count("a")
    two.count("a", 10)
    with (tmp_path / "slot-01.db").open("r+b") as file:
        file.write(b"garbage!")
    for _ in range(3):
        assert one.scrape()[JOBS] == 1
    assert [record.message.partition(" is ")[2] for record in caplog.records] == [
        "corrupt (not a slot of this version) and in use by a live process: skipped"
    ]
    two.die()
    assert one.scrape()[JOBS] == 1
    assert slots(tmp_path) == ["slot-00.db", "slot-01.db.corrupt"]


def test_a_file_cut_short_at_any_byte_is_whole_or_set_aside(tmp_path: Path) -> None:
    published = slot_bytes(record_bytes(GOOD))
    whole = published + bytes(16)
    for length in range(len(whole) + 1):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / "slot-00.db").write_bytes(whole[:length])
        reader = Worker(folder)
        intact = length >= len(published)
        assert reader.scrape().get(JOBS) == (1 if intact else None)
        assert (folder / "slot-00.db.corrupt").exists() == (0 < length < len(published))
        reader.count("a")
        assert reader.scrape()[JOBS] == (2 if intact else 1)
        reader.die()


def test_a_record_torn_at_any_byte_is_not_there_and_the_next_one_takes_its_place(
    worker: Callable[[], Worker], tmp_path: Path
) -> None:
    writer = worker()
    writer.count("a", 3)
    before = (tmp_path / "slot-00.db").read_bytes()
    (end,) = struct.unpack_from("=Q", before, 8)
    writer.count("b")
    after = (tmp_path / "slot-00.db").read_bytes()
    (published,) = struct.unpack_from("=Q", after, 8)
    writer.die()
    for torn in range(end, published + 1):
        folder = tmp_path / str(torn)
        folder.mkdir()
        (folder / "slot-00.db").write_bytes(before[:end] + after[end:torn] + before[torn:])
        successor = Worker(folder)
        assert successor.scrape()[JOBS] == 3
        assert 'jobs_total{kind="b"}' not in successor.scrape()
        successor.count("b", 2)
        assert (successor.scrape()[JOBS], successor.scrape()['jobs_total{kind="b"}']) == (3, 2)
        successor.die()
        assert slots(folder) == ["slot-00.db"]


def test_a_record_whose_bytes_arrive_after_its_publication_is_read_at_the_next_scrape(
    worker: Callable[[], Worker], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a processor may show another's writes in another order."""
    writer, reader = worker(), worker()
    writer.count("a", 3)
    path = tmp_path / "slot-00.db"
    (end,) = struct.unpack_from("=Q", path.read_bytes(), 8)
    writer.count("b")
    whole = path.read_bytes()
    (published,) = struct.unpack_from("=Q", whole, 8)
    with path.open("r+b") as file:
        file.seek(end)
        file.write(bytes(published - end))
    scrape = reader.scrape()
    assert scrape[JOBS] == 3 and 'jobs_total{kind="b"}' not in scrape
    with path.open("r+b") as file:
        file.seek(end)
        file.write(whole[end:published])
    assert reader.scrape()['jobs_total{kind="b"}'] == 1
    assert not caplog.records


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=8))
def test_no_garbling_of_a_file_raises(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]) -> None:
    folder = tmp_path_factory.mktemp("slots")
    writer = Worker(folder)
    writer.count("a")
    writer.observe("a", 0.5)
    writer.die()
    path = folder / "slot-00.db"
    content = bytearray(path.read_bytes())
    for position, byte in changes:
        content[position] = byte
    path.write_bytes(content)
    reader, successor = Worker(folder), Worker(folder)
    reader.scrape()
    successor.count("b")
    assert reader.scrape()['jobs_total{kind="b"}'] == successor.scrape()['jobs_total{kind="b"}'] == 1
    reader.die()
    successor.die()


def test_the_folder_may_vanish(worker: Callable[[], Worker], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    one = Worker(folder)
    folder.rmdir()
    for _ in range(3):
        one.count("a")
        assert one.scrape()[JOBS]
    assert one.scrape()[JOBS] == 3
    assert one.scrape()['metrics_store_errors_total{reason="space"}'] >= 1
    folder.mkdir()
    one.scrape()
    assert Worker(folder).scrape()[JOBS] == 3
    one.die()


# Real processes

PRELUDE = """
import logging, os, resource, signal, sys
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from metrics import store
R = CollectorRegistry()
store.install(R)
JOBS = Counter("jobs", "Jobs done.", ["kind"], registry=R)
GAUGE = Gauge("gauge", "A gauge.", multiprocess_mode="livesum", registry=R)
A = JOBS.labels("a")
record = store.recorder((A,), ())
exposition = store.Exposition(R)
def scrape():
    lines = exposition.text().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}
def child(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid
"""


def test_metrics_made_before_the_fork_write_to_each_childs_own_slot(tmp_path: Path) -> None:
    shown = run_script(
        PRELUDE + """
A.inc(5)
store.start(sys.argv[1])
record()
ready, done = os.pipe(), os.pipe()
def work():
    os.close(done[1])
    store.lease()
    for _ in range(10): record()
    A.inc(90)
    JOBS.labels("b").inc()
    os.write(ready[1], b"x")
    os.read(done[0], 1)
for _ in range(3): child(work)
for _ in range(3): os.read(ready[0], 1)
found = scrape()
own = store.internals.value_of(A).get()
print(len(os.listdir(sys.argv[1])), own, found['jobs_total{kind="a"}'], found['jobs_total{kind="b"}'])
""",
        tmp_path,
    )
    assert shown.split() == ["4", "6.0", "306.0", "3.0"]


def test_a_childs_child_does_not_keep_its_parents_slot(tmp_path: Path) -> None:
    shown = run_script(
        PRELUDE + """
store.start(sys.argv[1])
hold, ready = os.pipe(), os.pipe()
def worker():
    A.inc()
    def linger():
        os.write(ready[1], b"x")
        os.close(hold[1])
        os.read(hold[0], 1)
    child(linger)
    os.read(ready[0], 1)
    os.kill(os.getpid(), signal.SIGKILL)
for _ in range(3):
    os.waitpid(child(worker), 0)
print(os.listdir(sys.argv[1]), scrape()['jobs_total{kind="a"}'])
""",
        tmp_path,
    )
    assert shown == "['slot-00.db'] 3.0\n"


def test_a_full_disk_keeps_values_in_the_process_until_there_is_room(tmp_path: Path) -> None:
    shown = run_script(
        PRELUDE + """
logging.basicConfig(format="LOG %(message)s")
store.start(sys.argv[1])
A.inc(7)
GAUGE.set(2)
resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, -1))
kinds = [f"kind number {n}" for n in range(1500)]
for n, kind in enumerate(kinds):
    JOBS.labels(kind).inc(n)
    record()
def right(found):
    assert found['jobs_total{kind="a"}'] == 1507
    assert found["gauge"] == 2
    assert [found[f'jobs_total{{kind="{kind}"}}'] for kind in kinds] == list(range(1500))
    print(found['metrics_store_errors_total{reason="space"}'])
right(scrape())
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
right(scrape())
os.waitpid(child(lambda: (right(scrape()), sys.stdout.flush())), 0)
""",
        tmp_path,
    )
    assert shown.count("1.0\n") == 3
    logged = [line for line in shown.splitlines() if line.startswith("LOG")]
    assert len(logged) == 1
    assert "File too large" in logged[0] and "Until there is room" in logged[0]


def test_a_disk_without_room_for_a_single_slot_is_survived(tmp_path: Path) -> None:
    shown = run_script(
        PRELUDE + """
logging.basicConfig(format="LOG %(message)s")
store.start(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))
store.lease()
for _ in range(3): record()
print(scrape()['jobs_total{kind="a"}'], scrape()['metrics_store_errors_total{reason="space"}'])
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
record()
scrape()
os.waitpid(child(lambda: print(scrape()['jobs_total{kind="a"}'], flush=True)), 0)
""",
        tmp_path,
    )
    lines = shown.splitlines()
    assert [line for line in lines if not line.startswith("LOG")] == ["3.0 1.0", "4.0"]
    assert len(lines) == 3
