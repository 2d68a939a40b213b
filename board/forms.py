"""The filters of the list of deployments."""

from datetime import date, datetime, time, timedelta
from typing import Any

from django import forms
from django.utils.timezone import get_current_timezone

from ledger.models import Deployment, Environment
from settings import text

ANY = [("", "any")]


class DateInput(forms.DateInput):
    """A date picker."""

    input_type = "date"  # browsers send YYYY-MM-DD, whatever they show

    def __init__(self) -> None:
        super().__init__(format="%Y-%m-%d")


class DeploymentFilters(forms.Form):
    """The filters, sent by GET. Days are in the reader's time zone, as are the times in the list."""

    search = forms.CharField(label="Version or commit", max_length=64, required=False, validators=[text.one_line])
    environment = forms.ChoiceField(required=False)
    status = forms.ChoiceField(choices=[*ANY, *Deployment.Status.choices], required=False)
    strategy = forms.ChoiceField(choices=[*ANY, *Deployment.Strategy.choices], required=False)
    actor = forms.CharField(label="Actor", max_length=100, required=False, validators=[text.one_line])
    since = forms.DateField(label="From", required=False, widget=DateInput())
    until = forms.DateField(label="To", required=False, widget=DateInput())

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        rows = Environment.objects.values_list("name", "order")  # in the order of the board; then the former ones
        shown = [(name, f"{name.capitalize()}{'' if order else ' (former)'}") for name, order in rows]
        field = self.fields["environment"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [*ANY, *shown]

    def clean(self) -> dict[str, Any]:
        given = super().clean() or {}
        since, until = given.get("since"), given.get("until")
        if since and until and until < since:
            self.add_error("until", "Ends before it starts. Swap the two dates.")
        for each in (since, until):
            if each and not 2000 <= each.year <= 2100:
                self.add_error("since" if each == since else "until", "Expected a year from 2000 to 2100.")
        return given

    def filters(self) -> dict[str, Any]:
        """Returns the arguments of DeploymentQuerySet.matching(), once the form is valid."""
        given = dict(self.cleaned_data)
        if since := given.pop("since"):
            given["since"] = midnight(since)
        if until := given.pop("until"):
            given["until"] = midnight(until + timedelta(days=1))
        return given


def midnight(day: date) -> datetime:
    """Returns the start of the day in the reader's time zone."""
    return datetime.combine(day, time(), get_current_timezone())
