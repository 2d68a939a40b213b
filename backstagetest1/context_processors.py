"""What every page shows of this instance."""

from django.conf import settings
from django.http import HttpRequest

from ledger.environments import config_of


def instance(_request: HttpRequest) -> dict[str, dict[str, str]]:
    """`instance`: its environment, version and commit. From settings and environments.toml alone, so it works when
    nothing else does.
    """
    return {
        "instance": {
            "environment": settings.ENVIRONMENT,
            "colour": config_of(settings.ENVIRONMENT).colour,
            "version": settings.VERSION,
            "commit": settings.COMMIT,
            "sign_up": settings.SIGN_UP,
        }
    }
