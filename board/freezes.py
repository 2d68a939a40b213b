"""The page of the freezes: who has a role sees those of where it is held, and maintainers add and end them."""

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from accounts.roles import Scope, scope
from ledger import freezes
from ledger.models import Environment, Freeze
from ledger.weekly import Weekly
from settings import text


class Moment(forms.DateTimeInput):
    """A picker of date and time."""

    input_type = "datetime-local"

    def __init__(self) -> None:
        super().__init__(format="%Y-%m-%dT%H:%M")


class TimeOfDay(forms.TimeInput):
    """A picker of a time."""

    input_type = "time"

    def __init__(self) -> None:
        super().__init__(format="%H:%M")


class FreezeForm(forms.Form):
    """What both kinds of freezes have. `times` are the arguments of freezes.add()."""

    kind = ""
    environment = forms.ModelChoiceField(
        Environment.objects.on_board(), required=False, empty_label="Every environment"
    )
    reason = forms.CharField(max_length=200, validators=[text.one_line], help_text="Shown to accounts with a role.")

    def __init__(self, *args: Any, allowed: Scope, **options: Any) -> None:
        """Offers the environments in `allowed`."""
        super().__init__(*args, **options | {"auto_id": f"id_{self.kind}_%s"})
        field = self.fields["environment"]
        assert isinstance(field, forms.ModelChoiceField)
        if allowed.names is not None:
            field.queryset = Environment.objects.on_board().filter(name__in=allowed.names)
            field.required, field.empty_label = True, None

    @property
    def times(self) -> dict[str, Any]:
        raise NotImplementedError

    def save(self, request: HttpRequest) -> Freeze | None:
        """Adds the freeze; None, with the error at its field, if it makes no sense."""
        given, user = self.cleaned_data, request.user
        try:
            who: dict[str, Any] = {"actor": getattr(user, "email", ""), "actor_id": user.pk, "request": request}
            return freezes.add(given["environment"], given["reason"], **who, **self.times)
        except freezes.InvalidFreeze as error:
            self.add_error(error.field if error.field in self.fields else None, str(error))
            return None


class Once(FreezeForm):
    """A freeze from one time to another, in the reader's time zone."""

    kind = "once"
    starts = forms.DateTimeField(
        label="From", required=False, widget=Moment(), input_formats=["%Y-%m-%dT%H:%M"], help_text="Now if empty."
    )
    ends = forms.DateTimeField(label="To", widget=Moment(), input_formats=["%Y-%m-%dT%H:%M"])

    @property
    def times(self) -> dict[str, Any]:
        return {name: self.cleaned_data[name] for name in ("starts", "ends")}


class EachWeek(FreezeForm):
    """A freeze that comes again each week."""

    kind = "weekly"
    start_day = forms.TypedChoiceField(label="Start day", choices=Freeze.Day.choices, coerce=int, initial=4)
    start_time = forms.TimeField(label="Start time", widget=TimeOfDay())
    end_day = forms.TypedChoiceField(label="End day", choices=Freeze.Day.choices, coerce=int, initial=0)
    end_time = forms.TimeField(label="End time", widget=TimeOfDay())
    zone = forms.CharField(
        label="Time zone",
        max_length=64,
        initial=settings.TIME_ZONE,
        validators=[text.one_line],
        help_text="As in Europe/Berlin.",
    )

    @property
    def times(self) -> dict[str, Any]:
        names = ("start_day", "start_time", "end_day", "end_time", "zone")
        return {"weekly": Weekly(*(self.cleaned_data[name] for name in names))}


def may_change(request: HttpRequest) -> Scope:
    """Returns the environments that the visitor may freeze."""
    return scope(request.user, freezes.CHANGE)


def ends(row: Freeze, allowed: Scope) -> bool:
    """Tells whether whoever may freeze `allowed` may end the freeze."""
    return row.environment.name in allowed if row.environment else bool(allowed) and allowed.names is None


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@login_required
def page(request: HttpRequest) -> HttpResponse:
    """Lists the freezes; a POST adds one. 422 if the form is invalid."""
    allowed, seen = may_change(request), scope(request.user, "ledger.view_people")
    if not (seen or allowed) or request.method == "POST" and not allowed:
        raise PermissionDenied
    shown: list[FreezeForm] = []
    status = 200
    for form_class in (Once, EachWeek) if allowed else ():
        given = request.POST if request.POST.get("kind") == form_class.kind else None
        form = form_class(given, allowed=allowed)
        if form.is_bound:
            if form.is_valid() and (added := form.save(request)):
                messages.success(request, f"Freeze added: {added.when}.")
                return redirect("freezes")
            status = 422
        shown.append(form)
    now = timezone.now()
    rows = [
        {"freeze": row, "ends": ends(row, allowed)}
        for row in freezes.standing(now).select_related("environment")
        if row.environment is None or row.environment.name in seen
    ]
    bound = next((form for form in shown if form.is_bound), None)
    return render(request, "board/freezes.html", {"forms": shown, "rows": rows, "form": bound}, status=status)


@require_POST
@never_cache
@login_required
def end(request: HttpRequest, key: int) -> HttpResponse:
    """Ends a freeze early; one that the visitor may not end is 404, as one that is not there."""
    allowed = may_change(request)
    if not allowed:
        raise PermissionDenied
    row = Freeze.objects.select_related("environment").filter(pk=key).first()
    if row is None or not ends(row, allowed):
        raise Http404
    user = request.user
    ended = freezes.end(key, getattr(user, "email", ""), actor_id=user.pk, request=request)
    messages.success(request, f"Freeze {key} {'ended' if ended else 'had ended already'}.")
    return redirect("freezes")
