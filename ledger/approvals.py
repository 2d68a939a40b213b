"""Approvals: who may decide about a deployment, and what they decide.

An approval is for a digest in an environment. It ends after APPROVAL_HOURS, or when something else went live there. The
database enforces the same (migrations/0006_approvals.py), apart from permissions, which it does not know.
"""

from typing import Any

from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone

import audit
from audit.actions import Action
from ledger import queries, rules
from ledger.models import Approval, Deployment
from ledger.rules import Invalid, RuleViolation

APPROVE, BREAK_GLASS = "ledger.approve_deployment", "ledger.break_glass"
ACTIONS = {
    Approval.Verdict.APPROVED: Action.APPROVED,
    Approval.Verdict.REJECTED: Action.REJECTED,
    Approval.Verdict.REVIEWED: Action.REVIEWED,
}


def is_own(user: Any, deployment: Deployment) -> bool:
    """Tells whether `user` asked for the deployment: by a token of theirs, or by a name that is theirs."""
    names = {user.email.casefold(), user.get_username().casefold(), str(user).casefold()}
    return deployment.requester == user.pk or deployment.actor.casefold() in names


def why_not(user: Any, deployment: Deployment) -> str:
    """Returns why `user` may not decide about the deployment, as a sentence; empty if they may."""
    if not user.has_perm(APPROVE, deployment.environment):
        return f"You are not an approver of {deployment.environment}."
    return "You asked for it yourself, so somebody else decides." if is_own(user, deployment) else ""


def decide(
    key: int, user: Any, verdict: str, digest: str, comment: str = "", *, request: HttpRequest | None = None
) -> Deployment:
    """Records what `user` decides (Approval.Verdict) about the deployment with that primary key, and returns it.

    `digest` is what they have seen: it must be the deployment's. A rejected deployment has ended. One that went without
    approval is `reviewed`. Two who approve at once count once if one approval is enough: the second is refused.

    Raises Deployment.DoesNotExist, Invalid, and RuleViolation: may-not, own-request, wrong-state, not-approved,
    already-approved.
    """
    if verdict not in Approval.Verdict.values:
        raise Invalid("verdict", f"Expected one of {', '.join(Approval.Verdict.values)}.")
    rules.validate_text(Approval, **({"comment": comment.strip()} if comment.strip() else {}))
    with rules.violations_in_the_database(), transaction.atomic():
        deployment, now = rules.locked(key), timezone.now()
        if not user.is_active or not user.has_perm(APPROVE, deployment.environment):
            raise RuleViolation("may-not", f"You are not an approver of {deployment.environment}.")
        if is_own(user, deployment):
            raise RuleViolation("own-request", f"You asked for deployment {key} yourself, so somebody else decides.")
        if digest != deployment.digest:
            raise RuleViolation("wrong-state", f"Deployment {key} is of another image than the one that you have seen.")
        check_state(deployment, verdict)
        Approval.objects.create(
            deployment=deployment,
            approver=user,
            name=user.email,
            verdict=verdict,
            comment=comment.strip(),
            digest=digest,
            time=now,
        )
        if verdict == Approval.Verdict.REJECTED:
            deployment.status, deployment.finished = Deployment.Status.REJECTED, max(now, deployment.created)
            deployment.save(update_fields=["status", "finished"])
        audit.record(
            ACTIONS[Approval.Verdict(verdict)],
            actor=user.email,
            actor_id=user.pk,
            environment=deployment.environment.name,
            target=f"deployment {key}, {deployment.release}",
            details={"digest": digest, "comment": comment.strip()},
            request=request,
        )
        return deployment


def check_state(deployment: Deployment, verdict: str) -> None:
    """Raises RuleViolation unless the deployment is in the state to be decided about so."""
    if verdict == Approval.Verdict.REVIEWED:
        if not deployment.break_glass:
            raise RuleViolation("wrong-state", f"Deployment {deployment.pk} did not go without approval.")
        if deployment.approvals.filter(verdict=verdict).exists():
            raise RuleViolation("wrong-state", f"Deployment {deployment.pk} has been reviewed already.")
        return
    if deployment.status != Deployment.Status.WAITING:
        raise RuleViolation(
            "wrong-state", f"Deployment {deployment.pk} is {rules.label(deployment)}; it does not wait for approval."
        )
    if not queries.is_current(deployment):
        raise RuleViolation(
            "not-approved",
            f"Something else went live in {deployment.environment} since deployment {deployment.pk} was requested. "
            "It has to be requested again.",
        )
    found = queries.standing(deployment, timezone.now())
    if verdict == Approval.Verdict.APPROVED and found.approved:
        names = " and ".join(found.names)
        raise RuleViolation("already-approved", f"Deployment {deployment.pk} is approved already, by {names}.")
