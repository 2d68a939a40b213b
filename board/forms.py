"""The filters of the list of deployments."""

from typing import Any

from django import forms

from audit.forms import ANY, PeriodForm
from ledger.models import Deployment, Environment
from settings import text


class DeploymentFilters(PeriodForm):
    """The filters, sent by GET: the arguments of DeploymentQuerySet.matching()."""

    search = forms.CharField(label="Version or commit", max_length=64, required=False, validators=[text.one_line])
    environment = forms.ChoiceField(required=False)
    status = forms.ChoiceField(choices=[*ANY, *Deployment.Status.choices], required=False)
    strategy = forms.ChoiceField(choices=[*ANY, *Deployment.Strategy.choices], required=False)
    actor = forms.CharField(label="Actor", max_length=100, required=False, validators=[text.one_line])

    field_order = ("search", "environment", "status", "strategy", "actor", "since", "until")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        rows = Environment.objects.values_list("name", "order")  # in the order of the board; then the former ones
        shown = [(name, f"{name.capitalize()}{'' if order else ' (former)'}") for name, order in rows]
        field = self.fields["environment"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [*ANY, *shown]
