"""How the pages word and draw what the ledger has."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from ledger import humanize
from ledger.models import Deployment
from pages import fragments

register = template.Library()

# By status, outcome or state of health: the style sheet's tone, the icon's name, and the word if it is another one.
LOOKS = {
    "pending": ("idle", "idle", ""),
    "running": ("busy", "busy", ""),
    "succeeded": ("ok", "ok", ""),
    "failed": ("bad", "bad", ""),
    "rolled_back": ("warn", "back", "rolled back"),
    "skipped": ("idle", "idle", ""),
    "healthy": ("ok", "ok", ""),
    "unhealthy": ("bad", "bad", ""),
    "unreachable": ("warn", "warn", ""),
    "unknown": ("idle", "idle", "not monitored"),
}


@register.filter
def look(status: str) -> dict[str, str]:
    tone, icon, word = LOOKS[status]
    return {"tone": tone, "icon": icon, "word": word or status}


@register.filter
def took(duration: timedelta | None) -> str:
    return humanize.took(duration)


@register.filter
def way(deployment: Deployment) -> str:
    """How it came there, in a word or two."""
    if deployment.kind == Deployment.Kind.ROLLBACK:
        return f"rollback, {deployment.strategy}"
    return f"hotfix, {deployment.strategy}" if deployment.hotfix else deployment.strategy


@register.simple_tag
def when(value: datetime, form: str = "age") -> SafeString:
    """A <time>: its age, how long something has run since ("elapsed"), or the time as a clock or a date has it, in the
    reader's zone (backstagetest1.zone). static/pages.js keeps the former two right; the exact UTC is always there on
    hover.
    """
    exact, local, now = value.astimezone(UTC), timezone.localtime(value), timezone.now()
    texts = {
        "age": lambda: humanize.age(now, value) if (now - value).days < 7 else f"{(now - value).days} d ago",
        "elapsed": lambda: humanize.took(max(now - value, timedelta())),
        "clock": lambda: f"{local:%H:%M:%S %Z}",
        "date": lambda: f"{local:%Y-%m-%d %H:%M %Z}",
    }
    title = f"{exact:%Y-%m-%d %H:%M:%S} UTC"
    pattern = '<time datetime="{}" title="{}" data-form="{}">{}</time>'
    return format_html(pattern, exact.isoformat(timespec="seconds"), title, form, texts[form]())


@register.simple_block_tag(takes_context=True)
def piece(
    context: dict[str, Any], content: SafeString, id: str, of: object = "", tag: str = "div", **attributes: str
) -> SafeString:
    """What stands up to {% endpiece %}, as a part of the page that changes by itself: see pages/fragments.py.

    {% piece "row" 7 tag="tr" class="wide" %} is an element <tr id="row-7" class="wide">.
    """
    name = f"{id}-{of}" if of != "" else id
    return fragments.add(context["pieces"], fragments.Piece(name, tag, attributes, SafeString(content.strip())))


@register.simple_tag
def percent_of(part: timedelta, whole: timedelta) -> float:
    """To a tenth."""
    return round(100 * (part / whole), 1) if whole else 0.0


@register.simple_tag(takes_context=True)
def query(context: dict[str, Any], **changes: Any) -> str:
    """The page's query string with these parameters changed; None takes one out."""
    parameters = context["request"].GET.copy()
    for name, value in changes.items():
        parameters.pop(name, None)
        if value is not None:
            parameters[name] = str(value)
    return f"?{parameters.urlencode()}"


@register.filter
def lasting(seconds: float | None) -> str:
    return "-" if seconds is None else humanize.took_seconds(seconds)
