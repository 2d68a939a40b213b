"""The audit log's table. The database itself keeps it append-only: migrations/0002_guards.py."""

from datetime import datetime

from django.db import models

from audit.pagination import Page, paginate


class EntryQuerySet(models.QuerySet["Entry"]):
    """Queries that stay fast with a million rows: an index serves each filter, newest first."""

    def matching(
        self,
        *,
        action: str | None = None,
        actor: str | None = None,
        environment: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> "EntryQuerySet":
        """Returns the entries that match every filter given, at or after `since` and before `until`.

        An empty filter counts as not given.
        """
        exact = {"action": action, "actor": actor, "environment": environment}
        found = self.filter(**{name: value for name, value in exact.items() if value})
        if since:
            found = found.filter(time__gte=since)
        if until:
            found = found.filter(time__lt=until)
        return found

    def page(self, limit: int, cursor: str | None = None, *, newer: bool = False) -> "Page[Entry]":
        """Returns a page of them, newest first: see pagination.paginate(). Raises ValueError if `cursor` is invalid."""
        return paginate(self, limit, cursor, newer=newer, by="time")


class Entry(models.Model):
    """Something that somebody did. Only audit.record() writes it, and nothing changes it."""

    time = models.DateTimeField()
    action = models.CharField(max_length=50, help_text="One of audit.actions.Action.")
    actor = models.CharField(max_length=300, blank=True, help_text="Email address, or what acted, such as a token.")
    actor_id = models.BigIntegerField(null=True, blank=True, help_text="Primary key of the user, if it was one.")
    address = models.CharField(max_length=45, blank=True, help_text="The client's address; empty for a command.")
    environment = models.CharField(max_length=50, blank=True)
    target = models.CharField(max_length=300, blank=True, help_text="What it was done to.")
    details = models.JSONField(default=dict, blank=True)

    objects = EntryQuerySet.as_manager()

    class Meta:
        ordering = ("-time", "-pk")
        verbose_name_plural = "entries"
        default_permissions = ("view",)  # audit.view_entry; nobody adds, changes or deletes one by hand
        indexes = [
            models.Index(fields=["-time", "-id"], name="audit_by_time"),
            models.Index(fields=["action", "-time", "-id"], name="audit_by_action"),
            models.Index(fields=["actor", "-time", "-id"], name="audit_by_actor"),
            models.Index(fields=["environment", "-time", "-id"], name="audit_by_environment"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.target}".strip()

    @classmethod
    def length(cls, name: str) -> int:
        """Returns the number of characters that the text field `name` holds."""
        limit = cls._meta.get_field(name).max_length  # type: ignore[union-attr]
        assert isinstance(limit, int)
        return limit
