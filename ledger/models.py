"""The ledger: every deployment to every environment, what was deployed, and how it went.

ledger.rules has the rules by which rows come and change. The database holds the most important of them itself, by
the constraints below and by the triggers of migrations/0002_guards.py: a mistake in the code, a shell or another
client cannot get around them. docs/api.md says which rule is held where.
"""

import statistics
from datetime import datetime, timedelta

from django.core.validators import RegexValidator, URLValidator
from django.db import models
from django.db.models import F, Q

from ledger import versions
from ledger.pagination import Page, paginate
from settings import text

FINISHED = ("succeeded", "failed", "rolled_back")
# A token's name stands for it: names are unique, never change, and stay taken after a token has been revoked.
BY_TOKEN = "The API token's name; empty if it was a command with access to the database."
IN_FLIGHT = ("pending", "running")
SEARCHED = 1_000  # releases


class Environment(models.Model):
    """A place where releases run. The rows are those of the deployment guide: ENVIRONMENTS."""

    class Name(models.TextChoices):
        DEVELOPMENT = "development"
        TESTING = "testing"
        STAGING = "staging"
        PRODUCTION = "production"

    id = models.PositiveSmallIntegerField(primary_key=True)
    name = models.CharField(max_length=20, unique=True, choices=Name.choices)
    order = models.PositiveSmallIntegerField(unique=True, help_text="Where it stands on the way to production.")
    purpose = models.CharField(max_length=100)
    data = models.CharField(max_length=100)
    access = models.CharField(max_length=100)
    deployment = models.CharField(max_length=100, help_text="Whether people or machines deploy here.")
    promotes_from = models.ForeignKey(
        "self",
        models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        help_text="Where a release must have succeeded before it may come here, unless it is a hotfix.",
    )

    # Set by ledger.queries.board().
    current: "Deployment | None"
    in_flight: "Deployment | None"
    failed: "Deployment | None"
    recent: list["Deployment"]

    class Meta:
        ordering = ("order",)

    def __str__(self) -> str:
        return self.name


# The guide's table. Migration 0003 writes it; deploy.apps puts rows back that a flush has taken.
ENVIRONMENTS = (
    (1, Environment.Name.DEVELOPMENT, "Local development", "Mock data", "Developers only", "Manual", None),
    (2, Environment.Name.TESTING, "Automated testing", "Test data", "CI/CD system", "Automated", None),
    (3, Environment.Name.STAGING, "Pre-production testing", "Production-like data", "QA team", "Automated", None),
    (4, Environment.Name.PRODUCTION, "Live application", "Real data", "End users", "Manual approval", 3),
)


class Release(models.Model):
    """A build that can be deployed. It never changes: another build is another version."""

    version = models.CharField(max_length=64, unique=True, validators=[text.one_line])
    commit = models.CharField(
        max_length=64, db_index=True, validators=[RegexValidator(r"^[0-9a-f]{7,64}\Z", "Expected 7 to 64 hex digits.")]
    )
    message = models.CharField(
        max_length=500, blank=True, validators=[text.one_line], help_text="The first line of the commit's message."
    )
    built_at = models.DateTimeField(db_index=True)
    image = models.CharField(
        max_length=255,
        blank=True,
        validators=[text.one_line],
        help_text="Where the container image is, with tag or digest.",
    )
    token = models.CharField("API token", max_length=100, blank=True, help_text=f"What registered it. {BY_TOKEN}")
    registered = models.DateTimeField(null=True, blank=True, help_text="Empty if that was before this was recorded.")

    class Meta:
        ordering = ("-built_at",)
        constraints = [
            models.CheckConstraint(
                condition=Q(commit__regex=r"^[0-9a-f]{7,64}\Z"), name="ledger_release_commit_is_hex"
            ),
            models.CheckConstraint(
                condition=Q(version__regex=rf"^{versions.PATTERN}\Z") & ~Q(version=versions.MOVING),
                name="ledger_release_version_is_a_tag",
            ),
        ]

    def __str__(self) -> str:
        return self.version

    @property
    def short_commit(self) -> str:
        return self.commit[:7]


class DeploymentQuerySet(models.QuerySet["Deployment"]):
    """Queries that stay fast with a million rows: each of their orders and filters has an index that serves it."""

    def newest_first(self) -> "DeploymentQuerySet":
        return self.order_by("-created", "-pk")

    def matching(
        self,
        *,
        environment: str | None = None,
        status: str | None = None,
        strategy: str | None = None,
        actor: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        search: str | None = None,
    ) -> "DeploymentQuerySet":
        """Those to which every filter given applies: created from `since` and before `until`, and `search` being the
        beginning of the version or commit of a release, one of the newest SEARCHED that fit. An empty filter counts as
        not given.
        """
        found = self
        if environment:
            # One value, not a join: so the planner reads the environment's index in its order.
            found = found.filter(environment=Environment.objects.filter(name=environment).order_by().values("pk")[:1])
        if status:
            found = found.filter(status=status)
        if strategy:
            found = found.filter(strategy=strategy)
        if actor:
            found = found.filter(actor=actor)
        if since:
            found = found.filter(created__gte=since)
        if until:
            found = found.filter(created__lt=until)
        if search:
            releases = Release.objects.filter(Q(version__startswith=search) | Q(commit__startswith=search.lower()))
            # Without the limit the planner may read all deployments, newest first, until it meets enough that fit.
            found = found.filter(release__in=releases.order_by("-built_at", "-pk").values("pk")[:SEARCHED])
        return found

    def page(self, limit: int, cursor: str | None = None, *, newer: bool = False) -> "Page[Deployment]":
        """A page of them, newest first, as ledger.pagination.paginate() has it. Raises ValueError."""
        return paginate(self, limit, cursor, newer=newer)

    def typical_duration(self, environment: "Environment", strategy: str, sample: int = 50) -> timedelta | None:
        """The median time taken by the last `sample` that succeeded there in this way; None if there are none."""
        times = self.filter(
            environment=environment, strategy=strategy, status=Deployment.Status.SUCCEEDED, started__isnull=False
        )
        found = times.newest_first().values_list(F("finished") - F("started"), flat=True)[:sample]
        seconds = [each.total_seconds() for each in found if each is not None]
        return timedelta(seconds=statistics.median(seconds)) if seconds else None


class Deployment(models.Model):
    """A release on its way to an environment, or what came of it."""

    class Strategy(models.TextChoices):
        ROLLING = "rolling", "rolling"
        BLUE_GREEN = "blue-green", "blue-green"

    class Kind(models.TextChoices):
        DEPLOY = "deploy", "deploy"
        ROLLBACK = "rollback", "rollback"

    class Status(models.TextChoices):
        PENDING = "pending", "pending"
        RUNNING = "running", "running"
        SUCCEEDED = "succeeded", "succeeded"
        FAILED = "failed", "failed"
        ROLLED_BACK = "rolled_back", "rolled back"  # it failed, and what ran before runs again

    environment = models.ForeignKey(Environment, models.PROTECT, related_name="deployments", db_index=False)
    release = models.ForeignKey(Release, models.PROTECT, related_name="deployments", db_index=False)
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.DEPLOY)
    strategy = models.CharField(max_length=10, choices=Strategy.choices)
    hotfix = models.BooleanField(default=False)
    reason = models.CharField(
        max_length=500, blank=True, validators=[text.one_line], help_text="Why; a hotfix must say it."
    )
    status = models.CharField(max_length=12, choices=Status.choices, default=Status.PENDING)
    actor = models.CharField(
        max_length=100, validators=[text.one_line], help_text="Who asked for it, as the client claims."
    )
    token = models.CharField("API token", max_length=100, blank=True, help_text=f"What created it. {BY_TOKEN}")
    finished_token = models.CharField(
        "finished by API token", max_length=100, blank=True, help_text=f"What finished it. {BY_TOKEN}"
    )
    previous = models.ForeignKey(
        "self",
        models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        db_index=False,
        help_text="What was live there when this one began.",
    )
    created = models.DateTimeField()
    started = models.DateTimeField(null=True, blank=True)
    finished = models.DateTimeField(null=True, blank=True)
    failed_requests = models.PositiveIntegerField(
        null=True, blank=True, help_text="How many of the probe traffic's requests failed while it was carried out."
    )
    run_url = models.CharField(
        "run",
        max_length=500,
        blank=True,
        validators=[URLValidator(["https", "http"])],
        help_text="The pipeline's run.",
    )

    environment_id: int
    release_id: int
    previous_id: int | None

    objects = DeploymentQuerySet.as_manager()

    class Meta:
        ordering = ("-created", "-pk")
        indexes = [
            models.Index(fields=["-created", "-id"], name="ledger_by_time"),
            models.Index(fields=["environment", "-created", "-id"], name="ledger_by_environment"),
            models.Index(fields=["environment", "status", "-created", "-id"], name="ledger_by_environment_status"),
            models.Index(fields=["status", "-created", "-id"], name="ledger_by_status"),
            models.Index(fields=["strategy", "-created", "-id"], name="ledger_by_strategy"),
            models.Index(fields=["actor", "-created", "-id"], name="ledger_by_actor"),
            models.Index(fields=["release", "-created", "-id"], name="ledger_by_release"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["environment"],
                condition=Q(status__in=IN_FLIGHT),
                name="ledger_one_in_flight",
                violation_error_message="Another deployment to this environment is pending or running.",
            ),
            models.CheckConstraint(
                condition=Q(status="pending", started=None, finished=None)
                | Q(status="running", started__isnull=False, finished=None)
                | Q(status="failed", finished__isnull=False)
                | Q(status__in=["succeeded", "rolled_back"], started__isnull=False, finished__isnull=False),
                name="ledger_times_fit_the_status",
            ),
            models.CheckConstraint(
                condition=Q(started=None) | Q(started__gte=F("created")), name="ledger_starts_after_it_is_created"
            ),
            models.CheckConstraint(
                condition=Q(finished=None)
                | Q(finished__gte=F("created"), started=None)
                | Q(finished__gte=F("started")),
                name="ledger_finishes_after_it_starts",
            ),
            models.CheckConstraint(
                condition=Q(hotfix=False) | Q(reason__regex=r"\S"),
                name="ledger_hotfix_has_a_reason",
                violation_error_message="A hotfix needs a reason.",
            ),
            models.CheckConstraint(condition=Q(hotfix=False) | Q(kind="deploy"), name="ledger_hotfix_is_no_rollback"),
            models.CheckConstraint(condition=Q(strategy__in=["rolling", "blue-green"]), name="ledger_known_strategy"),
            models.CheckConstraint(condition=Q(kind__in=["deploy", "rollback"]), name="ledger_known_kind"),
            models.CheckConstraint(condition=~Q(actor=""), name="ledger_has_an_actor"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}"

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED

    @property
    def duration(self) -> timedelta | None:
        """From start to finish; None while it has not ended, or if it never began."""
        return self.finished - self.started if self.finished and self.started else None


class Step(models.Model):
    """A part of a deployment, such as a smoke test, in the order in which the parts began."""

    class Outcome(models.TextChoices):
        RUNNING = "running", "running"
        SUCCEEDED = "succeeded", "succeeded"
        FAILED = "failed", "failed"
        SKIPPED = "skipped", "skipped"

    deployment = models.ForeignKey(Deployment, models.PROTECT, related_name="steps", db_index=False)
    position = models.PositiveSmallIntegerField()
    name = models.CharField(max_length=100, validators=[text.one_line])
    outcome = models.CharField(max_length=10, choices=Outcome.choices, default=Outcome.RUNNING)
    token = models.CharField("API token", max_length=100, blank=True, help_text=f"What reported it last. {BY_TOKEN}")
    started = models.DateTimeField()
    finished = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("deployment", "position")
        constraints = [
            models.UniqueConstraint(fields=["deployment", "position"], name="ledger_step_position"),
            models.UniqueConstraint(fields=["deployment", "name"], name="ledger_step_name"),
            models.CheckConstraint(
                condition=Q(outcome="running", finished=None)
                | Q(outcome__in=["succeeded", "failed", "skipped"], finished__isnull=False, finished__gte=F("started")),
                name="ledger_step_times_fit_the_outcome",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def duration(self) -> timedelta | None:
        return self.finished - self.started if self.finished else None


class ApiToken(models.Model):
    """A pipeline's right to write. The token itself is shown once, when it is made, and only its digest is kept."""

    name = models.CharField(max_length=100, unique=True, validators=[text.name])
    digest = models.CharField(max_length=64, unique=True, editable=False, help_text="SHA-256 of the token, in hex.")
    environments = models.ManyToManyField(
        Environment, blank=True, related_name="+", help_text="Where it may create deployments, and go on with its own."
    )
    may_register = models.BooleanField(default=False, help_text="It may register releases.")
    may_take_over = models.BooleanField(
        default=False, help_text="In its environments it may also go on with deployments that it did not create."
    )
    created = models.DateTimeField(auto_now_add=True)
    expires = models.DateTimeField(null=True, blank=True)
    revoked = models.DateTimeField(null=True, blank=True)
    last_used = models.DateTimeField(null=True, blank=True, help_text="To the minute.")

    class Meta:
        ordering = ("name",)
        verbose_name = "API token"

    def __str__(self) -> str:
        return self.name

    def state(self, now: datetime) -> str:
        """What it is worth at `now`: active, expired or revoked."""
        if self.revoked:
            return "revoked"
        return "expired" if self.expires and self.expires <= now else "active"


class IdempotencyKey(models.Model):
    """The answer to a write that named an Idempotency-Key, so that a retry gets it again and nothing is done twice."""

    token = models.ForeignKey(ApiToken, models.CASCADE, db_index=False)
    key = models.CharField(max_length=255)
    request = models.CharField(max_length=64, help_text="SHA-256 of method, path and body, in hex.")
    status = models.PositiveSmallIntegerField(null=True)
    location = models.CharField(max_length=200, blank=True)
    body = models.TextField(blank=True)
    created = models.DateTimeField(db_index=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["token", "key"], name="ledger_idempotency_key")]

    def __str__(self) -> str:
        return self.key
