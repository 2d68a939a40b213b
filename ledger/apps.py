from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.db.models.signals import post_migrate, pre_delete


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

        from ledger import tokens
        from ledger.environments import environment_configs

        environment_configs()  # an invalid file stops the process at its start
        pre_delete.connect(tokens.revoke_those_of, sender=settings.AUTH_USER_MODEL)
        post_migrate.connect(follow_file, sender=self)


def follow_file(using: str, **_: Any) -> None:
    """Makes the rows of the environments what environments.toml says, also after `manage.py flush`; and the windows of
    weekly freezes.
    """
    from django.db import connections

    from audit.models import Entry
    from ledger.environment_rows import follow_file
    from ledger.freezes import extend
    from ledger.models import Environment, FreezeWindow, Promotion

    connection = connections[using]
    with connection.cursor() as cursor:
        tables = set(connection.introspection.table_names(cursor))
    needed = {model._meta.db_table for model in (Environment, Promotion, Entry)}
    if needed <= tables:  # not migrated back to before there were any
        follow_file(using)
    if FreezeWindow._meta.db_table in tables:
        extend(using=using)
