import django.core.validators
import django.db.models.deletion
from django.db import migrations, models

import settings.text


class Migration(migrations.Migration):

    initial = True

    dependencies = [
        ("ledger", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="Incident",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "title",
                    models.CharField(
                        help_text="What people notice, in a few words.",
                        max_length=120,
                        validators=[settings.text.one_line],
                    ),
                ),
                (
                    "impact",
                    models.CharField(
                        choices=[
                            ("minor", "minor: something is slow or odd"),
                            ("major", "major: something does not work"),
                            ("critical", "critical: nothing works"),
                        ],
                        default="minor",
                        max_length=10,
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("investigating", "Investigating"),
                            ("identified", "Identified"),
                            ("monitoring", "Monitoring"),
                            ("resolved", "Resolved"),
                        ],
                        default="investigating",
                        max_length=15,
                    ),
                ),
                ("started", models.DateTimeField()),
                ("resolved", models.DateTimeField(blank=True, null=True)),
                (
                    "environment",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="incidents", to="ledger.environment"
                    ),
                ),
            ],
            options={
                "ordering": ("-started", "-pk"),
            },
        ),
        migrations.CreateModel(
            name="IncidentUpdate",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField()),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("investigating", "Investigating"),
                            ("identified", "Identified"),
                            ("monitoring", "Monitoring"),
                            ("resolved", "Resolved"),
                        ],
                        max_length=15,
                    ),
                ),
                (
                    "message",
                    models.TextField(
                        max_length=2000,
                        validators=[settings.text.lines, django.core.validators.MaxLengthValidator(2000)],
                    ),
                ),
                ("author", models.CharField(help_text="Shown in the admin only.", max_length=254)),
                (
                    "incident",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="updates", to="statuspage.incident"
                    ),
                ),
            ],
            options={
                "ordering": ("-at", "-pk"),
            },
        ),
        migrations.CreateModel(
            name="Sample",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("minute", models.DateTimeField()),
                ("up", models.BooleanField()),
                (
                    "environment",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="ledger.environment",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Day",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("day", models.DateField()),
                ("up", models.PositiveIntegerField(help_text="Minutes in which it served.")),
                ("down", models.PositiveIntegerField(help_text="Minutes in which it did not.")),
                (
                    "environment",
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
                    models.UniqueConstraint(fields=("day", "environment"), name="statuspage_one_row_a_day")
                ],
            },
        ),
        migrations.AddIndex(
            model_name="incident",
            index=models.Index(fields=["-started", "-id"], name="statuspage_incident_by_time"),
        ),
        migrations.AddConstraint(
            model_name="incident",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("resolved__gte", models.F("started")), ("status", "resolved")),
                    models.Q(models.Q(("status", "resolved"), _negated=True), ("resolved", None)),
                    _connector="OR",
                ),
                name="statuspage_resolved_has_a_time",
            ),
        ),
        migrations.AddConstraint(
            model_name="sample",
            constraint=models.UniqueConstraint(fields=("minute", "environment"), name="statuspage_one_sample_a_minute"),
        ),
    ]
