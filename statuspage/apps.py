from django.apps import AppConfig
from django.conf import settings
from django.core.signals import request_started


class StatusPageConfig(AppConfig):
    """The status page; starts the sampler of a serving process if settings.SAMPLE_UPTIME is set."""

    name = "statuspage"
    role_permissions = {"maintainer": ("manage_incidents",)}

    def ready(self) -> None:
        import statuspage.metrics  # noqa: F401  # declared before the first scrape
        from statuspage.uptime import start_with_the_first_request

        if settings.SAMPLE_UPTIME:
            request_started.connect(start_with_the_first_request, dispatch_uid="statuspage.uptime")
