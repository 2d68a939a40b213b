"""Who may ask the API, and for what: bearer tokens and their rights."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from ninja.security import APIKeyCookie, HttpBearer
from ninja.utils import check_csrf

from ledger import approvals, tokens
from ledger.api.problems import Problem
from ledger.api.throttling import limit, network
from ledger.models import ApiToken, Deployment

MAX_BODY = 65_536  # bytes


class Bearer(HttpBearer):
    """Authorization: Bearer TOKEN (RFC 6750), checked before the body is read."""

    def __call__(self, request: HttpRequest) -> ApiToken:
        """Returns the token's row. Raises Problem: 401, 413 or 429."""
        length = request.META.get("CONTENT_LENGTH") or "0"
        if not length.isdecimal() or int(length) > MAX_BODY:
            raise Problem(413, "too-large", f"The body is larger than {MAX_BODY} bytes.")
        limit("address", network(request.META.get("REMOTE_ADDR", "")), settings.API_RATE_PER_ADDRESS)
        scheme, _, given = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise unauthorized("Bearer", "A token is required. Send Authorization: Bearer TOKEN.")
        found = self.authenticate(request, given.strip())
        limit("token", str(found.pk), settings.API_RATE_PER_TOKEN)
        return found

    def authenticate(self, request: HttpRequest, token: str) -> ApiToken:
        found = tokens.find(token, request.META.get("REMOTE_ADDR", ""))
        if found is None:
            challenge = 'Bearer error="invalid_token"'
            raise unauthorized(
                challenge, "The token is unknown, expired or revoked. Create another with manage.py api_token."
            )
        return found


class Session(APIKeyCookie):
    """The session of somebody who has signed in, with a CSRF token: for what only people do. A token never can."""

    param_name = settings.SESSION_COOKIE_NAME

    def __call__(self, request: HttpRequest) -> Any:
        """Returns the user. Raises Problem: 401, 403 or 429."""
        limit("address", network(request.META.get("REMOTE_ADDR", "")), settings.API_RATE_PER_ADDRESS)
        if request.META.get("HTTP_AUTHORIZATION"):
            raise Problem(403, "may-not", "A token cannot decide about a deployment. A person signs in and does.")
        if not request.user.is_authenticated:
            raise unauthorized("Cookie", "Sign in first: this takes the session of a person, not a token.")
        if check_csrf(request):
            raise Problem(403, "may-not", "The CSRF token is missing or wrong. Send the cookie's as X-CSRFToken.")
        return request.user

    def authenticate(self, request: HttpRequest, key: str | None) -> Any:
        """Unused: __call__() does it all."""
        raise NotImplementedError


def unauthorized(challenge: str, detail: str) -> Problem:
    return Problem(401, "", detail, headers={"WWW-Authenticate": challenge})


def token_of(request: HttpRequest) -> ApiToken:
    """Returns the token that Bearer has authenticated."""
    found = getattr(request, "auth")
    assert isinstance(found, ApiToken)
    return found


def in_scope(request: HttpRequest, environment: str) -> None:
    """Raises Problem (403) unless the request's token is valid for `environment`."""
    token = token_of(request)
    found = token.environments.filter(name=environment).first()
    if found is None:
        raise Problem(403, "out-of-scope", f"The token {token.name} is not valid for {environment}.")
    if token.owner and not token.owner.has_perm("ledger.request_deployment", found):
        detail = f"The owner of the token {token.name} may no longer deploy to {environment}."
        raise Problem(403, "out-of-scope", detail)


def may_request(request: HttpRequest, environment: str) -> None:
    """Raises Problem (403) unless the request's token may create deployments in `environment`."""
    in_scope(request, environment)
    if not token_of(request).may_request:
        raise Problem(403, "may-not-request", f"The token {token_of(request).name} may not create deployments.")


def may_record(request: HttpRequest, environment: str) -> None:
    """Raises Problem (403) unless the request's token may report what happens in `environment`."""
    in_scope(request, environment)
    if not token_of(request).may_record:
        detail = f"The token {token_of(request).name} may request deployments, and not report what becomes of them."
        raise Problem(403, "may-not-record", detail)


def owner_of(token: ApiToken) -> Any:
    """Returns the account that the token belongs to; None if it belongs to nobody."""
    return getattr(token, "owner", None)


def may_break_glass(request: HttpRequest, environment: str) -> None:
    """Raises Problem (403) unless the token's owner may deploy to `environment` without approval."""
    owner = owner_of(token_of(request))
    if owner is None or not owner.is_active or not owner.has_perm(approvals.BREAK_GLASS, environment):
        raise Problem(
            403,
            "may-not",
            f"The owner of the token {token_of(request).name} may not deploy to {environment} without approval. "
            "Use the token of an approver.",
        )


def may_register(request: HttpRequest) -> None:
    """Raises Problem (403) unless the request's token may register releases."""
    token = token_of(request)
    if not token.may_register or token.owner and not token.owner.has_perm("ledger.request_deployment"):
        raise Problem(
            403,
            "may-not-register",
            f"The token {token.name} may not register releases. Register them in the pipeline that builds them, with a "
            "token created with --register.",
        )


def may_change(request: HttpRequest, key: int) -> None:
    """Raises Problem (403) unless the request's token may continue the deployment with that primary key.

    It must be valid for the environment, and have created the deployment or may take over. Raises
    Deployment.DoesNotExist.

    A deployment's environment and token never change, so nothing is locked.
    """
    token = token_of(request)
    environment, creator = Deployment.objects.values_list("environment__name", "token").get(pk=key)
    may_record(request, environment)
    if creator != token.name and not token.may_take_over:
        who = f"the token {creator}" if creator else "a command"
        raise Problem(
            403,
            "not-its-own",
            f"Deployment {key} was created by {who}; the token {token.name} may change only its own. Use that token "
            "(if it is lost, manage.py api_token rotate replaces it) or one created with --take-over.",
        )
