"""The API, /api/: pipelines write to the ledger, and ask what runs where, what may go on and what may go back.

Every operation calls rules.rules and words what comes of it. docs/api.md and /api/docs/ tell users the same.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Literal, NoReturn

from django.core.exceptions import ValidationError as DjangoError
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from ninja import Header, NinjaAPI, Path, Query, Schema
from ninja.errors import HttpError, ValidationError
from ninja.openapi.schema import OpenAPISchema
from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, StringConstraints

from ledger import models, rules, versions
from ledger.api.auth import Bearer, in_scope, may_change, may_register, once, token_of
from ledger.api.problems import DETAILS, MEDIA_TYPE, Problem, respond
from settings import text

MAX_KEY = 2**63 - 1


def plausible(value: datetime) -> datetime:
    """In UTC. Raises ValueError for what is no date of a deployment, and may overflow in another time zone."""
    if not 2000 <= value.year <= 2100:
        raise ValueError("expected a year from 2000 to 2100")
    return value.astimezone(UTC)


def fit(value: str) -> str:
    """One line that everybody can hold (settings.text). Raises ValueError."""
    try:
        text.one_line(value)
    except DjangoError as error:
        raise ValueError(error.messages[0]) from None
    return value


Line500 = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500), AfterValidator(fit)]
Line100 = Annotated[str, StringConstraints(strip_whitespace=True, max_length=100), AfterValidator(fit)]


Version = Annotated[
    str,
    AfterValidator(versions.validate),
    Field(
        description=f"Expected {versions.EXPECTED}.",
        examples=["1.4.0"],
        json_schema_extra={
            "pattern": f"^{versions.PATTERN}$",
            "maxLength": versions.LENGTH,
            "not": {"const": versions.MOVING},
        },
    ),
]
When = Annotated[AwareDatetime, AfterValidator(plausible), Field(description="RFC 3339, with its zone.")]
Key = Annotated[int, Field(ge=1, le=MAX_KEY)]
Limit = Annotated[int, Field(ge=1, le=100)]
Retry = Annotated[
    Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]*$", min_length=1, max_length=200)] | None,
    Header(
        alias="Idempotency-Key",
        description="A name of your own for this request, such as a UUID. Sent again with the same body, it is "
        "answered again and not done again; known for 48 hours, to your token alone.",
    ),
]
EnvironmentName = models.Environment.Name
Strategy = models.Deployment.Strategy
Kind = models.Deployment.Kind
Status = models.Deployment.Status


# What is sent


class Strict(Schema):
    """A misspelt field is an error, and not silently left out."""

    model_config = ConfigDict(extra="forbid")


class NewRelease(Strict):
    version: Version
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{7,64}$"), Field(examples=["4f2a9c1"])]
    built_at: When
    message: Line500 = ""
    image: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]*$", max_length=255)] = ""


class NewDeployment(Strict):
    environment: EnvironmentName
    release: Version
    strategy: Strategy
    kind: Kind = Kind.DEPLOY
    hotfix: Annotated[bool, Field(strict=True, description="Past the environment's gate. Needs a reason.")] = False
    reason: Line500 = ""
    actor: Annotated[
        Line100, Field(description="Who asked for it: a claim, shown beside the token. The token's name if empty.")
    ] = ""
    run_url: Annotated[
        str,
        StringConstraints(pattern=r"^(https?://[A-Za-z0-9][A-Za-z0-9.:-]*(/[!#-;=?-Z_a-z~%]*)?)?$", max_length=500),
        Field(description="The pipeline's run."),
    ] = ""


class StepReport(Strict):
    name: Annotated[
        str,
        StringConstraints(strip_whitespace=True, min_length=1, max_length=100),
        AfterValidator(fit),
        Field(examples=["smoke test"]),
    ]
    outcome: models.Step.Outcome


class Ending(Strict):
    result: Annotated[
        Literal["succeeded", "failed", "rolled_back"],
        Field(description="rolled_back: it failed, and what ran before runs again."),
    ]
    failed_requests: Annotated[
        int | None,
        Field(
            strict=True, ge=0, le=2**31 - 1, description="How many of the probe traffic's requests failed meanwhile."
        ),
    ] = None


class DeploymentQuery(Strict):
    environment: EnvironmentName | None = None
    status: Status | None = None
    strategy: Strategy | None = None
    actor: Line100 | None = None
    since: Annotated[When | None, Field(description="Created at or after.")] = None
    until: Annotated[When | None, Field(description="Created before.")] = None
    search: Annotated[
        Annotated[str, StringConstraints(strip_whitespace=True, max_length=64), AfterValidator(fit)] | None,
        Field(description="The beginning of the release's version or commit."),
    ] = None
    limit: Limit = 50
    cursor: Annotated[
        Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]*$", max_length=100)] | None,
        Field(description="`next` of the page before."),
    ] = None


# What is answered


class ReleaseOut(Schema):
    version: str
    commit: str
    message: str
    built_at: datetime
    image: str
    token: Annotated[str, Field(description="The token that registered it; empty if it was a command.")]
    registered: datetime | None


class StepOut(Schema):
    position: int
    name: str
    outcome: str
    started: datetime
    finished: datetime | None
    token: Annotated[str, Field(description="The token that reported it last; empty if it was a command.")]


class DeploymentOut(Schema):
    id: int
    environment: str
    release: ReleaseOut
    kind: str
    strategy: str
    hotfix: bool
    reason: str
    status: str
    actor: Annotated[str, Field(description="Who asked for it, as the client claims.")]
    token: Annotated[str, Field(description="The token that created it; empty if it was a command.")]
    finished_token: Annotated[str, Field(description="The token that finished it.")]
    previous: Annotated[str | None, Field(description="The version that was live when this one began.")]
    created: datetime
    started: datetime | None
    finished: datetime | None
    duration_seconds: float | None
    failed_requests: Annotated[int | None, Field(description="Of the probe traffic; null if there was none.")]
    run_url: str

    @classmethod
    def values(cls, row: models.Deployment) -> dict[str, Any]:
        fields = ("id", "kind", "strategy", "hotfix", "reason", "status", "actor", "token", "finished_token")
        return {name: getattr(row, name) for name in (*fields, "created", "started", "finished")} | {
            "environment": row.environment.name,
            "release": ReleaseOut.from_orm(row.release),
            "previous": row.previous.release.version if row.previous else None,
            "duration_seconds": None if row.duration is None else row.duration.total_seconds(),
            "failed_requests": row.failed_requests,
            "run_url": row.run_url,
        }

    @classmethod
    def of(cls, row: models.Deployment) -> "DeploymentOut":
        return cls(**cls.values(row))


class DeploymentDetail(DeploymentOut):
    steps: list[StepOut]

    @classmethod
    def of(cls, row: models.Deployment) -> "DeploymentDetail":
        return cls(**cls.values(row), steps=[StepOut.from_orm(step) for step in row.steps.order_by("position")])


class DeploymentPage(Schema):
    items: list[DeploymentOut]
    next: Annotated[str | None, Field(description="The next page's cursor; null on the last.")]


class EnvironmentOut(Schema):
    name: str
    order: int
    purpose: str
    data: str
    access: str
    deployment: str
    gate: Annotated[str | None, Field(description="Where a release must have succeeded before it may come here.")]
    current: Annotated[DeploymentOut | None, Field(description="What put there what runs there.")]
    in_flight: Annotated[DeploymentOut | None, Field(description="What is pending or running.")]

    @classmethod
    def of(cls, row: models.Environment) -> "EnvironmentOut":
        fields = ("name", "order", "purpose", "data", "access", "deployment")
        return cls(
            **{name: getattr(row, name) for name in fields},
            gate=row.promotes_from.name if row.promotes_from else None,
            current=DeploymentOut.of(row.current) if row.current else None,
            in_flight=DeploymentOut.of(row.in_flight) if row.in_flight else None,
        )


class EnvironmentList(Schema):
    items: list[EnvironmentOut]


class CandidateOut(Schema):
    release: ReleaseOut
    proven: Annotated[
        datetime | None, Field(description="When it succeeded in the gate's environment, if there is one.")
    ]


class CandidateList(Schema):
    items: list[CandidateOut]


class RollbackTargetOut(Schema):
    release: ReleaseOut
    deployment: Annotated[int, Field(description="The last deployment that had put it there.")]
    finished: datetime | None


class RollbackTargetList(Schema):
    items: list[RollbackTargetOut]


class ErrorOut(Schema):
    detail: str
    pointer: Annotated[str | None, Field(description="Where in the body, as a JSON pointer (RFC 6901).")] = None
    parameter: Annotated[str | None, Field(description="Which query parameter or header.")] = None


class ProblemOut(Schema):
    """Problem details, RFC 9457."""

    type: Annotated[str, Field(description="about:blank, or the rule: a part of /api/docs/.")]
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[ErrorOut] = []


# The operations


class LedgerAPI(NinjaAPI):
    """Django Ninja, with problem details in its schema."""

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
    201: {"Location": header("Where what was made is read.")},
    401: {"WWW-Authenticate": header("Bearer, with the error if a token was sent (RFC 6750).")},
    429: {"Retry-After": header("In so many seconds.")},
}

api = LedgerAPI(
    title="backstagetest1 ledger",
    version="1",
    description="Deployments: report them, follow them, and ask what may go where.",
    docs_url=None,  # the page of ours needs no script and no other host: rules.api.docs
    auth=Bearer(),
    urls_namespace="api",
)


def errors(*statuses: int) -> dict[int, type[ProblemOut]]:
    """The errors that an operation may answer with: those of all, and `statuses`."""
    return {status: ProblemOut for status in sorted({400, 401, 413, 422, 429, 500, 503, *statuses})}


def answer(result: Schema, status: int = 200, location: str = "") -> HttpResponse:
    response = HttpResponse(result.model_dump_json(), "application/json", status, headers={"Cache-Control": "no-store"})
    if location:
        response["Location"] = location
    return response


def url_of(deployment: models.Deployment) -> str:
    return reverse("api:read_deployment", kwargs={"key": deployment.pk})


@api.get("/environments", response={200: EnvironmentList, **errors()}, summary="What runs where")
def list_environments(request: HttpRequest) -> HttpResponse:
    """Every environment with its current deployment, and the one that is pending or running."""
    return answer(EnvironmentList(items=[EnvironmentOut.of(row) for row in models.Environment.objects.board(0)]))


@api.get("/environments/{name}", response={200: EnvironmentOut, **errors(404)}, summary="What runs in one environment")
def read_environment(request: HttpRequest, name: Path[EnvironmentName]) -> HttpResponse:
    return answer(EnvironmentOut.of(models.Environment.objects.filter(name=name).board(0)[0]))


@api.get("/environments/{name}/promotable", response={200: CandidateList, **errors(404)}, summary="What may go there")
def list_promotable(request: HttpRequest, name: Path[EnvironmentName], limit: Limit = 20) -> HttpResponse:
    """Releases that may go there without being a hotfix and have not been live there yet, the newest first."""
    found = rules.promotable(models.Environment.objects.select_related("promotes_from").get(name=name), limit)
    items = [CandidateOut(release=ReleaseOut.from_orm(each.release), proven=each.proven) for each in found]
    return answer(CandidateList(items=items))


@api.get(
    "/environments/{name}/rollback-targets",
    response={200: RollbackTargetList, **errors(404)},
    summary="What it may go back to",
)
def list_rollback_targets(request: HttpRequest, name: Path[EnvironmentName], limit: Limit = 20) -> HttpResponse:
    """Releases that were live there before the one that is, the last first."""
    found = rules.rollback_targets(models.Environment.objects.get(name=name), limit)
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
    """201 if the version is new, 200 if the same build is registered already. The token needs the right to register."""
    may_register(request)

    def write() -> HttpResponse:
        given = (body.version, body.commit, body.built_at, body.message, body.image)
        release, new = rules.register(*given, token=token_of(request).name)
        location = reverse("api:read_release", kwargs={"version": release.version})
        return answer(ReleaseOut.from_orm(release), 201 if new else 200, location)

    return once(request, idempotency_key, write)


@api.get("/releases/{version}", response={200: ReleaseOut, **errors(404)}, summary="One release")
def read_release(request: HttpRequest, version: Path[Version]) -> HttpResponse:
    try:
        return answer(ReleaseOut.from_orm(models.Release.objects.get(version=version)))
    except models.Release.DoesNotExist:
        raise Problem(404, "", f"There is no release {version}.") from None


@api.post("/deployments", response={201: DeploymentDetail, **errors(403, 409)}, summary="Create a deployment")
def create_deployment(request: HttpRequest, body: NewDeployment, idempotency_key: Retry = None) -> HttpResponse:
    """A pending deployment. Until it has ended the environment takes no other."""
    in_scope(request, body.environment)

    def write() -> HttpResponse:
        try:
            deployment = rules.create(
                body.environment,
                body.release,
                body.strategy,
                body.actor or token_of(request).name,
                kind=body.kind,
                hotfix=body.hotfix,
                reason=body.reason,
                run_url=body.run_url,
                token=token_of(request).name,
            )
        except models.Release.DoesNotExist:
            detail = f"There is no release {body.release}. Register it first: POST /api/releases."
            where = [{"pointer": "#/release", "detail": "no such release"}]
            raise Problem(422, "unknown-release", detail, errors=where) from None
        return answer(DeploymentDetail.of(deployment), 201, url_of(deployment))

    return once(request, idempotency_key, write)


@api.get("/deployments", response={200: DeploymentPage, **errors()}, summary="List deployments")
def list_deployments(request: HttpRequest, filters: Query[DeploymentQuery]) -> HttpResponse:
    """The newest first. All filters given must apply."""
    if unknown := sorted(request.GET.keys() - DeploymentQuery.model_fields.keys()):
        raise invalid([{"parameter": name, "detail": "no such filter"} for name in unknown])
    given = filters.model_dump(exclude={"limit", "cursor"})
    found = models.Deployment.objects.select_related("environment", "release", "previous__release").matching(**given)
    try:
        page = found.page(filters.limit, filters.cursor)
    except ValueError as error:
        raise invalid([{"parameter": "cursor", "detail": str(error)}]) from None
    return answer(DeploymentPage(items=[DeploymentOut.of(row) for row in page.rows], next=page.next))


@api.get("/deployments/{key}", response={200: DeploymentDetail, **errors(404)}, summary="One deployment")
def read_deployment(request: HttpRequest, key: Path[Key]) -> HttpResponse:
    """With its steps."""
    found = models.Deployment.objects.select_related("environment", "release", "previous__release")
    return answer(DeploymentDetail.of(found.get(pk=key)))


def advance(request: HttpRequest, key: int, retry: str | None, act: Callable[[int], object]) -> HttpResponse:
    """The deployment as `act` leaves it."""
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
    """A new name begins a step; the same name again ends it with its outcome."""
    token = token_of(request).name
    return advance(request, key, idempotency_key, lambda key: rules.step(key, body.name, body.outcome, token=token))


@api.post("/deployments/{key}/finish", response=ADVANCED, summary="Finish a deployment")
def finish_deployment(
    request: HttpRequest, key: Path[Key], body: Ending, idempotency_key: Retry = None
) -> HttpResponse:
    """For good: what has finished never changes. A pending deployment can only fail."""

    def act(key: int) -> object:
        return rules.finish(key, body.result, failed_requests=body.failed_requests, token=token_of(request).name)

    return advance(request, key, idempotency_key, act)


# Errors


def invalid(where: list[dict[str, str]]) -> Problem:
    named = [each.get("pointer") or each.get("parameter", "") for each in where]
    return Problem(422, "invalid", f"The request does not fit the schema: {', '.join(named)}.", errors=where)


@api.exception_handler(Problem)
def on_problem(request: HttpRequest, problem: Problem) -> HttpResponse:
    return respond(request, problem)


@api.exception_handler(rules.RuleViolation)
def on_refused(request: HttpRequest, error: rules.RuleViolation) -> HttpResponse:
    return respond(request, Problem(409, error.code, str(error)))


@api.exception_handler(rules.Invalid)
def on_invalid(request: HttpRequest, error: rules.Invalid) -> HttpResponse:
    return respond(
        request, Problem(422, "invalid", str(error), errors=[place_of(("body", "", error.field), str(error))])
    )


@api.exception_handler(ValidationError)
def on_malformed(request: HttpRequest, error: ValidationError) -> HttpResponse:
    """422; 404 if it is the path that names nothing there could be."""
    if any(each["loc"][0] == "path" for each in error.errors):
        return respond(request, Problem(404, "", DETAILS[404]))
    said = [(each["loc"], str(each["msg"]).removeprefix("Value error, ")) for each in error.errors]
    return respond(request, invalid([place_of(where, detail) for where, detail in said]))


def place_of(where: tuple[str | int, ...], detail: str) -> dict[str, str]:
    if where[0] == "body":
        return {"pointer": "#" + "".join(f"/{part}" for part in where[2:]), "detail": detail}
    return {"parameter": str(where[-1]), "detail": detail}


@api.exception_handler(models.Deployment.DoesNotExist)
def on_no_deployment(request: HttpRequest, error: Exception) -> HttpResponse:
    return respond(request, Problem(404, "", "There is no such deployment."))


@api.exception_handler(HttpError)
def on_unreadable(request: HttpRequest, error: HttpError) -> HttpResponse:
    return respond(request, Problem(error.status_code, "", "The body is no JSON."))


@api.exception_handler(Exception)
def on_failure(request: HttpRequest, error: Exception) -> NoReturn:
    """Django logs and counts it, and ProblemMiddleware words the answer."""
    raise error


@cache
def schema() -> OpenAPISchema:
    """The OpenAPI schema, which is the same for all."""
    return api.get_openapi_schema()
