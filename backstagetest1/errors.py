"""What a visitor sees when the service fails or refuses. The log has the exception; the page has none of it."""

import sys

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template import loader
from django.views.decorators.csrf import requires_csrf_token

RETRY_AFTER = 30  # seconds
COOL_DOWN = 60  # seconds; of the rate limits on pages, the one whose window is the shortest


@requires_csrf_token
def server_error(request: HttpRequest) -> HttpResponse:
    """503 with Retry-After when the database is away, else 500. The pages need neither database nor session."""
    away = isinstance(sys.exc_info()[1], OperationalError | InterfaceError)
    status = 503 if away else 500
    response = HttpResponse(
        loader.get_template(f"{status}.html").render({"request_id": request.META.get("REQUEST_ID")}),
        status=status,
    )
    if away:
        response["Retry-After"] = str(RETRY_AFTER)
    return response


def too_many_requests(request: HttpRequest) -> HttpResponse:
    """429 with Retry-After (RFC 6585, section 4). allauth looks for this handler by its name in the root URLconf."""
    response = render(request, "429.html", status=429)
    response["Retry-After"] = str(COOL_DOWN)
    return response
