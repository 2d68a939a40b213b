from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class LedgerConfig(AppConfig):
    name = "ledger"
    # By the role from which on they are held (accounts.roles).
    role_permissions = {
        "viewer": ("view_people",),
        "deployer": ("request_deployment", "roll_back"),
        "approver": ("approve_deployment", "break_glass"),
        "maintainer": ("change_freeze", "break_lock", "manage_tokens"),
    }

    def ready(self) -> None:
        import ledger.metrics  # noqa: F401  # declared before the first scrape: its series are there from the start

        from ledger.environments import environment_configs

        environment_configs()  # an invalid file stops the process at its start
        post_migrate.connect(restore_environments, sender=self)


def restore_environments(using: str, **_: Any) -> None:
    """Restores the rows that `manage.py flush` has removed: the ledger has all its environments or none."""
    from django.db import connections

    from ledger.models import ENVIRONMENTS, Environment

    connection = connections[using]
    with connection.cursor() as cursor:
        if Environment._meta.db_table not in connection.introspection.table_names(cursor):
            return  # migrated back to before there were any
    if not Environment.objects.using(using).exists():
        fields = [field.attname for field in Environment._meta.concrete_fields]
        assert fields == ["id", "name", "order", "purpose", "data", "access", "deployment", "promotes_from_id"]
        Environment.objects.using(using).bulk_create(
            Environment(pk, name, pk, purpose, data, access, rule, gate)
            for pk, name, purpose, data, access, rule, gate in ENVIRONMENTS
        )
