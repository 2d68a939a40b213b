"""Counts every request once, however it ends, and gives the access log its route.

Only the proxy and probe middlewares come before it, so it sees the responses, errors, redirects and rejections of all
others. It also answers scrapes itself, before the Host check and the TLS redirect, because Prometheus requests a pod by
its IP address. Scrapes and probes do not count as requests.
"""

import asyncio
import operator
import re
import sys
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from time import perf_counter
from typing import Any, NamedTuple

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.admindocs.views import simplify_regex
from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse

from metrics import store, views
from metrics.collectors import note_user
from metrics.registry import EXCEPTIONS, REQUEST_DURATION, REQUESTS, REQUESTS_IN_PROGRESS, RESPONSE_SIZE

SCRAPE_PATH = "/metrics"

# One label value each for whatever clients make up. No route's template looks like these.
OTHER = "OTHER"
UNROUTED = "unrouted"  # not found, or answered before routing: a redirect to TLS, a rejected Host
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"))

CANCELLED = 499  # nginx's code: the client closed the connection before there was a response


class MetricsMiddleware:
    """Works under WSGI and, without a thread in between, under ASGI."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Answers a scrape; counts any other request."""
        if self.is_async:
            return self.answer(request)
        if request.path_info == SCRAPE_PATH:
            return views.metrics(request)
        started = perf_counter()
        _progress(1)
        try:
            response: HttpResponseBase = self.get_response(request)
        except BaseException:  # the error page failed too, or the worker is being stopped
            _fail(request, 500, started)
            raise
        _finish(request, response, started)
        return response

    async def answer(self, request: HttpRequest) -> HttpResponseBase:
        """Does the same as __call__ for ASGI."""
        if request.path_info == SCRAPE_PATH:
            return await sync_to_async(views.metrics, thread_sensitive=False)(request)
        started = perf_counter()
        _progress(1)
        try:
            response: HttpResponseBase = await self.get_response(request)
        except BaseException as error:
            _fail(request, CANCELLED if isinstance(error, asyncio.CancelledError) else 500, started)
            raise
        _finish(request, response, started)
        return response


def count_exception(sender: object, request: HttpRequest | None = None, **_: Any) -> None:
    """Receives Django's got_request_exception, sent for exceptions that neither a view nor a middleware handled.

    It is sent again for each layer in which the error page fails too; a request counts once.
    """
    error = sys.exc_info()[1]
    if error is None or request is None or getattr(request, "exception_counted", False):
        return
    request.exception_counted = True  # type: ignore[attr-defined]
    EXCEPTIONS.labels(exception_type(error), _find(request, 500).endpoint).inc()


def exception_type(error: BaseException) -> str:
    """Returns the name of the error's class, or of the nearest base class that can be found in its module.

    So the code bounds the label's values, even where classes are created at run time.
    """
    for kind in type(error).__mro__:
        name = kind.__qualname__
        try:
            if operator.attrgetter(name)(sys.modules[kind.__module__]) is kind:
                return name
        except (AttributeError, KeyError):
            continue
    return OTHER


def endpoint(route: str) -> str:
    """Returns the label for a URL pattern's `route`: its template without converters and regular expressions.

    >>> endpoint("accounts/password/reset/key/^(?P<uidb36>[0-9A-Za-z]+)-(?P<key>.+)/$")
    '/accounts/password/reset/key/<uidb36>-<key>/'
    >>> endpoint("posts/<int:pk>/")
    '/posts/<pk>/'
    """
    template: str = simplify_regex(route)
    return re.sub(r"<\w+:(\w+)>", r"<\1>", template)


class _Series(NamedTuple):
    """The metrics of the requests with the same method, route and status."""

    endpoint: str
    # Takes the duration in seconds and the body's size in bytes; takes one from the requests in progress.
    record: Callable[[float, float], None]
    # Takes the duration, and the trace that becomes its exemplar.
    note: Callable[[float, str], None]


_series: dict[tuple[str, str | None, int], _Series] = {}
_progress = store.adder(REQUESTS_IN_PROGRESS)


def _find(request: HttpRequest, status: int) -> _Series:
    """Returns the series of a request, creating it the first time; also sets the route for the access log."""
    method = request.method if request.method in METHODS else OTHER
    route = match.route if (match := request.resolver_match) else _unmatched(request)
    series = _series.get((method, route, status))
    if series is None:
        series = _make(method or OTHER, route, status)
    request.META["ROUTE"] = series.endpoint
    return series


def _unmatched(request: HttpRequest) -> str | None:
    """Returns one route for all static files, which are served before routing; None for any other path."""
    prefix = settings.STATIC_URL
    return f"{prefix}<path>" if prefix and request.path_info.startswith(prefix) else None


def _make(method: str, route: str | None, status: int) -> _Series:
    """Creates a series, and keeps it if its status is a valid one."""
    label = UNROUTED if route is None else endpoint(route)
    known = 100 <= status <= 599
    series = _Series(
        label,
        store.request_recorder(
            REQUESTS.labels(method, label, str(status) if known else OTHER),
            REQUEST_DURATION.labels(method, label),
            RESPONSE_SIZE.labels(method, label),
            REQUESTS_IN_PROGRESS,
        ),
        store.noter(REQUEST_DURATION.labels(method, label)),
    )
    if known:
        _series[method, route, status] = series
    return series


def _finish(request: HttpRequest, response: HttpResponseBase, started: float) -> None:
    """Counts a request that has a response; a streamed one once the stream is closed."""
    if note := note_user(request):
        _on_close(response, note)
    series = _find(request, response.status_code)
    if isinstance(response, StreamingHttpResponse):
        _follow(request, response, series, started)
        return
    size = 0 if request.method == "HEAD" else len(response.content)  # type: ignore[attr-defined]
    seconds = perf_counter() - started
    series.record(seconds, size)
    if "TRACE_ID" in request.META:  # written out from _record(), as every request pays for the call
        series.note(seconds, request.META["TRACE_ID"])


def _record(series: _Series, request: HttpRequest, started: float, size: int) -> None:
    """Counts a request, and notes its trace if it has one: whoever traces requests puts its id into META."""
    seconds = perf_counter() - started
    series.record(seconds, size)
    if "TRACE_ID" in request.META:
        series.note(seconds, request.META["TRACE_ID"])


def _fail(request: HttpRequest, status: int, started: float) -> None:
    """Counts a request that ended without a response."""
    _record(_find(request, status), request, started, 0)


def _follow(request: HttpRequest, response: StreamingHttpResponse, series: _Series, started: float) -> None:
    """Counts a stream's bytes as they pass, and the request when the server closes the response: after the last byte,
    or when the client has disconnected (PEP 3333).
    """
    size = 0

    def add(chunk: bytes) -> bytes:
        nonlocal size
        size += len(chunk)
        return chunk

    def broken(error: Exception) -> None:
        EXCEPTIONS.labels(exception_type(error), series.endpoint).inc()

    def counted(chunks: Iterable[bytes]) -> Iterator[bytes]:
        try:
            yield from map(add, chunks)
        except Exception as error:
            broken(error)
            raise

    async def acounted(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield add(chunk)
        except Exception as error:
            broken(error)
            raise

    if getattr(response, "file_to_stream", None) is not None:
        size = int(response.get("Content-Length", "0"))  # the server may send the file itself
    elif request.method != "HEAD":
        content: Any = response.streaming_content
        response.streaming_content = acounted(content) if response.is_async else counted(content)

    # Called once: by response.close() or, if a server forgets that, when the response is garbage-collected.
    end = weakref.finalize(response, lambda: _record(series, request, started, size))
    end.atexit = False
    _on_close(response, end)


def _on_close(response: HttpResponseBase, call: Callable[[], object]) -> None:
    """Registers a function to be called when the response is sent or abandoned; exceptions it raises are dropped.

    Django keeps its own in this list, and has no public way to add to it.
    """
    closers: list[Callable[[], object]] = response._resource_closers  # type: ignore[attr-defined]
    closers.append(call)
