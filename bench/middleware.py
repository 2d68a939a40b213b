"""What metrics cost a request, in one process, without a server: the handler, one page, and the middleware or not."""

from contextlib import ExitStack
from statistics import median

from bench.measure import Child, Options, goal, in_turns, present, say, shared_values, table, us

# The handler, and how it is called in the table
HANDLERS = {
    "wsgi": "sync, the WSGI handler",
    "asgi": "async, the ASGI handler",
    "chain": "async, middleware and view alone",
}
PEER = "django-prometheus"


def run(options: Options) -> str:
    rows = []
    for handler, label in HANDLERS.items():
        for shared in (False, True):
            mode = "several processes" if shared else "one process"
            say(f"middleware: {label}, {mode}")
            rows.append([f"{label}, {mode}", *row(handler, shared, options)])
    head = ["", "bare request", "ours adds", "prometheus_client adds", f"{PEER} adds"]
    head += ["ours / theirs", "by wall time", "ours × bare", "theirs × bare", "goal"]
    return "CPU time of one request.\n\n" + table(head, rows)


def row(handler: str, shared: bool, options: Options) -> list[str]:
    variants = present(["bare", "ours", PEER] + ["prometheus_client"] * (handler == "wsgi"))
    cost = measure(variants, handler, shared, options)
    total = {name: median(cpu for cpu, _ in rounds) for name, rounds in cost.items()}
    # What disturbs a round disturbs all of its variants, so the difference is taken in each round.
    cpu, wall = (
        {
            name: median(one[clock] - bare[clock] for one, bare in zip(rounds, cost["bare"], strict=True))
            for name, rounds in cost.items()
        }
        for clock in (0, 1)
    )
    times_bare = total["ours"] / total["bare"]
    cells = [us(total["bare"]), us(cpu["ours"])]
    cells += [us(cpu[name]) if name in cpu else "-" for name in ("prometheus_client", PEER)]
    cells += [f"{clock['ours'] / clock[PEER]:.3f}" if PEER in clock else "-" for clock in (cpu, wall)]
    cells += [f"{total[name] / total['bare']:.2f}" if name in total else "-" for name in ("ours", PEER)]
    if handler != "wsgi":
        return [*cells, goal("≤ 1.3 × bare", times_bare <= 1.3)]
    return [*cells, goal("≤ 0.10 of theirs", cpu["ours"] <= 0.10 * cpu[PEER]) if PEER in cpu else "-"]


def measure(variants: list[str], handler: str, shared: bool, options: Options) -> dict[str, list[tuple[float, float]]]:
    """For each variant the CPU time and the wall time of a request, in seconds, round by round."""
    batch = {"wsgi": 400, "asgi": 100, "chain": 400}[handler] // options.times(1, 4)
    cost: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    with ExitStack() as stack:
        env = {
            "BENCH_HANDLER": handler,
            "BENCH_ASYNC": str(handler != "wsgi").lower(),
            "BENCH_MIDDLEWARE": "metrics.middleware.MetricsMiddleware",
        }
        children = {}
        for name in variants:
            values = shared_values(name, stack) if shared else {}
            children[name] = stack.enter_context(Child(name, **env, **values))
            children[name].tell("serve", batch)  # what is made at the first requests is none of a request's cost
        for name in in_turns(variants, {"wsgi": 80, "asgi": 20, "chain": 30}[handler] // options.times(1, 10)):
            took = children[name].tell("serve", batch)
            cost[name].append((took["cpu"] / batch, took["wall"] / batch))
    return cost
