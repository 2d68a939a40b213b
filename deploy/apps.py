from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.signals import request_started
from django.db.models.signals import post_migrate


class DeployConfig(AppConfig):
    name = "deploy"

    def ready(self) -> None:
        import deploy.metrics  # noqa: F401  # declared before the first scrape: its series are there from the start

        from deploy.uptime import start_with_the_first_request

        if settings.SAMPLE_UPTIME:
            request_started.connect(start_with_the_first_request, dispatch_uid="deploy.uptime")
        post_migrate.connect(restore_environments, sender=self)


def restore_environments(using: str, **_: Any) -> None:
    """Puts back what `manage.py flush` has emptied: the ledger has the guide's environments or none at all."""
    from django.db import connections

    from deploy.models import ENVIRONMENTS, Environment

    connection = connections[using]
    with connection.cursor() as cursor:
        if Environment._meta.db_table not in connection.introspection.table_names(cursor):
            return  # migrated back to before there were any
    if not Environment.objects.using(using).exists():
        fields = [field.attname for field in Environment._meta.concrete_fields]
        assert fields == ["id", "name", "order", "purpose", "data", "access", "deployment", "gate_id"]
        Environment.objects.using(using).bulk_create(
            Environment(pk, name, pk, purpose, data, access, rule, gate)
            for pk, name, purpose, data, access, rule, gate in ENVIRONMENTS
        )
