"""Request bodies without a length (Transfer-Encoding: chunked), which Django takes for empty.

They are read here, and the request gets their actual length, so that every limit further down (of forms, uploads, the
API) applies to them as to any other. nginx buffers bodies and passes their length on; this is for clients and proxies
that reach gunicorn directly.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any

from django.core.handlers.wsgi import LimitedStream
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render

LIMIT = 10_000_000  # bytes that are kept: as many as nginx.conf accepts
DRAINED = 100_000_000  # bytes that are read and dropped, so that the client gets a response instead of a reset
PIECE = 65_536


class TooLarge(Exception):
    """The body has more than LIMIT bytes."""


class BodyMiddleware:
    """Sets the length of a body that has none. Responds with 413 above LIMIT, 400 if the body is incomplete, and 411 if
    the server cannot tell where it ends.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Reads a body that has no length before the request goes on."""
        meta = request.META
        if "HTTP_TRANSFER_ENCODING" not in meta and (meta.get("CONTENT_LENGTH") or not terminated(meta)):
            return self.get_response(request)
        if not terminated(meta):
            return HttpResponse("Length required; send the body with a Content-Length.\n", "text/plain", 411)
        try:
            body = receive(meta["wsgi.input"])
        except TooLarge:
            return render(request, "413.html", status=413)
        except Exception:  # each server raises its own types, not all of them OSError
            return HttpResponse("The request body is incomplete or malformed.\n", "text/plain", 400)
        if body or "HTTP_TRANSFER_ENCODING" in meta:
            meta["CONTENT_LENGTH"] = str(len(body))
            setattr(request, "_stream", LimitedStream(BytesIO(body), len(body)))
        return self.get_response(request)


def terminated(meta: dict[str, Any]) -> bool:
    """Whether the server ends the body's stream where the body ends, so that reading it cannot block."""
    return bool(meta.get("wsgi.input_terminated"))


def receive(stream: Any) -> bytes:
    """Returns the whole body. Raises TooLarge, and whatever the server raises if the body is incomplete."""
    body, read = bytearray(), 0
    while read < DRAINED and (piece := stream.read(PIECE)):
        read += len(piece)
        if read <= LIMIT:
            body += piece
        else:
            body.clear()
    if read > LIMIT:
        raise TooLarge
    return bytes(body)
