"""The error pages. The log has the exception; the page shows none of it."""

import sys

from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template import loader
from django.views import defaults
from django.views.decorators.csrf import requires_csrf_token

READ_ONLY = "25006"  # read_only_sql_transaction: https://www.postgresql.org/docs/current/errcodes-appendix.html
COOL_DOWN = 60  # seconds; the shortest window of the rate limits on pages


def database_is_unavailable(error: BaseException | None) -> bool:
    """Whether `error`, or its cause, means that the database is down or read-only, so that a retry may succeed.

    A full disk, too many connections, a shutdown and a timeout are OperationalErrors. A read-only database (a standby,
    or an old primary after a failover) raises an InternalError that only its code (SQLSTATE 25006) tells apart.
    """
    while error:
        if isinstance(error, OperationalError | InterfaceError):
            return True
        if isinstance(error, DatabaseError) and getattr(error.__cause__, "pgcode", None) == READ_ONLY:
            return True
        error = error.__cause__ or error.__context__
    return False


@requires_csrf_token
def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """400, or 503 if the database caused it: Django takes a session that cannot be saved for one that was deleted."""
    if database_is_unavailable(exception):
        return failure_page(request, True)
    return defaults.bad_request(request, exception)


@requires_csrf_token
def server_error(request: HttpRequest) -> HttpResponse:
    """503 with Retry-After when the database is down or read-only, else 500."""
    return failure_page(request, database_is_unavailable(sys.exc_info()[1]))


def failure_page(request: HttpRequest, unavailable: bool) -> HttpResponse:
    """Returns the page for 503 or 500, which needs neither database nor session."""
    status = 503 if unavailable else 500
    response = HttpResponse(
        loader.get_template(f"{status}.html").render({"request_id": request.META.get("REQUEST_ID")}),
        status=status,
    )
    if unavailable:
        response["Retry-After"] = str(settings.RETRY_AFTER)
    return response


def too_many_requests(request: HttpRequest) -> HttpResponse:
    """429 with Retry-After (RFC 6585, section 4). allauth finds this handler by its name in the root URLconf."""
    response = render(request, "429.html", status=429)
    response["Retry-After"] = str(COOL_DOWN)
    return response
