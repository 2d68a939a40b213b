"""What traces, exemplars and Sentry cost a request, in one process, without a server: the WSGI handler and one page."""

from contextlib import ExitStack
from statistics import median

from bench.measure import Child, Options, goal, in_turns, say, shared_values, table, us
from tests.support.collector import collecting
from tests.support.sentry import reading

TRACES, ERRORS = "backstagetest1.telemetry.traces.Middleware", "backstagetest1.telemetry.errors.Middleware"
METRICS = "metrics.middleware.MetricsMiddleware"
PROXY = "backstagetest1.proxy.ProxyMiddleware"

# In the order of the table: the middlewares, and what is set
VARIANTS = {
    "off": ([], ()),
    "errors on, none occurs": ([ERRORS], ("SENTRY_DSN",)),
    "traces on, not in the sample": ([TRACES], ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER_ARG")),
    "traced, without exemplars": ([TRACES, "bench.site.exemplars.Without"], ("OTEL_EXPORTER_OTLP_ENDPOINT",)),
    "traced": ([TRACES, "bench.site.exemplars.With"], ("OTEL_EXPORTER_OTLP_ENDPOINT",)),
}
BASE, TRACED = "traced, without exemplars", "traced"


def run(options: Options) -> str:
    batch = 400 // options.times(1, 4)
    with ExitStack() as stack:
        set_to = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": stack.enter_context(collecting()).url,
            "OTEL_TRACES_SAMPLER_ARG": "0",
            "SENTRY_DSN": stack.enter_context(reading()).dsn,
        }
        children = {}
        for name, (middleware, variables) in VARIANTS.items():
            env = {variable: set_to[variable] for variable in variables}
            env |= {"BENCH_TELEMETRY": "true", "BENCH_MIDDLEWARE": ",".join([PROXY, *middleware, METRICS])}
            children[name] = stack.enter_context(Child("ours", **env, **shared_values("ours", stack)))
            children[name].tell("serve", batch)  # what is made at the first requests is none of a request's cost
        imported = {name: int(child.tell("imported", 0)["modules"]) for name, child in children.items()}
        cost: dict[str, list[float]] = {name: [] for name in children}
        say(f"telemetry: {', '.join(children)}")
        for name in in_turns(list(children), 80 // options.times(1, 10)):
            cost[name].append(children[name].tell("serve", batch)["cpu"] / batch)
    rows = []
    for name, rounds in cost.items():
        # What disturbs a round disturbs all of its variants, so the difference is taken in each round.
        adds = median(one - off for one, off in zip(rounds, cost["off"], strict=True))
        rows.append([name, us(median(rounds)), us(adds), str(imported[name]), ""])
    share = median(one / base - 1 for one, base in zip(cost[TRACED], cost[BASE], strict=True))
    rows[0][-1] = goal("nothing imported", imported["off"] == 0)
    rows[-1][-1] = goal(f"exemplars ≤ 5 % ({share:.1%})", share <= 0.05)
    head = ["", "CPU time of a request", "adds", "modules of OpenTelemetry and Sentry", "goal"]
    return "A page without queries; the collector answers.\n\n" + table(head, rows)
