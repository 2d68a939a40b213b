"""The operations of the API, /api/: pipelines report deployments and ask what is live and can be deployed.

Every operation calls ledger.rules or ledger.queries. docs/api.md and /api/docs/ are its documentation.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from ninja import NinjaAPI, Path, Query, Schema
from ninja.openapi.schema import OpenAPISchema

from ledger import approvals, freezes, models, queries, rules
from ledger.api import problems
from ledger.api.auth import (
    Bearer,
    Session,
    may_break_glass,
    may_change,
    may_record,
    may_register,
    may_request,
    owner_of,
    token_of,
)
from ledger.api.idempotency import once
from ledger.api.problems import MEDIA_TYPE, Problem
from ledger.api.schemas import (
    CandidateList,
    CandidateOut,
    Decision,
    DeploymentDetail,
    DeploymentOut,
    DeploymentPage,
    DeploymentQuery,
    Ending,
    EnvironmentList,
    EnvironmentName,
    EnvironmentOut,
    Key,
    Limit,
    NewDeployment,
    NewLock,
    NewRelease,
    ProblemOut,
    PromotionOut,
    ReleaseOut,
    Retry,
    RollbackTargetList,
    RollbackTargetOut,
    StepReport,
    Version,
)


class LedgerAPI(NinjaAPI):
    """Django Ninja, with problem details and headers in its OpenAPI schema."""

    def get_openapi_operation_id(self, operation: Any) -> str:
        return str(operation.view_func.__name__)

    def get_openapi_schema(self, **kwargs: Any) -> OpenAPISchema:
        found = super().get_openapi_schema(**kwargs)
        for operations in found["paths"].values():
            for operation in operations.values():
                for status, answer in operation["responses"].items():
                    if status >= 400:
                        answer["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemOut"}}}
                    if status in HEADERS:
                        answer["headers"] = HEADERS[status]
        return found


def header(description: str) -> dict[str, Any]:
    return {"description": description, "required": True, "schema": {"type": "string"}}


HEADERS = {
    201: {"Location": header("URL of the new resource.")},
    401: {"WWW-Authenticate": header("Bearer, with the error if a token was sent (RFC 6750).")},
    429: {"Retry-After": header("Seconds to wait.")},
}

api = LedgerAPI(
    title="backstagetest1 ledger",
    version="1",
    description="Report and follow deployments, and list what can be promoted or rolled back to.",
    docs_url=None,  # ledger.api.docs has a page that needs no script and no other host
    auth=Bearer(),
    urls_namespace="api",
)
for kind, handler in problems.HANDLERS.items():
    api.add_exception_handler(kind, handler)


def errors(*statuses: int) -> dict[int, type[ProblemOut]]:
    """Returns the responses for an operation's errors: those that every operation has, and `statuses`."""
    return {status: ProblemOut for status in sorted({400, 401, 413, 422, 429, 500, 503, *statuses})}


def answer(result: Schema, status: int = 200, location: str = "") -> HttpResponse:
    response = HttpResponse(result.model_dump_json(), "application/json", status, headers={"Cache-Control": "no-store"})
    if location:
        response["Location"] = location
    return response


def url_of(deployment: models.Deployment) -> str:
    return reverse("api:read_deployment", kwargs={"key": deployment.pk})


@api.get("/environments", response={200: EnvironmentList, **errors()}, summary="List environments")
def list_environments(request: HttpRequest) -> HttpResponse:
    """Every environment with its live deployment and the one that is pending or running."""
    rows = queries.board(recent=0)
    states = freezes.states(rows, timezone.now())
    return answer(EnvironmentList(items=[EnvironmentOut.of(row, states[row.pk]) for row in rows]))


@api.get("/environments/{name}", response={200: EnvironmentOut, **errors(404)}, summary="Get an environment")
def read_environment(request: HttpRequest, name: Path[EnvironmentName]) -> HttpResponse:
    (row,) = queries.board(models.Environment.objects.filter(name=name), recent=0)
    return answer(EnvironmentOut.of(row, freezes.states([row], timezone.now())[row.pk]))


@api.put("/environments/{name}/lock", response={200: EnvironmentOut, **errors(403, 404)}, summary="Report a lock")
def report_lock(request: HttpRequest, name: Path[EnvironmentName], body: NewLock) -> HttpResponse:
    """Reports that deployments there are blocked by hand. It ends with DELETE, or with the next deployment there."""
    may_record(request, name)
    rules.report_lock(name, body.holder, body.reason, body.since)
    return read_environment(request, name)


@api.delete(
    "/environments/{name}/lock",
    response={200: EnvironmentOut, **errors(403, 404)},
    summary="Report that a lock is free",
)
def delete_lock(request: HttpRequest, name: Path[EnvironmentName]) -> HttpResponse:
    """Changes nothing if no lock was reported."""
    may_record(request, name)
    rules.report_unlock(name)
    return read_environment(request, name)


@api.get(
    "/environments/{name}/promotable", response={200: CandidateList, **errors(404)}, summary="List promotable releases"
)
def list_promotable(request: HttpRequest, name: Path[EnvironmentName], limit: Limit = 20) -> HttpResponse:
    """Releases that can be deployed there without a hotfix and have not been live there, newest first."""
    found = queries.promotable(models.Environment.objects.get(name=name), limit)
    items = [CandidateOut(release=ReleaseOut.from_orm(each.release), proven=each.proven) for each in found]
    return answer(CandidateList(items=items))


@api.get(
    "/environments/{name}/promotable/{version}",
    response={200: PromotionOut, **errors(404)},
    summary="Check a promotion",
)
def check_promotion(request: HttpRequest, name: Path[EnvironmentName], version: Path[Version]) -> HttpResponse:
    """Whether the release has been live for long enough where the environment is promoted from."""
    found = rules.promotion(models.Environment.objects.get(name=name), version)
    return answer(PromotionOut(allowed=found.allowed, text=found.text))


@api.get(
    "/environments/{name}/rollback-targets",
    response={200: RollbackTargetList, **errors(404)},
    summary="List rollback targets",
)
def list_rollback_targets(request: HttpRequest, name: Path[EnvironmentName], limit: Limit = 20) -> HttpResponse:
    """Releases that were live there before the current one, latest first."""
    found = queries.rollback_targets(models.Environment.objects.get(name=name), limit)
    items = [
        RollbackTargetOut(
            release=ReleaseOut.from_orm(each.release),
            deployment=each.deployment.pk,
            finished=each.deployment.finished,
        )
        for each in found
    ]
    return answer(RollbackTargetList(items=items))


@api.post("/releases", response={200: ReleaseOut, 201: ReleaseOut, **errors(403, 409)}, summary="Register a release")
def register_release(request: HttpRequest, body: NewRelease, idempotency_key: Retry = None) -> HttpResponse:
    """201 if the version is new, 200 if the same build is already registered. The token must be allowed to register."""
    may_register(request)

    def write() -> HttpResponse:
        given = (body.version, body.commit, body.built_at, body.message, body.image)
        release, new = rules.register(*given, token=token_of(request).name)
        location = reverse("api:read_release", kwargs={"version": release.version})
        return answer(ReleaseOut.from_orm(release), 201 if new else 200, location)

    return once(request, idempotency_key, write)


@api.get("/releases/{version}", response={200: ReleaseOut, **errors(404)}, summary="Get a release")
def read_release(request: HttpRequest, version: Path[Version]) -> HttpResponse:
    try:
        return answer(ReleaseOut.from_orm(models.Release.objects.get(version=version)))
    except models.Release.DoesNotExist:
        raise Problem(404, "", f"Release {version} is not registered.") from None


@api.post("/deployments", response={201: DeploymentDetail, **errors(403, 409)}, summary="Create a deployment")
def create_deployment(request: HttpRequest, body: NewDeployment, idempotency_key: Retry = None) -> HttpResponse:
    """Creates a pending deployment, and the environment accepts no other until it has finished. If the environment
    requires approvals, creates a waiting one, or returns the one that waits for the same already. That can be started
    once `standing.approved` is true.
    """
    may_request(request, body.environment)
    if body.break_glass:
        may_break_glass(request, body.environment)
    owner = owner_of(token_of(request))

    def write() -> HttpResponse:
        try:
            deployment = rules.create(
                body.environment,
                body.release,
                body.strategy,
                body.actor or token_of(request).name,
                kind=body.kind,
                hotfix=body.hotfix,
                break_glass=body.break_glass,
                digest=body.digest,
                requester=owner.pk if owner else None,
                reason=body.reason,
                run_url=body.run_url,
                revision=body.revision,
                token=token_of(request).name,
            )
        except models.Release.DoesNotExist:
            detail = f"Release {body.release} is not registered. Register it first: POST /api/releases."
            where = [{"pointer": "#/release", "detail": "unknown release"}]
            raise Problem(422, "unknown-release", detail, errors=where) from None
        return answer(DeploymentDetail.of(deployment), 201, url_of(deployment))

    return once(request, idempotency_key, write)


@api.get("/deployments", response={200: DeploymentPage, **errors()}, summary="List deployments")
def list_deployments(request: HttpRequest, filters: Query[DeploymentQuery]) -> HttpResponse:
    """Newest first. A deployment must match every filter."""
    if unknown := sorted(request.GET.keys() - DeploymentQuery.model_fields.keys()):
        raise problems.invalid([{"parameter": name, "detail": "unknown parameter"} for name in unknown])
    given = filters.model_dump(exclude={"limit", "cursor"})
    found = models.Deployment.objects.select_related("environment", "release", "previous__release").matching(**given)
    try:
        page = found.page(filters.limit, filters.cursor)
    except ValueError as error:
        raise problems.invalid([{"parameter": "cursor", "detail": str(error)}]) from None
    return answer(DeploymentPage(items=[DeploymentOut.of(row) for row in page.rows], next=page.next))


@api.get("/deployments/{key}", response={200: DeploymentDetail, **errors(404)}, summary="Get a deployment")
def read_deployment(request: HttpRequest, key: Path[Key]) -> HttpResponse:
    """The deployment with its steps."""
    found = models.Deployment.objects.select_related("environment", "release", "previous__release")
    return answer(DeploymentDetail.of(found.get(pk=key)))


def advance(request: HttpRequest, key: int, retry: str | None, act: Callable[[int], object]) -> HttpResponse:
    """Answers with the deployment after `act` has changed it. Raises Problem and what `act` raises."""
    may_change(request, key)

    def write() -> HttpResponse:
        act(key)
        found = models.Deployment.objects.select_related("environment", "release", "previous__release")
        return answer(DeploymentDetail.of(found.get(pk=key)))

    return once(request, retry, write)


ADVANCED = {200: DeploymentDetail, **errors(403, 404, 409)}


@api.post("/deployments/{key}/start", response=ADVANCED, summary="Start a pending deployment")
def start_deployment(request: HttpRequest, key: Path[Key], idempotency_key: Retry = None) -> HttpResponse:
    return advance(request, key, idempotency_key, rules.start)


@api.post("/deployments/{key}/steps", response=ADVANCED, summary="Report a step")
def report_step(request: HttpRequest, key: Path[Key], body: StepReport, idempotency_key: Retry = None) -> HttpResponse:
    """A new name starts a step; the same name again finishes it with its outcome."""

    def act(key: int) -> object:
        return rules.step(key, body.name, body.outcome, note=body.note, token=token_of(request).name)

    return advance(request, key, idempotency_key, act)


@api.post("/deployments/{key}/finish", response=ADVANCED, summary="Finish a deployment")
def finish_deployment(
    request: HttpRequest, key: Path[Key], body: Ending, idempotency_key: Retry = None
) -> HttpResponse:
    """Final: a finished deployment never changes. A pending deployment can only fail."""

    def act(key: int) -> object:
        return rules.finish(key, body.result, failed_requests=body.failed_requests, token=token_of(request).name)

    return advance(request, key, idempotency_key, act)


def decide(request: HttpRequest, key: int, verdict: str, body: Decision) -> HttpResponse:
    """Answers with the deployment after the session's user has decided about it. Raises Problem and RuleViolation."""
    approvals.decide(key, request.user, verdict, body.digest, body.comment, request=request)
    found = models.Deployment.objects.select_related("environment", "release", "previous__release")
    return answer(DeploymentDetail.of(found.get(pk=key)))


@api.post("/deployments/{key}/approve", response=ADVANCED, auth=Session(), summary="Approve a waiting deployment")
def approve_deployment(request: HttpRequest, key: Path[Key], body: Decision) -> HttpResponse:
    """For approvers who have not asked for it, in their session: a token cannot."""
    return decide(request, key, models.Approval.Verdict.APPROVED, body)


@api.post("/deployments/{key}/reject", response=ADVANCED, auth=Session(), summary="Reject a waiting deployment")
def reject_deployment(request: HttpRequest, key: Path[Key], body: Decision) -> HttpResponse:
    """Ends it. For approvers who have not asked for it, in their session: a token cannot."""
    return decide(request, key, models.Approval.Verdict.REJECTED, body)


@api.post("/deployments/{key}/review", response=ADVANCED, auth=Session(), summary="Review what broke the glass")
def review_deployment(request: HttpRequest, key: Path[Key], body: Decision) -> HttpResponse:
    """Records that somebody else has looked at a hotfix that went without approval. In their session, too."""
    return decide(request, key, models.Approval.Verdict.REVIEWED, body)


@cache
def schema() -> OpenAPISchema:
    """Returns the OpenAPI schema, which is the same for every client."""
    return api.get_openapi_schema()
