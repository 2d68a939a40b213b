from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.utils.module_loading import import_string


class HealthConfig(AppConfig):
    name = "health"

    def ready(self) -> None:
        register(check_settings)


def check_settings(**_: Any) -> list[CheckMessage]:
    """Reports mistakes in the settings that would otherwise show as a probe that never succeeds."""
    found: list[CheckMessage] = []
    for name, path in settings.HEALTH_CHECKS.items():
        try:
            import_string(path)
        except ImportError as error:
            found.append(
                Error(
                    f"HEALTH_CHECKS: the check {name} cannot be imported: {error}",
                    hint="Expected the dotted path of a subclass of health.checks.Check.",
                    id="health.E001",
                )
            )
    for name in settings.HEALTH_READY:
        if name not in settings.HEALTH_CHECKS:
            found.append(
                Error(
                    f"HEALTH_READY: {name} is not a check.",
                    hint=f"Expected names from HEALTH_CHECKS: {', '.join(settings.HEALTH_CHECKS)}.",
                    id="health.E002",
                )
            )
    return found
