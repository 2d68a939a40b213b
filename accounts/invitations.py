"""Invitations: bound to an address, for one use, until they expire or are revoked."""

import hashlib
import secrets
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

import audit
from accounts import addresses, members, roles
from accounts.models import Invitation, User
from accounts.roles import EVERYWHERE, Role
from audit.actions import Action

SESSION_KEY = "invitation"  # the digest of the one that the visitor has opened


class Refused(Exception):
    """The invitation cannot be used; the text says why, and what to do."""


def digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def pending() -> "QuerySet[Invitation]":
    """Returns the invitations that can still be accepted."""
    return Invitation.objects.filter(accepted=None, revoked=None, expires__gt=timezone.now())


def invite(
    email: str, role: Role | None, environment: str = EVERYWHERE, *, request: HttpRequest | None = None
) -> tuple[Invitation, str]:
    """Makes an invitation, in place of earlier ones for that address. Returns it with its key, which is not stored."""
    key, now = secrets.token_urlsafe(32), timezone.now()
    email = email.lower()
    with transaction.atomic():
        pending().filter(email=email).update(revoked=now)
        invitation = Invitation.objects.create(
            email=email,
            role=role or "",
            environment=environment,
            digest=digest(key),
            created=now,
            expires=now + timedelta(days=settings.INVITATION_DAYS),
            invited_by=request.user if request and isinstance(request.user, User) else None,
        )
        details = {"role": role or "none"}
        audit.record(Action.INVITED, environment=environment, target=email, details=details, request=request)
    return invitation, key


def revoke(invitation: Invitation, *, request: HttpRequest | None = None) -> bool:
    """Returns False if the invitation was used or revoked already."""
    with transaction.atomic():
        found = Invitation.objects.filter(pk=invitation.pk, accepted=None, revoked=None)
        if done := bool(found.update(revoked=timezone.now())):
            audit.record(Action.INVITATION_REVOKED, target=invitation.email, request=request)
    return done


def check(invitation: Invitation | None) -> Invitation:
    """Returns the invitation if it can be accepted. Raises Refused."""
    again = "Ask whoever invited you for another."
    if invitation is None:
        raise Refused(f"This invitation does not exist. Check that the link is complete, or ask for another. {again}")
    if invitation.accepted:
        raise Refused("This invitation was used already. If it was you who used it, sign in.")
    if invitation.revoked or not still_allowed(invitation.invited_by):
        raise Refused(f"This invitation was revoked. {again}")
    if invitation.expires <= timezone.now():
        raise Refused(f"This invitation has expired. {again}")
    return invitation


def still_allowed(inviter: User | None) -> bool:
    """Returns whether the inviter may still invite people; a command may."""
    return inviter is None or roles.may(inviter, "accounts.manage_members")


def find(key: str) -> Invitation | None:
    return Invitation.objects.select_related("invited_by").filter(digest=digest(key)).first()


def remember(request: HttpRequest, invitation: Invitation) -> None:
    """Keeps in the visitor's session that they have the invitation, for the sign-up page."""
    request.session[SESSION_KEY] = invitation.digest


def of_session(request: HttpRequest) -> Invitation | None:
    """Returns the invitation that the visitor has opened, if it can still be accepted."""
    known = request.session.get(SESSION_KEY)
    if not known:
        return None
    try:
        return check(Invitation.objects.select_related("invited_by").filter(digest=known).first())
    except Refused:
        return None


def proves(user: User, email: str) -> bool:
    """Returns whether `user` may use an invitation for `email`: it is an address that they have verified."""
    return bool(user.emailaddress_set.filter(email=email.lower(), verified=True).exists())


def accept(invitation: Invitation, user: User, request: HttpRequest) -> None:
    """Gives the user the role, once: of two uses at the same time one is refused. A higher role is kept.

    The caller has checked that the invitation is for the user. Raises Refused.
    """
    with transaction.atomic():
        # invited_by may be null, and PostgreSQL locks no row of an outer join.
        found = check(Invitation.objects.select_for_update().filter(pk=invitation.pk).first())
        found.accepted = timezone.now()
        found.save(update_fields=["accepted"])
        if found.role:
            role, order = Role(found.role), list(Role)
            held = roles.held(user).get(found.environment)
            if held is None or order.index(held) < order.index(role):
                members.set_role(user, role, found.environment, request=request)
        audit.record(
            Action.INVITATION_ACCEPTED,
            actor=user.email,
            actor_id=user.pk,
            environment=found.environment,
            target=found.email,
            request=request,
        )
    request.session.pop(SESSION_KEY, None)


def domain_is_allowed(address: str) -> bool:
    """Returns whether the address is of one of settings.SIGN_UP_DOMAINS; any is while there are none."""
    return not settings.SIGN_UP_DOMAINS or address.rpartition("@")[2].lower() in settings.SIGN_UP_DOMAINS


def has_account(invitation: Invitation) -> bool:
    return addresses.owners(invitation.email).exists()
