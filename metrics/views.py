"""The scrape: every metric, in the format that the scraper asks for, to whoever may read it."""

import gzip
import ipaddress
import re
from collections.abc import Iterable

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare
from prometheus_client import Metric, generate_latest
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector

from metrics import collectors, store
from metrics.registry import REGISTRY, SCRAPES

STORED = store.Exposition(REGISTRY, others=True)


# OpenMetrics differs from the text format in the end, and in a counter's name: without _total, but for its samples.
# That goes for counters, gauges and histograms, and nothing else is stored.
COUNTERS_NAME = re.compile(rb"^(# (?:HELP|TYPE) \w+)_total ", re.MULTILINE)


class Families(Collector):
    """Metric families that are there already, as the encoders want them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families


def metrics(request: HttpRequest) -> HttpResponse:
    """GET /metrics: the text format, or OpenMetrics where the Accept header names it; gzip where it is accepted.

    https://prometheus.io/docs/instrumenting/content_negotiation/
    """
    response = refuse(request) or render(request)
    response["Cache-Control"] = "no-store"
    SCRAPES.labels(str(response.status_code)).inc()
    return response


def refuse(request: HttpRequest) -> HttpResponse | None:
    """The answer to one who may not read, or who asks for something else than reading.

    With METRICS_TOKEN set, whoever shows it may read (RFC 6750). Without, only a neighbour: one who asks directly,
    not through a proxy, from an address that is not routed in the Internet.
    """
    if settings.METRICS_TOKEN:
        scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer":
            return HttpResponse(
                "A bearer token is needed.\n", "text/plain", 401, headers={"WWW-Authenticate": "Bearer"}
            )
        if not constant_time_compare(token.strip(), settings.METRICS_TOKEN):
            challenge = 'Bearer error="invalid_token"'
            return HttpResponse("Not the right token.\n", "text/plain", 401, headers={"WWW-Authenticate": challenge})
    elif not neighbour(request):
        return HttpResponse("Metrics are not public. Set METRICS_TOKEN to read them from here.\n", "text/plain", 403)
    if request.method not in ("GET", "HEAD"):
        return HttpResponse("Metrics are only read.\n", "text/plain", 405, headers={"Allow": "GET, HEAD"})
    return None


def neighbour(request: HttpRequest) -> bool:
    """Whether the client's address is private or this machine's own (RFC 1918, RFC 4193), with no proxy in between."""
    meta = request.META
    if any(name in meta for name in ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_VIA")):
        return False
    try:
        return not meta.get("REMOTE_ADDR") or ipaddress.ip_address(meta["REMOTE_ADDR"]).is_private
    except ValueError:
        return False


def render(request: HttpRequest) -> HttpResponse:
    """The scrape itself. The computed metrics come first, so that a collector's failure shows in the same scrape."""
    computed = Families(collectors.collect())
    encode, content_type = choose_encoder(request.META.get("HTTP_ACCEPT", ""))
    if "openmetrics" in content_type:
        body = COUNTERS_NAME.sub(rb"\1 ", STORED.text()) + encode(computed)
    else:
        body = STORED.text() + generate_latest(computed)
    response = HttpResponse(content_type=content_type)
    if gzip_accepted(request.META.get("HTTP_ACCEPT_ENCODING", "")):
        body = gzip.compress(body, compresslevel=1)  # as good as the best here, at a third of the time
        response["Content-Encoding"] = "gzip"
    response["Vary"] = "Accept, Accept-Encoding"
    response["Content-Length"] = str(len(body))
    if request.method != "HEAD":
        response.content = body
    return response
