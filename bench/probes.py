"""What a call of /health/ costs while all is well: against the same PostgreSQL and Redis, over TCP."""

from contextlib import ExitStack
from statistics import median

from bench.measure import Options, Site, goal, in_turns, load, ms, present, ratio, say, table, us
from tests.support.servers import Postgres, Redis

UNSHARED = "ours, each call runs the checks"
SHARED = "ours, results shared for 1 s"
THEIRS = ["guide", "django-health-check", "django-watchman", "dockerflow"]


def path(variant: str) -> str:
    return "/__heartbeat__" if variant == "dockerflow" else "/health/"


def run(options: Options) -> str:
    variants = present(["guide", UNSHARED, SHARED, *THEIRS[1:]])
    rounds, number = options.times(10, 2), options.times(160, 32)
    alone: dict[str, list[float]] = {name: [] for name in variants}
    together: dict[str, list[float]] = {name: [] for name in variants}
    cost: dict[str, list[float]] = {name: [] for name in variants}
    with ExitStack() as stack:
        database, cache = stack.enter_context(Postgres()), stack.enter_context(Redis())
        sites = {}
        for name in variants:
            env = {"DATABASE_URL": database.url, "REDIS_URL": cache.url}
            env["HEALTH_CACHE_SECONDS"] = "0" if name == UNSHARED else "1"
            sites[name] = stack.enter_context(Site(name.partition(",")[0], **env))
            load(sites[name].port, path(name), 64, 16)
        say(f"health: {rounds} rounds of {2 * number} calls to each of {', '.join(variants)}")
        for name in in_turns(variants, rounds):
            site = sites[name]
            before = site.cpu()
            alone[name].append(median(load(site.port, path(name), number, 1)))
            together[name].append(median(load(site.port, path(name), number, 8)))
            cost[name].append((site.cpu() - before) / (2 * number))
    rows = []
    for name in variants:
        share = ratio(together[name], together["guide"])  # the goal is about load
        most = {UNSHARED: 1.0, SHARED: 0.4}.get(name)
        cells = [ms(median(alone[name])), f"{ratio(alone[name], alone['guide']):.2f}"]
        cells += [ms(median(together[name])), f"{share:.2f}"]
        cells += [us(median(cost[name])), f"{ratio(cost[name], cost['guide']):.2f}"]
        rows.append([name, *cells, goal(f"≤ {most:.1f} × guide", share <= most) if most else ""])
    head = [
        "",
        "one caller: median",
        "× guide",
        "8 callers: median",
        "× guide",
        "CPU time a call",
        "× guide",
        "goal (8)",
    ]
    return "All check the database and the cache; ours the migrations, too.\n\n" + table(head, rows)
