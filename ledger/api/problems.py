"""Every error of the API as problem details: https://www.rfc-editor.org/rfc/rfc9457"""

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

# The errors that a status alone does not identify. The docs page lists them, and `type` links there.
TYPES = {
    "invalid": "The request is invalid; `errors` lists the fields.",
    "unknown-release": "The release is not registered.",
    "environment-gone": "environments.toml no longer has the environment.",
    "environment-busy": "Another deployment to the environment is pending or running.",
    "frozen": "The environment is frozen: only rollbacks begin, and hotfixes that break the glass.",
    "not-promotable": "The release has not succeeded where the environment is promoted from, and this is not a hotfix.",
    "not-approved": "The deployment has not been approved, or its approval has ended.",
    "own-request": "Nobody decides about what they have asked for.",
    "already-approved": "The deployment has all the approvals that it needs.",
    "may-not": "The account, or the token's owner, has no permission for this in the environment.",
    "never-live": "The release to roll back to was never live in the environment.",
    "already-live": "The release to roll back to is already live.",
    "wrong-state": "The state of the deployment or step does not allow this.",
    "too-many-steps": "The deployment has the maximum number of steps.",
    "release-differs": "The version is already registered for another build.",
    "conflict": "Another request changed this at the same time; try again.",
    "release-used": "The release was deployed, so it stays in the history.",
    "out-of-scope": "The token is not valid for this environment.",
    "may-not-register": "The token may not register releases.",
    "not-its-own": "Another token or a command created the deployment, and this token may not take over.",
    "token-over-http": "The token was sent over plain HTTP, where others could read it.",
    "key-reused": "The Idempotency-Key was used for another request.",
    "rate-limited": "Too many requests in a minute; wait as many seconds as `Retry-After` says.",
    "too-large": "The body is too large.",
}

# The details of errors that Django answers by itself.
DETAILS = {
    400: "The request could not be read.",
    404: f"Not found. {DOCS} lists the endpoints.",
    405: "Method not allowed. The Allow header lists the methods that are.",
    500: "An internal error occurred and was logged. Try again, and include the request id if you report it.",
    503: "The database is unavailable. Wait as many seconds as Retry-After says, then try again.",
}


LEAKED = (
    "This token was sent over plain HTTP, where others could read it: consider it leaked. Rotate it (manage.py "
    "api_token rotate NAME) and use https://."
)


class Problem(Exception):
    """An error response. `code` is one of TYPES, or empty if the status is enough; `members` extend it (RFC 9457)."""

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
    """Returns the response for `problem`. Its title is the status' reason phrase; its `request_id` is in the log."""
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
    """Returns the 422 for the errors `where`, each with `pointer` or `parameter`, and `detail`."""
    named = [each.get("pointer") or each.get("parameter", "") for each in where]
    return Problem(422, "invalid", f"Invalid request: {', '.join(named)}.", errors=where)


def on_violation(request: HttpRequest, error: rules.RuleViolation) -> HttpResponse:
    status = 403 if error.code in ("may-not", "own-request") else 409
    return respond(request, Problem(status, error.code, str(error)))


def on_invalid(request: HttpRequest, error: rules.Invalid) -> HttpResponse:
    return respond(
        request, Problem(422, "invalid", str(error), errors=[located(("body", "", error.field), str(error))])
    )


def on_malformed(request: HttpRequest, error: ValidationError) -> HttpResponse:
    """Answers 422, or 404 if a part of the path is malformed."""
    if any(each["loc"][0] == "path" for each in error.errors):
        return respond(request, Problem(404, "", DETAILS[404]))
    said = [(each["loc"], str(each["msg"]).removeprefix("Value error, ")) for each in error.errors]
    return respond(request, invalid([located(where, detail) for where, detail in said]))


def located(where: tuple[str | int, ...], detail: str) -> dict[str, str]:
    """Returns the member of `errors` for the location `where`, as pydantic names it."""
    if where[0] == "body":
        return {"pointer": "#" + "".join(f"/{part}" for part in where[2:]), "detail": detail}
    return {"parameter": str(where[-1]), "detail": detail}


def on_no_deployment(request: HttpRequest, error: Exception) -> HttpResponse:
    return respond(request, Problem(404, "", "No such deployment."))


def on_unreadable(request: HttpRequest, error: HttpError) -> HttpResponse:
    return respond(request, Problem(error.status_code, "", "The body is not valid JSON."))


def on_failure(request: HttpRequest, error: Exception) -> NoReturn:
    """Leaves the error to Django, which logs and counts it; ProblemMiddleware turns its page into problem details."""
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


def sent_in_clear(request: HttpRequest) -> bool:
    """Returns whether a token for the API was sent over plain HTTP."""
    given = request.META.get("HTTP_AUTHORIZATION", "")
    return request.path.startswith(PREFIX) and given.lower().startswith("bearer") and not request.is_secure()


class ProblemMiddleware:
    """Turns the HTML error pages of /api/ into problem details, and keeps Allow and Retry-After."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if settings.SECURE_SSL_REDIRECT and sent_in_clear(request):  # before the redirect, which would hide the mistake
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
