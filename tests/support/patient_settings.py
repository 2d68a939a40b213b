"""settings.testing for a busy machine: a check keeps its connection longer than any test takes."""

from health import databases
from settings.testing import *  # noqa: F401,F403

databases.CONNECTION_TIMEOUT = 60.0
