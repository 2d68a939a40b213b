"""What stands between the traces and the metrics, so that exemplars can be measured: both cost the same themselves."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase


class With:
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        request.META.get("TRACE_ID", None)
        return self.get_response(request)


class Without(With):
    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        request.META.pop("TRACE_ID", None)
        return self.get_response(request)
