"""Metrics of what the status page observes. docs/metrics.md describes them."""

from prometheus_client import Gauge

from metrics.registry import REGISTRY

# The last one seen, by whichever worker: while an environment is unreachable, as with an expired certificate, it stays.
CERTIFICATE_EXPIRY = Gauge(
    "certificate_expiry_timestamp_seconds",
    "Unix time at which the environment's TLS certificate expires, as last seen.",
    ["environment"],
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
