"""The forms in which maintainers report an incident and add an update."""

from typing import Any

from django import forms

from accounts.roles import Scope
from ledger.models import Environment
from settings import text
from statuspage.models import Incident, IncidentUpdate


class MessageField(forms.CharField):
    """An update's message, with the model's limit and rule.

    Browsers submit a line break as two characters but count it as one, so it is made one before the length is checked
    (https://html.spec.whatwg.org/multipage/form-elements.html#the-textarea-element).
    """

    def __init__(self, help_text: str = "") -> None:
        area = forms.Textarea(attrs={"rows": 4})
        super().__init__(max_length=IncidentUpdate.MESSAGE, validators=[text.lines], widget=area, help_text=help_text)

    def to_python(self, value: Any) -> str:
        return str(super().to_python(value)).replace("\r\n", "\n")


class NewIncident(forms.ModelForm):  # type: ignore[type-arg]
    """An incident and the message of its first update."""

    message = MessageField("What is known so far, for the people affected.")

    class Meta:
        model = Incident
        fields = ("title", "impact", "environment", "status")

    def __init__(self, *args: Any, allowed: Scope = Scope(None), **options: Any) -> None:
        """Offers the environments in `allowed`."""
        super().__init__(*args, **options)
        field = self.fields["environment"]
        assert isinstance(field, forms.ModelChoiceField)
        if allowed.names is not None:
            field.queryset = Environment.objects.filter(name__in=allowed.names)


class NewUpdate(forms.Form):
    """An update to an incident."""

    status = forms.ChoiceField(choices=Incident.Status.choices)
    message = MessageField()
