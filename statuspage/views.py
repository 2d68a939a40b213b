"""The status page for everybody, and the pages on which maintainers report incidents."""

from datetime import UTC, datetime

from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from accounts.roles import Scope, scope
from ledger.environments import production_first, production_names
from ledger.models import Environment
from pages import fragments
from statuspage import history, incidents, verdict
from statuspage.forms import NewIncident, NewUpdate
from statuspage.models import Incident
from statuspage.readings import is_monitored
from statuspage.rows import STATE_STYLES, rows


@require_safe
@never_cache
def page(request: fragments.HtmxRequest) -> HttpResponse:
    """Shows the status page: with 200 whatever the state is, since the page is there to report it."""
    known, age = history.last_known()
    current = verdict.current_readings()
    published = known["incidents"] if known else None
    headline = verdict.headline(current, published)
    listed = [history.with_datetimes(each) for each in published or []]
    shown = rows(known, current)
    context = {
        "headline": headline,
        "tone": STATE_STYLES[headline.state][0],
        "checked": verdict.checked(current),
        "rows": shown,
        "others": [name for name in production_first() if name not in {row.name for row in shown}],
        "open": [each for each in listed if not each["resolved"]],
        "past": [each for each in listed if each["resolved"]],
        "known": known is not None,
        "as_of": datetime.fromtimestamp(timezone.now().timestamp() - age, UTC) if age else None,
        "days": history.DAYS,
        "manages": managed(request),
    }
    return fragments.respond(request, "statuspage/page.html", context)


@require_safe
@never_cache
def as_json(request: HttpRequest) -> JsonResponse:
    """Serves the same as JSON, in the shape that docs/status.md documents."""
    known, age = history.last_known()
    current = verdict.current_readings()
    headline = verdict.headline(current, known["incidents"] if known else None)
    return JsonResponse(
        {
            "status": headline.state,
            "description": headline.description,
            "timestamp": timezone.now().isoformat(),
            "history_age_seconds": round(age),
            "now": [
                {
                    "environment": each.environment,
                    "state": each.state,
                    "version": each.version,
                    "checks": each.checks,
                    "simulated": each.simulated,
                    "at": each.at.isoformat() if each.at else None,
                }
                for each in current.values()
                if each.environment in production_names() or each.simulated or is_monitored(each.environment)
            ],
            "environments": known["environments"] if known else None,
            "incidents": known["incidents"] if known else None,
        }
    )


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def new_incident(request: HttpRequest) -> HttpResponse:
    """Lets maintainers report an incident; 422 with the errors if the form is invalid."""
    allowed = managed(request)
    if not allowed:
        raise PermissionDenied
    initial = {"environment": Environment.objects.filter(name=production_names()[0]).first()}
    form = NewIncident(request.POST if request.method == "POST" else None, initial=initial, allowed=allowed)
    if form.is_valid():
        reported = incidents.report(
            form.save(commit=False), form.cleaned_data["message"], str(request.user), request=request
        )
        return redirect("incident", reported.pk)
    return render(request, "statuspage/new.html", {"form": form}, status=422 if form.is_bound else 200)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def incident(request: fragments.HtmxRequest, key: int) -> HttpResponse:
    """Shows an incident to everybody, and lets maintainers add an update; 422 with the errors if it is invalid."""
    allowed = managed(request)
    if request.method == "POST" and not allowed:
        raise PermissionDenied
    try:
        found = Incident.objects.select_related("environment").prefetch_related("updates").get(pk=key)
    except Incident.DoesNotExist:
        raise Http404 from None
    manages = found.environment.name in allowed
    if request.method == "POST" and not manages:
        raise PermissionDenied
    form = NewUpdate(request.POST if request.method == "POST" else None, initial={"status": found.status})
    if form.is_valid():
        incidents.update(
            key, form.cleaned_data["status"], form.cleaned_data["message"], str(request.user), request=request
        )
        return redirect("incident", key)
    context = {"incident": history.with_datetimes(history.published(found)), "form": form, "manages": manages}
    return fragments.respond(request, "statuspage/incident.html", context, 422 if form.is_bound else 200)


def managed(request: HttpRequest) -> Scope:
    """Returns the environments whose incidents the visitor may manage."""
    return scope(request.user, "statuspage.manage_incidents")
