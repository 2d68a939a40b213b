"""The forms for second factors, and what differs from allauth's."""

from typing import Any

from allauth.mfa.adapter import get_adapter
from allauth.mfa.base.forms import AuthenticateForm as BaseAuthenticateForm
from allauth.mfa.base.forms import ReauthenticateForm as BaseReauthenticateForm
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.forms import ActivateTOTPForm as BaseActivateTOTPForm
from allauth.mfa.webauthn.forms import AddWebAuthnForm as BaseAddWebAuthnForm
from allauth.mfa.webauthn.forms import AuthenticateWebAuthnForm as BaseAuthenticateWebAuthnForm
from allauth.mfa.webauthn.forms import LoginWebAuthnForm as BaseLoginWebAuthnForm
from allauth.mfa.webauthn.forms import ReauthenticateWebAuthnForm as BaseReauthenticateWebAuthnForm
from django import forms
from django.core.cache import cache

from settings import text

USED_SECONDS = 90  # how long a code of an app may be accepted: its own 30 s, and MFA_TOTP_TOLERANCE before and after


class CodeMixin:
    """Accepts each code of an app once (RFC 6238, section 5.2). allauth forgets a code while it is still accepted."""

    user: Any
    authenticator: Authenticator
    fields: dict[str, forms.Field]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["code"].help_text = "From your authenticator app, or one of your recovery codes."
        self.fields["code"].widget.attrs["inputmode"] = "numeric"

    def clean_code(self) -> str:
        code: str = super().clean_code()  # type: ignore[misc]
        if self.authenticator.type == Authenticator.Type.TOTP:
            digits = "".join(filter(str.isdigit, code))
            if not cache.add(f"totp-used:{self.user.pk}:{digits}", True, USED_SECONDS):
                raise get_adapter().validation_error("incorrect_code")
        return code


class AuthenticateForm(CodeMixin, BaseAuthenticateForm):  # type: ignore[misc]
    pass


class ReauthenticateForm(CodeMixin, BaseReauthenticateForm):  # type: ignore[misc]
    pass


class ActivateTOTPForm(BaseActivateTOTPForm):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["code"].label = "Code"
        self.fields["code"].help_text = "The six digits that the app shows now."
        self.fields["code"].widget.attrs["inputmode"] = "numeric"


class AddPasskeyForm(BaseAddWebAuthnForm):  # type: ignore[misc]
    passwordless = None  # allauth's checkbox; a passkey that can sign in alone always may

    name = forms.CharField(max_length=80, validators=[text.name], help_text="So that you recognise it in the list.")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = valid_passkey(super().clean)
        return cleaned


class PasskeyMixin:
    def clean_credential(self) -> Authenticator:
        authenticator: Authenticator = valid_passkey(super().clean_credential)  # type: ignore[misc]
        return authenticator


class AuthenticatePasskeyForm(PasskeyMixin, BaseAuthenticateWebAuthnForm):  # type: ignore[misc]
    pass


class LoginPasskeyForm(PasskeyMixin, BaseLoginWebAuthnForm):  # type: ignore[misc]
    pass


class ReauthenticatePasskeyForm(PasskeyMixin, BaseReauthenticateWebAuthnForm):  # type: ignore[misc]
    pass


def valid_passkey(check: Any) -> Any:
    """Returns what allauth's `check` returns; what a browser would never send is invalid, and not an error of ours.

    Raises ValidationError.
    """
    try:
        return check()
    except forms.ValidationError as error:
        if error.code == "incorrect_code":
            raise get_adapter().validation_error("incorrect_passkey") from None
        raise
    except (AttributeError, KeyError, TypeError, ValueError):
        raise get_adapter().validation_error("incorrect_passkey") from None
