"""The scrape: every metric, in the format that the scraper asks for, to whoever may read it."""

import gzip
import ipaddress
import re
from collections.abc import Callable, Iterable

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare
from prometheus_client import Metric, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from metrics import accept, collectors, store
from metrics.registry import REGISTRY, SCRAPES

STORED = store.Exposition(REGISTRY, others=True)

generate_openmetrics: Callable[[Collector], bytes] = openmetrics.generate_latest

# The two formats in which a scrape is written: media type and version. No other version is promised to anybody.
TEXT, OPENMETRICS = ("text/plain", "0.0.4"), ("application/openmetrics-text", "1.0.0")

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
    """GET /metrics: the text format, or OpenMetrics where the Accept header prefers it; gzip where it is accepted. 406
    where both formats are refused.

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


def choose(header: str) -> tuple[str, str] | None:
    """The format that an Accept header prefers, TEXT unless it says otherwise. None if it refuses both (q=0).

    Who asks only for what is not there (another version, another type) gets the text format, as scrapers expect of a
    server: https://prometheus.io/docs/instrumenting/content_negotiation/
    """
    asked = accept.elements(header)
    weights: dict[tuple[str, str], tuple[float, int]] = {}
    for kind, version in (TEXT, OPENMETRICS):
        ranges = {kind: 2, f"{kind.partition('/')[0]}/*": 1, "*/*": 0}
        # The most specific range decides, and of several for the format itself the one that names its version.
        fit = [
            (ranges[each.name], "version" in each.parameters, each.weight)
            for each in asked
            if each.name in ranges and each.parameters.get("version", version) == version
        ]
        if fit:
            specific, _, weight = max(fit)
            weights[kind, version] = (weight, specific)
    wanted = [each for each, (weight, _) in weights.items() if weight]
    if wanted:
        return max(wanted, key=weights.__getitem__)
    return next((each for each in (TEXT, OPENMETRICS) if each not in weights), None)


def render(request: HttpRequest) -> HttpResponse:
    """The scrape itself. The computed metrics come first, so that a collector's failure shows in the same scrape."""
    chosen = choose(request.META.get("HTTP_ACCEPT", ""))
    if chosen is None:
        offers = " or ".join(f"{kind};version={version}" for kind, version in (TEXT, OPENMETRICS))
        return HttpResponse(f"Metrics are available as {offers}. Accept one of them.\n", "text/plain", 406)
    computed = Families(collectors.collect())
    if chosen == OPENMETRICS:
        body = COUNTERS_NAME.sub(rb"\1 ", STORED.text()) + generate_openmetrics(computed)
    else:
        body = STORED.text() + generate_latest(computed)
    response = HttpResponse(content_type=f"{chosen[0]}; version={chosen[1]}; charset=utf-8")
    if "gzip" in accept.codings(request.META.get("HTTP_ACCEPT_ENCODING", "")):
        body = gzip.compress(body, compresslevel=1)  # as good as the best here, at a third of the time
        response["Content-Encoding"] = "gzip"
    response["Vary"] = "Accept, Accept-Encoding"
    response["Content-Length"] = str(len(body))
    if request.method != "HEAD":
        response.content = body
    return response
