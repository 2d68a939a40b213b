"""The members pages: who has which role, invitations, suspension. And the page that an invitation's link leads to."""

import logging
from urllib.parse import quote

from allauth.account.adapter import get_adapter
from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts import invitations, members, roles
from accounts.access import requires
from accounts.adapter import MailNotSent, origin
from accounts.members_forms import InvitationForm, RoleForm
from accounts.models import Invitation, User
from accounts.roles import Role

logger = logging.getLogger(__name__)

PAGE = 25  # members
manages_members = requires("accounts.manage_members")


def role_in_words(role: str, environment: str) -> str:
    return f"{role.capitalize() or 'No role'}{f' in {environment}' if environment else ''}"


def roles_in_words(user: User) -> list[str]:
    """Returns the user's roles, that for everywhere first."""
    return [role_in_words(role, environment) for environment, role in sorted(roles.held(user).items())]


@require_safe
@manages_members
def listing(request: HttpRequest) -> HttpResponse:
    """Lists the people with a role, or all accounts, or those that are suspended; and the pending invitations."""
    people = User.objects.order_by("email").prefetch_related("groups")
    who = request.GET.get("who", "role")
    if who == "suspended":
        people = people.filter(is_active=False)
    elif who != "all":
        who, people = "role", people.filter(pk__in=roles.with_a_role().values("pk"))
    if search := request.GET.get("search", "").strip()[:100].replace("\0", ""):
        people = people.filter(Q(email__istartswith=search) | Q(display_name__icontains=search))
    page = Paginator(people, PAGE).get_page(request.GET.get("page"))
    context = {
        "page": page,
        "people": [(user, roles_in_words(user)) for user in page],
        "who": who,
        "search": search,
        "shown": (("role", "With a role"), ("all", "All accounts"), ("suspended", "Suspended")),
        "invitations": [
            (each, role_in_words(each.role, each.environment))
            for each in invitations.pending().select_related("invited_by")
        ],
    }
    return render(request, "accounts/members.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@manages_members
@sensitive_variables("key", "link")
def invite(request: HttpRequest) -> HttpResponse:
    """Makes an invitation and shows its link, this once: only a hash of it is stored. 422 if the form is invalid."""
    form = InvitationForm(request.POST if request.method == "POST" else None)
    if not form.is_valid():
        return render(request, "accounts/invite.html", {"form": form}, status=422 if form.is_bound else 200)
    given = form.cleaned_data
    role = Role(given["role"]) if given["role"] else None
    invitation, key = invitations.invite(given["email"], role, given["environment"], request=request)
    link = origin(request) + reverse("accounts:invitation", args=[key])
    sent: bool | None = None
    if given["send"]:
        sent = send(invitation, link)
    what = role_in_words(invitation.role, invitation.environment)
    context = {"invitation": invitation, "link": link, "sent": sent, "role": what}
    return render(request, "accounts/invited.html", context)


@sensitive_variables("link")
def send(invitation: Invitation, link: str) -> bool:
    """Sends the invitation's link by mail. Returns whether the mail server took it."""
    context = {
        "invitation_url": link,
        "inviter": str(invitation.invited_by or ""),
        "role": role_in_words(invitation.role, invitation.environment) if invitation.role else "",
        "expires": invitation.expires,
    }
    try:
        get_adapter().send_mail("account/email/invitation", invitation.email, context)
    except MailNotSent:
        logger.exception("Cannot send an invitation")
        return False
    return True


@require_POST
@manages_members
def revoke_invitation(request: HttpRequest, key: int) -> HttpResponse:
    invitation = get_object_or_404(Invitation, pk=key)
    if invitations.revoke(invitation, request=request):
        messages.success(request, f"Invitation for {invitation.email} revoked.")
    else:
        messages.warning(request, f"The invitation for {invitation.email} was already used or revoked.")
    return redirect("accounts:members")


@require_safe
@manages_members
def member(request: HttpRequest, key: int) -> HttpResponse:
    return render_member(request, get_object_or_404(User, pk=key), RoleForm())


def render_member(request: HttpRequest, user: User, form: RoleForm) -> HttpResponse:
    context = {"member": user, "held": roles_in_words(user), "form": form}
    return render(request, "accounts/member.html", context, status=422 if form.is_bound else 200)


@require_POST
@manages_members
def change_role(request: HttpRequest, key: int) -> HttpResponse:
    user = get_object_or_404(User, pk=key)
    form = RoleForm(request.POST)
    if not form.is_valid():
        return render_member(request, user, form)
    role, environment = form.cleaned_data["role"], form.cleaned_data["environment"]
    try:
        members.set_role(user, Role(role) if role else None, environment, request=request)
    except members.LastMaintainer as error:
        messages.error(request, str(error))
    else:
        where = f"in {environment}" if environment else "everywhere"
        messages.success(request, f"{user} {f'is {role}' if role else 'has no role'} {where}.")
    return redirect("accounts:member", key)


@require_POST
@manages_members
def suspend(request: HttpRequest, key: int) -> HttpResponse:
    user = get_object_or_404(User, pk=key)
    try:
        members.suspend(user, request=request)
    except members.LastMaintainer as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{user} is suspended and signed out everywhere.")
    return redirect("accounts:member", key)


@require_POST
@manages_members
def restore(request: HttpRequest, key: int) -> HttpResponse:
    user = get_object_or_404(User, pk=key)
    members.restore(user, request=request)
    messages.success(request, f"{user} can sign in again.")
    return redirect("accounts:member", key)


# The page of an invitation


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@sensitive_variables("key")
def invitation(request: HttpRequest, key: str) -> HttpResponse:
    """Shows an invitation, and accepts it for whoever has verified its address; 410 if it can no longer be used.

    Opening the link changes nothing. A stranger's POST leads to the sign-up page, or to sign-in.
    """
    try:
        found = invitations.check(invitations.find(key))
        context = {
            "invitation": found,
            "role": role_in_words(found.role, found.environment) if found.role else "",
            "fits": request.user.is_authenticated and invitations.proves(request.user, found.email),
            "has_account": invitations.has_account(found),
            "here": quote(request.path),
        }
        if request.method != "POST":
            return render(request, "accounts/invitation.html", context)
        if not request.user.is_authenticated:
            invitations.remember(request, found)
            return redirect("account_signup")
        if not context["fits"]:
            return render(request, "accounts/invitation.html", context, status=403)
        invitations.accept(found, request.user, request)
    except invitations.Refused as refusal:
        return render(request, "accounts/invitation_refused.html", {"why": str(refusal)}, status=410)
    messages.success(request, "Invitation accepted.")
    return redirect("home")
