"""The status page for everybody, and the pages on which staff tell of incidents."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from django import forms
from django.contrib.auth.decorators import login_required
from django.contrib.syndication.views import Feed
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.feedgenerator import Atom1Feed
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from deploy import status
from deploy.models import Environment
from deploy.status_models import Incident
from deploy.watch import Reading

TALL = 40  # of a bar, in the drawing's units
SHAPES = {"ok": TALL, "warn": 28, "bad": 16, "idle": 3}  # by tone: height tells the same as colour


@dataclass(frozen=True)
class Bar:
    """A day. `x` and `height` are in the drawing's units; `y` is where it begins, as all stand on one ground."""

    day: date
    percent: float | None
    tone: str
    x: int

    @property
    def height(self) -> int:
        return SHAPES[self.tone]

    @property
    def y(self) -> int:
        return TALL - self.height

    @property
    def words(self) -> str:
        return "no data" if self.percent is None else f"{self.percent:g} %"


def bars(days: list[dict[str, Any]]) -> list[Bar]:
    found = []
    for number, each in enumerate(days):
        part = each["uptime_percent"]
        tone = "idle" if part is None else "ok" if part == 100 else "warn" if part >= 99 else "bad"
        found.append(Bar(date.fromisoformat(each["date"]), part, tone, 4 * number))
    return found


def rows(found: dict[str, Any] | None, now: dict[str, Reading]) -> list[dict[str, Any]]:
    """What is known of each environment, now and of its days; also of one that has no past yet."""
    past = {each["environment"]: each for each in found["environments"]} if found else {}
    names = [name for name in Environment.Name.values if name in past or name in now]
    made = []
    for name in names:
        drawn = bars(past[name]["days"]) if name in past else []
        made.append(
            {
                "name": name,
                "reading": now.get(name),
                "percent": past[name]["uptime_percent"] if name in past else None,
                "bars": drawn,
                "flaws": [bar for bar in drawn if bar.percent is not None and bar.percent < 100],
                "silent": sum(bar.percent is None for bar in drawn),
            }
        )
    return made


def times(incident: dict[str, Any]) -> dict[str, Any]:
    """The same, with times for the template to word."""
    updates = [each | {"at": datetime.fromisoformat(each["at"])} for each in incident["updates"]]
    ended = incident["resolved"]
    return incident | {
        "started": datetime.fromisoformat(incident["started"]),
        "resolved": datetime.fromisoformat(ended) if ended else None,
        "updates": updates,
    }


@require_safe
@never_cache
def page(request: HttpRequest) -> HttpResponse:
    """200 whatever the state is: the page is there to tell it."""
    found, age = status.known()
    now = status.now()
    incidents = [times(each) for each in found["incidents"]] if found else []
    tone, sentence = status.summary(now, found["incidents"] if found else [])
    context = {
        "tone": tone,
        "sentence": sentence,
        "rows": rows(found, now),
        "open": [each for each in incidents if not each["resolved"]],
        "past": [each for each in incidents if each["resolved"]],
        "known": found is not None,
        "as_of": datetime.fromtimestamp(timezone.now().timestamp() - age, UTC) if age else None,
        "days": status.DAYS,
        "now": timezone.now(),
    }
    return render(request, "status/page.html", context)


@require_safe
@never_cache
def as_json(request: HttpRequest) -> JsonResponse:
    """docs/status.md has the shape."""
    found, age = status.known()
    now = status.now()
    tone, sentence = status.summary(now, found["incidents"] if found else [])
    words = {"ok": "up", "warn": "degraded", "bad": "down", "idle": "unknown"}
    return JsonResponse(
        {
            "status": words[tone],
            "description": sentence,
            "timestamp": timezone.now().isoformat(),
            "history_age_seconds": round(age),
            "now": [
                {
                    "environment": each.environment,
                    "state": each.state,
                    "version": each.version,
                    "checks": each.checks,
                    "at": each.at.isoformat() if each.at else None,
                }
                for each in now.values()
            ],
            "environments": found["environments"] if found else None,
            "incidents": found["incidents"] if found else None,
        }
    )


class AtomFeed(Feed):  # type: ignore[type-arg]
    """The incidents, the newest first: https://www.rfc-editor.org/rfc/rfc4287"""

    feed_type = Atom1Feed
    title = "backstagetest1: incidents"
    subtitle = "What people noticed, and how it went."
    feed_guid = status.identifier("feed")

    def __call__(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        self.found, _ = status.known()
        if self.found is None:  # an empty feed would tell readers that all the incidents are gone
            return HttpResponse("The incidents cannot be read now.\n", status=503, headers={"Retry-After": "30"})
        return super().__call__(request, *args, **kwargs)

    def link(self) -> str:
        return reverse("status")

    def items(self) -> list[dict[str, Any]]:
        return [times(each) for each in (self.found or {"incidents": []})["incidents"]]

    def item_title(self, item: Any) -> str:
        return f"{item['status'].capitalize()}: {item['title']}"

    def item_description(self, item: Any) -> str:
        return "\n\n".join(
            f"{each['at']:%Y-%m-%d %H:%M} UTC, {each['status']}: {each['message']}" for each in item["updates"]
        )

    def item_link(self, item: Any) -> str:
        return reverse("incident", args=[item["id"]])

    def item_guid(self, item: Any) -> str:
        return status.identifier("incident", item["id"])

    def item_pubdate(self, item: Any) -> datetime:
        return item["started"]  # type: ignore[no-any-return]

    def item_updateddate(self, item: Any) -> datetime:
        return max(item["started"], *(each["at"] for each in item["updates"]))  # type: ignore[no-any-return]

    def item_categories(self, item: Any) -> list[str]:
        return [item["environment"], item["impact"]]


feed = AtomFeed()


# Staff


class NewIncident(forms.ModelForm):  # type: ignore[type-arg]
    message = forms.CharField(
        max_length=2000, widget=forms.Textarea(attrs={"rows": 4}), help_text="What is known, for those who notice it."
    )

    class Meta:
        model = Incident
        fields = ("title", "impact", "environment", "status")


class NewUpdate(forms.Form):
    status = forms.ChoiceField(choices=Incident.Status.choices)
    message = forms.CharField(max_length=2000, widget=forms.Textarea(attrs={"rows": 4}))


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def new_incident(request: HttpRequest) -> HttpResponse:
    refuse_strangers(request)
    start = {"environment": Environment.objects.filter(name="production").first()}
    form = NewIncident(request.POST if request.method == "POST" else None, initial=start)
    if form.is_valid():
        incident = status.report(form.save(commit=False), form.cleaned_data["message"], str(request.user))
        return redirect("incident", incident.pk)
    return render(request, "status/new.html", {"form": form}, status=422 if form.is_bound else 200)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def incident(request: HttpRequest, key: int) -> HttpResponse:
    """Everybody reads it; staff add to it."""
    try:
        found = Incident.objects.select_related("environment").prefetch_related("updates").get(pk=key)
    except Incident.DoesNotExist:
        raise Http404 from None
    form = NewUpdate(request.POST if request.method == "POST" else None, initial={"status": found.status})
    if request.method == "POST":
        refuse_strangers(request)
        if form.is_valid():
            status.update(key, form.cleaned_data["status"], form.cleaned_data["message"], str(request.user))
            return redirect("incident", key)
    context = {"incident": times(status.told(found)), "form": form}
    return render(request, "status/incident.html", context, status=422 if form.is_bound else 200)


def refuse_strangers(request: HttpRequest) -> None:
    if not request.user.is_staff:
        raise PermissionDenied
