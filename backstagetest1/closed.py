"""BOARD=members: the pages of the ledger are for members alone.

A page is closed unless it is named here, so that a new one is not left open by mistake. Open are the pages by which
people get in, and what has a protection of its own: the API and /metrics their tokens, the admin its sign-in. The
status page, the probes and static files are for everybody.
"""

from collections.abc import Callable

from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import MiddlewareNotUsed, PermissionDenied
from django.http import HttpRequest, HttpResponse

from accounts.roles import scope

OPEN = ("accounts/", "health/", "media/", "metrics", "static/", "status/", settings.ADMIN_URL)
# The reference of the API names the environments, so it is closed; the operations require a token.
REFERENCE = ("api/", "api/docs/", "api/openapi.json")


def is_open(route: str) -> bool:
    """Returns whether anybody may see the page of this route (ResolverMatch.route)."""
    return route.startswith(OPEN) or route.startswith("api/") and route not in REFERENCE


class ClosedBoard:
    """Leads strangers to the sign-in page, and refuses accounts without a role."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        if settings.BOARD == "public":
            raise MiddlewareNotUsed
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, *_: object) -> HttpResponse | None:
        """Raises PermissionDenied."""
        if request.resolver_match and is_open(request.resolver_match.route):
            return None
        if not request.user.is_authenticated:
            return redirect_to_login(request.get_full_path())
        if not scope(request.user, "ledger.view_people"):
            raise PermissionDenied
        return None
