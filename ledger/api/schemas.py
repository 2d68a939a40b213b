"""The API's requests and responses as types, which validate, serialize and make the OpenAPI schema."""

from datetime import UTC, datetime
from typing import Annotated, Any

from django.core.exceptions import ValidationError as DjangoError
from django.conf import settings
from django.utils import timezone
from ninja import Header, Schema
from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, StringConstraints

from ledger import environments, freezes, models, queries, versions
from settings import text

MAX_KEY = 2**63 - 1


def plausible(value: datetime) -> datetime:
    """Returns `value` in UTC. Raises ValueError for a year that no deployment has, and that may overflow elsewhere."""
    if not 2000 <= value.year <= 2100:
        raise ValueError("expected a year from 2000 to 2100")
    return value.astimezone(UTC)


def one_line(value: str) -> str:
    """Returns `value`. Raises ValueError unless it is one line without control characters (settings.text)."""
    try:
        text.one_line(value)
    except DjangoError as error:
        raise ValueError(error.messages[0]) from None
    return value


def known(value: str) -> str:
    """Returns `value`. Raises ValueError unless environments.toml has an environment of that name."""
    if value not in environments.names():
        raise ValueError(f"expected one of {', '.join(environments.names())}")
    return value


def final(value: str) -> str:
    """Returns `value`. Raises ValueError unless it is the status of a finished deployment."""
    if value not in models.RESULTS:
        raise ValueError(f"expected one of {', '.join(models.RESULTS)}")
    return value


Line500 = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500), AfterValidator(one_line)]
Line100 = Annotated[str, StringConstraints(strip_whitespace=True, max_length=100), AfterValidator(one_line)]
LineOfNote = Annotated[str, StringConstraints(strip_whitespace=True, max_length=models.NOTE), AfterValidator(one_line)]


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
When = Annotated[AwareDatetime, AfterValidator(plausible), Field(description="RFC 3339, with a time zone.")]
Key = Annotated[int, Field(ge=1, le=MAX_KEY)]
Limit = Annotated[int, Field(ge=1, le=100)]
Retry = Annotated[
    Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]*$", min_length=1, max_length=200)] | None,
    Header(
        alias="Idempotency-Key",
        description="A unique name for this request, such as a UUID. A retry with the same name and body gets the "
        "first response and changes nothing. Kept for 48 hours, per token.",
    ),
]
EnvironmentName = Annotated[
    str,
    AfterValidator(known),
    Field(
        description="An environment of environments.toml.",
        examples=[environments.names()[-1]],
        json_schema_extra={"enum": list(environments.names())},
    ),
]
Strategy = models.Deployment.Strategy
Kind = models.Deployment.Kind
Status = models.Deployment.Status


# Requests


class Strict(Schema):
    """A request in which a misspelt field is an error."""

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
    hotfix: Annotated[bool, Field(strict=True, description="Skips the promotion check. Requires a reason.")] = False
    break_glass: Annotated[
        bool,
        Field(
            strict=True,
            description="A hotfix without approval, for tokens whose owner may do that. Somebody else reviews it.",
        ),
    ] = False
    digest: Annotated[
        str,
        StringConstraints(pattern=rf"^({models.DIGEST})?$"),
        Field(description="Digest of the image: what is approved. Defaults to that of the registered image."),
    ] = ""
    reason: Line500 = ""
    actor: Annotated[
        Line100, Field(description="Who requested it: a claim, shown beside the token. Defaults to the token's name.")
    ] = ""
    run_url: Annotated[
        str,
        StringConstraints(pattern=r"^(https?://[A-Za-z0-9][A-Za-z0-9.:-]*(/[!#-;=?-Z_a-z~%]*)?)?$", max_length=500),
        Field(description="Link to the pipeline run."),
    ] = ""
    revision: Annotated[
        str,
        StringConstraints(pattern=r"^[A-Za-z0-9._-]*$", max_length=63),
        Field(description="What a rollback returns to, beside the version, which may be the live one then."),
    ] = ""


class NewLock(Strict):
    holder: Annotated[
        str,
        StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
        AfterValidator(one_line),
        Field(description="Who holds it: a claim.", examples=["alice@laptop"]),
    ]
    reason: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500), AfterValidator(one_line)
    ]
    since: When


class StepReport(Strict):
    name: Annotated[
        str,
        StringConstraints(strip_whitespace=True, min_length=1, max_length=100),
        AfterValidator(one_line),
        Field(examples=["smoke test"]),
    ]
    outcome: models.Step.Outcome
    note: Annotated[LineOfNote, Field(description="What happened, for operators.")] = ""


class Ending(Strict):
    result: Annotated[
        str,
        AfterValidator(final),
        Field(
            description="rolled_back: it failed, and the previous release was restored.",
            json_schema_extra={"enum": list(models.RESULTS)},
        ),
    ]
    failed_requests: Annotated[
        int | None,
        Field(strict=True, ge=0, le=2**31 - 1, description="Probe requests that failed during the deployment."),
    ] = None


class DeploymentQuery(Strict):
    environment: Annotated[
        str | None,
        StringConstraints(pattern=f"^{environments.NAME.pattern}$"),
        Field(description="Also one that environments.toml no longer has."),
    ] = None
    status: Status | None = None
    strategy: Strategy | None = None
    actor: Line100 | None = None
    since: Annotated[When | None, Field(description="Created at or after this time.")] = None
    until: Annotated[When | None, Field(description="Created before this time.")] = None
    search: Annotated[
        Annotated[str, StringConstraints(strip_whitespace=True, max_length=64), AfterValidator(one_line)] | None,
        Field(description="Beginning of the release's version or commit."),
    ] = None
    limit: Limit = 50
    cursor: Annotated[
        Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]*$", max_length=100)] | None,
        Field(description="`next` of the previous page."),
    ] = None


# Responses


class ReleaseOut(Schema):
    version: str
    commit: str
    message: str
    built_at: datetime
    image: str
    token: Annotated[str, Field(description="Token that registered it; empty if a command did.")]
    registered: datetime | None


class ApprovalOut(Schema):
    name: Annotated[str, Field(description="Email address of who decided.")]
    verdict: str
    comment: str
    digest: str
    time: datetime


class StandingOut(Schema):
    given: Annotated[int, Field(description="Approvals that are valid now.")]
    needed: int
    approved: Annotated[bool, Field(description="Whether it may be started.")]
    ends: Annotated[datetime | None, Field(description="Until when they are valid.")]


class Decision(Strict):
    digest: Annotated[
        str,
        StringConstraints(pattern=rf"^({models.DIGEST})?$"),
        Field(description="What was seen: the deployment's `digest`, which may be empty."),
    ]
    comment: Line500 = ""


class StepOut(Schema):
    position: int
    name: str
    outcome: str
    note: Annotated[str, Field(description="What happened, for operators; empty if nothing was reported.")]
    started: datetime
    finished: datetime | None
    token: Annotated[str, Field(description="Token that reported it last; empty if a command did.")]


class DeploymentOut(Schema):
    id: int
    environment: str
    release: ReleaseOut
    kind: str
    strategy: str
    hotfix: bool
    break_glass: Annotated[bool, Field(description="It went without approval.")]
    digest: Annotated[str, Field(description="Digest of the image that was requested; empty if unknown.")]
    reason: str
    status: str
    actor: Annotated[str, Field(description="Who requested it, as claimed by the client.")]
    token: Annotated[str, Field(description="Token that created it; empty if a command did.")]
    finished_token: Annotated[str, Field(description="Token that finished it; empty if a command did.")]
    previous: Annotated[str | None, Field(description="Version that was live when this one was created.")]
    created: datetime
    started: datetime | None
    finished: datetime | None
    duration_seconds: float | None
    failed_requests: Annotated[int | None, Field(description="Probe requests that failed; null without probe traffic.")]
    run_url: str
    revision: Annotated[str, Field(description="What a rollback returned to, beside the version; else empty.")]

    @classmethod
    def values(cls, row: models.Deployment) -> dict[str, Any]:
        asked = ("id", "kind", "strategy", "hotfix", "break_glass", "digest", "reason", "status", "actor")
        fields = (*asked, "token", "finished_token", "created", "started", "finished")
        return {name: getattr(row, name) for name in fields} | {
            "environment": row.environment.name,
            "release": ReleaseOut.from_orm(row.release),
            "previous": row.previous.release.version if row.previous else None,
            "duration_seconds": None if row.duration is None else row.duration.total_seconds(),
            "failed_requests": row.failed_requests,
            "run_url": row.run_url,
            "revision": row.revision,
        }

    @classmethod
    def of(cls, row: models.Deployment) -> "DeploymentOut":
        return cls(**cls.values(row))


class DeploymentDetail(DeploymentOut):
    page: Annotated[str, Field(description="Address of its page, for people.")]
    steps: list[StepOut]
    approvals: list[ApprovalOut]
    standing: Annotated[StandingOut | None, Field(description="Null unless it waits for approval.")]

    @classmethod
    def of(cls, row: models.Deployment) -> "DeploymentDetail":
        waits = row.status == Status.WAITING
        return cls(
            **cls.values(row),
            page=f"{settings.SITE_URL}/deployments/{row.pk}/",
            steps=[StepOut.from_orm(step) for step in row.steps.order_by("position")],
            approvals=[ApprovalOut.from_orm(each) for each in row.approvals.all()],
            standing=StandingOut.from_orm(queries.standing(row, timezone.now())) if waits else None,
        )


class DeploymentPage(Schema):
    items: list[DeploymentOut]
    next: Annotated[str | None, Field(description="Cursor of the next page; null on the last.")]


class LockOut(Schema):
    holder: str
    reason: str
    since: datetime


class FreezeOut(Schema):
    since: datetime
    until: Annotated[
        datetime | None, Field(description="Null if nobody knows: the windows of a weekly freeze have run out.")
    ]
    reason: str

    @classmethod
    def of(cls, found: freezes.Frozen | None) -> "FreezeOut | None":
        return cls(since=found.since, until=found.until, reason=found.freeze.reason) if found else None


class EnvironmentOut(Schema):
    name: str
    order: int
    purpose: str
    data: str
    access: str
    deployment: str
    colour: str
    promotes_from: Annotated[
        list[str],
        Field(description="A release must have succeeded in one of these first; none if any release is accepted."),
    ]
    soak_seconds: Annotated[int, Field(description="Seconds for which it must have been live there without a break.")]
    approvals: Annotated[int, Field(description="How many people must approve a deployment before it runs.")]
    current: Annotated[DeploymentOut | None, Field(description="The deployment that is live.")]
    in_flight: Annotated[DeploymentOut | None, Field(description="The deployment that is pending or running.")]
    waiting: Annotated[list[DeploymentOut], Field(description="Those that wait for approval, latest first.")]
    lock: Annotated[LockOut | None, Field(description="The deployment lock, while it is held by hand.")]
    freeze: Annotated[
        FreezeOut | None, Field(description="While nothing begins but rollbacks and hotfixes that break the glass.")
    ]
    next_freeze: Annotated[FreezeOut | None, Field(description="The next one that starts within 24 hours.")]

    @classmethod
    def of(cls, row: models.Environment, state: freezes.State) -> "EnvironmentOut":
        fields = ("name", "order", "purpose", "data", "access", "deployment", "colour")
        lock = getattr(row, "lock", None)
        return cls(
            **{name: getattr(row, name) for name in fields},
            promotes_from=[source.name for source in row.promotes_from.all()],
            soak_seconds=row.soak,
            approvals=row.approvals,
            waiting=[DeploymentOut.of(each) for each in row.waiting],
            current=DeploymentOut.of(row.current) if row.current else None,
            in_flight=DeploymentOut.of(row.in_flight) if row.in_flight else None,
            lock=LockOut.from_orm(lock) if lock else None,
            freeze=FreezeOut.of(state.active),
            next_freeze=FreezeOut.of(state.upcoming),
        )


class EnvironmentList(Schema):
    items: list[EnvironmentOut]


class CandidateOut(Schema):
    release: ReleaseOut
    proven: Annotated[
        datetime | None, Field(description="When it succeeded in an environment before; null if that is not required.")
    ]


class CandidateList(Schema):
    items: list[CandidateOut]


class PromotionOut(Schema):
    allowed: Annotated[bool, Field(description="Whether it can be deployed there without a hotfix.")]
    text: Annotated[str, Field(description="Why, in a sentence.")]


class RollbackTargetOut(Schema):
    release: ReleaseOut
    deployment: Annotated[int, Field(description="Id of its last deployment there.")]
    finished: datetime | None


class RollbackTargetList(Schema):
    items: list[RollbackTargetOut]


class ErrorOut(Schema):
    detail: str
    pointer: Annotated[str | None, Field(description="Position in the body, as a JSON pointer (RFC 6901).")] = None
    parameter: Annotated[str | None, Field(description="Name of the query parameter or header.")] = None


class ProblemOut(Schema):
    """Problem details (RFC 9457)."""

    type: Annotated[str, Field(description="about:blank, or a rule described in /api/docs/.")]
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[ErrorOut] = []
