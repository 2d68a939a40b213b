"""What we hold on a person: as a file for them, and its deletion."""

import base64
import logging
from typing import Any

from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.apps import apps
from django.core.files.storage import default_storage
from django.db import connection, transaction
from django.http import HttpRequest

import audit
from accounts import avatars
from accounts.models import Invitation, User
from audit.actions import Action
from audit.models import Entry

logger = logging.getLogger(__name__)

# Models with a foreign key to a person whose rows the export leaves out, and why; a test knows all others to be in it.
LEFT_OUT = {
    "accounts.User_user_permissions": "permissions given in the admin; they say nothing that the roles do not",
    "accounts.ResetLink": "the secret part of a link",
    "ledger.ApiToken": "what the tokens page shows; it is of use only here",
    "ledger.Approval": "part of the deployment's record, which the board shows; it keeps the name",
    "admin.LogEntry": "what staff changed in the admin; it is about others, and kept with it",
}
SIGN_ON = "socialaccount_socialaccount"  # its table, which is left over when sign-on is switched off


def export(user: User) -> dict[str, Any]:
    """Returns everything that we hold on `user`, but secrets: they are of no use elsewhere."""
    found = {
        "account": {
            "email": user.email,
            "display_name": user.display_name,
            "joined": user.date_joined,
            "last_sign_in": user.last_login,
            "picture": picture(user),
        },
        "addresses": list(user.emailaddress_set.values("email", "verified", "primary")),
        "roles": sorted(user.groups.values_list("name", flat=True)),
        "second_factors": [
            {"kind": each.type, "name": str(each), "added": each.created_at, "last_used": each.last_used_at}
            for each in Authenticator.objects.filter(user=user)
        ],
        "sessions": list(
            UserSession.objects.filter(user=user).values("ip", "user_agent", "created_at", "last_seen_at")
        ),
        "invitations_made": list(Invitation.objects.filter(invited_by=user).values("email", "role", "created")),
        "audit_log": list(
            Entry.objects.filter(actor_id=user.pk).values(
                "time", "action", "address", "environment", "target", "details"
            )
        ),
        "sign_on": [],
    }
    if apps.is_installed("allauth.socialaccount"):
        linked = apps.get_app_config("socialaccount").get_model("SocialAccount")._default_manager.filter(user=user)
        found["sign_on"] = list(linked.values("extra_data", "date_joined", "last_login"))
    return found


def picture(user: User) -> str | None:
    """Returns the picture as a data: URL (RFC 2397), or None if there is none, or it cannot be read."""
    if not user.avatar:
        return None
    try:
        with default_storage.open(str(user.avatar.name)) as file:
            return f"data:{avatars.CONTENT_TYPE};base64,{base64.b64encode(file.read()).decode('ascii')}"
    except OSError:
        logger.exception("Cannot read the picture of user %s", user.pk)
        return None


def delete(user: User, request: HttpRequest) -> None:
    """Deletes the account and ends its sessions. What is in the ledger and the audit log keeps the person's address.

    Raises members.LastMaintainer, with nothing changed.
    """
    with transaction.atomic():
        audit.record(Action.ACCOUNT_DELETED, target=user.email, request=request)
        keys = list(UserSession.objects.filter(user=user))
        user.delete()
    for session in keys:
        session._session_store().delete(session.session_key)


def forget_sign_on(instance: User, **_: object) -> None:
    """Deletes what sign-on has left about a person while it is switched off, and Django does not know its tables."""
    if apps.is_installed("allauth.socialaccount"):
        return
    with connection.cursor() as cursor:
        if SIGN_ON in connection.introspection.table_names(cursor):
            cursor.execute(f"DELETE FROM {SIGN_ON} WHERE user_id = %s", [instance.pk])
