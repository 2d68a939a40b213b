"""What the proxy in front says about a request: its id, the client's address and the scheme.

Headers are read once, here, and only from a trusted proxy. The other apps read the result from where Django keeps it:
`REQUEST_ID`, `REMOTE_ADDR` and `wsgi.url_scheme` in request.META. So that one place decides, there is no
SECURE_PROXY_SSL_HEADER, and gunicorn trusts no proxy. See docs/decisions.md.
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

# Long enough for any tracing scheme, without anything that could break out of a log line or a header.
VALID_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{7,127}", re.ASCII)

request_id: ContextVar[str] = ContextVar("request_id", default="")


# A hop of X-Forwarded-For as proxies write it: an address, in brackets if it is IPv6 and has a port. Load balancers of
# Azure and AWS add the client's port. Some quote the whole, as in the header Forwarded (RFC 7239, section 6).
HOP = re.compile(
    r'(?P<quote>"?)(?:\[(?P<v6>[^][]+)\]|(?P<v4>[0-9.]+)(?=:)|(?P<bare>[^]["]+))(?::[0-9]{1,5})?(?P=quote)'
)


def parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Returns the address without blanks, quotes, brackets, port and IPv6 zone, all of which a client may vary. An
    IPv4-mapped address of a dual-stack socket (::ffff:192.0.2.1) becomes the IPv4 address.

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
    """Returns the last hop of X-Forwarded-For that is not a trusted proxy, or `peer` if there is none.

    Empty hops are skipped (RFC 9110, section 5.6.1).
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


class ProxyMiddleware:
    """Sets the request id, the client's address and the scheme, and sends the id back as X-Request-ID.

    As the outermost middleware, it also completes the headers of every response.
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
        """Writes what is trusted into request.META and returns the request id."""
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
        else:
            meta.pop("HTTP_TRACEPARENT", None)  # a client could choose what is sampled, and write into others' traces
        if not VALID_ID.fullmatch(identifier):
            identifier = uuid.uuid4().hex
        meta["REQUEST_ID"] = identifier
        request_id.set(identifier)
        return identifier
