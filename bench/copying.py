"""Preparing the other colour's database while people write to this one: how fast rows are copied, and what they notice.

The servers write to the disk as in production. Each write is one INSERT that commits.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median, quantiles

from bench.measure import Options, ms, say, table
from deploy.databases import preparation
from deploy.databases.copying import size
from deploy.databases.replication import prepare
from deploy.databases.side import Side
from tests.deploy.databases.conftest import OPTIONS
from tests.support.servers import Postgres, postgres_bin

WRITERS, RATE = 8, 50.0  # writes a second of each
TABLES, ROW = 4, 960  # how many are copied, and the bytes of a row's text
GIGABYTE = 1_000_000_000
CALM = 10.0  # seconds of writes before it begins
# As in production; a slot may keep what is written while a gigabyte is copied.
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "shared_buffers": "128MB"}
SERVER = OPTIONS | DURABLE | {"max_slot_wal_keep_size": "4GB", "max_wal_size": "2GB"}


def run(options: Options) -> str:
    rows = options.times(GIGABYTE // ROW // TABLES, 1000)
    with Postgres(SERVER) as one, Postgres(SERVER) as two:
        blue, green = Side("blue", one.url), Side("green", two.url)
        say(f"copy: {TABLES} tables of {rows:,} rows")
        blue.run("create table written (id bigserial primary key, at timestamptz default now())")
        for number in range(TABLES):
            blue.run(f"create table copied_{number} (id bigserial primary key, text text)")
            text = f"select repeat(md5(n::text), {ROW // 32}) from generate_series(1, %s) n"
            blue.run(f"insert into copied_{number} (text) {text}", [rows], timeout=600)
        blue.run("checkpoint", timeout=600)
        notes: list[str] = []
        with writing(blue) as writes:
            time.sleep(options.times(int(CALM), 1))
            began = time.monotonic()
            prepare(
                blue,
                green,
                migrate=lambda: None,
                say=notes.append,
                options=preparation.Options(pg_dump=str(postgres_bin() / "pg_dump")),
            )
            ended = time.monotonic()
        (copied,) = (note for note in notes if note.startswith("copy: ") and " in " in note)
        whole = size(blue.value("select pg_database_size(current_database())"))
        blue.close()
        green.close()
    periods = [
        ("before", [took for at, took in writes if at < began], began - writes[0][0]),
        ("while it was prepared", [took for at, took in writes if began <= at < ended], ended - began),
    ]
    lines = [
        [name, f"{len(took) / length:.0f}/s", ms(median(took)), ms(quantiles(took, n=100)[-1]), ms(max(took))]
        for name, took, length in periods
    ]
    done = f"{whole}, prepared in {ended - began:.0f} s with {WRITERS} writers at work; {copied}."
    return f"A database of {done}\n\n{table(['a write', 'rate', 'median', 'p99', 'max'], lines)}"


@contextmanager
def writing(side: Side) -> Iterator[list[tuple[float, float]]]:
    """Writers at work for as long as the block lasts; gets when each write began, and the seconds that it took."""
    writes: list[tuple[float, float]] = []
    ended = threading.Event()

    def write() -> None:
        with side.session(**{"bg.bypass": "off"}) as session:
            while not ended.is_set():
                began = time.monotonic()
                session.run("insert into written default values", timeout=60)
                writes.append((began, time.monotonic() - began))
                ended.wait(max(0.0, began + 1 / RATE - time.monotonic()))

    threads = [threading.Thread(target=write) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    try:
        yield writes
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    writes.sort()
