"""The site with a few pages more, for what its own pages do not do: stream, fail and wait."""

import os
import time
from collections.abc import Iterator

from django.core.cache import cache
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import include, path


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Ten lines in a second."""

    def lines() -> Iterator[bytes]:
        for _ in range(10):
            time.sleep(0.1)
            yield b"line\n"

    return StreamingHttpResponse(lines())


def hold(request: HttpRequest) -> StreamingHttpResponse:
    """Tells the worker's process id, and then a line every 0.05 s for 20 s."""

    def lines() -> Iterator[bytes]:
        yield b"%d\n" % os.getpid()
        for _ in range(400):
            time.sleep(0.05)
            yield b"still here\n"

    return StreamingHttpResponse(lines())


def fail(request: HttpRequest) -> HttpResponse:
    raise ZeroDivisionError


def tell(request: HttpRequest) -> HttpResponse:
    """Fails with what the form has, in the error's text, in that of its cause, and in a variable."""
    form = request.POST.dict()
    try:
        return HttpResponse(request.META[str(form)])
    except KeyError as error:
        raise ValueError(f"{form} from {request.META}") from error


def pid(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(os.getpid()))


def cached(request: HttpRequest, hits: int) -> HttpResponse:
    """Asks the cache for `hits` keys that are there and for one that is not."""
    cache.set("here", 1)
    return HttpResponse(str([cache.get("here") for _ in range(hits)] + [cache.get("away")]))


handler500 = "backstagetest1.errors.server_error"

urlpatterns = [
    *(path(f"{view.__name__}/", view) for view in (stream, hold, fail, tell, pid)),
    path("cached/<int:hits>/", cached),
    path("", include("backstagetest1.urls")),
]
