"""What every page shows of this instance."""

from django.conf import settings
from django.http import HttpRequest


def instance(_request: HttpRequest) -> dict[str, dict[str, str]]:
    """`instance`: its environment, version and commit. From settings alone, so it works when nothing else does."""
    return {
        "instance": {
            "environment": settings.ENVIRONMENT,
            "version": settings.VERSION,
            "commit": settings.COMMIT,
        }
    }
