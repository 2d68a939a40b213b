"""A person's sessions: where they are signed in, and how to end that (allauth.usersessions keeps the list)."""

import re
from collections.abc import Callable
from datetime import timedelta
from time import time

from allauth.usersessions.models import UserSession
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from accounts.models import User

SEEN = "seen"  # in a session: when it was last written down as used, in seconds since 1970
SEEN_EVERY = timedelta(minutes=15)

BROWSERS = (("Edg", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("Chrome/", "Chrome"), ("Safari/", "Safari"))
SYSTEMS = (
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
)


class SeenMiddleware:
    """Writes down when a session was last used, and from where; at most every SEEN_EVERY, as it costs two writes."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        # Who has no session, or did not need it, is not asked for one.
        if request.session.accessed and (seen := request.session.get(SEEN)) is not None:
            if time() - seen > SEEN_EVERY.total_seconds() and response.status_code < 500:
                seen_now(request)
        return response


def begin(request: HttpRequest, **_: object) -> None:
    """Starts to write down when the session that began with this request is used."""
    request.session[SEEN] = int(time())


def seen_now(request: HttpRequest) -> None:
    own = UserSession.objects.filter(session_key=request.session.session_key)
    if own.update(last_seen_at=timezone.now(), ip=request.META["REMOTE_ADDR"]):
        request.session[SEEN] = int(time())  # SessionMiddleware, which is around this one, saves it


def active(user: User) -> list[UserSession]:
    """Returns the sessions of `user` that are valid, the last used first; forgets the others."""
    found: list[UserSession] = UserSession.objects.purge_and_list(user)
    return sorted(found, key=lambda session: session.last_seen_at, reverse=True)


def end_all(user: User, *, but: str | None = None) -> int:
    """Ends the sessions of `user` at once, but that with the key `but`. Returns their number.

    Each is deleted from the database and from the cache.
    """
    return end(UserSession.objects.filter(user=user).exclude(session_key=but or ""))


def end(sessions: "QuerySet[UserSession]") -> int:
    ended = list(sessions)
    for session in ended:
        session.end()
    return len(ended)


def end_some(user: User, which: str, *, but: str | None) -> int:
    """Ends the session of `user` with the id `which`, or if it is `others` all but that with the key `but`."""
    own = UserSession.objects.filter(user=user).exclude(session_key=but or "")
    if which != "others":
        own = own.filter(pk=which) if which.isascii() and which.isdecimal() else own.none()
    return end(own)


def device(user_agent: str) -> str:
    """Returns what people call a browser and its system, such as `Firefox on Linux`; the text itself if unknown."""
    browser = next((name for mark, name in BROWSERS if mark in user_agent), "")
    system = next((name for mark, name in SYSTEMS if mark in user_agent), "")
    if browser and system:
        return f"{browser} on {system}"
    return browser or system or re.split("[ /]", user_agent, maxsplit=1)[0][:40] or "Unknown device"
