"""settings.testing with the pages of tests.more_pages."""

from settings.testing import *  # noqa: F401,F403

ROOT_URLCONF = "tests.more_pages"
