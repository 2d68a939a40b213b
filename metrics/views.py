"""GET /metrics: every metric, in the format that the scraper asks for, for clients that may read it."""

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

# The two formats: media type and version
TEXT, OPENMETRICS = ("text/plain", "0.0.4"), ("application/openmetrics-text", "1.0.0")

# For the types that are stored (counters, gauges, histograms), OpenMetrics differs from the text format in its end, in
# HELP and TYPE of counters, which lack the suffix _total, and in exemplars.
COUNTER_HEAD = re.compile(rb"^(# (?:HELP|TYPE) \w+)_total ", re.MULTILINE)


class Families(Collector):
    """A collector of given families, as the encoders require one."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families


def metrics(request: HttpRequest) -> HttpResponse:
    """Responds with the text format, or with OpenMetrics if the Accept header prefers it; with gzip if it is accepted;
    with 406 if the header excludes both formats.

    https://prometheus.io/docs/instrumenting/content_negotiation/
    """
    response = reject(request) or render(request)
    response["Cache-Control"] = "no-store"
    SCRAPES.labels(str(response.status_code)).inc()
    return response


def reject(request: HttpRequest) -> HttpResponse | None:
    """Returns the response for a client that may not read the metrics, or for a method other than GET and HEAD.

    With METRICS_TOKEN set, clients need that bearer token (RFC 6750). Without it, only neighbours may read: clients
    that connect directly, not through a proxy, from a private address.
    """
    if settings.METRICS_TOKEN:
        scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer":
            return HttpResponse(
                "A bearer token is required.\n", "text/plain", 401, headers={"WWW-Authenticate": "Bearer"}
            )
        if not constant_time_compare(token.strip(), settings.METRICS_TOKEN):
            challenge = 'Bearer error="invalid_token"'
            return HttpResponse("Invalid token.\n", "text/plain", 401, headers={"WWW-Authenticate": challenge})
    elif not neighbour(request):
        return HttpResponse(
            "Metrics are not public; to read them from here, set METRICS_TOKEN and send it as a bearer token.\n",
            "text/plain",
            403,
        )
    if request.method not in ("GET", "HEAD"):
        return HttpResponse("Method not allowed; use GET.\n", "text/plain", 405, headers={"Allow": "GET, HEAD"})
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
    """Returns the format that an Accept header prefers, TEXT by default; None if it excludes both (q=0).

    A client that asks only for something else (another version, another type) gets the text format, as scrapers expect:
    https://prometheus.io/docs/instrumenting/content_negotiation/
    """
    asked = accept.elements(header)
    weights: dict[tuple[str, str], tuple[float, int]] = {}
    for kind, version in (TEXT, OPENMETRICS):
        ranges = {kind: 2, f"{kind.partition('/')[0]}/*": 1, "*/*": 0}
        # The most specific range wins; among several for the format itself, the one that names its version.
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
    """Returns the scrape. The collectors run first, so that a failure of theirs shows in the same scrape."""
    chosen = choose(request.META.get("HTTP_ACCEPT", ""))
    if chosen is None:
        offers = " or ".join(f"{kind};version={version}" for kind, version in (TEXT, OPENMETRICS))
        return HttpResponse(f"Not acceptable; metrics are available as {offers}.\n", "text/plain", 406)
    computed = Families(collectors.collect())
    if chosen == OPENMETRICS:
        body = COUNTER_HEAD.sub(rb"\1 ", STORED.text(exemplars=True)) + generate_openmetrics(computed)
    else:
        body = STORED.text() + generate_latest(computed)
    response = HttpResponse(content_type=f"{chosen[0]}; version={chosen[1]}; charset=utf-8")
    if "gzip" in accept.codings(request.META.get("HTTP_ACCEPT_ENCODING", "")):
        body = gzip.compress(
            body, compresslevel=1
        )  # compresses this text as well as higher levels, in a third of the time
        response["Content-Encoding"] = "gzip"
    response["Vary"] = "Accept, Accept-Encoding"
    response["Content-Length"] = str(len(body))
    if request.method != "HEAD":
        response.content = body
    return response
