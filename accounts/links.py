"""A link that signs in the owner of an account once, made by `manage.py sign_in_link`: the way in while SSO is down."""

from datetime import timedelta
from typing import Any

from allauth.account.utils import perform_login
from django.core.signing import BadSignature, TimestampSigner
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts.models import User

VALID = timedelta(minutes=10)
SIGNER = TimestampSigner(salt="accounts.links")


def state(user: User) -> dict[str, Any]:
    """Returns what the link is bound to: it ends when the person signs in, and when their password changes."""
    return {"user": user.pk, "state": f"{user.last_login} {user.get_session_auth_hash()}"}


def path_for(user: User) -> str:
    return reverse("sign_in_link", args=[SIGNER.sign_object(state(user))])


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def sign_in(request: HttpRequest, key: str) -> HttpResponse:
    """Asks before it signs in, so that opening the link in advance does not use it up. Second factors still count."""
    try:
        found = SIGNER.unsign_object(key, max_age=VALID)
        user = User.objects.filter(pk=found["user"], is_active=True).first()
    except BadSignature:
        user = None
    if user is None or state(user) != found:
        return render(request, "account/sign_in_link.html", {"account": None}, status=403)
    if request.method == "POST":
        response: HttpResponse = perform_login(request, user, email_verification="none")
        return response
    return render(request, "account/sign_in_link.html", {"account": user})
