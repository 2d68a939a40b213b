"""Answers probes before anything else can redirect, reject, count or delay them."""

import asyncio
from collections.abc import Awaitable, Callable

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from health import views

# With and without the trailing slash: it is easily forgotten in a probe, and a redirect would fail the Host check.
PROBES: dict[str, views.Probe] = {
    "/health/": views.health,
    "/health": views.health,
    "/health/live/": views.live,
    "/health/live": views.live,
    "/health/ready/": views.ready,
    "/health/ready": views.ready,
}


class ProbeMiddleware:
    """Comes before the Host check and the TLS redirect: a probe's Host is the pod's IP, and its scheme plain HTTP."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        probe = PROBES.get(request.path_info)  # every request passes here
        if probe is None:
            return self.get_response(request)
        return self.answer(probe, request) if self.is_async else probe(request)

    async def answer(self, probe: views.Probe, request: HttpRequest) -> HttpResponse:
        """Answers liveness at once, and the others in a thread, as waiting for checks must not block the event loop."""
        return probe(request) if probe is views.live else await asyncio.to_thread(probe, request)
