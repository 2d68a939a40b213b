"""What the API takes and answers, as types: they check a request, word an answer and make the OpenAPI schema."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from django.core.exceptions import ValidationError as DjangoError
from ninja import Header, Schema
from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, StringConstraints

from ledger import models, versions
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
