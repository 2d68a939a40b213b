"""settings.testing with the pages of tests.support.more_pages."""

from settings.testing import *  # noqa: F401,F403

ROOT_URLCONF = "tests.support.more_pages"
