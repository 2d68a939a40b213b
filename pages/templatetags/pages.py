"""Template tags and filters of the live pages: fragments, times, durations, and the style of each status."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django import template
from django.contrib.auth.models import AnonymousUser
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from accounts.models import User
from accounts.roles import environments_with
from ledger import humanize
from ledger.models import Deployment
from pages import fragments

register = template.Library()

# By a deployment's status, a step's outcome or an environment's health: the style sheet's tone, the icon's name, and
# the label where it is not the key itself.
STATUS_STYLES = {
    "waiting": ("warn", "idle", "waiting for approval"),
    "rejected": ("bad", "bad", ""),
    "expired": ("idle", "idle", ""),
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
def may_somewhere(user: User | AnonymousUser, permission: str) -> bool:
    """Returns whether the visitor has the permission, everywhere or in some environment. Raises django.db.Error."""
    return environments_with(user, permission) != frozenset()


@register.filter
def status_style(status: str) -> dict[str, str]:
    """Returns `tone`, `icon` and `label` of a status, an outcome or a health. Raises KeyError for anything else."""
    tone, icon, label = STATUS_STYLES[status]
    return {"tone": tone, "icon": icon, "label": label or status}


@register.filter
def of(values: dict[str, Any], name: str) -> Any:
    """Returns the value of `name`."""
    return values[name]


@register.filter
def format_duration(duration: timedelta | None) -> str:
    """Formats a duration, as in "3 min 5 s"; empty for None."""
    return humanize.took(duration)


@register.filter
def format_seconds(seconds: float | None) -> str:
    """Formats a duration in seconds, as in "3 min 5 s" or "2.5 d"; "-" for None."""
    return "-" if seconds is None else humanize.took_seconds(seconds)


@register.filter
def ahead(then: datetime) -> str:
    """Formats how far ahead a time is, as in "2 h" or "12 min"."""
    minutes = max(1, round((then - timezone.now()).total_seconds() / 60))
    return f"{round(minutes / 60)} h" if minutes >= 90 else f"{minutes} min"


@register.filter
def is_far(then: datetime) -> bool:
    """Tells whether a time is so far ahead that its weekday does not name it."""
    return then - timezone.now() > timedelta(days=6)


@register.filter
def deployment_kind(deployment: Deployment) -> str:
    """Formats the strategy and what is special about the deployment, as in "rollback, rolling"."""
    if deployment.kind == Deployment.Kind.ROLLBACK:
        return f"rollback, {deployment.strategy}"
    if deployment.break_glass:
        return f"hotfix without approval, {deployment.strategy}"
    return f"hotfix, {deployment.strategy}" if deployment.hotfix else deployment.strategy


@register.simple_tag
def time(value: datetime, form: str = "age") -> SafeString:
    """Renders a <time> as its age ("age"), the time elapsed since ("elapsed"), or a "clock" or "date" in the reader's
    time zone (backstagetest1.zone).

    static/pages.js keeps the first two up to date. The exact time in UTC is shown on hover.
    """
    exact, local, now = value.astimezone(UTC), timezone.localtime(value), timezone.now()
    texts = {
        "age": lambda: humanize.age(now, value) if (now - value).days < 7 else f"{(now - value).days} d ago",
        "elapsed": lambda: humanize.took(max(now - value, timedelta())),
        "clock": lambda: f"{local:%H:%M:%S %Z}",
        "date": lambda: f"{local:%Y-%m-%d %H:%M %Z}",
    }
    title = f"{exact:%Y-%m-%d %H:%M:%S} UTC"
    pattern = '<time datetime="{}" title="{}" data-format="{}">{}</time>'
    return format_html(pattern, exact.isoformat(timespec="seconds"), title, form, texts[form]())


@register.simple_block_tag(takes_context=True)
def fragment(
    context: dict[str, Any], content: SafeString, id: str, of: object = "", tag: str = "div", **attributes: str
) -> SafeString:
    """Renders what stands before {% endfragment %} as a part of the page that changes by itself: pages/fragments.py.

    {% fragment "row" 7 tag="tr" class="wide" %} makes the element <tr id="row-7" class="wide">.
    """
    name = f"{id}-{of}" if of != "" else id
    return fragments.add(context["fragments"], fragments.Fragment(name, tag, attributes, SafeString(content.strip())))


@register.simple_tag
def percent_of(part: timedelta, whole: timedelta) -> float:
    """Returns `part` in per cent of `whole`, rounded to a tenth; 0 if `whole` is 0."""
    return round(100 * (part / whole), 1) if whole else 0.0
