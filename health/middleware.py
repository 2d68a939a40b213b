"""Answers the probes before anything else can redirect, refuse, count or delay them."""

import asyncio
from collections.abc import Awaitable, Callable

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from health import views

# With and without the slash: whoever configures a probe may forget it, and a redirect to the right path would have to
# pass the Host check.
PROBES: dict[str, views.Probe] = {
    "/health/": views.health,
    "/health": views.health,
    "/health/live/": views.live,
    "/health/live": views.live,
    "/health/ready/": views.ready,
    "/health/ready": views.ready,
}


class ProbeMiddleware:
    """Stands before the Host check and the TLS redirect: a probe's Host is the pod's IP, its scheme plain HTTP."""

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
        return self.later(probe, request) if self.is_async else probe(request)

    async def later(self, probe: views.Probe, request: HttpRequest) -> HttpResponse:
        """Liveness at once; a report waits for its checks, which must not hold up the event loop."""
        return probe(request) if probe is views.live else await asyncio.to_thread(probe, request)
