"""Leads people whose role requires a second factor to set one up before anything else."""

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.exceptions import MiddlewareNotUsed
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from accounts.mfa import requirement

# What it takes to set up a second factor, or to leave: an unverified address must be verified or removed first.
OPEN = {
    "account_confirm_email",
    "account_email",
    "account_email_verification_sent",
    "account_logout",
    "account_reauthenticate",
    "accounts:avatar",
    "mfa_activate_totp",
    "mfa_add_webauthn",
    "mfa_download_recovery_codes",
    "mfa_index",
    "mfa_reauthenticate",
    "mfa_reauthenticate_webauthn",
    "mfa_view_recovery_codes",
}
NOT_FOR_PEOPLE = ("api/", "health/", "metrics", "static/")  # the API takes tokens alone; no session is valid there


class RequireSecondFactor:
    """Redirects a request of a session that shows no second factor, if REQUIRE_MFA requires one of its user.

    Costs nothing if REQUIRE_MFA is empty; no query for sessions that have shown a factor; one for others.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        if not settings.REQUIRE_MFA:
            raise MiddlewareNotUsed
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, *_: Any) -> HttpResponse | None:
        match = request.resolver_match
        assert match is not None
        if (
            match.view_name in OPEN
            or match.route.startswith(NOT_FOR_PEOPLE)
            or settings.SESSION_COOKIE_NAME not in request.COOKIES
            or not request.user.is_authenticated
            or requirement.is_shown(request)
            or not requirement.is_required(request.user)
        ):
            return None
        if (
            request.headers.get("HX-Request") == "true"
        ):  # an open page that updates itself: it must leave, not be filled
            return HttpResponse(status=204, headers={"HX-Redirect": reverse("mfa_index")})
        return redirect("mfa_index")
