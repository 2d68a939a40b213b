"""The filters of the audit log, and what filters by days have in common."""

from datetime import date, datetime, time, timedelta
from typing import Any

from django import forms
from django.utils.timezone import get_current_timezone

from audit.actions import Action
from audit.models import Entry
from settings import text

ANY = [("", "any")]


class DateInput(forms.DateInput):
    """A date picker."""

    input_type = "date"  # browsers send YYYY-MM-DD, whatever they show

    def __init__(self) -> None:
        super().__init__(format="%Y-%m-%d")


class PeriodForm(forms.Form):
    """Two days, the first and the last of a period, in the reader's time zone, as are the times on the page."""

    since = forms.DateField(label="From", required=False, widget=DateInput())
    until = forms.DateField(label="To", required=False, widget=DateInput())

    def clean(self) -> dict[str, Any]:
        given = super().clean() or {}
        since, until = given.get("since"), given.get("until")
        if since and until and until < since:
            self.add_error("until", "Ends before it starts. Swap the two dates.")
        for name, each in (("since", since), ("until", until)):
            if each and not 2000 <= each.year <= 2100:
                self.add_error(name, "Expected a year from 2000 to 2100.")
        return given

    def filters(self) -> dict[str, Any]:
        """Returns the filters that are set, once the form is valid: the days as times."""
        given = dict(self.cleaned_data)
        if since := given.pop("since"):
            given["since"] = midnight(since)
        if until := given.pop("until"):
            given["until"] = midnight(until + timedelta(days=1))
        return given


def midnight(day: date) -> datetime:
    """Returns the start of the day in the reader's time zone."""
    return datetime.combine(day, time(), get_current_timezone())


class EntryFilters(PeriodForm):
    """The filters of the audit log, sent by GET."""

    action = forms.ChoiceField(choices=[*ANY, *sorted(Action.choices, key=lambda each: each[1])], required=False)
    actor = forms.CharField(max_length=Entry.length("actor"), required=False, validators=[text.one_line])
    environment = forms.CharField(max_length=Entry.length("environment"), required=False, validators=[text.one_line])

    field_order = ("action", "actor", "environment", "since", "until")
