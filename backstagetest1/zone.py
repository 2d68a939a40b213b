"""The reader's time zone, in which pages show times and filter by days: what the browser names in a cookie, else UTC.

static/pages.js sets the cookie. Without it, as without JavaScript, pages are in UTC and say so. APIs and feeds are in
UTC always.
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
    """The names that this machine's tz database has."""
    return frozenset(available_timezones())


class ZoneMiddleware:
    """Activates the reader's zone for the request: django.utils.timezone.get_current_timezone() has it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        name = request.COOKIES.get(COOKIE, "")
        with timezone.override(ZoneInfo(name) if name in known() else UTC):
            return self.get_response(request)
