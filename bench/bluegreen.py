"""The gap between two acknowledged writes while the writes move from one database to another, there and back.

Eight writers note each acknowledgement, and repeat what was not answered under the same key. A third party looks all
the time whether both databases accept writes. Then the command is killed after each of its steps. The servers write to
the disk as in production. Beside it, the same writers without any switch.
"""

import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

from bench.measure import Options, goal, ms, say, table
from deploy.databases import fence
from deploy.databases.recover import recover
from deploy.databases.side import Side
from deploy.databases.switch import switch
from tests.deploy.databases.conftest import OPTIONS
from tests.support.bluegreen import killed, link
from tests.support.servers import Postgres, postgres_bin
from tests.support.writers import TABLES, Elsewhere

WRITERS, RATE = 8, 50.0  # writes a second of each
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "shared_buffers": "128MB"}
# As many tables and sequences as the app has, which the switch reads.
OTHERS = "create table other_{} (id serial primary key, name text not null unique, entry bigint references entry)"
STEPS = ("claimed source", "claimed target", "locked", "fenced", "arrived", "committed", "left")
BEFORE, AFTER = 0.1, 0.3  # seconds around a switch in which a gap counts as its own
GAP_MEDIAN, GAP_MAX, RECOVERED = 0.05, 0.15, 1.0  # the goals, in seconds


def run(options: Options) -> str:
    programs = [postgres_bin(), *options.programs]
    pairs = [(blue, green) for blue in programs for green in programs]
    lines, recoveries = [], []
    for number, (blue, green) in enumerate(pairs):
        times = options.times(20 if number == 0 else 5, 2)
        with ExitStack() as stack:
            servers = [stack.enter_context(Postgres(OPTIONS | DURABLE, programs=program)) for program in (blue, green)]
            name = f"{release(blue)} ↔ {release(green)}"
            say(f"bluegreen: {name}, {times} switches and {times} rollbacks")
            lines.append([name, *measure(*servers, times=times)])
            if number == 0:
                say("bluegreen: the command killed after each step")
                recoveries = recovered(Side("blue", servers[0].url), Side("green", servers[1].url), options)
                cost = price(servers[0])
    head = [
        "PostgreSQL",
        "switches",
        "gap median",
        "p95",
        "max",
        "without: median",
        "max",
        "nobody could write: median",
    ]
    head += ["writes", "lost", "doubled", "both writable", "equal", "goals"]
    late = goal(f"recovered in {RECOVERED:g} s", max(recoveries) <= RECOVERED)
    return (
        f"{WRITERS} writers, {WRITERS * RATE:.0f} writes a second wanted; the longest gap between two acknowledged "
        f"writes around each switch.\n\n{table(head, lines)}\n\n"
        f"The command killed with SIGKILL after each of {len(STEPS)} steps, both ways: recovered in "
        f"{ms(median(recoveries))} (median), {ms(max(recoveries))} (max); {late}.\n\n{cost}"
    )


def release(program: Path) -> str:
    """PostgreSQL's version, as in 18.4."""
    return subprocess.run([program / "postgres", "-V"], check=True, capture_output=True, text=True).stdout.split()[2]


def measure(one: Postgres, two: Postgres, *, times: int) -> list[str]:
    """The cells of one row."""
    blue, green = Side("blue", one.url), Side("green", two.url)
    for side in (blue, green):
        side.run(TABLES + ";".join(OTHERS.format(number) for number in range(30)))
    link(blue, green)
    windows, held = [], []
    writers = Elsewhere(blue, green, WRITERS, RATE)
    time.sleep(1)  # the first second is that of cold caches
    for source, target in [(blue, green), (green, blue)] * times:
        time.sleep(BEFORE + AFTER)
        moments: dict[str, float] = {}
        done = switch(source, target, say=say, on_step=lambda name: moments.__setitem__(name, time.monotonic()))
        held.append(done.held)
        windows.append((moments["claimed target"] - BEFORE, moments["left"] + AFTER))
    time.sleep(BEFORE + AFTER)
    tally, moved = writers.stop(blue, green)
    writers = Elsewhere(blue, green, WRITERS, RATE)
    time.sleep(1)
    started, length = time.monotonic(), median(end - begin for begin, end in windows)
    time.sleep(length * len(windows))
    control, still = writers.stop(blue, green)
    gaps = [longest(moved, *window) for window in windows]
    base = [longest(still, started + length * n, started + length * (n + 1)) for n in range(len(windows))]
    rate = tally.written / (moved[-1] - moved[0])
    goals = [goal("median < 50 ms", median(gaps) < GAP_MEDIAN), goal("max < 150 ms", max(gaps) < GAP_MAX)]
    goals.append(goal("nothing lost", (tally.lost, tally.doubled, tally.both_writable, tally.equal) == (0, 0, 0, True)))
    for failure in tally.failed + control.failed:
        raise AssertionError(f"a writer ended: {failure}")
    for side in (blue, green):
        side.close()
    cells = [str(len(windows)), *map(ms, (median(gaps), p95(gaps), max(gaps), median(base), max(base), median(held)))]
    cells += [f"{tally.written} ({rate:.0f}/s)", *map(str, (tally.lost, tally.doubled, tally.both_writable))]
    return [*cells, "yes" if tally.equal else "no", "; ".join(goals)]


def longest(moments: Sequence[float], begin: float, end: float) -> float:
    """The longest time between two of them, of those that overlap the window."""
    return max(
        (later - sooner for sooner, later in zip(moments, moments[1:]) if later > begin and sooner < end), default=0.0
    )


def p95(values: Sequence[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1]


def recovered(blue: Side, green: Side, options: Options) -> list[float]:
    """How many seconds recovery took, with writers at work, after each step, both ways."""
    took = []
    writers = Elsewhere(blue, green, WRITERS, RATE)
    for step in STEPS[: options.times(len(STEPS), 2)]:
        for source, target in ((blue, green), (green, blue)):
            if not fence.read(source).writable:
                switch(target, source)
            killed(source, target, step)
            started = time.monotonic()
            found = recover(blue, green)
            took.append(time.monotonic() - started)
            assert [side.colour for side in (blue, green) if fence.read(side).writable] == [found.writable], step
    tally, _ = writers.stop(blue, green)
    assert (tally.lost, tally.doubled, tally.both_writable, tally.equal) == (0, 0, 0, True), tally
    return took


def price(server: Postgres) -> str:
    """What the guard costs each statement, and bg.enter() each transaction."""
    side = Side("blue", server.create("price"))
    side.run("create table plain (n int); create table guarded (n int)")
    fence.install(side, writable=True)
    fence.guard_tables(side)
    side.run("drop trigger bg_guard on plain")
    rounds, loops = 5, 10_000
    took: dict[str, list[float]] = {"plain": [], "guarded": []}
    for _ in range(rounds):
        for name, values in took.items():
            loop = f"do $$ begin for i in 1..{loops} loop insert into {name} values (i); end loop; end $$"
            started = time.monotonic()
            side.run(loop, timeout=60)
            values.append(time.monotonic() - started)
    statement = (min(took["guarded"]) - min(took["plain"])) / loops
    entering = []
    for _ in range(1000):
        side.run("begin")
        started = time.monotonic()
        side.run("select bg.enter()")
        entering.append(time.monotonic() - started)
        side.run("rollback")
    side.close()
    return (
        f"The guard costs {statement * 1e6:.0f} µs a statement; entering costs {median(entering) * 1e3:.2f} ms a "
        "transaction, a round trip included."
    )
