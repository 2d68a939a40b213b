"""The board, the deployments and the insights. What a stranger sees of them has no people's names and no commands."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.db import Error as DatabaseError
from django.db.models import prefetch_related_objects
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from board import cards
from board.charts import Chart, chart
from board.forms import Filters
from health.reasons import Reason
from health.runner import Report, report
from ledger import dora, queries
from ledger.humanize import took_seconds
from ledger.models import Deployment, Environment
from ledger.models import Step as StepRow
from pages import fragments
from pages.fragments import HtmxRequest

PAGE = 25  # deployments
# Why the ledger is not asked at all: its database would not answer. What is late, read-only or full may answer.
GONE = (Reason.REFUSED, Reason.AUTHENTICATION, Reason.TIMEOUT)


@dataclass(frozen=True)
class Step:
    """Something that one who has just signed up may still do."""

    label: str
    url: str
    done: bool


# The board


@require_safe
@never_cache
def home(request: HtmxRequest) -> HttpResponse:
    """The board, and how this instance is. While the database is down 503, and still a page that says so."""
    health = report()
    cards = cards_of(request, health)
    steps = [] if fragments.is_poll(request) else account_steps(request)
    context = {"report": health, "cards": cards, "steps": [step for step in steps if not step.done]}
    response = fragments.respond(request, "board/board.html", context, 503 if cards is None else 200)
    if cards is None:
        response["Retry-After"] = "30"
    return response


def cards_of(request: HttpRequest, health: Report) -> list[cards.Card] | None:
    """None while the database is down: what is known to be down is not asked, as that would take its time."""
    database = health.checks.get("database")
    if database and database.reason in GONE and not database.late:
        return None
    try:
        return cards.cards(timezone.now(), commands=request.user.is_authenticated)
    except DatabaseError:
        return None


def account_steps(request: HttpRequest) -> list[Step]:
    """What makes the signed-in user's account complete; nothing for an anonymous visitor."""
    user = request.user
    if not user.is_authenticated:
        return []
    profile = reverse("accounts:profile")
    verified = user.emailaddress_set.filter(verified=True).exists()
    return [
        Step("Confirm your email address", reverse("account_email"), verified),
        Step("Choose a display name", profile, bool(user.display_name)),
        Step("Add a picture", profile, bool(user.avatar)),
    ]


# The deployments


@require_safe
@never_cache
def deployments(request: HtmxRequest) -> HttpResponse:
    """The list, filtered and in pages; 400 with what is wrong if a filter or a cursor is no such thing."""
    if "actor" in request.GET and not request.user.is_authenticated:
        if request.GET["actor"]:
            return redirect_to_login(request.get_full_path())  # else who deployed what could be found out by asking
    form = Filters(request.GET)
    if not form.is_valid():
        return fragments.respond(request, "board/deployments.html", {"form": form, "page": None}, 400)
    given = form.matching()
    found = Deployment.objects.select_related("environment", "release").matching(**given)
    newer = request.GET.get("newer")
    try:
        page = found.page(PAGE, newer or request.GET.get("older"), newer=bool(newer))
    except ValueError:
        parameters = request.GET.copy()
        for name in ("newer", "older"):
            parameters.pop(name, None)
        return redirect(f"{request.path}?{parameters.urlencode()}")
    filtered = any(given.values())
    return fragments.respond(request, "board/deployments.html", {"form": form, "page": page, "filtered": filtered})


@require_safe
@never_cache
def deployment(request: HtmxRequest, key: int) -> HttpResponse:
    try:
        found = Deployment.objects.select_related("environment", "release", "previous__release").get(pk=key)
    except Deployment.DoesNotExist:
        raise Http404 from None
    prefetch_related_objects([found], "steps")
    now = timezone.now()
    context: dict[str, Any] = {
        "deployment": found,
        "steps": time_line(found, now),
        "progress": cards.progress(found, now),
        "typical": Deployment.objects.typical_duration(found.environment, found.strategy),
        "compare": cards.comparison(found),
    }
    if request.user.is_authenticated:
        current = queries.live(found.environment)
        context["live"] = current == found
        context["advice"] = cards.advice(found, current)
    return fragments.respond(request, "board/deployment.html", context)


@dataclass(frozen=True)
class Line:
    """A step on the time line, which begins at `begin`; `start` and `width` are in per cent of the whole."""

    step: StepRow
    begin: datetime
    start: float
    width: float


def time_line(found: Deployment, now: datetime) -> list[Line]:
    steps = list(found.steps.all())
    if not steps:
        return []
    begin = found.started or steps[0].started
    end = found.finished or now
    whole = max((end - begin).total_seconds(), 0.001)

    def part(at: datetime) -> float:
        return min(100.0, max(0.0, 100 * (at - begin).total_seconds() / whole))

    lines = []
    for step in steps:
        start, stop = part(step.started), part(step.finished or now)
        width = max(1.0, stop - start)
        lines.append(Line(step, begin, round(min(start, 100 - width), 1), round(width, 1)))
    return lines


# The insights


@require_safe
@never_cache
def show_insights(request: HttpRequest) -> HttpResponse:
    """The four measures of all environments, and the charts of one."""
    environments = list(Environment.objects.order_by("order"))
    names = {each.name: each for each in environments}
    days = {str(each): each for each in dora.PERIODS}.get(request.GET.get("days", "30"))
    chosen = names.get(request.GET.get("environment", "production"))
    if days is None or chosen is None:
        raise Http404
    now = timezone.now()
    found = dora.by_environment(days, now)
    measures = found.get(chosen.pk, dora.Measures())
    return render(
        request,
        "board/insights.html",
        {
            "rows": [(each, found.get(each.pk, dora.Measures())) for each in environments],
            "chosen": chosen,
            "days": days,
            "periods": list(dora.PERIODS),
            "width": dora.PERIODS[days],
            "charts": charts(measures, dora.by_bar(chosen.pk, days, now), days),
            "measures": measures,
        },
    )


def charts(whole: dora.Measures, bars: list[tuple[datetime, dora.Measures]], days: int) -> list[Chart]:
    def each(name: str) -> list[tuple[date, float | None]]:
        return [
            (at.astimezone(UTC).date(), getattr(found, name)) for at, found in bars
        ]  # days are UTC's, for everybody

    def number(value: float) -> str:
        return f"{value:g}"

    def share(value: float) -> str:
        return f"{value:.0%}"

    def time(value: float | None) -> str:
        return "none yet" if value is None else took_seconds(value)

    rate = "none yet" if whole.failure_rate is None else share(whole.failure_rate)
    return [
        chart(
            "frequency",
            "Deployment frequency",
            f"{whole.live * 7 / days:.1f} a week",
            f"{whole.live} went live in {days} days",
            "busy",
            each("live"),
            number,
        ),
        chart(
            "lead",
            "Lead time",
            time(whole.lead),
            "median, from a release's build until it is live for the first time",
            "busy",
            each("lead"),
            time,
        ),
        chart(
            "failures",
            "Change failure rate",
            rate,
            f"{whole.failing} of {whole.changes} changes failed, or were rolled back or mended by a hotfix",
            "bad",
            each("failure_rate"),
            share,
        ),
        chart(
            "restore",
            "Time to restore",
            time(whole.restore),
            "median, from a change's failure until something works there again",
            "warn",
            each("restore"),
            time,
        ),
    ]
