"""tests.support.more_settings for an instance that says it is in the environment NAMED_ENVIRONMENT."""

import os

from tests.support.more_settings import *  # noqa: F401,F403

ENVIRONMENT = os.environ["NAMED_ENVIRONMENT"]
