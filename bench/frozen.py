"""What 200 probes at once and an ordinary page get while PostgreSQL is frozen (SIGSTOP) and connections to it are open.

The page does not touch the database. It is asked for over and over by one visitor, on a new connection each time.
"""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from math import inf
from statistics import median

from bench.measure import Client, Options, Site, goal, load, ms, present, say, table
from bench.probes import THEIRS, path
from tests.support.servers import Postgres, Redis, frozen

PAGE = "/route7/1/"
PROBES = 200
PAGE_PATIENCE = 10.0
RECOVERY_PATIENCE = 30.0
DEADLINE = 0.8 + 0.2  # seconds: HEALTH_CHECK_TIMEOUT's default, and what an answer may take besides


def run(options: Options) -> str:
    variants = present(["ours", *(THEIRS[:1] if options.quick else THEIRS)])
    rows = []
    with ExitStack() as stack:
        database, cache = stack.enter_context(Postgres()), stack.enter_context(Redis())
        for name in variants:
            say(f"frozen: {name}")
            with Site(name, DATABASE_URL=database.url, REDIS_URL=cache.url) as site:
                rows.append([name, *freeze(site, name, database, options)])
    head = ["", "first answer", "last answer", "answers", "page before", "page during", "slowest page", "healthy again"]
    text = f"{PROBES} probes at once to two workers of four threads each; pages: the median."
    return f"{text}\n\n" + table([*head, "goals"], rows)


def freeze(site: Site, name: str, database: Postgres, options: Options) -> list[str]:
    """The cells of one row."""
    load(site.port, path(name), 320, 32)  # every thread has its connection
    before = median(visit(site.port, 2))
    with ThreadPoolExecutor(PROBES + 1) as pool:
        with frozen(database):
            calls = [pool.submit(ask, site.port, path(name), options.patience) for _ in range(PROBES)]
            visiting = pool.submit(visit, site.port, 5)
            answers = [call.result() for call in calls]
            pages = visiting.result()
        again = recovery(site.port, path(name))
    took, during = sorted(seconds for _, seconds in answers), median(pages)
    statuses = Counter(status for status, _ in answers)
    said = ", ".join(f"{number} × {status or 'none'}" for status, number in statuses.most_common())
    cells = [within(took[0], options.patience), within(took[-1], options.patience), said]
    cells += [ms(before), within(during, PAGE_PATIENCE), within(max(pages), PAGE_PATIENCE)]
    cells.append(within(again, RECOVERY_PATIENCE))
    if name != "ours":
        return [*cells, ""]
    all_unhealthy = set(statuses) == {503} and took[-1] <= DEADLINE
    return [*cells, f"{goal('all 503 in 1.0 s', all_unhealthy)}; {goal('page ≤ 2 × before', during <= 2 * before)}"]


def ask(port: int, path: str, patience: float) -> tuple[int, float]:
    """The answer's status and after how many seconds it came; 0 and infinity if it did not come in time."""
    started = time.monotonic()
    try:
        with Client(port, patience) as client:
            return client.get(path), time.monotonic() - started
    except OSError:
        return 0, inf


def visit(port: int, seconds: float) -> list[float]:
    """How long each page took that was asked for in this time; infinity, as the last, for one that did not come."""
    until, took = time.monotonic() + seconds, [0.0]
    while time.monotonic() < until and took[-1] < inf:
        status, page = ask(port, PAGE, PAGE_PATIENCE)
        took.append(page if status == 200 else inf)
        time.sleep(0.02)
    return took[1:]


def recovery(port: int, path: str) -> float:
    """How many seconds from now the probe is answered with 200; infinity if that takes too long."""
    started = time.monotonic()
    while time.monotonic() - started < RECOVERY_PATIENCE:
        if ask(port, path, RECOVERY_PATIENCE)[0] == 200:
            return time.monotonic() - started
    return inf


def within(seconds: float, patience: float) -> str:
    return ms(seconds) if seconds < inf else f"> {patience:g} s"
