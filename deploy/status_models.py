"""What the status page tells of the past: how each environment was, minute by minute, and what people said about it."""

from django.db import models

from deploy.models import Environment


class Sample(models.Model):
    """Whether an environment served at a minute. At most one a minute: whoever comes second has come in vain."""

    environment = models.ForeignKey(Environment, models.CASCADE, related_name="+", db_index=False)
    minute = models.DateTimeField()
    up = models.BooleanField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["minute", "environment"], name="deploy_one_sample_a_minute")]

    def __str__(self) -> str:
        return f"{self.environment} at {self.minute:%Y-%m-%d %H:%M}: {'up' if self.up else 'down'}"


class Day(models.Model):
    """The samples of a day (UTC) that are too old to be kept one by one."""

    environment = models.ForeignKey(Environment, models.CASCADE, related_name="+", db_index=False)
    day = models.DateField()
    up = models.PositiveIntegerField(help_text="Minutes in which it served.")
    down = models.PositiveIntegerField(help_text="Minutes in which it did not.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["day", "environment"], name="deploy_one_row_a_day")]

    def __str__(self) -> str:
        return f"{self.environment} on {self.day}: {self.up} up, {self.down} down"


class Incident(models.Model):
    """Something that people notice. Its updates tell how it went; the last one's status is the incident's."""

    class Impact(models.TextChoices):
        MINOR = "minor", "minor: something is slow or odd"
        MAJOR = "major", "major: something does not work"
        CRITICAL = "critical", "critical: nothing works"

    class Status(models.TextChoices):
        INVESTIGATING = "investigating"
        IDENTIFIED = "identified"
        MONITORING = "monitoring"
        RESOLVED = "resolved"

    title = models.CharField(max_length=120, help_text="What people notice, in a few words.")
    impact = models.CharField(max_length=10, choices=Impact.choices, default=Impact.MINOR)
    environment = models.ForeignKey(Environment, models.PROTECT, related_name="incidents")
    status = models.CharField(max_length=15, choices=Status.choices, default=Status.INVESTIGATING)
    started = models.DateTimeField()
    resolved = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("-started", "-pk")
        indexes = [models.Index(fields=["-started", "-id"], name="deploy_incident_by_time")]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(status="resolved", resolved__gte=models.F("started"))
                | (~models.Q(status="resolved") & models.Q(resolved=None)),
                name="deploy_resolved_has_a_time",
            )
        ]

    def __str__(self) -> str:
        return self.title


class IncidentUpdate(models.Model):
    """What was said of an incident, and when. It is not changed afterwards: another update says it better."""

    incident = models.ForeignKey(Incident, models.CASCADE, related_name="updates")
    at = models.DateTimeField()
    status = models.CharField(max_length=15, choices=Incident.Status.choices)
    message = models.TextField(max_length=2000)
    author = models.CharField(max_length=254, help_text="Shown in the admin only.")

    class Meta:
        ordering = ("-at", "-pk")

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M} {self.status}"
