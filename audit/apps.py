from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.db.models.signals import post_migrate


class AuditConfig(AppConfig):
    name = "audit"
    verbose_name = "Audit log"
    role_permissions = {"maintainer": ("view_entry",)}

    def ready(self) -> None:
        post_migrate.connect(enforce_retention, sender=self)


def enforce_retention(using: str, **_: Any) -> None:
    """Tells the database how long it keeps entries: AUDIT_RETENTION_DAYS."""
    from django.db import connections

    from audit import retention

    retention.enforce(connections[using], settings.AUDIT_RETENTION_DAYS)
