"""Errors of the API as problem details (RFC 9457), whatever made them: a rule, a route that is not there, a failure."""

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NoReturn

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from ninja.errors import HttpError, ValidationError

from ledger import rules
from ledger.models import Deployment

MEDIA_TYPE = "application/problem+json"
PREFIX = "/api/"
DOCS = f"{PREFIX}docs/"

# What the API itself tells apart, besides what a status says already. The docs page lists them, and `type` links there.
TYPES = {
    "invalid": "The request does not fit the schema; `errors` says where.",
    "unknown-release": "No release of this version is registered.",
    "environment-busy": "Another deployment to the environment is pending or running.",
    "not-promotable": "The release has not succeeded where it must before, and this is no hotfix.",
    "never-live": "A rollback goes to what has been live in the environment before, and this has not.",
    "already-live": "The release to roll back to is the one that runs.",
    "wrong-state": "The deployment or its step is not in a state that allows this.",
    "too-many-steps": "The deployment has as many steps as one may have.",
    "release-differs": "The version is registered already, as another build.",
    "conflict": "Somebody else has changed the same at the same moment.",
    "release-used": "The release was deployed and stays in the history.",
    "out-of-scope": "The token is not for this environment.",
    "may-not-register": "The token may not register releases.",
    "not-its-own": "Another token created the deployment, and this token may not take over.",
    "token-over-http": "The token came over plain http, where others could read it.",
    "key-reused": "The Idempotency-Key was used for another request.",
    "rate-limited": "Too many requests in this minute; `Retry-After` says when to go on, in seconds.",
    "too-large": "The body is larger than any request of this API.",
}

# For what Django answers by itself.
DETAILS = {
    400: "The request cannot be read.",
    404: f"There is nothing here. {DOCS} lists what there is.",
    405: "This method is not for this address. The header Allow names those that are.",
    500: "Something went wrong here, and it has been logged. Try again, and name the request id if you report it.",
    503: "The database is away. Try again when Retry-After (seconds) has passed.",
}


LEAKED = (
    "This token was sent over plain http, where others could read it: consider it leaked. Replace it (manage.py "
    "api_token rotate NAME), and use https:// from now on."
)


class Problem(Exception):
    """An answer that is an error. `code` is one of TYPES, or empty if the status says it all."""

    def __init__(
        self, status: int, code: str, detail: str, *, headers: dict[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers or {}
        self.members = members


def respond(request: HttpRequest, problem: Problem) -> HttpResponse:
    """`problem` as RFC 9457 has it. The title is the status' own phrase; `request_id` is also in the log."""
    body = {
        "type": f"{DOCS}#{problem.code}" if problem.code else "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "request_id": request.META.get("REQUEST_ID", ""),
        **problem.members,
    }
    headers = {"Cache-Control": "no-store"} | problem.headers
    return HttpResponse(json.dumps(body), MEDIA_TYPE, problem.status, headers=headers)


def invalid(where: list[dict[str, str]]) -> Problem:
    named = [each.get("pointer") or each.get("parameter", "") for each in where]
    return Problem(422, "invalid", f"The request does not fit the schema: {', '.join(named)}.", errors=where)


def on_violation(request: HttpRequest, error: rules.RuleViolation) -> HttpResponse:
    return respond(request, Problem(409, error.code, str(error)))


def on_invalid(request: HttpRequest, error: rules.Invalid) -> HttpResponse:
    return respond(
        request, Problem(422, "invalid", str(error), errors=[place_of(("body", "", error.field), str(error))])
    )


def on_malformed(request: HttpRequest, error: ValidationError) -> HttpResponse:
    """422; 404 if it is the path that names nothing there could be."""
    if any(each["loc"][0] == "path" for each in error.errors):
        return respond(request, Problem(404, "", DETAILS[404]))
    said = [(each["loc"], str(each["msg"]).removeprefix("Value error, ")) for each in error.errors]
    return respond(request, invalid([place_of(where, detail) for where, detail in said]))


def place_of(where: tuple[str | int, ...], detail: str) -> dict[str, str]:
    if where[0] == "body":
        return {"pointer": "#" + "".join(f"/{part}" for part in where[2:]), "detail": detail}
    return {"parameter": str(where[-1]), "detail": detail}


def on_no_deployment(request: HttpRequest, error: Exception) -> HttpResponse:
    return respond(request, Problem(404, "", "There is no such deployment."))


def on_unreadable(request: HttpRequest, error: HttpError) -> HttpResponse:
    return respond(request, Problem(error.status_code, "", "The body is no JSON."))


def on_failure(request: HttpRequest, error: Exception) -> NoReturn:
    """Django logs and counts it, and ProblemMiddleware words the answer."""
    raise error


HANDLERS: dict[type[Exception], Callable[[HttpRequest, Any], HttpResponse]] = {
    Problem: respond,
    rules.RuleViolation: on_violation,
    rules.Invalid: on_invalid,
    ValidationError: on_malformed,
    Deployment.DoesNotExist: on_no_deployment,
    HttpError: on_unreadable,
    Exception: on_failure,
}


def sent_openly(request: HttpRequest) -> bool:
    """Whether a token for the API came by http although the site is to be reached by https alone."""
    given = request.META.get("HTTP_AUTHORIZATION", "")
    return request.path.startswith(PREFIX) and given.lower().startswith("bearer") and not request.is_secure()


class ProblemMiddleware:
    """Turns the error pages of /api/, which are for people, into problem details. Their headers stay."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if settings.SECURE_SSL_REDIRECT and sent_openly(request):  # before the redirect, which would make it work
            return respond(request, Problem(403, "token-over-http", LEAKED))
        response = self.get_response(request)
        if response.status_code < 400 or not request.path.startswith(PREFIX):
            return response
        if response.headers.get("Content-Type") == MEDIA_TYPE:
            return response
        status = response.status_code
        kept = {name: response.headers[name] for name in ("Allow", "Retry-After") if name in response.headers}
        detail = DETAILS.get(status, HTTPStatus(status).description or HTTPStatus(status).phrase)
        response.close()
        return respond(request, Problem(status, "", detail, headers=kept))
