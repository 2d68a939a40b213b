"""The two addresses of sign-on: where it starts, and where the provider sends people back."""

import logging
from collections.abc import Callable

from allauth.decorators import rate_limit
from allauth.socialaccount.providers.oauth2.views import OAuth2CallbackView, OAuth2LoginView
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from accounts.sso.provider import Adapter, ProviderDown

logger = logging.getLogger(__name__)

PROVIDER = "oidc"


def unless_down(view: type[OAuth2LoginView] | type[OAuth2CallbackView]) -> Callable[[HttpRequest], HttpResponse]:
    def answer(request: HttpRequest) -> HttpResponse:
        try:
            response: HttpResponse = view.adapter_view(Adapter(request, PROVIDER))(request)
            return response
        except ProviderDown as error:
            logger.error("The OpenID provider is down: %s", error)
            page = render(request, "sso/down.html", {"provider_name": settings.OIDC_NAME}, status=503)
            page["Retry-After"] = str(settings.RETRY_AFTER)
            return page

    return answer


start = rate_limit(action="sign_on")(unless_down(OAuth2LoginView))
callback = rate_limit(action="sign_on")(unless_down(OAuth2CallbackView))
