import django.core.validators
import django.db.models.deletion
from django.db import migrations, models

import settings.text


class Migration(migrations.Migration):

    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Environment",
            fields=[
                ("id", models.PositiveSmallIntegerField(primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=40, unique=True)),
                (
                    "order",
                    models.PositiveSmallIntegerField(
                        help_text="Position on the board, starting at 1; empty once environments.toml no longer has it.",
                        null=True,
                        unique=True,
                    ),
                ),
                (
                    "colour",
                    models.CharField(
                        choices=[
                            ("grey", "Grey"),
                            ("blue", "Blue"),
                            ("green", "Green"),
                            ("amber", "Amber"),
                            ("red", "Red"),
                            ("black", "Black"),
                        ],
                        default="grey",
                        max_length=10,
                    ),
                ),
                ("purpose", models.CharField(blank=True, max_length=100)),
                ("data", models.CharField(blank=True, max_length=100)),
                ("access", models.CharField(blank=True, max_length=100)),
                (
                    "deployment",
                    models.CharField(
                        blank=True,
                        help_text="How releases get here: manually, automatically or with approval.",
                        max_length=100,
                    ),
                ),
                (
                    "approvals",
                    models.PositiveSmallIntegerField(
                        default=0, help_text="How many people must approve a deployment before it runs."
                    ),
                ),
                (
                    "approval_seconds",
                    models.PositiveIntegerField(
                        default=86_400, help_text="How long an approval is valid: APPROVAL_HOURS of the settings."
                    ),
                ),
                (
                    "soak",
                    models.PositiveIntegerField(
                        default=0, help_text="Seconds for which it must have been live there without a break."
                    ),
                ),
            ],
            options={
                "ordering": (models.OrderBy(models.F("order"), nulls_last=True), "name"),
            },
        ),
        migrations.CreateModel(
            name="Promotion",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "environment",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to="ledger.environment"
                    ),
                ),
                (
                    "source",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="ledger.environment",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("environment", "source"), name="ledger_promotion_once")
                ],
            },
        ),
        migrations.AddField(
            model_name="environment",
            name="promotes_from",
            field=models.ManyToManyField(
                help_text="In one of these a release must have succeeded before it is deployed here, unless it is a hotfix.",
                related_name="+",
                through="ledger.Promotion",
                through_fields=("environment", "source"),
                to="ledger.environment",
            ),
        ),
        migrations.CreateModel(
            name="ApiToken",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=100, unique=True, validators=[settings.text.name])),
                (
                    "digest",
                    models.CharField(
                        editable=False, help_text="SHA-256 of the token, in hex.", max_length=64, unique=True
                    ),
                ),
                ("may_register", models.BooleanField(default=False, help_text="May register releases.")),
                (
                    "may_take_over",
                    models.BooleanField(
                        default=False,
                        help_text="May also continue deployments in its environments that it did not create.",
                    ),
                ),
                ("created", models.DateTimeField(auto_now_add=True)),
                ("expires", models.DateTimeField(blank=True, null=True)),
                ("revoked", models.DateTimeField(blank=True, null=True)),
                ("last_used", models.DateTimeField(blank=True, help_text="Accurate to one minute.", null=True)),
                (
                    "environments",
                    models.ManyToManyField(
                        blank=True,
                        help_text="Where it may create deployments and continue its own.",
                        related_name="+",
                        to="ledger.environment",
                    ),
                ),
            ],
            options={
                "verbose_name": "API token",
                "ordering": ("name",),
            },
        ),
        migrations.CreateModel(
            name="Release",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("version", models.CharField(max_length=64, unique=True, validators=[settings.text.one_line])),
                (
                    "commit",
                    models.CharField(
                        db_index=True,
                        max_length=64,
                        validators=[
                            django.core.validators.RegexValidator("^[0-9a-f]{7,64}\\Z", "Expected 7 to 64 hex digits.")
                        ],
                    ),
                ),
                (
                    "message",
                    models.CharField(
                        blank=True,
                        help_text="First line of the commit message.",
                        max_length=500,
                        validators=[settings.text.one_line],
                    ),
                ),
                ("built_at", models.DateTimeField(db_index=True)),
                (
                    "image",
                    models.CharField(
                        blank=True,
                        help_text="Container image, with its tag or digest.",
                        max_length=255,
                        validators=[settings.text.one_line],
                    ),
                ),
                (
                    "token",
                    models.CharField(
                        blank=True,
                        help_text="Token that registered it. Empty if a command wrote directly to the database.",
                        max_length=100,
                        verbose_name="API token",
                    ),
                ),
                (
                    "registered",
                    models.DateTimeField(blank=True, help_text="Empty if the time was not recorded.", null=True),
                ),
            ],
            options={
                "ordering": ("-built_at",),
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("commit__regex", "^[0-9a-f]{7,64}\\Z")), name="ledger_release_commit_is_hex"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("version__regex", "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\\Z"),
                            models.Q(("version", "latest"), _negated=True),
                        ),
                        name="ledger_release_version_is_a_tag",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Deployment",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "kind",
                    models.CharField(
                        choices=[("deploy", "deploy"), ("rollback", "rollback")], default="deploy", max_length=10
                    ),
                ),
                (
                    "strategy",
                    models.CharField(choices=[("rolling", "rolling"), ("blue-green", "blue-green")], max_length=10),
                ),
                ("hotfix", models.BooleanField(default=False)),
                (
                    "break_glass",
                    models.BooleanField(
                        default=False, help_text="A hotfix without approval. Somebody else reviews it afterwards."
                    ),
                ),
                (
                    "digest",
                    models.CharField(
                        blank=True,
                        help_text="Digest of the image that was requested; empty if only its tag is known.",
                        max_length=71,
                        validators=[
                            django.core.validators.RegexValidator(
                                "^sha256:[0-9a-f]{64}\\Z", "Expected sha256: and 64 hex digits."
                            )
                        ],
                    ),
                ),
                (
                    "requester",
                    models.BigIntegerField(
                        blank=True,
                        help_text="Primary key of whose request it was: the owner of the API token.",
                        null=True,
                    ),
                ),
                (
                    "reason",
                    models.CharField(
                        blank=True,
                        help_text="Required for a hotfix.",
                        max_length=500,
                        validators=[settings.text.one_line],
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("waiting", "waiting for approval"),
                            ("pending", "pending"),
                            ("running", "running"),
                            ("succeeded", "succeeded"),
                            ("failed", "failed"),
                            ("rolled_back", "rolled back"),
                            ("rejected", "rejected"),
                            ("expired", "expired"),
                        ],
                        default="pending",
                        max_length=12,
                    ),
                ),
                (
                    "actor",
                    models.CharField(
                        help_text="Who requested it, as claimed by the client.",
                        max_length=100,
                        validators=[settings.text.one_line],
                    ),
                ),
                (
                    "token",
                    models.CharField(
                        blank=True,
                        help_text="Token that created it. Empty if a command wrote directly to the database.",
                        max_length=100,
                        verbose_name="API token",
                    ),
                ),
                (
                    "finished_token",
                    models.CharField(
                        blank=True,
                        help_text="Token that finished it. Empty if a command wrote directly to the database.",
                        max_length=100,
                        verbose_name="finished by API token",
                    ),
                ),
                ("created", models.DateTimeField()),
                ("started", models.DateTimeField(blank=True, null=True)),
                ("finished", models.DateTimeField(blank=True, null=True)),
                (
                    "failed_requests",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="Probe requests that failed during the deployment.",
                        null=True,
                    ),
                ),
                (
                    "run_url",
                    models.CharField(
                        blank=True,
                        help_text="Link to the pipeline run.",
                        max_length=500,
                        validators=[django.core.validators.URLValidator(["https", "http"])],
                        verbose_name="run",
                    ),
                ),
                (
                    "revision",
                    models.CharField(
                        blank=True,
                        help_text="What a rollback returns to, beside the version: the revision, such as the hash of a pod template.",
                        max_length=63,
                        validators=[settings.text.one_line],
                    ),
                ),
                (
                    "previous",
                    models.ForeignKey(
                        blank=True,
                        db_index=False,
                        help_text="The deployment that was live when this one was created.",
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="ledger.deployment",
                    ),
                ),
                (
                    "environment",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="deployments",
                        to="ledger.environment",
                    ),
                ),
                (
                    "release",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="deployments",
                        to="ledger.release",
                    ),
                ),
            ],
            options={
                "ordering": ("-created", "-pk"),
            },
        ),
        migrations.CreateModel(
            name="Step",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("position", models.PositiveSmallIntegerField()),
                ("name", models.CharField(max_length=100, validators=[settings.text.one_line])),
                (
                    "outcome",
                    models.CharField(
                        choices=[
                            ("running", "running"),
                            ("succeeded", "succeeded"),
                            ("failed", "failed"),
                            ("skipped", "skipped"),
                        ],
                        default="running",
                        max_length=10,
                    ),
                ),
                (
                    "note",
                    models.CharField(
                        blank=True,
                        help_text="What happened, for operators.",
                        max_length=2000,
                        validators=[settings.text.one_line],
                    ),
                ),
                (
                    "token",
                    models.CharField(
                        blank=True,
                        help_text="Token that reported it last. Empty if a command wrote directly to the database.",
                        max_length=100,
                        verbose_name="API token",
                    ),
                ),
                ("started", models.DateTimeField()),
                ("finished", models.DateTimeField(blank=True, null=True)),
                (
                    "deployment",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="steps",
                        to="ledger.deployment",
                    ),
                ),
            ],
            options={
                "ordering": ("deployment", "position"),
            },
        ),
        migrations.CreateModel(
            name="IdempotencyKey",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.CharField(max_length=255)),
                ("request", models.CharField(help_text="SHA-256 of method, path and body, in hex.", max_length=64)),
                ("status", models.PositiveSmallIntegerField(null=True)),
                ("location", models.CharField(blank=True, max_length=200)),
                ("body", models.TextField(blank=True)),
                ("created", models.DateTimeField(db_index=True)),
                (
                    "token",
                    models.ForeignKey(
                        db_index=False, on_delete=django.db.models.deletion.CASCADE, to="ledger.apitoken"
                    ),
                ),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("token", "key"), name="ledger_idempotency_key")],
            },
        ),
        migrations.AddIndex(
            model_name="deployment",
            index=models.Index(fields=["-created", "-id"], name="ledger_by_time"),
        ),
        migrations.AddIndex(
            model_name="deployment",
            index=models.Index(fields=["environment", "-created", "-id"], name="ledger_by_environment"),
        ),
        migrations.AddIndex(
            model_name="deployment",
            index=models.Index(
                fields=["environment", "status", "-created", "-id"], name="ledger_by_environment_status"
            ),
        ),
        migrations.AddIndex(
            model_name="deployment",
            index=models.Index(fields=["status", "-created", "-id"], name="ledger_by_status"),
        ),
        migrations.AddIndex(
            model_name="deployment",
            index=models.Index(fields=["strategy", "-created", "-id"], name="ledger_by_strategy"),
        ),
        migrations.AddIndex(
            model_name="deployment",
            index=models.Index(fields=["actor", "-created", "-id"], name="ledger_by_actor"),
        ),
        migrations.AddIndex(
            model_name="deployment",
            index=models.Index(fields=["release", "-created", "-id"], name="ledger_by_release"),
        ),
        migrations.AddIndex(
            model_name="deployment",
            index=models.Index(
                condition=models.Q(("break_glass", True)), fields=["-created", "-id"], name="ledger_broke_glass"
            ),
        ),
        migrations.AddConstraint(
            model_name="deployment",
            constraint=models.UniqueConstraint(
                condition=models.Q(("status__in", ("pending", "running"))),
                fields=("environment",),
                name="ledger_one_in_flight",
                violation_error_message="Another deployment to this environment is pending or running.",
            ),
        ),
        migrations.AddConstraint(
            model_name="deployment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("finished", None), ("started", None), ("status__in", ["waiting", "pending"])),
                    models.Q(("finished__isnull", False), ("started", None), ("status__in", ["rejected", "expired"])),
                    models.Q(("finished", None), ("started__isnull", False), ("status", "running")),
                    models.Q(("finished__isnull", False), ("status", "failed")),
                    models.Q(
                        ("finished__isnull", False),
                        ("started__isnull", False),
                        ("status__in", ["succeeded", "rolled_back"]),
                    ),
                    _connector="OR",
                ),
                name="ledger_times_fit_the_status",
            ),
        ),
        migrations.AddConstraint(
            model_name="deployment",
            constraint=models.CheckConstraint(
                condition=models.Q(("started", None), ("started__gte", models.F("created")), _connector="OR"),
                name="ledger_starts_after_it_is_created",
            ),
        ),
        migrations.AddConstraint(
            model_name="deployment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("finished", None),
                    models.Q(("finished__gte", models.F("created")), ("started", None)),
                    ("finished__gte", models.F("started")),
                    _connector="OR",
                ),
                name="ledger_finishes_after_it_starts",
            ),
        ),
        migrations.AddConstraint(
            model_name="deployment",
            constraint=models.CheckConstraint(
                condition=models.Q(("hotfix", False), ("reason__regex", "\\S"), _connector="OR"),
                name="ledger_hotfix_has_a_reason",
                violation_error_message="A hotfix requires a reason.",
            ),
        ),
        migrations.AddConstraint(
            model_name="deployment",
            constraint=models.CheckConstraint(
                condition=models.Q(("hotfix", False), ("kind", "deploy"), _connector="OR"),
                name="ledger_hotfix_is_not_a_rollback",
            ),
        ),
        migrations.AddConstraint(
            model_name="deployment",
            constraint=models.CheckConstraint(
                condition=models.Q(("break_glass", False), ("hotfix", True), _connector="OR"),
                name="ledger_break_glass_is_a_hotfix",
                violation_error_message="Only a hotfix can go without approval.",
            ),
        ),
        migrations.AddConstraint(
            model_name="deployment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("status__in", ["waiting", "rejected", "expired"]), _negated=True),
                    models.Q(("break_glass", False), ("kind", "deploy")),
                    _connector="OR",
                ),
                name="ledger_only_a_deployment_waits",
            ),
        ),
        migrations.AddConstraint(
            model_name="deployment",
            constraint=models.CheckConstraint(
                condition=models.Q(("strategy__in", ["rolling", "blue-green"])), name="ledger_known_strategy"
            ),
        ),
        migrations.AddConstraint(
            model_name="deployment",
            constraint=models.CheckConstraint(
                condition=models.Q(("kind__in", ["deploy", "rollback"])), name="ledger_known_kind"
            ),
        ),
        migrations.AddConstraint(
            model_name="deployment",
            constraint=models.CheckConstraint(
                condition=models.Q(("actor", ""), _negated=True), name="ledger_has_an_actor"
            ),
        ),
        migrations.AddConstraint(
            model_name="step",
            constraint=models.UniqueConstraint(fields=("deployment", "position"), name="ledger_step_position"),
        ),
        migrations.AddConstraint(
            model_name="step",
            constraint=models.UniqueConstraint(fields=("deployment", "name"), name="ledger_step_name"),
        ),
        migrations.AddConstraint(
            model_name="step",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("finished", None), ("outcome", "running")),
                    models.Q(
                        ("finished__gte", models.F("started")),
                        ("finished__isnull", False),
                        ("outcome__in", ["succeeded", "failed", "skipped"]),
                    ),
                    _connector="OR",
                ),
                name="ledger_step_times_fit_the_outcome",
            ),
        ),
    ]
