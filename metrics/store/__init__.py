"""The values of all metrics, shared by the workers of one server.

prometheus_client keeps its registry, metric types and exposition formats; only the place where a metric's numbers live
is ours. Until start() is called, values are plain numbers of this process (runserver, manage.py, tests). After it, each
process leases a slot, a file in the folder, at its first write, and a scrape adds up all slots, whichever worker
answers it. docs/metrics-store.md describes the file format and the lease, and gives the reasons for both.

metrics/registry.py, before the first metric is created:

    store.install(REGISTRY)

gunicorn.conf.py (no other hook is needed: the kernel frees the slot of a worker that died, however it died):

    def on_starting(server):
        from metrics import store
        store.start(folder)     # METRICS_DIR; once, in the master: creates or empties it

    def post_fork(server, worker):
        from metrics import store
        store.lease()           # in the worker, before its first request

The view:

    EXPOSITION = store.Exposition(REGISTRY, others=True)
    EXPOSITION.text()                                   # bytes, as prometheus_client.generate_latest(REGISTRY)
    EXPOSITION.text(exemplars=True)                     # the same for OpenMetrics, without its last line
    openmetrics.exposition.generate_latest(EXPOSITION)  # it is a Collector, so anything that calls collect() works

Limits, each the price of sharing: a Gauge must say how the workers' values are combined (multiprocess_mode livesum,
livemax, livemin, livemostrecent, sum, max, min or mostrecent; all and liveall, one series per process, are rejected);
exemplars are those of noter(), all others are dropped; removed labels stay in the scrape; there are no `_created`
series.
"""

from metrics.store.exposition import Exposition
from metrics.store.recorders import adder, noter, observer, recorder, request_recorder
from metrics.store.store import Store, StoreError, install, lease, start

__all__ = [
    "Exposition",
    "Store",
    "StoreError",
    "adder",
    "install",
    "lease",
    "noter",
    "observer",
    "recorder",
    "request_recorder",
    "start",
]
