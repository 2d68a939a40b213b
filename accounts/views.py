"""The profile, the avatars, and what differs from allauth's views; accounts.urls uses the others unchanged."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

from allauth.account import views as allauth
from allauth.account.adapter import get_adapter
from allauth.account.decorators import reauthentication_required
from allauth.decorators import rate_limit
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.files.storage import default_storage
from django.db import transaction
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from accounts import addresses, avatars, own_data, sessions
from accounts.adapter import MailNotSent
from accounts.forms import ProfileForm
from accounts.members import LastMaintainer
from accounts.models import User
from audit import record
from audit.actions import Action

logger = logging.getLogger(__name__)

MAIL_RETRY_AFTER = "120"  # seconds; a mail server takes longer to return than settings.RETRY_AFTER


def sends_mail(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Decorates a view to run in one transaction: if its mail cannot be sent, it changes nothing and returns 503."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            with transaction.atomic():
                return view(request, *args, **kwargs)
        except MailNotSent:
            logger.exception("Cannot send a message")
            response = render(request, "503.html", status=503)
            response["Retry-After"] = MAIL_RETRY_AFTER
            return response

    return wrapped


class SignInView(allauth.LoginView):  # type: ignore[misc]
    """allauth's view, with the way to the OpenID provider; with SSO_ONLY, that is all there is."""

    extra_context = {"sign_on": settings.OIDC_NAME if settings.OIDC_ISSUER else "", "sso_only": settings.SSO_ONLY}

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        response: HttpResponse = self.get(request) if settings.SSO_ONLY else super().post(request, *args, **kwargs)
        return response


sign_in = SignInView.as_view()


def only_sign_on(request: HttpRequest, **_: Any) -> HttpResponse:
    """Answers in place of the pages that sign in or up in another way, with SSO_ONLY."""
    return redirect("account_login")


class EmailView(allauth.EmailView):  # type: ignore[misc]
    """allauth's view; only a verified address can become primary, as the primary address identifies the account."""

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        # Locked against a concurrent password reset: a session that it has ended must not add an address.
        assert isinstance(request.user, User)
        account = User.objects.select_for_update().get(pk=request.user.pk)
        if account.password != request.user.password:
            return redirect("account_login")
        response: HttpResponse = super().post(request, *args, **kwargs)
        return response

    def _action_primary(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse | None:
        address = self._get_email_address(request)
        if address and not address.verified:
            get_adapter().add_message(request, messages.ERROR, "account/messages/unverified_primary_email.txt")
            return None
        if address and addresses.is_primary_elsewhere(address.email, address.user):
            messages.error(
                request,
                f"{address.email} is the primary address of another account. Reset that account's password and change "
                "its primary address first.",
            )
            return None
        response: HttpResponse | None = super()._action_primary(request, *args, **kwargs)
        return response


class ConfirmEmailView(allauth.ConfirmEmailView):  # type: ignore[misc]
    """allauth's view; opening the link changes nothing and signs nobody out."""

    def logout_other_user(self, confirmation: Any) -> None:
        if self.request.method == "POST":
            super().logout_other_user(confirmation)

    def post(self, *args: Any, **kwargs: Any) -> HttpResponse:
        with transaction.atomic():
            # Locked against a concurrent password reset, which removes addresses.
            User.objects.select_for_update().filter(pk=self.get_object().email_address.user_id).first()
            response: HttpResponse = super().post(*args, **kwargs)
            return response


class PasswordResetFromKeyView(allauth.PasswordResetFromKeyView):  # type: ignore[misc]
    """allauth's view; opening the link signs nobody out, choosing a password does."""

    def logout(self) -> None:
        if self.request.method == "POST":
            super().logout()


@never_cache
@login_required
@require_http_methods(["GET", "HEAD", "POST"])
@rate_limit(action="profile")  # type: ignore[untyped-decorator]
def profile(request: HttpRequest) -> HttpResponse:
    # A separate copy, so that invalid input does not show in the rest of the page.
    user = get_object_or_404(User, pk=request.user.pk)
    form = ProfileForm(request.POST or None, request.FILES or None, instance=user)
    if request.method == "POST" and form.is_valid():
        try:
            form.save()
        except avatars.NotStored:
            form.add_error("avatar", "Cannot store the picture right now. Nothing was changed; try again later.")
        else:
            messages.success(request, "Profile saved.")
            return redirect("accounts:profile")
    return render(request, "accounts/profile.html", {"form": form})


@never_cache
@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def own_sessions(request: HttpRequest) -> HttpResponse:
    """Lists where the user is signed in. POST ends the session with the id `end`, or all but this one."""
    assert isinstance(request.user, User)
    if request.method == "POST":
        ended = sessions.end_some(request.user, request.POST.get("end", ""), but=request.session.session_key)
        if ended:
            record(Action.SESSIONS_ENDED, details={"sessions": str(ended)}, request=request)
        messages.success(request, f"{ended} session{'' if ended == 1 else 's'} ended.")
        return redirect("accounts:sessions")
    found = [(each, sessions.device(each.user_agent)) for each in sessions.active(request.user)]
    return render(request, "accounts/sessions.html", {"sessions": found, "others": len(found) > 1})


@never_cache
@login_required
@require_safe
def own_data_page(request: HttpRequest) -> HttpResponse:
    return render(request, "accounts/own_data.html")


@never_cache
@login_required
@reauthentication_required(app="accounts")  # type: ignore[untyped-decorator]
def export(request: HttpRequest) -> HttpResponse:
    """Returns what is stored about the user; asks for the password again, as a session may be somebody else's."""
    assert isinstance(request.user, User)
    response = JsonResponse(own_data.export(request.user), json_dumps_params={"indent": 2, "ensure_ascii": False})
    response["Content-Disposition"] = 'attachment; filename="backstagetest1.json"'
    return response


@never_cache
@login_required
@reauthentication_required(app="accounts")  # type: ignore[untyped-decorator]
def delete_account(request: HttpRequest) -> HttpResponse:
    """Deletes the user's account on POST; asks for the password again. Other methods lead to the page that asks."""
    assert isinstance(request.user, User)
    if request.method != "POST" or "sure" not in request.POST:
        return redirect("accounts:own_data")
    try:
        own_data.delete(User.objects.get(pk=request.user.pk), request)
    except LastMaintainer as reason:
        messages.error(request, str(reason))
        return redirect("accounts:own_data")
    request.session.flush()
    messages.success(request, "Your account was deleted.")
    return redirect("account_login")


@require_safe
def avatar(request: HttpRequest, name: str) -> FileResponse:
    """Serves a stored avatar as a download of a safe type, cacheable for ever as a new picture gets a new name.

    In production nginx serves it with the same headers (nginx.conf). A middleware adds `nosniff` to every response.
    """
    try:
        file = default_storage.open(f"{avatars.FOLDER}/{name}")
    except FileNotFoundError:
        raise Http404 from None
    return FileResponse(
        file,
        as_attachment=True,
        filename="avatar.webp",
        content_type=avatars.CONTENT_TYPE,
        headers={
            "Cache-Control": "private, max-age=31536000, immutable",
            "Content-Security-Policy": "default-src 'none'; sandbox",
        },
    )
