"""What the proxy in front tells of a request, taken once and only from a proxy that is trusted.

The rest of the house reads the result from where Django keeps such things: `REQUEST_ID`, `REMOTE_ADDR` and
`wsgi.url_scheme` in request.META. So there is no SECURE_PROXY_SSL_HEADER, and gunicorn is told to trust nobody:
one place decides. See docs/decisions.md.
"""

import ipaddress
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

from backstagetest1.headers import Headers

# Long enough for any tracing scheme, and nothing in it that could break out of a log line or a header.
SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{7,127}", re.ASCII)

request_id: ContextVar[str] = ContextVar("request_id", default="")


# A hop of X-Forwarded-For as proxies write it: an address, in brackets if it is of IPv6 and has a port. Balancers of
# Azure and AWS add the client's port. Some quote the whole, as the header Forwarded has it (RFC 7239, section 6).
HOP = re.compile(
    r'(?P<quote>"?)(?:\[(?P<v6>[^][]+)\]|(?P<v4>[0-9.]+)(?=:)|(?P<bare>[^]["]+))(?::[0-9]{1,5})?(?P=quote)'
)


def parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address without what may stand around it: blanks, quotes, brackets, a port and an IPv6 zone, all of which a
    client may vary. An IPv4 client of a dual-stack socket (::ffff:192.0.2.1) is the IPv4 address that it is.

    Raises ValueError.
    """
    found = HOP.fullmatch(address.strip())
    if not found:
        raise ValueError(f"not an IP address: {address!r}")
    ip = ipaddress.ip_address((found["v6"] or found["v4"] or found["bare"]).partition("%")[0])
    return getattr(ip, "ipv4_mapped", None) or ip


def trusted(address: str) -> bool:
    """Whether `address` (REMOTE_ADDR; empty for a Unix socket) is one of settings.TRUSTED_PROXIES."""
    if not address:
        return "unix" in settings.TRUSTED_PROXIES
    try:
        ip = parse(address)
    except ValueError:
        return False
    return any(ip in ipaddress.ip_network(network) for network in settings.TRUSTED_PROXIES if network != "unix")


def client_address(peer: str, forwarded_for: str) -> str:
    """The last hop of X-Forwarded-For that is not one of our proxies, or `peer` if the header says nothing usable.

    Empty hops do not count (RFC 9110, section 5.6.1).
    """
    for hop in reversed(forwarded_for.split(",")):
        if not hop.strip():
            continue
        try:
            peer = str(parse(hop))
        except ValueError:
            break
        if not trusted(peer):
            break
    return peer


class EdgeMiddleware:
    """Sets the request id, the client's address and the scheme, and sends the id back as X-Request-ID.

    Standing first, it also completes the headers of every answer.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response
        self.headers = Headers(get_response)

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        identifier = self.read(request)
        response = self.get_response(request)
        self.headers.add(request, response)
        response["X-Request-ID"] = identifier
        return response

    def read(self, request: HttpRequest) -> str:
        """Writes what is believed into request.META and returns the request id."""
        meta = request.META
        peer = meta.get("REMOTE_ADDR", "")
        if ":" in peer:
            with suppress(ValueError):
                peer = meta["REMOTE_ADDR"] = str(parse(peer))
        identifier = ""
        if trusted(peer):
            identifier = meta.get("HTTP_X_REQUEST_ID", "")
            meta["REMOTE_ADDR"] = client_address(peer, meta.get("HTTP_X_FORWARDED_FOR", ""))
            if meta.get("HTTP_X_FORWARDED_PROTO", "").lower() in ("http", "https"):
                meta["wsgi.url_scheme"] = meta["HTTP_X_FORWARDED_PROTO"].lower()
        if not SANE_ID.fullmatch(identifier):
            identifier = uuid.uuid4().hex
        meta["REQUEST_ID"] = identifier
        request_id.set(identifier)
        return identifier
