from typing import Any

from allauth.account import app_settings
from allauth.account.adapter import get_adapter
from allauth.account.forms import AddEmailForm as BaseAddEmailForm
from allauth.account.forms import ResetPasswordForm as BaseResetPasswordForm
from allauth.account.forms import ResetPasswordKeyForm as BaseResetPasswordKeyForm
from allauth.account.forms import SignupForm as BaseSignupForm
from django import forms
from django.core.files.uploadedfile import UploadedFile
from django.core.validators import MaxLengthValidator
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from accounts import addresses, avatars, reset
from accounts.models import ResetLink, User

EMAIL_LENGTH = 254  # characters, of User.email and of allauth's EmailAddress.email


def bound(field: forms.EmailField) -> None:
    """Gives allauth's field for an address the limit of the model. Its own is higher, and beyond ours it would cut."""
    field.max_length = EMAIL_LENGTH
    field.validators = [each for each in field.validators if not isinstance(each, MaxLengthValidator)]
    field.validators.append(MaxLengthValidator(EMAIL_LENGTH))
    field.widget.attrs["maxlength"] = str(EMAIL_LENGTH)


class AddEmailForm(BaseAddEmailForm):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        bound(self.fields["email"])


class SignupForm(BaseSignupForm):  # type: ignore[misc]
    """allauth's, closed against two ways in which it tells whether an address is known.

    Nor can an address be kept from its owner by adding it to another account (accounts.addresses).
    """

    account_already_exists: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        bound(self.fields["email"])

    def validate_unique_email(self, value: str) -> str:
        self.account_already_exists = addresses.owners(value).exists()
        if self.account_already_exists and not verification_is_mandatory():
            raise get_adapter().validation_error("email_taken")
        return value

    def try_save(self, request: HttpRequest) -> tuple[User | None, HttpResponse | None]:
        if self.account_already_exists:
            # A new account costs a password hash; without this the time taken would tell which addresses are known.
            User().set_password(self.cleaned_data["password1"])
            return self.answer(request)
        try:
            with transaction.atomic():
                addresses.release(self.cleaned_data["email"])
                return self.answer(request)
        except IntegrityError:  # the same address signed up since it was checked: a button pressed twice
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
    """allauth's, for addresses that stand for somebody; each request ends the link sent before."""

    users: list[User]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        bound(self.fields["email"])

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
    """allauth's. Every session ends, as each carries a hash of the password; addresses that prove nothing go."""

    user: User

    def save(self) -> None:
        with transaction.atomic():
            User.objects.select_for_update().get(pk=self.user.pk)  # no address is added or verified meanwhile
            link = ResetLink.objects.get(user=self.user)
            addresses.keep_only_proven(self.user, link.address)
            super().save()
            link.delete()


class ProfileForm(forms.ModelForm):  # type: ignore[type-arg]
    avatar = forms.FileField(
        label="Picture",
        required=False,
        help_text="PNG, JPEG or WebP, up to 5 MB. It is cropped to a square.",
        widget=forms.FileInput(attrs={"accept": ",".join(avatars.ACCEPTED_TYPES)}),
        error_messages={"empty": f"This file is empty. {avatars.ACCEPTED}"},
    )
    remove_avatar = forms.BooleanField(label="Remove the picture", required=False)

    class Meta:
        model = User
        fields = ["display_name"]
        help_texts = {"display_name": "What others see. Without one, the part of your address before the @."}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.instance.avatar:
            del self.fields["remove_avatar"]

    def clean_avatar(self) -> bytes | None:
        """The picture, checked and made anew."""
        upload: "UploadedFile[bytes] | None" = self.cleaned_data["avatar"]
        return avatars.make(upload) if upload else None

    def clean(self) -> None:
        super().clean()
        if self.cleaned_data.get("avatar") and self.cleaned_data.get("remove_avatar"):
            self.add_error("remove_avatar", "Choose one: a new picture, or none.")

    def save(self, commit: bool = True) -> User:
        """Raises avatars.NotStored, with nothing changed."""
        picture = self.cleaned_data["avatar"]
        if picture or self.cleaned_data.get("remove_avatar"):
            avatars.save(self.instance, picture, also=("display_name",))
        else:
            self.instance.save(update_fields=["display_name"])
        user: User = self.instance
        return user
