"""What the status page stores: uptime samples, their daily rollups, and incidents with their updates."""

from django.core.validators import MaxLengthValidator
from django.db import models

from ledger.models import Environment
from settings import text


class Sample(models.Model):
    """Whether an environment was up in a minute. There is at most one per minute; a second one is ignored."""

    environment = models.ForeignKey(Environment, models.CASCADE, related_name="+", db_index=False)
    minute = models.DateTimeField()
    up = models.BooleanField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["minute", "environment"], name="statuspage_one_sample_a_minute")]

    def __str__(self) -> str:
        return f"{self.environment} at {self.minute:%Y-%m-%d %H:%M}: {'up' if self.up else 'down'}"


class Day(models.Model):
    """The rolled-up samples of a day in UTC."""

    environment = models.ForeignKey(Environment, models.CASCADE, related_name="+", db_index=False)
    day = models.DateField()
    up = models.PositiveIntegerField(help_text="Minutes in which it served.")
    down = models.PositiveIntegerField(help_text="Minutes in which it did not.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["day", "environment"], name="statuspage_one_row_a_day")]

    def __str__(self) -> str:
        return f"{self.environment} on {self.day}: {self.up} up, {self.down} down"


class Incident(models.Model):
    """Something that users notice. Its status is that of its last update."""

    class Impact(models.TextChoices):
        MINOR = "minor", "minor: something is slow or odd"
        MAJOR = "major", "major: something does not work"
        CRITICAL = "critical", "critical: nothing works"

    class Status(models.TextChoices):
        INVESTIGATING = "investigating"
        IDENTIFIED = "identified"
        MONITORING = "monitoring"
        RESOLVED = "resolved"

    TITLE = 120  # characters

    title = models.CharField(
        max_length=TITLE, validators=[text.one_line], help_text="What people notice, in a few words."
    )
    impact = models.CharField(max_length=10, choices=Impact.choices, default=Impact.MINOR)
    environment = models.ForeignKey(Environment, models.PROTECT, related_name="incidents")
    status = models.CharField(max_length=15, choices=Status.choices, default=Status.INVESTIGATING)
    started = models.DateTimeField()
    resolved = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("-started", "-pk")
        permissions = [("manage_incidents", "Can report incidents and add updates")]
        indexes = [models.Index(fields=["-started", "-id"], name="statuspage_incident_by_time")]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(status="resolved", resolved__gte=models.F("started"))
                | (~models.Q(status="resolved") & models.Q(resolved=None)),
                name="statuspage_resolved_has_a_time",
            )
        ]

    def __str__(self) -> str:
        return self.title


class IncidentUpdate(models.Model):
    """A published message about an incident. It is never edited; another update corrects it."""

    MESSAGE = 2000  # characters; the validator enforces it, since a TextField's max_length applies to forms only

    incident = models.ForeignKey(Incident, models.CASCADE, related_name="updates")
    at = models.DateTimeField()
    status = models.CharField(max_length=15, choices=Incident.Status.choices)
    message = models.TextField(max_length=MESSAGE, validators=[text.lines, MaxLengthValidator(MESSAGE)])
    author = models.CharField(max_length=254, help_text="Shown in the admin only.")

    class Meta:
        ordering = ("-at", "-pk")

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M} {self.status}"
