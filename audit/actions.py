"""What the audit log records. A room that has something to record adds its actions here."""

from django.db.models import TextChoices


class Action(TextChoices):
    """An action: the value is stored and never changes, the label is shown."""

    # accounts
    SIGNED_IN = "signed_in", "signed in"
    SIGN_IN_FAILED = "sign_in_failed", "sign-in failed"
    SIGNED_OUT = "signed_out", "signed out"
    SIGNED_UP = "signed_up", "signed up"
    PASSWORD_CHANGED = "password_changed", "password changed"
    PASSWORD_RESET = "password_reset", "password reset"
    ADDRESS_ADDED = "address_added", "address added"
    ADDRESS_VERIFIED = "address_verified", "address verified"
    ADDRESS_CHANGED = "address_changed", "primary address changed"
    ADDRESS_REMOVED = "address_removed", "address removed"
    INVITED = "invited", "invited"
    INVITATION_REVOKED = "invitation_revoked", "invitation revoked"
    INVITATION_ACCEPTED = "invitation_accepted", "invitation accepted"
    ROLE_CHANGED = "role_changed", "role changed"
    MEMBER_SUSPENDED = "member_suspended", "member suspended"
    MEMBER_RESTORED = "member_restored", "member restored"

    FACTOR_ADDED = "factor_added", "second factor added"
    FACTOR_REMOVED = "factor_removed", "second factor removed"
    FACTORS_RESET = "factors_reset", "second factors reset"
    SIGN_ON_LINKED = "sign_on_linked", "sign-on linked"
    LINK_MADE = "link_made", "sign-in link created"
    ACCOUNT_DELETED = "account_deleted", "account deleted"
    SESSIONS_ENDED = "sessions_ended", "sessions ended"
    CODES_REPLACED = "codes_replaced", "recovery codes replaced"

    # ledger
    TOKEN_MADE = "token_made", "token created"
    TOKEN_ROTATED = "token_rotated", "token rotated"
    TOKEN_REVOKED = "token_revoked", "token revoked"
    ENVIRONMENT_CHANGED = "environment_changed", "environment changed"
    FREEZE_ADDED = "freeze_added", "freeze added"
    FREEZE_ENDED = "freeze_ended", "freeze ended"
    LOCK_TAKEN = "lock_taken", "lock taken"
    LOCK_RELEASED = "lock_released", "lock released"
    LOCK_BROKEN = "lock_broken", "lock broken"

    APPROVAL_REQUESTED = "approval_requested", "approval requested"
    APPROVED = "approved", "deployment approved"
    REJECTED = "rejected", "deployment rejected"
    GLASS_BROKEN = "glass_broken", "deployed without approval"
    REVIEWED = "reviewed", "deployment reviewed"

    # statuspage
    INCIDENT_OPENED = "incident_opened", "incident opened"
    INCIDENT_UPDATED = "incident_updated", "incident updated"
    INCIDENT_RESOLVED = "incident_resolved", "incident resolved"
