"""Writers that note each acknowledgement, and a third party that looks who may write, while databases are switched.

A writer does as the app's backend: it enters each transaction, and moves to the other colour if it is fenced.
"""

import json
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from typing import Any

from deploy.databases import fence, heartbeat
from deploy.databases.errors import DatabaseError, TimedOut, Unreachable
from deploy.databases.side import Side
from tests.support.servers import PATIENCE, ROOT

TABLES = """
create table entry (id bigserial primary key, key uuid not null unique, writer int not null);
create table total (writer int primary key, n bigint not null);
"""
# Repeated, as after a commit that was not answered, it adds nothing.
WRITE = """
with new as (insert into entry (key, writer) values (%s, %s) on conflict (key) do nothing returning 1)
update total set n = n + (select count(*) from new) where writer = %s
"""


@dataclass(frozen=True)
class Acknowledged:
    """A write whose commit was answered; `at` is of time.monotonic()."""

    at: float
    key: str
    colour: str


@dataclass(frozen=True)
class Tally:
    """What became of the writes, on both sides: acknowledged and not there, there twice, and whether they are equal."""

    written: int
    lost: int
    doubled: int
    equal: bool
    failed: list[str]
    both_writable: int


class Writers:
    """So many writers with so many writes a second each, from start() to stop(). Blue and green are linked."""

    def __init__(self, blue: Side, green: Side, count: int = 4, rate: float = 25.0, *, answer: float = 20.0) -> None:
        self.urls = {side.colour: side.url for side in (blue, green)}
        self.rate, self.answer = rate, answer
        self.acknowledged: list[Acknowledged] = []
        self.failed: list[str] = []
        self.both = 0
        self.ended = threading.Event()
        names = range(1, count + 1)
        blue.run(f"insert into total values {', '.join(f'({name}, 0)' for name in names)} on conflict do nothing")
        self.threads = [threading.Thread(target=self._write, args=(name,)) for name in names]
        self.threads.append(threading.Thread(target=self._look))

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def wait_for(self, count: int) -> None:
        """Waits until so many writes more were acknowledged."""
        goal, until = len(self.acknowledged) + count, time.monotonic() + PATIENCE
        while len(self.acknowledged) < goal:
            assert time.monotonic() < until and not self.failed, self.failed or "writers make no progress"
            time.sleep(0.005)

    def _sides(self) -> dict[str, Side]:
        return {colour: Side(colour, url, **{"bg.bypass": "off"}) for colour, url in self.urls.items()}

    def _write(self, name: int) -> None:
        sides = self._sides()
        colours = list(sides)
        try:
            while not self.ended.is_set():
                started, key = time.monotonic(), str(uuid.uuid4())
                while not self._written(sides[colours[0]], key, name):
                    colours.reverse()
                    time.sleep(0.001)
                self.acknowledged.append(Acknowledged(time.monotonic(), key, colours[0]))
                self.ended.wait(max(0.0, 1 / self.rate - (time.monotonic() - started)))
        except BaseException as error:
            self.failed.append(f"{type(error).__name__}: {error}")
        finally:
            for side in sides.values():
                side.close()

    def _written(self, side: Side, key: str, name: int) -> bool:
        """Whether it was acknowledged; not if it has to be repeated, maybe on the other side."""
        try:
            side.run("begin; select bg.enter()", timeout=self.answer)
            side.run(WRITE, [key, name, name], timeout=self.answer)
            side.run("commit", timeout=self.answer)
        except (TimedOut, Unreachable):
            return False
        except DatabaseError as error:
            if error.code != "BG001":
                raise
            with suppress(DatabaseError):
                side.run("rollback", timeout=self.answer)  # and the connection stays open, for the way back
            return False
        return True

    def _look(self) -> None:
        """Reads blue, green, and blue again: all three writable under one number means that both were at once."""
        sides = self._sides()
        blue, green = sides.values()
        while not self.ended.wait(0.002):
            try:
                first, between, last = (fence.read(side, timeout=self.answer) for side in (blue, green, blue))
            except DatabaseError:
                continue
            self.both += first.writable and between.writable and last.writable and first.attempt == last.attempt
        for side in sides.values():
            side.close()

    def tally(self, blue: Side, green: Side) -> Tally:
        """Compares what was acknowledged with what is there, once the writers have stopped and all has arrived."""
        writes, follows = (blue, green) if fence.read(blue).writable else (green, blue)
        arrived = heartbeat.arrives(follows, writes.colour, heartbeat.beat(writes), PATIENCE, answer=PATIENCE)
        found = [side.run("select id, key::text, writer from entry order by id") for side in (blue, green)]
        totals = [side.run("select writer, n from total order by writer") for side in (blue, green)]
        keys = Counter(key for _, key, _ in found[0])
        return Tally(
            written=len(self.acknowledged),
            lost=sum(not keys[each.key] for each in self.acknowledged),
            doubled=sum(keys.values()) - len(keys) + abs(sum(n for _, n in totals[0]) - len(found[0])),
            equal=arrived and found[0] == found[1] and totals[0] == totals[1],
            failed=self.failed,
            both_writable=self.both,
        )


class Elsewhere:
    """The same Writers in a process of its own, so that they do not compete with what switches for one interpreter."""

    def __init__(self, blue: Side, green: Side, count: int, rate: float) -> None:
        words = [sys.executable, "-m", "tests.support.writers", blue.url, green.url, str(count), str(rate)]
        self.process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout and self.process.stdout.readline() == "started\n"

    def stop(self, blue: Side, green: Side) -> tuple[Tally, list[float]]:
        """Ends them. Returns what became of the writes, and when each was acknowledged."""
        found = json.loads(self.process.communicate(timeout=PATIENCE)[0])
        writers = Writers(blue, green)
        writers.acknowledged = [Acknowledged(*each) for each in found["acknowledged"]]
        writers.failed, writers.both = found["failed"], found["both"]
        return writers.tally(blue, green), sorted(each.at for each in writers.acknowledged)


@contextmanager
def writing(blue: Side, green: Side, **options: Any) -> Iterator[Writers]:
    """Writers at work for as long as the block lasts. Afterwards: nothing lost, nothing doubled, both sides equal."""
    writers = Writers(blue, green, **options)
    writers.start()
    try:
        yield writers
        writers.wait_for(5)
    finally:
        writers.stop()
    assert not writers.failed, writers.failed
    tally = writers.tally(blue, green)
    assert (tally.lost, tally.doubled, tally.equal, tally.both_writable) == (0, 0, True, 0), tally


def main() -> None:
    blue, green, count, rate = sys.argv[1:]
    writers = Writers(Side("blue", blue), Side("green", green), int(count), float(rate))
    writers.start()
    print("started", flush=True)
    sys.stdin.read()  # until whoever started it closes it, or ends
    writers.stop()
    found = [astuple(each) for each in writers.acknowledged]
    print(json.dumps({"acknowledged": found, "failed": writers.failed, "both": writers.both}))


if __name__ == "__main__":
    main()
