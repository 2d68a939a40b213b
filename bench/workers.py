"""What metrics cost the workers of a real server: gunicorn with two, each request over TCP."""

from contextlib import ExitStack
from statistics import median

from bench.measure import Options, Site, goal, in_turns, load, present, ratio, say, shared_values, table, us

PAGE = "/route7/1/"


def run(options: Options) -> str:
    variants = present(["bare", "ours", "prometheus_client", "django-prometheus"])
    rounds, number = options.times(16, 2), options.times(1000, 400)
    cost: dict[str, list[float]] = {name: [] for name in variants}
    with ExitStack() as stack:
        sites = {}
        for name in variants:
            env = {"BENCH_MIDDLEWARE": "metrics.middleware.MetricsMiddleware"} | shared_values(name, stack)
            sites[name] = stack.enter_context(Site(name, **env))
            load(sites[name].port, PAGE, number // 4)
        say(f"workers: {rounds} rounds of {number} requests to each of {', '.join(variants)}")
        for name in in_turns(variants, rounds):
            before = sites[name].cpu()
            load(sites[name].port, PAGE, number)
            cost[name].append((sites[name].cpu() - before) / number)
    rows = []
    for name in variants:
        times_bare = ratio(cost[name], cost["bare"])
        met = goal("≤ 1.10 × bare", times_bare <= 1.10) if name == "ours" else ""
        rows.append([name, us(median(cost[name])), f"{times_bare:.2f}", met])
    return "CPU time of the workers for one request of a page.\n\n" + table(["", "CPU time", "× bare", "goal"], rows)
