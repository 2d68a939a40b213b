"""What differs from allauth's views of second factors; accounts.mfa.urls uses the others unchanged."""

from typing import Any

from allauth.account.adapter import get_adapter as get_account_adapter
from allauth.mfa.adapter import get_adapter
from allauth.mfa.base.views import IndexView as BaseIndexView
from allauth.mfa.webauthn.internal import auth
from allauth.mfa.webauthn.views import AddWebAuthnView, LoginWebAuthnView, RemoveWebAuthnView
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.urls import reverse_lazy

from accounts.mfa import requirement


class IndexView(BaseIndexView):  # type: ignore[misc]
    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        missing = not requirement.is_shown(self.request) and requirement.is_required(self.request.user)
        context: dict[str, Any] = super().get_context_data(**kwargs) | {"missing": missing}
        return context


class AddPasskeyView(AddWebAuthnView):  # type: ignore[misc]
    """allauth's view. A passkey is created so that it can sign in alone, if the device can do that."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context: dict[str, Any] = super().get_context_data(**kwargs)
        selection = context["js_data"]["creation_options"]["publicKey"]["authenticatorSelection"]
        selection |= {"residentKey": "preferred", "requireResidentKey": False}
        return context


class RemovePasskeyView(RemoveWebAuthnView):  # type: ignore[misc]
    """allauth's view, which keeps the last second factor of people whose role requires one."""

    success_url = reverse_lazy("mfa_index")

    def form_valid(self, form: Any) -> HttpResponse:
        if not get_adapter().can_delete_authenticator(self.get_object()):
            error: ValidationError = get_adapter().validation_error("cannot_delete_authenticator")
            messages.error(self.request, error.messages[0])
            return redirect("mfa_index")
        response: HttpResponse = super().form_valid(form)
        return response


class SignInWithPasskeyView(LoginWebAuthnView):  # type: ignore[misc]
    """allauth's view. GET returns a challenge as JSON for passkeys.js; POST signs in with the answer to it."""

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return JsonResponse({"request_options": auth.begin_authentication(user=None)})

    def form_invalid(self, form: Any) -> HttpResponse:
        get_account_adapter().add_message(
            self.request, messages.ERROR, message=get_adapter().error_messages["incorrect_passkey"]
        )
        return redirect("account_login")
