"""What a scrape costs when two workers have served thirty routes, and when thousands of workers have come and gone."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench.measure import Child, Options, goal, in_turns, ms, present, say, shared_values, table
from tests.support.servers import Postgres, Redis

PEER = "prometheus_client"
COLLECTED = "ours, with the app's collectors"
CHURNED = ("ours", PEER)  # the others keep their values in the same way as one of these
SIZES = (10, 100, 1000)  # routes
EVERY = 5.0  # seconds from scrape to scrape
ZIPPED = "ours, compressed"
CHURN_SECONDS = 180.0  # after which the workers are counted, and no more come


def run(options: Options) -> str:
    return f"{few_routes(options)}\n\n{many_routes(options)}"


def few_routes(options: Options) -> str:
    variants = present(["ours", PEER, "django-prometheus"])
    with ExitStack() as stack:
        children, fresh, folders = {}, {}, {}
        if not options.quick:
            variants.insert(1, COLLECTED)
            database, cache = stack.enter_context(Postgres()), stack.enter_context(Redis())
        for name in variants:
            env = shared_values(name, stack)
            folders[name] = next(iter(env.values()))
            env["BENCH_COLLECTORS"] = "false"
            if name == COLLECTED:
                env |= {"DATABASE_URL": database.url, "REDIS_URL": cache.url, "BENCH_COLLECTORS": "true"}
            children[name] = stack.enter_context(Child(name.partition(",")[0], **env))
            children[name].tell("scrape", 2)
            if name in CHURNED:  # another of which no worker ends, to be measured in the same minute as the first
                fresh[name] = stack.enter_context(Child(name, **env | shared_values(name, stack)))
        say("scrape: two workers")
        young = {name: Scrapes() for name in variants}
        for name in in_turns(variants, options.times(4, 1)):
            young[name].add(children[name], 10)
        lives = come_and_go([children[name] for name in CHURNED], options)
        old, same = {name: Scrapes() for name in CHURNED}, {name: Scrapes() for name in CHURNED}
        for name in in_turns(CHURNED, options.times(4, 1)):
            for _ in range(1 if name == PEER else 10):
                same[name].add(fresh[name], 1)
                old[name].add(children[name], 1)
        files = {name: len(os.listdir(folders[name])) for name in CHURNED}
    rows = []
    for name in variants:
        faster = median(young[PEER].cpu) / median(young[name].cpu)
        cells = [f"{young[name].series:,}", ms(median(young[name].cpu)), ms(median(young[name].wall)), f"{faster:.1f}"]
        growth = median(old[name].cpu) / median(same[name].cpu) if name in old else 0
        if name in old:
            cells += [ms(median(old[name].cpu)), ms(median(old[name].wall)), f"{growth:.2f}", f"{files[name]:,}"]
        else:
            cells += ["-"] * 4
        if name == "ours":
            cells.append(f"{goal('10 times faster', faster >= 10)}; {goal('growth ≤ 1.5', growth <= 1.5)}")
        rows.append([name, *cells, *[""] * (name != "ours")])
    head = ["", "series", "CPU time", "wall time", f"times faster than {PEER}"]
    head += [f"after {lives:,} workers: CPU time", "wall time", "growth", "files", "goals"]
    return "One scrape; two workers have served thirty routes each.\n\n" + table(head, rows)


def many_routes(options: Options) -> str:
    """Two workers each have all series of so many routes. The peer's scrapes take seconds, so there are few."""
    variants, rows = ["ours", ZIPPED, PEER], []
    for routes in SIZES[: options.times(3, 1)]:
        with ExitStack() as stack:
            say(f"scrape: {routes:,} routes x 5 methods x 20 statuses")
            children, folders = {}, {}
            for name in variants:
                env = shared_values(name, stack)
                folders[name] = next(iter(env.values()))
                env |= {"BENCH_COLLECTORS": "false", "BENCH_GZIP": "yes" if name == ZIPPED else ""}
                children[name] = stack.enter_context(Child(name.partition(",")[0], **env))
                children[name].tell("fill", routes)
                children[name].tell("scrape", 1)  # reads the keys, which happens once
            found = {name: Scrapes() for name in variants}
            for name in in_turns(variants, options.times(5, 1)):
                found[name].add(children[name], 1 if name == PEER else 3)
            for name in variants:
                more = Scrapes()
                children[name].tell("noise", 1000)
                more.add(children[name], 1)
                scrapes, files = found[name], Path(folders[name]).iterdir()
                share, times = median(scrapes.cpu) / EVERY, median(found[PEER].cpu) / median(scrapes.cpu)
                shown = goal("under 1 %", share < 0.01) if name == ZIPPED else ""
                size, kept = f"{scrapes.bytes / 1e6:,.2f} MB", sum(file.stat().st_size for file in files) / 1e6
                cells = [
                    f"{scrapes.series:,}",
                    size,
                    f"{kept:,.1f} MB",
                    ms(median(scrapes.cpu)),
                    ms(median(scrapes.wall)),
                ]
                cells += [f"{share:.2%}", f"{times:.1f}", f"{more.series - scrapes.series:,}", shown]
                rows.append([f"{routes:,} routes, {name}", *cells])
    head = ["", "series", "scrape", "files of two workers", "CPU time", "wall time", "share of a core, every 5 s"]
    head += [f"times faster than {PEER}", "more series after 1,000 made-up requests", "goal"]
    return "Every route with 5 methods and 20 statuses, in each of two workers.\n\n" + table(head, rows)


class Scrapes:
    """The times of one variant's scrapes, in seconds."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.series = 0
        self.bytes = 0

    def add(self, child: Child, number: int) -> None:
        answer = child.tell("scrape", number)
        self.cpu += answer["cpu"]
        self.wall += answer["wall"]
        self.series, self.bytes = answer["series"], answer["bytes"]


def come_and_go(children: list[Child], options: Options) -> int:
    """Replaces one of the two workers again and again, as often in each variant; the number of workers so far."""
    wanted, lives, until = options.times(2000, 10), 2, time.monotonic() + CHURN_SECONDS
    with ThreadPoolExecutor(len(children)) as pool:
        while lives < wanted and time.monotonic() < until:
            number = min(100, wanted - lives)
            say(f"scrape: workers {lives + 1:,} to {lives + number:,} of {wanted:,} come and go")
            list(pool.map(lambda child: child.tell("lives", number), children))
            lives += number
    return lives
