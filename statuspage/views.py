"""The status page for everybody, and the pages on which staff report incidents."""

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
from django.utils.xmlutils import SimplerXMLGenerator
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from ledger.models import Environment
from pages import fragments
from settings import text
from statuspage import history
from statuspage.models import Incident, IncidentUpdate
from statuspage.readings import Reading

TALL = 40  # of a bar, in the drawing's units
SHAPES = {"ok": TALL, "warn": 28, "bad": 16, "idle": 3}  # by tone: height tells the same as colour
# By state: the style sheet's tone (the icon has the same name), and the word on the environment's own line.
LOOKS: dict[history.State, tuple[str, str]] = {
    "up": ("ok", "operational"),
    "degraded": ("warn", "degraded"),
    "down": ("bad", "down"),
    "unknown": ("idle", "unknown"),
}


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
        return history.figure(self.percent)


def bars(days: list[dict[str, Any]]) -> list[Bar]:
    found = []
    for number, each in enumerate(days):
        part = each["uptime_percent"]
        tone = "idle" if part is None else "ok" if part == 100 else "warn" if part >= 99 else "bad"
        found.append(Bar(date.fromisoformat(each["date"]), part, tone, 4 * number))
    return found


@dataclass(frozen=True)
class Row:
    """An environment as the page shows it: now, and its past, which is None if nothing is known of it."""

    name: str
    reading: Reading
    past: dict[str, Any] | None

    @property
    def tone(self) -> str:
        return LOOKS[history.state(self.reading)][0]

    @property
    def word(self) -> str:
        return "not monitored" if not self.monitored else LOOKS[history.state(self.reading)][1]

    @property
    def monitored(self) -> bool:
        return history.monitored(self.name)

    @property
    def bars(self) -> list[Bar]:
        return bars(self.past["days"]) if self.past else []

    @property
    def flaws(self) -> list[Bar]:
        return [bar for bar in self.bars if bar.percent is not None and bar.percent < 100]

    @property
    def silent(self) -> int:
        """Days without data."""
        return len(self.bars) - self.counted

    @property
    def sound(self) -> int:
        """Days with data on which no minute was missed."""
        return self.counted - len(self.flaws)

    @property
    def counted(self) -> int:
        return int(self.past["days_with_data"]) if self.past else 0

    @property
    def uptime(self) -> str:
        """Such as "99.98 % over 90 days"; never a percentage without its days."""
        if not self.past:
            return "no data"
        return f"{history.figure(self.past['uptime_percent'])} over {self.counted} day{'s' * (self.counted != 1)}"


def rows(found: dict[str, Any] | None, now: dict[str, Reading]) -> list[Row]:
    """Production first, whatever is known of it; of the others those that are monitored or have a past."""
    past = {each["environment"]: each for each in found["environments"]} if found else {}
    made = [Row(name, now[name], past.get(name)) for name in history.ORDER]
    return [row for row in made if row.name == "production" or row.monitored or row.past]


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
def page(request: fragments.HtmxRequest) -> HttpResponse:
    """200 whatever the state is: the page is there to say it."""
    found, age = history.known()
    now = history.now()
    incidents = [times(each) for each in found["incidents"]] if found else []
    headline = history.headline(now, found["incidents"] if found else None)
    made = rows(found, now)
    context = {
        "headline": headline,
        "tone": LOOKS[headline.state][0],
        "checked": now["production"].at,
        "rows": made,
        "others": [name for name in history.ORDER if name not in {row.name for row in made}],
        "open": [each for each in incidents if not each["resolved"]],
        "past": [each for each in incidents if each["resolved"]],
        "known": found is not None,
        "as_of": datetime.fromtimestamp(timezone.now().timestamp() - age, UTC) if age else None,
        "days": history.DAYS,
    }
    return fragments.respond(request, "statuspage/page.html", context)


@require_safe
@never_cache
def as_json(request: HttpRequest) -> JsonResponse:
    """docs/status.md has the shape."""
    found, age = history.known()
    now = history.now()
    headline = history.headline(now, found["incidents"] if found else None)
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
                    "at": each.at.isoformat() if each.at else None,
                }
                for each in now.values()
                if each.environment == "production" or history.monitored(each.environment)
            ],
            "environments": found["environments"] if found else None,
            "incidents": found["incidents"] if found else None,
        }
    )


@require_safe
@never_cache
def feed(request: HttpRequest) -> HttpResponse:
    """The incidents for feed readers. 503 if they are not known: an empty feed says that all of them are gone."""
    found, _ = history.known()
    if found is None:
        headers = {"Retry-After": "30"}
        return HttpResponse("The incidents cannot be read now.\n", "text/plain", status=503, headers=headers)
    return AtomFeed()(request, [times(each) for each in found["incidents"]])


class PlainAtom(Atom1Feed):
    """Atom whose summaries are what they are, plain text: declared as HTML, "<host>" would be read as a tag."""

    def add_item_elements(self, handler: SimplerXMLGenerator, item: dict[str, Any]) -> None:
        super().add_item_elements(handler, item | {"description": None})
        handler.addQuickElement("summary", item["description"], {"type": "text"})


class AtomFeed(Feed):  # type: ignore[type-arg]
    """The incidents that it is called with: https://www.rfc-editor.org/rfc/rfc4287"""

    feed_type = PlainAtom
    title = "backstagetest1 incidents"
    subtitle = "Incidents and their updates."
    author_name = "backstagetest1"  # section 4.1.1: a feed has an author unless each entry has
    feed_guid = history.identifier("feed")

    def get_object(self, request: HttpRequest, incidents: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return incidents

    def link(self) -> str:
        return reverse("status")

    def items(self, incidents: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return incidents

    def item_title(self, item: Any) -> str:
        return f"{item['status'].capitalize()}: {item['title']}"

    def item_description(self, item: Any) -> str:
        return "\n\n".join(
            f"{each['at'].astimezone(UTC):%Y-%m-%d %H:%M} UTC, {each['status']}: {each['message']}"
            for each in item["updates"]
        )

    def item_link(self, item: Any) -> str:
        return reverse("incident", args=[item["id"]])

    def item_guid(self, item: Any) -> str:
        return history.identifier("incident", item["id"])

    def item_pubdate(self, item: Any) -> datetime:
        return item["started"]  # type: ignore[no-any-return]

    def item_updateddate(self, item: Any) -> datetime:
        return max([item["started"], *(each["at"] for each in item["updates"])])  # type: ignore[no-any-return]

    def item_categories(self, item: Any) -> list[str]:
        return [item["environment"], item["impact"]]


# Staff


class MessageField(forms.CharField):
    """An update's message, with the model's limit and rule. Browsers send a line break as two characters, and count
    it as one: so it is one before it is counted here.
    """

    def __init__(self, help_text: str = "") -> None:
        area = forms.Textarea(attrs={"rows": 4})
        super().__init__(max_length=IncidentUpdate.MESSAGE, validators=[text.lines], widget=area, help_text=help_text)

    def to_python(self, value: Any) -> str:
        return str(super().to_python(value)).replace("\r\n", "\n")


class NewIncident(forms.ModelForm):  # type: ignore[type-arg]
    message = MessageField("What is known so far, for the people affected.")

    class Meta:
        model = Incident
        fields = ("title", "impact", "environment", "status")


class NewUpdate(forms.Form):
    status = forms.ChoiceField(choices=Incident.Status.choices)
    message = MessageField()


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def new_incident(request: HttpRequest) -> HttpResponse:
    refuse_strangers(request)
    start = {"environment": Environment.objects.filter(name="production").first()}
    form = NewIncident(request.POST if request.method == "POST" else None, initial=start)
    if form.is_valid():
        incident = history.report(form.save(commit=False), form.cleaned_data["message"], str(request.user))
        return redirect("incident", incident.pk)
    return render(request, "statuspage/new.html", {"form": form}, status=422 if form.is_bound else 200)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def incident(request: fragments.HtmxRequest, key: int) -> HttpResponse:
    """Everybody reads it; staff add to it."""
    if request.method == "POST":
        refuse_strangers(request)
    try:
        found = Incident.objects.select_related("environment").prefetch_related("updates").get(pk=key)
    except Incident.DoesNotExist:
        raise Http404 from None
    form = NewUpdate(request.POST if request.method == "POST" else None, initial={"status": found.status})
    if form.is_valid():
        history.update(key, form.cleaned_data["status"], form.cleaned_data["message"], str(request.user))
        return redirect("incident", key)
    context = {"incident": times(history.told(found)), "form": form}
    return fragments.respond(request, "statuspage/incident.html", context, 422 if form.is_bound else 200)


def refuse_strangers(request: HttpRequest) -> None:
    if not request.user.is_staff:
        raise PermissionDenied
