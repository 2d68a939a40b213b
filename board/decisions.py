"""What waits for a decision: what the pages show of it, and the view that takes the decision."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST

from board.cards import compare_url
from ledger import approvals, queries, rules, steps
from ledger.models import Approval, Deployment, Step
from ledger.queries import Standing

SAID = {
    Approval.Verdict.APPROVED: "Approved {release} for {environment}.",
    Approval.Verdict.REJECTED: "Rejected {release} for {environment}.",
    Approval.Verdict.REVIEWED: "Reviewed {release} in {environment}.",
}


@dataclass(frozen=True)
class Proof:
    """That the release has succeeded where it comes from, and its smoke test there; None if none was reported."""

    deployment: Deployment
    smoke_test: Step | None


@dataclass(frozen=True)
class Undecided:
    """A deployment that somebody has to decide about, to `user`: whether they may, or `why_not`."""

    deployment: Deployment
    standing: Standing | None  # None if it has run, and waits for its review
    proofs: list[Proof]
    compare: str
    decides: bool
    why_not: str


def undecided(deployment: Deployment, user: Any, now: datetime) -> Undecided:
    """Returns what a page shows of the waiting or unreviewed deployment. Raises django.db.Error."""
    decides = user.is_authenticated and user.has_perm(approvals.APPROVE, deployment.environment)
    why_not = approvals.why_not(user, deployment) if decides else ""
    waits = deployment.status == Deployment.Status.WAITING
    found = queries.standing(deployment, now) if waits else None
    return Undecided(
        deployment,
        found,
        proofs(deployment) if waits else [],
        compare_url(deployment),
        decides and not why_not,
        why_not,
    )


def proofs(deployment: Deployment) -> list[Proof]:
    """Returns the last success of the release in each environment that this one is promoted from."""
    found = []
    for source in deployment.environment.promotes_from.all():
        there = Deployment.objects.filter(environment=source, release=deployment.release_id)
        last = there.filter(status=Deployment.Status.SUCCEEDED).newest_first().first()
        if last:
            last.environment = source
            found.append(Proof(last, last.steps.filter(name=steps.SMOKE_TEST).first()))
    return found


@require_POST
@never_cache
@login_required
def decide(request: HttpRequest, key: int) -> HttpResponse:
    """Records the decision, and leads to the deployment's page, which says it. Refuses (403) whoever may not decide."""
    verdict = request.POST.get("verdict", "")
    given = {name: request.POST.get(f"{name}-{key}", "") for name in ("digest", "comment")}
    try:
        deployment = approvals.decide(key, request.user, verdict, given["digest"], given["comment"], request=request)
    except Deployment.DoesNotExist:
        raise Http404 from None
    except rules.Invalid as error:
        messages.error(request, f"{error.field.capitalize()}: {error}")
    except rules.RuleViolation as error:
        if error.code == "may-not":
            raise PermissionDenied from None
        messages.error(request, str(error))
    else:
        said = SAID[Approval.Verdict(verdict)]
        messages.success(request, said.format(release=deployment.release, environment=deployment.environment))
    return redirect("deployment", key)
