"""The rows of the environments: they follow environments.toml at each migration.

An environment that the file no longer has, or has under another name, leaves the board and keeps its history.
"""

from typing import Any

from django.conf import settings
from django.db import transaction

import audit
from audit.actions import Action
from audit.operators import holder
from ledger.environments import EnvironmentConfig, environment_configs
from ledger.models import Environment, Promotion


def follow_file(using: str = "default") -> list[str]:
    """Makes the rows what environments.toml says, and returns the names of those that have changed.

    Writes nothing if nothing has: only the tables' owner may. Raises ImproperlyConfigured and django.db.Error.
    """
    configs = environment_configs()
    with transaction.atomic(using=using):
        rows = {row.name: row for row in Environment.objects.using(using)}
        keys = {name: row.pk for name, row in rows.items()}
        for name in configs:
            keys.setdefault(name, max(keys.values(), default=0) + 1)
        wanted = {name: columns(config, order) for order, (name, config) in enumerate(configs.items(), 1)}
        gone = {name for name, row in rows.items() if row.order is not None and name not in configs}
        changed = [name for name in configs if name not in rows or is_other(rows[name], wanted[name])]
        if changed or gone:
            # First none has a position, as positions are unique and may be swapped.
            Environment.objects.using(using).filter(name__in=[*gone, *changed]).update(order=None)
            for name in changed:
                Environment.objects.using(using).update_or_create(pk=keys[name], defaults={"name": name} | wanted[name])
        ways = {(keys[name], keys[source]) for name, config in configs.items() for source in config.promotes_from}
        before = sources(using)
        found = sorted({*gone, *changed, *follow_ways(using, ways, {keys[name]: name for name in configs})})
        if rows:  # otherwise they are only filled
            record_changes(using, {name: differences(rows.get(name), wanted.get(name)) for name in found}, before)
        return found


def sources(using: str) -> dict[str, str]:
    """Returns what each environment is promoted from, in words."""
    found: dict[str, str] = {}
    ways = Promotion.objects.using(using).order_by("source__name").values_list("environment__name", "source__name")
    for name, source in ways:
        found[name] = f"{found[name]}, {source}" if name in found else source
    return found


def differences(row: Environment | None, wanted: dict[str, Any] | None) -> dict[str, str]:
    """Returns the settings of an environment that change, each as "before -> after"."""
    if wanted is None:
        return {"environment": "removed from environments.toml"}
    if row is None:
        return {"environment": "added to environments.toml"}
    changes = {name: (getattr(row, name), value) for name, value in wanted.items()}
    return {name: f"{old} -> {new}" for name, (old, new) in changes.items() if old != new}


def record_changes(using: str, changes: dict[str, dict[str, str]], before: dict[str, str]) -> None:
    """Records in the audit log which settings of which environments have changed, and what they were."""
    after = sources(using)
    for name, details in changes.items():
        old, new = before.get(name, "none"), after.get(name, "none")
        ways = {"promotes_from": f"{old} -> {new}"} if old != new else {}
        audit.record(Action.ENVIRONMENT_CHANGED, actor=holder(), environment=name, details=details | ways, using=using)


def columns(config: EnvironmentConfig, order: int) -> dict[str, Any]:
    """Returns what the row of the environment says, by column."""
    words = ("colour", "purpose", "data", "access", "deployment")
    return {name: getattr(config, name) for name in words} | {
        "order": order,
        "soak": int(config.soak.total_seconds()),
        "approvals": config.approvals,
        "approval_seconds": round(settings.APPROVAL_HOURS * 3600),
    }


def is_other(row: Environment, wanted: dict[str, Any]) -> bool:
    """Tells whether the row says something else."""
    return any(getattr(row, name) != value for name, value in wanted.items())


def follow_ways(using: str, ways: set[tuple[int, int]], names: dict[int, str]) -> set[str]:
    """Makes the ways of promotion those of the file, and returns the names of environments whose ways have changed.

    What an environment that the file no longer has was promoted from stays: nothing becomes less strict by leaving.
    """
    promotions = Promotion.objects.using(using)
    found = set(promotions.filter(environment__in=names).values_list("environment", "source"))
    for environment, source in found - ways:
        promotions.filter(environment=environment, source=source).delete()
    promotions.bulk_create(Promotion(environment_id=to, source_id=source) for to, source in sorted(ways - found))
    return {names[environment] for environment, _ in found ^ ways}
