"""The forms for accounts: the profile, and what differs from django-allauth's own forms."""

from typing import Any

from allauth.account import app_settings
from allauth.account.adapter import get_adapter
from allauth.account.forms import AddEmailForm as BaseAddEmailForm
from allauth.account.forms import ResetPasswordForm as BaseResetPasswordForm
from allauth.account.forms import ResetPasswordKeyForm as BaseResetPasswordKeyForm
from allauth.account.forms import SignupForm as BaseSignupForm
from allauth.core import context as allauth_context
from django import forms
from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.core.validators import MaxLengthValidator
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from accounts import addresses, avatars, invitations, reset
from accounts.models import ResetLink, User

EMAIL_LENGTH = 254  # characters, as of User.email and allauth's EmailAddress.email


def limit_length(field: forms.EmailField) -> None:
    """Limits the address to the length of the model's field; allauth's limit is higher, and it would truncate."""
    field.max_length = EMAIL_LENGTH
    field.validators = [each for each in field.validators if not isinstance(each, MaxLengthValidator)]
    field.validators.append(MaxLengthValidator(EMAIL_LENGTH))
    field.widget.attrs["maxlength"] = str(EMAIL_LENGTH)


def require_allowed_domain(address: str) -> None:
    """Raises ValidationError if SIGN_UP_DOMAINS does not have the address's domain."""
    if not invitations.domain_is_allowed(address):
        allowed = " or ".join(f"@{domain}" for domain in settings.SIGN_UP_DOMAINS)
        raise forms.ValidationError(
            f"Addresses of this domain are not accepted here. Use one that ends with {allowed}."
        )


class AddEmailForm(BaseAddEmailForm):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        limit_length(self.fields["email"])

    def clean_email(self) -> str:
        email: str = super().clean_email()
        require_allowed_domain(email)
        return email


class SignupForm(BaseSignupForm):  # type: ignore[misc]
    """allauth's form without two ways to find out whether an address has an account.

    Nor can an address be blocked for its owner by adding it to another account (accounts.addresses).
    """

    account_already_exists: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        limit_length(self.fields["email"])
        request = allauth_context.request
        self.invitation = invitations.of_session(request) if request else None
        if self.invitation:
            self.initial["email"] = self.invitation.email
            self.fields["email"].widget.attrs["readonly"] = "readonly"
            self.fields["email"].help_text = "You were invited with this address."

    def clean_email(self) -> str:
        """An invitation is for its own address alone. Raises ValidationError."""
        email: str = super().clean_email()
        if self.invitation and email.lower() != self.invitation.email:
            raise forms.ValidationError(f"Your invitation is for {self.invitation.email}. Use that address.")
        require_allowed_domain(email)
        return email

    def validate_unique_email(self, value: str) -> str:
        self.account_already_exists = addresses.owners(value).exists()
        if self.account_already_exists and not verification_is_mandatory():
            raise get_adapter().validation_error("email_taken")
        return value

    def try_save(self, request: HttpRequest) -> tuple[User | None, HttpResponse | None]:
        if self.account_already_exists:
            # Signing up hashes a password; without this the response time would reveal which addresses are known.
            User().set_password(self.cleaned_data["password1"])
            return self.answer(request)
        try:
            with transaction.atomic():
                addresses.remove_unverified(self.cleaned_data["email"])
                user, answer = self.answer(request)
                if self.invitation and user:
                    invitations.accept(self.invitation, user, request)
                return user, answer
        except invitations.Refused:  # somebody else has used it since the check; the page says that sign-up is closed
            return None, redirect("account_signup")
        except IntegrityError:  # the same address has signed up since the check: a double click
            if not verification_is_mandatory():
                return None, redirect("account_login")
            self.account_already_exists = True
            return self.answer(request)

    def answer(self, request: HttpRequest) -> tuple[User | None, HttpResponse | None]:
        answer: tuple[User | None, HttpResponse | None] = super().try_save(request)
        return answer


def verification_is_mandatory() -> bool:
    return bool(app_settings.EMAIL_VERIFICATION == app_settings.EmailVerificationMethod.MANDATORY)


class ResetPasswordForm(BaseResetPasswordForm):  # type: ignore[misc]
    """allauth's form, for the owner of an address only; each request invalidates the previous link."""

    users: list[User]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        limit_length(self.fields["email"])

    def clean_email(self) -> str:
        email: str = super().clean_email()
        self.users = list(addresses.owners(email).filter(is_active=True))
        return email

    def save(self, request: HttpRequest, **kwargs: Any) -> str:
        for user in self.users:
            reset.renew(user, self.cleaned_data["email"])
        email: str = super().save(request, **kwargs)
        return email


class ResetPasswordKeyForm(BaseResetPasswordKeyForm):  # type: ignore[misc]
    """allauth's form. Ends every session, as each holds a hash of the password, and removes unverified addresses."""

    user: User

    def save(self) -> None:
        with transaction.atomic():
            User.objects.select_for_update().get(
                pk=self.user.pk
            )  # so that no address is added or verified concurrently
            link = ResetLink.objects.get(user=self.user)
            addresses.remove_unproven(self.user, link.address)
            super().save()
            link.delete()


class ProfileForm(forms.ModelForm):  # type: ignore[type-arg]
    avatar = forms.FileField(
        label="Profile picture",
        required=False,
        help_text="PNG, JPEG or WebP, up to 5 MB. Cropped to a square.",
        widget=forms.FileInput(attrs={"accept": ",".join(avatars.ACCEPTED_TYPES)}),
        error_messages={"empty": f"This file is empty. {avatars.ACCEPTED}"},
    )
    remove_avatar = forms.BooleanField(label="Remove profile picture", required=False)

    class Meta:
        model = User
        fields = ["display_name"]
        help_texts = {
            "display_name": "The name that others see. If empty, the part of your email address before the @."
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.instance.avatar:
            del self.fields["remove_avatar"]

    def clean_avatar(self) -> bytes | None:
        """Returns the avatar made from the upload. Raises ValidationError."""
        upload: "UploadedFile[bytes] | None" = self.cleaned_data["avatar"]
        return avatars.make(upload) if upload else None

    def clean(self) -> None:
        super().clean()
        if self.cleaned_data.get("avatar") and self.cleaned_data.get("remove_avatar"):
            self.add_error("remove_avatar", "Upload a new picture or remove the current one, not both.")

    def save(self, commit: bool = True) -> User:
        """Saves the display name and the avatar. Raises avatars.NotStored, with nothing changed."""
        picture = self.cleaned_data["avatar"]
        if picture or self.cleaned_data.get("remove_avatar"):
            avatars.save(self.instance, picture, also=("display_name",))
        else:
            self.instance.save(update_fields=["display_name"])
        user: User = self.instance
        return user
