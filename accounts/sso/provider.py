"""Talks to the OpenID provider, and believes of it only what OpenID Connect Core 1.0 lets a client believe.

allauth's provider does the OAuth part: state, PKCE and the code. Here are the nonce, the signature of the ID token, its
issuer, audience and expiry, and that userinfo is about the same person:
https://openid.net/specs/openid-connect-core-1_0.html
"""

import hashlib
from typing import Any

import jwt
import requests
from allauth.socialaccount.adapter import get_adapter
from allauth.socialaccount.providers.oauth2.client import OAuth2Error
from allauth.socialaccount.providers.openid_connect.provider import OpenIDConnectProvider
from allauth.socialaccount.providers.openid_connect.views import OpenIDConnectOAuth2Adapter
from django.conf import settings
from django.core.cache import cache
from django.http import HttpRequest
from django.urls import reverse
from django.utils.crypto import constant_time_compare, salted_hmac

from accounts.adapter import origin

CACHE_SECONDS = 300  # for the provider's configuration and keys
LEEWAY = 60  # seconds by which clocks may differ
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class ProviderDown(Exception):
    """The provider does not answer, or not in the protocol."""


def nonce(verifier: str) -> str:
    """Returns the nonce of a flow by its PKCE verifier, which is kept in the session and seen by nobody else."""
    return salted_hmac("accounts.sso.nonce", verifier, algorithm="sha256").hexdigest()


def fetch(url: str, **headers: str) -> dict[str, Any]:
    """Returns the JSON object at `url`. Raises ProviderDown."""
    try:
        with get_adapter().get_requests_session() as session:
            response = session.get(url, headers=headers)
            response.raise_for_status()
            found = response.json()
    except (requests.RequestException, ValueError) as error:
        raise ProviderDown(f"{url}: {type(error).__name__}") from error
    if not isinstance(found, dict):
        raise ProviderDown(f"{url}: not a JSON object")
    return found


def fetch_cached(url: str) -> dict[str, Any]:
    """Returns the JSON object at `url`, perhaps as it was CACHE_SECONDS ago. Raises ProviderDown."""
    key = f"sso:{hashlib.sha256(url.encode()).hexdigest()}"
    found: dict[str, Any] | None = cache.get(key)
    if found is None:
        found = fetch(url)
        cache.set(key, found, CACHE_SECONDS)
    return found


class Adapter(OpenIDConnectOAuth2Adapter):  # type: ignore[misc]
    verifier = ""

    @property
    def openid_config(self) -> dict[str, Any]:
        """Returns the provider's configuration. Raises ProviderDown, also if it is that of another issuer."""
        config = fetch_cached(f"{settings.OIDC_ISSUER}/.well-known/openid-configuration")
        if str(config.get("issuer", "")).rstrip("/") != settings.OIDC_ISSUER:
            raise ProviderDown("the configuration names another issuer than OIDC_ISSUER")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not str(config.get(name, "")).startswith(("https://", f"{settings.OIDC_ISSUER}/")):
                raise ProviderDown(f"the configuration has no {name} with https://")
        return config

    def get_access_token_data(self, request: HttpRequest, app: Any, client: Any, pkce_code_verifier: Any = None) -> Any:
        self.verifier = pkce_code_verifier or ""
        try:
            return super().get_access_token_data(request, app, client, pkce_code_verifier=pkce_code_verifier)
        except (requests.RequestException, ValueError) as error:
            raise ProviderDown(f"token endpoint: {type(error).__name__}") from error

    def complete_login(self, request: HttpRequest, app: Any, token: Any, **kwargs: Any) -> Any:
        """Returns allauth's SocialLogin for the claims. Raises OAuth2Error if they cannot be believed; ProviderDown."""
        claims = self.verified(kwargs["response"].get("id_token"))
        if url := self.openid_config.get("userinfo_endpoint"):
            userinfo = fetch(url, Authorization=f"Bearer {token.token}")
            if userinfo.get("sub") != claims["sub"]:
                raise OAuth2Error("userinfo is about somebody else")
            claims = userinfo | claims  # what is signed takes precedence
        login = self.get_provider().sociallogin_from_response(request, claims)
        login.claims = claims
        return login

    def verified(self, id_token: Any) -> dict[str, Any]:
        """Returns the claims of the ID token (section 3.1.3.7). Raises OAuth2Error, ProviderDown."""
        try:
            key = self.key(jwt.get_unverified_header(id_token).get("kid"))
            claims: dict[str, Any] = jwt.decode(
                id_token,
                key,
                algorithms=ALGORITHMS,
                issuer=self.openid_config["issuer"],
                audience=settings.OIDC_CLIENT_ID,
                leeway=LEEWAY,
                options={"require": ["iss", "aud", "sub", "exp", "iat"]},
            )
        except (jwt.PyJWTError, TypeError) as error:
            raise OAuth2Error(f"the ID token is not valid: {type(error).__name__}") from error
        if isinstance(claims["aud"], list) and len(claims["aud"]) > 1 and claims.get("azp") != settings.OIDC_CLIENT_ID:
            raise OAuth2Error("the ID token was issued to another client")
        if not self.verifier or not constant_time_compare(str(claims.get("nonce", "")), nonce(self.verifier)):
            raise OAuth2Error("the ID token belongs to another sign-in (nonce)")
        return claims

    def key(self, kid: Any) -> Any:
        """Returns the provider's key of this id; the only one, if neither has an id. Raises OAuth2Error, ProviderDown.

        An unknown key may be new, so the keys are fetched again before it is refused.
        """
        url = self.openid_config["jwks_uri"]
        for fetched in (fetch_cached, fetch):
            keys = jwt.PyJWKSet.from_dict(fetched(url)).keys
            found = [each.key for each in keys if kid is None or each.key_id == kid]
            if len(found) == 1:
                return found[0]
        raise OAuth2Error("the ID token is signed with an unknown key")

    def get_callback_url(self, request: HttpRequest, app: Any) -> str:
        return origin(request) + reverse("sso_callback")


class Provider(OpenIDConnectProvider):  # type: ignore[misc]
    oauth2_adapter_class = Adapter

    def get_pkce_params(self) -> dict[str, str]:
        parameters: dict[str, str] = super().get_pkce_params()
        return parameters | {"nonce": nonce(parameters["code_verifier"])}

    def get_redirect_from_request_kwargs(self, request: HttpRequest) -> dict[str, Any]:
        """Returns what allauth does, but for what a link could add: other scopes, parameters, or another process."""
        found = super().get_redirect_from_request_kwargs(request)
        kept = {"next_url": found["next_url"]} if "next_url" in found else {}
        return kept | {"process": "login", "scope": self.get_scope(), "auth_params": {}}

    def extract_uid(self, data: dict[str, Any]) -> str:
        """Returns what identifies the person: issuer and subject, as a subject is unique at its issuer only."""
        return hashlib.sha256(f"{data['iss']}\n{data['sub']}".encode()).hexdigest()

    def extract_extra_data(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"iss": data["iss"], "sub": data["sub"]}

    def extract_common_fields(self, data: dict[str, Any]) -> dict[str, Any]:
        return {}  # accounts.sso.adapter decides about addresses and names

    def extract_email_addresses(self, data: dict[str, Any]) -> list[Any]:
        return []
