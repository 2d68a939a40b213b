"""The board, the deployments and the insights. Visitors who are not signed in see neither names nor commands."""

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.db import Error as DatabaseError
from django.db.models import prefetch_related_objects
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from board import cards, charts
from board.forms import DeploymentFilters
from health.reasons import Reason
from health.runner import Report, report
from ledger import dora, queries
from ledger.models import Deployment, Environment
from pages import fragments
from pages.fragments import HtmxRequest

PAGE = 25  # deployments
# With these the database does not answer at all, so it is not asked. One that is slow, read-only or full may answer.
DOWN = (Reason.REFUSED, Reason.AUTHENTICATION, Reason.TIMEOUT)


@dataclass(frozen=True)
class AccountTask:
    """Something left to do for a user who has just signed up."""

    label: str
    url: str
    done: bool


# The board


@require_safe
@never_cache
def home(request: HtmxRequest) -> HttpResponse:
    """Shows the board and this instance's health; while the database is down, with 503 and without the cards."""
    health = report()
    shown = cards_unless_down(request, health)
    tasks = [] if fragments.is_poll(request) else account_tasks(request)
    context = {"report": health, "cards": shown, "tasks": [task for task in tasks if not task.done]}
    response = fragments.respond(request, "board/board.html", context, 503 if shown is None else 200)
    if shown is None:
        response["Retry-After"] = str(settings.RETRY_AFTER)
    return response


def cards_unless_down(request: HttpRequest, health: Report) -> list[cards.Card] | None:
    """Returns the cards, or None while the database is down. One known to be down is not waited for."""
    database = health.checks.get("database")
    if database and database.reason in DOWN and not database.late:
        return None
    try:
        return cards.board_cards(timezone.now(), commands=request.user.is_authenticated)
    except DatabaseError:
        return None


def account_tasks(request: HttpRequest) -> list[AccountTask]:
    """Returns what completes the user's account, done or not; nothing for an anonymous visitor."""
    user = request.user
    if not user.is_authenticated:
        return []
    profile = reverse("accounts:profile")
    verified = user.emailaddress_set.filter(verified=True).exists()
    return [
        AccountTask("Verify your email address", reverse("account_email"), verified),
        AccountTask("Choose a display name", profile, bool(user.display_name)),
        AccountTask("Add a picture", profile, bool(user.avatar)),
    ]


# The deployments


@require_safe
@never_cache
def deployments(request: HtmxRequest) -> HttpResponse:
    """Shows the filtered list in pages; 400 with the errors if a filter is invalid. An invalid cursor is dropped."""
    if request.GET.get("actor") and not request.user.is_authenticated:
        # Otherwise anybody could find out by a filter who deployed what.
        return redirect_to_login(request.get_full_path())
    form = DeploymentFilters(request.GET)
    if not form.is_valid():
        return fragments.respond(request, "board/deployments.html", {"form": form, "page": None}, 400)
    filters = form.filters()
    matching = Deployment.objects.select_related("environment", "release").matching(**filters)
    newer = request.GET.get("newer")
    try:
        page = matching.page(PAGE, newer or request.GET.get("older"), newer=bool(newer))
    except ValueError:
        parameters = request.GET.copy()
        for name in ("newer", "older"):
            parameters.pop(name, None)
        return redirect(f"{request.path}?{parameters.urlencode()}")
    context = {"form": form, "page": page, "filtered": any(filters.values())}
    return fragments.respond(request, "board/deployments.html", context)


@require_safe
@never_cache
def deployment(request: HtmxRequest, key: int) -> HttpResponse:
    """Shows a deployment with its steps, and to members what can be done about it now."""
    try:
        found = Deployment.objects.select_related("environment", "release", "previous__release").get(pk=key)
    except Deployment.DoesNotExist:
        raise Http404 from None
    prefetch_related_objects([found], "steps")
    now = timezone.now()
    context: dict[str, Any] = {
        "deployment": found,
        "timeline": charts.timeline(found, now),
        "progress": cards.progress(found, now),
        "typical": Deployment.objects.typical_duration(found.environment, found.strategy),
        "compare": cards.compare_url(found),
    }
    if request.user.is_authenticated:
        current = queries.live(found.environment)
        context["live"] = current == found
        context["advice"] = cards.deployment_advice(found, current)
    return fragments.respond(request, "board/deployment.html", context)


# The insights


@require_safe
@never_cache
def insights(request: HttpRequest) -> HttpResponse:
    """Shows the four DORA measures of all environments, and the charts of one."""
    environments = list(Environment.objects.order_by("order"))
    names = {each.name: each for each in environments}
    days = {str(each): each for each in dora.PERIODS}.get(request.GET.get("days", "30"))
    chosen = names.get(request.GET.get("environment", "production"))
    if days is None or chosen is None:
        raise Http404
    now = timezone.now()
    measures = dora.by_environment(days, now)
    total = measures.get(chosen.pk, dora.Measures())
    return render(
        request,
        "board/insights.html",
        {
            "rows": [(each, measures.get(each.pk, dora.Measures())) for each in environments],
            "chosen": chosen,
            "days": days,
            "periods": list(dora.PERIODS),
            "width": dora.PERIODS[days],
            "charts": charts.dora_charts(total, dora.by_bar(chosen.pk, days, now), days),
        },
    )
