"""Approvals for the tests that are about something else."""

from accounts.models import User
from ledger.models import Approval, Deployment


def approved(deployment: Deployment) -> Deployment:
    """Approves a waiting deployment, by as many people as it needs, when it was requested. Any other stays as it is."""
    if deployment.status == Deployment.Status.WAITING:
        for number in range(deployment.environment.approvals):
            user, _ = User.objects.get_or_create(email=f"approver-{number}@example.com")
            fields = {"digest": deployment.digest, "time": deployment.created}
            deployment.approvals.create(approver=user, name=user.email, verdict=Approval.Verdict.APPROVED, **fields)
    return deployment
