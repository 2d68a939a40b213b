"""Headers of every response, including those of probes and scrapes, which no later middleware sees."""

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from django.middleware.security import SecurityMiddleware


class Headers:
    """Adds the headers of SecurityMiddleware (HSTS over TLS, nosniff, ...), lets only this site embed the response, and
    names the release that gave it, and its revision, by which the deployer counts who answers.

    A response that has a header of the first two keeps it.
    https://fetch.spec.whatwg.org/#cross-origin-resource-policy-header
    """

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.security = SecurityMiddleware(get_response)

    def add(self, request: HttpRequest, response: HttpResponseBase) -> None:
        self.security.process_response(request, response)  # type: ignore[arg-type]
        response.headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
        response.headers["App-Version"] = settings.VERSION
        if settings.REVISION:
            response.headers["App-Revision"] = settings.REVISION
