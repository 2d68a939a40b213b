"""The forms of the members page."""

from typing import Any

from django import forms

from accounts import roles
from accounts.forms import EMAIL_LENGTH, require_allowed_domain
from accounts.models import User
from accounts.roles import Role

ROLES = [(role.value, role.label.capitalize()) for role in Role]


def places() -> list[tuple[str, str]]:
    """Returns where a role can be held, as choices."""
    return [("", "Everywhere"), *((name, name.capitalize()) for name in roles.environments())]


class ChoiceField(forms.ChoiceField):
    """One of its choices, of which an empty value may be one: so it is never optional."""

    def validate(self, value: object) -> None:
        if not self.valid_value(value):
            raise forms.ValidationError(self.error_messages["invalid_choice"], params={"value": value})


class RoleForm(forms.Form):
    """A role, or none, in one place."""

    environment = ChoiceField(label="Where")
    role = ChoiceField(choices=[("", "No role"), *ROLES])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        where = self.fields["environment"]
        assert isinstance(where, forms.ChoiceField)
        where.choices = places()


class InvitationForm(RoleForm):
    """Whom to invite, and with which role."""

    email = forms.EmailField(
        label="Email", max_length=EMAIL_LENGTH, widget=forms.EmailInput(attrs={"autocomplete": "off"})
    )
    send = forms.BooleanField(label="Send the invitation by mail", required=False, initial=True)
    field_order = ("email", "role", "environment", "send")

    def clean_email(self) -> str:
        """Returns the address in lower case. Raises ValidationError."""
        email = str(self.cleaned_data["email"]).lower()
        User._meta.get_field("email").run_validators(email)
        require_allowed_domain(email)
        return email
