"""The filters of the list of deployments."""

from datetime import date, datetime, time, timedelta
from typing import Any

from django import forms
from django.utils.timezone import get_current_timezone

from ledger.models import Deployment, Environment
from settings import text

ANY = [("", "any")]


class DateInput(forms.DateInput):
    input_type = "date"  # the browser's own calendar; it sends YYYY-MM-DD

    def __init__(self) -> None:
        super().__init__(format="%Y-%m-%d")


class Filters(forms.Form):
    """What matching() takes, by GET. Days are those of the reader's zone, in which the list shows its times."""

    search = forms.CharField(label="Version, commit", max_length=64, required=False, validators=[text.one_line])
    environment = forms.ChoiceField(choices=[*ANY, *Environment.Name.choices], required=False)
    status = forms.ChoiceField(choices=[*ANY, *Deployment.Status.choices], required=False)
    strategy = forms.ChoiceField(choices=[*ANY, *Deployment.Strategy.choices], required=False)
    actor = forms.CharField(label="Actor", max_length=100, required=False, validators=[text.one_line])
    since = forms.DateField(label="From", required=False, widget=DateInput())
    until = forms.DateField(label="To", required=False, widget=DateInput())

    def clean(self) -> dict[str, Any]:
        given = super().clean() or {}
        since, until = given.get("since"), given.get("until")
        if since and until and until < since:
            self.add_error("until", "This is before the day from which you look. Swap the two.")
        for each in (since, until):
            if each and not 2000 <= each.year <= 2100:
                self.add_error("since" if each == since else "until", "Expected a year from 2000 to 2100.")
        return given

    def matching(self) -> dict[str, Any]:
        """The arguments of DeploymentQuerySet.matching()."""
        given = dict(self.cleaned_data)
        if since := given.pop("since"):
            given["since"] = midnight(since)
        if until := given.pop("until"):
            given["until"] = midnight(until + timedelta(days=1))
        return given


def midnight(day: date) -> datetime:
    """When `day` begins for the reader."""
    return datetime.combine(day, time(), get_current_timezone())
