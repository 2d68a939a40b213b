"""The board, the deployments and the insights. Names, reasons and commands are for those who may see people there."""

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.db import Error as DatabaseError
from django.db.models import prefetch_related_objects
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from accounts.roles import Scope, scope
from board import answers, cards, charts, decisions, plots
from board.forms import DeploymentFilters
from health.reasons import Reason
from health.runner import Report, report
from ledger import approvals, dora, queries
from ledger.environments import config_of, environment_configs, production_names
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


def people(request: HttpRequest) -> Scope:
    """Returns the environments in which the visitor may see who did what and why."""
    return scope(request.user, "ledger.view_people")


# The board


@require_safe
@never_cache
def home(request: HtmxRequest) -> HttpResponse:
    """Shows the board and this instance's health; while the database is down, with 503 and without the cards."""
    until = wait_until(request)
    question = traffic_question(request)
    if question:
        question.begin()
    health = report()
    shown = cards_unless_down(request, health, until)
    tasks = [] if fragments.is_poll(request) else account_tasks(request)
    context: dict[str, Any] = {"report": health, "cards": shown, "tasks": [task for task in tasks if not task.done]}
    context["people"] = shown is not None and people(request)
    if shown is not None:
        context["approves"] = bool(scope(request.user, approvals.APPROVE))
        context["undecided"] = undecided(request, [card.environment for card in shown])
    if question and shown is not None:
        context |= traffic_context(question, [card.environment for card in shown], until)
    response = fragments.respond(request, "board/board.html", context, 503 if shown is None else 200)
    if shown is None:
        response["Retry-After"] = str(settings.RETRY_AFTER)
    return response


def undecided(request: HttpRequest, environments: list[Environment]) -> dict[str, list[decisions.Undecided]]:
    """Returns what waits for a decision, by the environment's name."""
    now = timezone.now()
    return {
        row.name: [decisions.undecided(each, request.user, now) for each in (*row.waiting, *row.unreviewed)]
        for row in environments
    }


def wait_until(request: HtmxRequest) -> float:
    """Returns until when the page waits for Prometheus, by the monotonic clock: the poll of an open one not at all."""
    return time.monotonic() + (0.0 if fragments.is_poll(request) else answers.DEADLINE)


def traffic_question(request: HttpRequest, about: Deployment | None = None) -> plots.Question | None:
    """Returns whose traffic the page plots and for how long, as its address says; None without a Prometheus.

    That is the traffic around the deployment `about`; or on the board of this instance's environment, unless another
    is chosen.
    """
    configs = {name: config for name, config in environment_configs().items() if config.prometheus}
    chosen = about.environment.name if about else request.GET.get("environment", settings.ENVIRONMENT)
    config = configs.get(chosen) or (None if about else next(iter(configs.values()), None))
    period = plots.PERIODS.get(request.GET.get("period", ""), plots.PERIODS["1h"])
    if config is None:
        return None
    return (
        plots.Question(config, period, middle(about), about.release.version)
        if about
        else plots.Question(config, period)
    )


def middle(deployment: Deployment) -> datetime | None:
    """Returns the time around which a deployment's traffic is plotted; None, for now, until it has ended."""
    return (deployment.started or deployment.created) if deployment.is_finished else None


def traffic_context(
    question: plots.Question, environments: list[Environment], until: float, own: int = 0
) -> dict[str, Any]:
    """Returns what the plots' template needs. `environments` are those to choose from. Raises django.db.Error."""
    row = next(each for each in environments if each.name == question.config.name)
    return {
        "traffic": question.answer(row, until, own),
        "periods": list(plots.PERIODS.values()),
        "choices": [each for each in environments if config_of(each.name).prometheus],
    }


def cards_unless_down(request: HttpRequest, health: Report, until: float) -> list[cards.Card] | None:
    """Returns the cards, or None while the database is down. One known to be down is not waited for."""
    database = health.checks.get("database")
    if database and database.reason in DOWN and not database.late:
        return None
    try:
        return cards.board_cards(timezone.now(), people=people(request), until=until)
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
    shown = people(request)
    if request.GET.get("actor") and not shown:
        # Otherwise anybody could find out by a filter who deployed what.
        if request.user.is_authenticated:
            raise PermissionDenied
        return redirect_to_login(request.get_full_path())
    form = DeploymentFilters(request.GET)
    if not form.is_valid():
        return fragments.respond(request, "board/deployments.html", {"form": form, "page": None, "people": shown}, 400)
    filters = form.filters()
    matching = Deployment.objects.select_related("environment", "release").matching(**filters)
    if filters["actor"] and shown.names is not None:
        matching = matching.filter(environment__in=Environment.objects.filter(name__in=shown.names))
    newer = request.GET.get("newer")
    try:
        page = matching.page(PAGE, newer or request.GET.get("older"), newer=bool(newer))
    except ValueError:
        parameters = request.GET.copy()
        for name in ("newer", "older"):
            parameters.pop(name, None)
        return redirect(f"{request.path}?{parameters.urlencode()}")
    context = {"form": form, "page": page, "filtered": any(filters.values()), "people": shown}
    return fragments.respond(request, "board/deployments.html", context)


@require_safe
@never_cache
def deployment(request: HtmxRequest, key: int) -> HttpResponse:
    """Shows a deployment with its steps; to those who may see people there, also what can be done about it now."""
    try:
        found = Deployment.objects.select_related("environment", "release", "previous__release").get(pk=key)
    except Deployment.DoesNotExist:
        raise Http404 from None
    until = wait_until(request)
    if question := traffic_question(request, found):
        question.begin()
    prefetch_related_objects([found], "steps")
    now = timezone.now()
    context: dict[str, Any] = {
        "deployment": found,
        "timeline": charts.timeline(found, now),
        "progress": cards.progress(found, now),
        "typical": Deployment.objects.typical_duration(found.environment, found.strategy),
        "compare": cards.compare_url(found),
        "people": found.environment.name in people(request),
    }
    waits = found.status == Deployment.Status.WAITING
    if waits or found.break_glass and Deployment.objects.filter(queries.unreviewed(), pk=found.pk).exists():
        context["undecided"] = decisions.undecided(found, request.user, now)
        context["approves"] = context["undecided"].decides
    if context["people"]:
        context["decisions"] = list(found.approvals.all())
        current = queries.live(found.environment)
        context["live"] = current == found
        context["advice"] = cards.deployment_advice(found, current)
    if question:
        context |= traffic_context(question, [found.environment], until, found.pk)
    return fragments.respond(request, "board/deployment.html", context)


# The insights


@require_safe
@never_cache
def insights(request: HttpRequest) -> HttpResponse:
    """Shows the four DORA measures of all environments, and the charts of one."""
    environments = list(Environment.objects.on_board())
    names = {each.name: each for each in environments}
    days = {str(each): each for each in dora.PERIODS}.get(request.GET.get("days", "30"))
    chosen = names.get(request.GET.get("environment", production_names()[0]))
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
