"""The tables of the ledger: environments, releases, deployments with their steps, and API tokens.

ledger.rules writes them. The database itself enforces the most important rules, by the constraints below and the
triggers of migrations/0003_guards.py, so that no bug, shell or other client can get around them. docs/api.md lists the
rules and what enforces each.
"""

import statistics
from datetime import datetime, timedelta

from django.conf import settings
from django.core.validators import RegexValidator, URLValidator
from django.db import models
from django.db.models import F, Q

from ledger import versions
from ledger.weekly import Weekly
from audit.pagination import Page, paginate
from settings import text

RESULTS = ("succeeded", "failed", "rolled_back")  # of a deployment that was carried out
FINISHED = (*RESULTS, "rejected", "expired")
DIGEST = r"sha256:[0-9a-f]{64}"
# A token is recorded by its name: names are unique, never change, and stay taken after a token is revoked.
OR_COMMAND = "Empty if a command wrote directly to the database."
IN_FLIGHT = ("pending", "running")
NOTE = 2_000  # characters of a step's note
SEARCHED = 1_000  # releases that a search considers


class EnvironmentQuerySet(models.QuerySet["Environment"]):
    """Environments: those of environments.toml, and those that it no longer has, which keep their history."""

    def on_board(self) -> "EnvironmentQuerySet":
        """Returns those of the file, in its order."""
        return self.filter(order__isnull=False).order_by("order")


class Environment(models.Model):
    """An environment that releases are deployed to. The rows follow environments.toml at each migration
    (ledger.environment_rows).
    """

    class Colour(models.TextChoices):
        GREY = "grey"
        BLUE = "blue"
        GREEN = "green"
        AMBER = "amber"
        RED = "red"
        BLACK = "black"

    id = models.PositiveSmallIntegerField(primary_key=True)
    name = models.CharField(max_length=40, unique=True)
    order = models.PositiveSmallIntegerField(
        unique=True,
        null=True,
        help_text="Position on the board, starting at 1; empty once environments.toml no longer has it.",
    )
    colour = models.CharField(max_length=10, choices=Colour.choices, default=Colour.GREY)
    purpose = models.CharField(max_length=100, blank=True)
    data = models.CharField(max_length=100, blank=True)
    access = models.CharField(max_length=100, blank=True)
    deployment = models.CharField(
        max_length=100, blank=True, help_text="How releases get here: manually, automatically or with approval."
    )
    promotes_from = models.ManyToManyField(
        "self",
        symmetrical=False,
        through="Promotion",
        through_fields=("environment", "source"),
        related_name="+",
        help_text="In one of these a release must have succeeded before it is deployed here, unless it is a hotfix.",
    )
    soak = models.PositiveIntegerField(
        default=0, help_text="Seconds for which it must have been live there without a break."
    )

    approvals = models.PositiveSmallIntegerField(
        default=0, help_text="How many people must approve a deployment before it runs."
    )
    approval_seconds = models.PositiveIntegerField(
        default=86_400, help_text="How long an approval is valid: APPROVAL_HOURS of the settings."
    )

    # Set by ledger.queries.board().
    waiting: list["Deployment"]
    unreviewed: list["Deployment"]
    current: "Deployment | None"
    in_flight: "Deployment | None"
    failed: "Deployment | None"
    recent: list["Deployment"]

    objects = EnvironmentQuerySet.as_manager()

    class Meta:
        ordering = (F("order").asc(nulls_last=True), "name")

    def __str__(self) -> str:
        return self.name


class Promotion(models.Model):
    """That `environment` takes what has succeeded in `source`."""

    environment = models.ForeignKey(Environment, models.CASCADE, related_name="+")
    source = models.ForeignKey(Environment, models.CASCADE, related_name="+", db_index=False)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["environment", "source"], name="ledger_promotion_once")]

    def __str__(self) -> str:
        return f"{self.source} to {self.environment}"


class Release(models.Model):
    """A build that can be deployed. It never changes: another build is another version."""

    version = models.CharField(max_length=64, unique=True, validators=[text.one_line])
    commit = models.CharField(
        max_length=64, db_index=True, validators=[RegexValidator(r"^[0-9a-f]{7,64}\Z", "Expected 7 to 64 hex digits.")]
    )
    message = models.CharField(
        max_length=500, blank=True, validators=[text.one_line], help_text="First line of the commit message."
    )
    built_at = models.DateTimeField(db_index=True)
    image = models.CharField(
        max_length=255,
        blank=True,
        validators=[text.one_line],
        help_text="Container image, with its tag or digest.",
    )
    token = models.CharField(
        "API token", max_length=100, blank=True, help_text=f"Token that registered it. {OR_COMMAND}"
    )
    registered = models.DateTimeField(null=True, blank=True, help_text="Empty if the time was not recorded.")

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
    """Queries that stay fast with a million rows: an index serves each order and each filter."""

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
        """Returns the deployments that match every filter given; an empty filter counts as not given.

        They were created at or after `since` and before `until`. `search` is the beginning of the release's version or
        commit; only the newest SEARCHED releases that match are considered.
        """
        found = self
        if environment:
            # One value instead of a join, so that the planner reads the environment's index in order.
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
            # Without the limit the planner may read all deployments, newest first, until enough of them match.
            found = found.filter(release__in=releases.order_by("-built_at", "-pk").values("pk")[:SEARCHED])
        return found

    def page(self, limit: int, cursor: str | None = None, *, newer: bool = False) -> "Page[Deployment]":
        """Returns a page of them, newest first: see pagination.paginate(). Raises ValueError if `cursor` is invalid."""
        return paginate(self, limit, cursor, newer=newer)

    def typical_duration(self, environment: "Environment", strategy: str, sample: int = 50) -> timedelta | None:
        """Returns the median duration of the last `sample` that succeeded there with this strategy, or None."""
        times = self.filter(
            environment=environment, strategy=strategy, status=Deployment.Status.SUCCEEDED, started__isnull=False
        )
        found = times.newest_first().values_list(F("finished") - F("started"), flat=True)[:sample]
        seconds = [each.total_seconds() for each in found if each is not None]
        return timedelta(seconds=statistics.median(seconds)) if seconds else None


class Deployment(models.Model):
    """A deployment of a release to an environment, and its result."""

    class Strategy(models.TextChoices):
        ROLLING = "rolling", "rolling"
        BLUE_GREEN = "blue-green", "blue-green"

    class Kind(models.TextChoices):
        DEPLOY = "deploy", "deploy"
        ROLLBACK = "rollback", "rollback"

    class Status(models.TextChoices):
        WAITING = "waiting", "waiting for approval"
        PENDING = "pending", "pending"
        RUNNING = "running", "running"
        SUCCEEDED = "succeeded", "succeeded"
        FAILED = "failed", "failed"
        ROLLED_BACK = "rolled_back", "rolled back"  # it failed, and the previous release was restored
        REJECTED = "rejected", "rejected"
        EXPIRED = "expired", "expired"  # something else went live while it waited

    environment = models.ForeignKey(Environment, models.PROTECT, related_name="deployments", db_index=False)
    release = models.ForeignKey(Release, models.PROTECT, related_name="deployments", db_index=False)
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.DEPLOY)
    strategy = models.CharField(max_length=10, choices=Strategy.choices)
    hotfix = models.BooleanField(default=False)
    break_glass = models.BooleanField(
        default=False, help_text="A hotfix without approval. Somebody else reviews it afterwards."
    )
    digest = models.CharField(
        max_length=71,
        blank=True,
        validators=[RegexValidator(rf"^{DIGEST}\Z", "Expected sha256: and 64 hex digits.")],
        help_text="Digest of the image that was requested; empty if only its tag is known.",
    )
    requester = models.BigIntegerField(
        null=True, blank=True, help_text="Primary key of whose request it was: the owner of the API token."
    )
    reason = models.CharField(
        max_length=500, blank=True, validators=[text.one_line], help_text="Required for a hotfix."
    )
    status = models.CharField(max_length=12, choices=Status.choices, default=Status.PENDING)
    actor = models.CharField(
        max_length=100, validators=[text.one_line], help_text="Who requested it, as claimed by the client."
    )
    token = models.CharField("API token", max_length=100, blank=True, help_text=f"Token that created it. {OR_COMMAND}")
    finished_token = models.CharField(
        "finished by API token", max_length=100, blank=True, help_text=f"Token that finished it. {OR_COMMAND}"
    )
    previous = models.ForeignKey(
        "self",
        models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        db_index=False,
        help_text="The deployment that was live when this one was created.",
    )
    created = models.DateTimeField()
    started = models.DateTimeField(null=True, blank=True)
    finished = models.DateTimeField(null=True, blank=True)
    failed_requests = models.PositiveIntegerField(
        null=True, blank=True, help_text="Probe requests that failed during the deployment."
    )
    run_url = models.CharField(
        "run",
        max_length=500,
        blank=True,
        validators=[URLValidator(["https", "http"])],
        help_text="Link to the pipeline run.",
    )

    revision = models.CharField(
        max_length=63,
        blank=True,
        validators=[text.one_line],
        help_text="What a rollback returns to, beside the version: the revision, such as the hash of a pod template.",
    )

    environment_id: int
    release_id: int
    previous_id: int | None

    objects = DeploymentQuerySet.as_manager()

    class Meta:
        ordering = ("-created", "-pk")
        permissions = [
            ("view_people", "Can see who deployed what, reasons and pipeline runs"),
            ("request_deployment", "Can request deployments"),
            ("roll_back", "Can roll back"),
            ("approve_deployment", "Can approve deployments"),
            ("break_glass", "Can deploy a hotfix without approval"),
        ]
        indexes = [
            models.Index(fields=["-created", "-id"], name="ledger_by_time"),
            models.Index(fields=["environment", "-created", "-id"], name="ledger_by_environment"),
            models.Index(fields=["environment", "status", "-created", "-id"], name="ledger_by_environment_status"),
            models.Index(fields=["status", "-created", "-id"], name="ledger_by_status"),
            models.Index(fields=["strategy", "-created", "-id"], name="ledger_by_strategy"),
            models.Index(fields=["actor", "-created", "-id"], name="ledger_by_actor"),
            models.Index(fields=["release", "-created", "-id"], name="ledger_by_release"),
            models.Index(fields=["-created", "-id"], condition=Q(break_glass=True), name="ledger_broke_glass"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["environment"],
                condition=Q(status__in=IN_FLIGHT),
                name="ledger_one_in_flight",
                violation_error_message="Another deployment to this environment is pending or running.",
            ),
            models.CheckConstraint(
                condition=Q(status__in=["waiting", "pending"], started=None, finished=None)
                | Q(status__in=["rejected", "expired"], started=None, finished__isnull=False)
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
                violation_error_message="A hotfix requires a reason.",
            ),
            models.CheckConstraint(
                condition=Q(hotfix=False) | Q(kind="deploy"), name="ledger_hotfix_is_not_a_rollback"
            ),
            models.CheckConstraint(
                condition=Q(break_glass=False) | Q(hotfix=True),
                name="ledger_break_glass_is_a_hotfix",
                violation_error_message="Only a hotfix can go without approval.",
            ),
            models.CheckConstraint(
                condition=~Q(status__in=["waiting", "rejected", "expired"]) | Q(kind="deploy", break_glass=False),
                name="ledger_only_a_deployment_waits",
            ),
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
        """The time from start to finish; None until it has finished, or if it never started."""
        return self.finished - self.started if self.finished and self.started else None


class Approval(models.Model):
    """What somebody decided about a deployment. Decisions are added and never change."""

    class Verdict(models.TextChoices):
        APPROVED = "approved", "approved"
        REJECTED = "rejected", "rejected"
        REVIEWED = "reviewed", "reviewed"  # after it went without approval

    deployment = models.ForeignKey(Deployment, models.PROTECT, related_name="approvals")
    approver = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.SET_NULL,
        null=True,
        related_name="+",
        help_text="Empty once the account is deleted; such an approval no longer counts.",
    )
    name = models.CharField(max_length=254, validators=[text.one_line], help_text="Email address of the approver.")
    verdict = models.CharField(max_length=10, choices=Verdict.choices)
    comment = models.CharField(max_length=500, blank=True, validators=[text.one_line])
    digest = models.CharField(max_length=71, blank=True, help_text="Digest of the image that was decided about.")
    time = models.DateTimeField()

    class Meta:
        ordering = ("time", "pk")
        constraints = [
            models.CheckConstraint(
                condition=Q(verdict__in=["approved", "rejected", "reviewed"]), name="ledger_known_verdict"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.verdict} by {self.name}"


class Step(models.Model):
    """A step of a deployment, such as the smoke test. Positions follow the order in which steps started."""

    class Outcome(models.TextChoices):
        RUNNING = "running", "running"
        SUCCEEDED = "succeeded", "succeeded"
        FAILED = "failed", "failed"
        SKIPPED = "skipped", "skipped"

    deployment = models.ForeignKey(Deployment, models.PROTECT, related_name="steps", db_index=False)
    position = models.PositiveSmallIntegerField()
    name = models.CharField(max_length=100, validators=[text.one_line])
    outcome = models.CharField(max_length=10, choices=Outcome.choices, default=Outcome.RUNNING)
    note = models.CharField(
        max_length=NOTE, blank=True, validators=[text.one_line], help_text="What happened, for operators."
    )
    token = models.CharField(
        "API token", max_length=100, blank=True, help_text=f"Token that reported it last. {OR_COMMAND}"
    )
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


class Lock(models.Model):
    """An environment's deployment lock that is held by hand, as `manage.py lock` reported it.

    The lock itself is on the machine of the stack or in the cluster, where the app cannot see it.
    """

    environment = models.OneToOneField(Environment, models.CASCADE, primary_key=True, related_name="lock")
    holder = models.CharField(max_length=200, validators=[text.one_line])
    reason = models.CharField(max_length=500, validators=[text.one_line])
    since = models.DateTimeField()

    class Meta:
        permissions = [("break_lock", "Can break the lock of an environment")]

    def __str__(self) -> str:
        return f"{self.environment} held by {self.holder}"


class Freeze(models.Model):
    """A time in which nothing begins in an environment but rollbacks and what breaks the glass: once, from `starts` to
    `ends`, or each week. ledger.freezes writes it; it never changes, but may be ended early.
    """

    class Day(models.IntegerChoices):
        MONDAY = 0
        TUESDAY = 1
        WEDNESDAY = 2
        THURSDAY = 3
        FRIDAY = 4
        SATURDAY = 5
        SUNDAY = 6

    environment = models.ForeignKey(
        Environment, models.PROTECT, null=True, blank=True, related_name="freezes", help_text="Empty for all of them."
    )
    reason = models.CharField(max_length=200, validators=[text.one_line])
    starts = models.DateTimeField(null=True, blank=True)
    ends = models.DateTimeField(null=True, blank=True)
    start_day = models.PositiveSmallIntegerField(null=True, blank=True, choices=Day.choices)
    start_time = models.TimeField(null=True, blank=True)
    end_day = models.PositiveSmallIntegerField(null=True, blank=True, choices=Day.choices)
    end_time = models.TimeField(null=True, blank=True)
    zone = models.CharField(
        "time zone", max_length=64, blank=True, help_text="Of a weekly freeze, as in Europe/Berlin."
    )
    actor = models.CharField(max_length=300, help_text="Who added it.")
    created = models.DateTimeField()
    ended_early = models.DateTimeField(null=True, blank=True)
    ended_by = models.CharField(max_length=300, blank=True)

    environment_id: int | None

    class Meta:
        ordering = ("-pk",)
        default_permissions = ()
        permissions = [("change_freeze", "Can freeze environments, and end a freeze")]
        constraints = [
            models.CheckConstraint(
                condition=Q(
                    starts__isnull=False,
                    ends__isnull=False,  # as a condition that is NULL holds
                    ends__gt=F("starts"),
                    start_day=None,
                    start_time=None,
                    end_day=None,
                    end_time=None,
                    zone="",
                )
                | Q(
                    ~Q(zone=""),
                    starts=None,
                    ends=None,
                    start_day__isnull=False,
                    start_day__range=(0, 6),
                    start_time__isnull=False,
                    end_day__isnull=False,
                    end_day__range=(0, 6),
                    end_time__isnull=False,
                ),
                name="ledger_freeze_once_or_weekly",
            ),
            models.CheckConstraint(
                condition=Q(ended_early=None, ended_by="")
                | Q(~Q(ended_by=""), ended_early__isnull=False, ended_early__gte=F("created")),
                name="ledger_freeze_ended_by_somebody",
            ),
            models.CheckConstraint(condition=Q(reason__regex=r"\S"), name="ledger_freeze_has_a_reason"),
        ]

    def __str__(self) -> str:
        return f"freeze {self.pk}"

    @property
    def weekly(self) -> Weekly | None:
        """When it comes again; None if it is once."""
        given = (self.start_day, self.start_time, self.end_day, self.end_time)
        return None if None in given else Weekly(*given, self.zone)  # type: ignore[arg-type]

    @property
    def when(self) -> str:
        """When it is, in words."""
        if self.starts and self.ends:
            return f"{self.starts:%Y-%m-%d %H:%M}Z to {self.ends:%Y-%m-%d %H:%M}Z"
        return f"weekly, {self.weekly}"

    def is_over(self, now: datetime) -> bool:
        """Whether it has ended."""
        return self.ended_early is not None or bool(self.ends and self.ends <= now)


class FreezeWindow(models.Model):
    """One week of a weekly freeze, for the trigger, which knows no time zones."""

    freeze = models.ForeignKey(Freeze, models.PROTECT, related_name="windows", db_index=False)
    starts = models.DateTimeField()
    ends = models.DateTimeField()

    class Meta:
        default_permissions = ()
        indexes = [models.Index(fields=["freeze", "ends"], name="ledger_freeze_windows")]
        constraints = [
            models.UniqueConstraint(fields=["freeze", "starts", "ends"], name="ledger_freeze_window_once"),
            models.CheckConstraint(condition=Q(ends__gt=F("starts")), name="ledger_freeze_window_has_a_length"),
        ]

    def __str__(self) -> str:
        return f"{self.freeze} from {self.starts}"


class ApiToken(models.Model):
    """A pipeline's API token and its rights. The token is shown once, when created; only its digest is stored."""

    name = models.CharField(max_length=100, unique=True, validators=[text.name])
    digest = models.CharField(max_length=64, unique=True, editable=False, help_text="SHA-256 of the token, in hex.")
    environments = models.ManyToManyField(
        Environment, blank=True, related_name="+", help_text="Where it may create deployments and continue its own."
    )
    may_register = models.BooleanField(default=False, help_text="May register releases.")
    may_take_over = models.BooleanField(
        default=False, help_text="May also continue deployments in its environments that it did not create."
    )
    may_request = models.BooleanField(default=True, help_text="May create deployments.")
    may_record = models.BooleanField(default=True, help_text="May start, continue and finish them, and report locks.")
    # Empty if a command made it. What the owner may no longer do, the token may not either; see usable().
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="api_tokens"
    )
    created = models.DateTimeField(auto_now_add=True)
    expires = models.DateTimeField(null=True, blank=True)
    revoked = models.DateTimeField(null=True, blank=True)
    last_used = models.DateTimeField(null=True, blank=True, help_text="Accurate to one minute.")
    last_address = models.CharField(max_length=45, blank=True, help_text="Where it was last used from.")

    class Meta:
        ordering = ("name",)
        verbose_name = "API token"
        permissions = [("manage_tokens", "Can manage the API tokens of everybody")]

    def __str__(self) -> str:
        return self.name

    def state(self, now: datetime) -> str:
        """Returns its state at `now`: active, expired or revoked."""
        if self.revoked:
            return "revoked"
        return "expired" if self.expires and self.expires <= now else "active"


class IdempotencyKey(models.Model):
    """The response to a write with an Idempotency-Key, so that a retry gets the same and changes nothing."""

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
