"""The reader's time zone, in which pages show times and filter by day: from the browser's cookie, else UTC.

static/pages.js sets the cookie. Without the cookie or JavaScript, pages are in UTC and say so. APIs and feeds
always use UTC.
"""

from collections.abc import Callable
from datetime import UTC
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from django.http import HttpRequest, HttpResponseBase
from django.utils import timezone

COOKIE = "tz"  # an IANA name, such as America/Los_Angeles


@cache
def known() -> frozenset[str]:
    """Returns the names in this machine's tz database."""
    return frozenset(available_timezones())


class ZoneMiddleware:
    """Activates the reader's time zone for the request, as django.utils.timezone.get_current_timezone() returns it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        name = request.COOKIES.get(COOKIE, "")
        with timezone.override(ZoneInfo(name) if name in known() else UTC):
            return self.get_response(request)
