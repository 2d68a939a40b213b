"""The home page: until the board comes, what this instance is and whether it is well."""

from dataclasses import dataclass

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from health.runner import report


@dataclass(frozen=True)
class Step:
    """Something that one who has just signed up may still do."""

    label: str
    url: str
    done: bool


@require_safe
@never_cache
def home(request: HttpRequest) -> HttpResponse:
    """200 whatever the health is: the page is for people, /health/ is for machines.

    An anonymous visitor's page touches no database, so it is there to tell that the database is not.
    """
    steps = account_steps(request)
    left = any(not step.done for step in steps)
    return render(request, "deploy/home.html", {"report": report(), "steps": steps, "steps_left": left})


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
