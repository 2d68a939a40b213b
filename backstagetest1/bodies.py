"""Bodies that come without a length (Transfer-Encoding: chunked), which Django takes for empty.

They are read here, and the request gets the length that they turn out to have, so that every limit behind (of forms, of
uploads, of the API) holds for them as for any other. nginx reads bodies before it asks, and so knows their length; this
is for clients and proxies that come to gunicorn directly.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any

from django.core.handlers.wsgi import LimitedStream
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render

LIMIT = 10_000_000  # bytes that are kept, as nginx.conf lets through
DRAINED = 100_000_000  # bytes that are read, so that their sender gets an answer and not a broken connection
PIECE = 65_536


class TooLarge(Exception):
    """The body has more than LIMIT bytes."""


class BodyMiddleware:
    """Gives a body without a length its own. Answers 413 beyond LIMIT, 400 if it breaks off, and 411 if the server
    cannot tell where it ends.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        meta = request.META
        if "HTTP_TRANSFER_ENCODING" not in meta and (meta.get("CONTENT_LENGTH") or not terminated(meta)):
            return self.get_response(request)
        if not terminated(meta):
            return HttpResponse("Length required: send the body with a Content-Length.\n", "text/plain", 411)
        try:
            body = receive(meta["wsgi.input"])
        except TooLarge:
            return render(request, "413.html", status=413)
        except Exception:  # each server has its own, and some of them are not even OSError
            return HttpResponse("The request's body is incomplete or malformed.\n", "text/plain", 400)
        if body or "HTTP_TRANSFER_ENCODING" in meta:
            meta["CONTENT_LENGTH"] = str(len(body))
            setattr(request, "_stream", LimitedStream(BytesIO(body), len(body)))
        return self.get_response(request)


def terminated(meta: dict[str, Any]) -> bool:
    """Whether reading the body ends at its end, and does not wait for what may follow."""
    return bool(meta.get("wsgi.input_terminated"))


def receive(stream: Any) -> bytes:
    """The whole body. Raises TooLarge, and whatever the server raises if it breaks off."""
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
