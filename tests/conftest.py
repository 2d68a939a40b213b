import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.db import connections
from hypothesis import settings as hypothesis_settings
from whitenoise import WhiteNoise

from tests.support.servers import PATIENCE

# kubectl, as requirements-dev.txt has it
os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
# It ends before there is garbage worth collecting, which saves a fifth of its time.
os.environ.setdefault("GOGC", "off")
# A shell starts what it runs in the background with SIGINT ignored, which all children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Made-up inputs are the same in each run of CI, so that what fails there fails again; fresh ones come each night.
hypothesis_settings.register_profile("ci", derandomize=True, deadline=None, database=None, print_blob=True)
hypothesis_settings.register_profile("fresh", deadline=None, print_blob=True)
hypothesis_settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") == "true" else "fresh")
)


def pytest_xdist_auto_num_workers() -> int:
    """More than there are cores, as many tests wait; each has a database of its own, and its Redis has sixteen."""
    return int(os.environ.get("TEST_PROCESSES") or min(2 * (os.cpu_count() or 1), 8))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a worker of xdist the modules that take longest come first, so that none of them is left for the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        long = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("browser")}
        items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings: None) -> None:
    """The app's statement_timeout is for people who wait for a page; a busy machine's tests may take longer."""
    options: dict[str, Any] = connections.settings["default"]["OPTIONS"]
    options["options"] = options["options"].replace("statement_timeout=15s", f"statement_timeout={PATIENCE:.0f}s")
    assert "statement_timeout=200s" in options["options"]
    options["options"] += " -c audit.truncate=allowed"  # tests with transactions of their own empty every table


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """The test database; the threads that check and count let go of it before it is dropped."""
    from health import runner
    from metrics import collectors

    yield
    runner.stop()
    collectors.close()


@pytest.fixture(scope="module", autouse=True)
def requests_are_counted_anew() -> None:
    """Without the thousands of series of the modules before, each of which a scrape reads: half a second of it."""
    if not apps.ready:
        return  # in tests/e2e, which have no Django
    from metrics import middleware, registry

    middleware._series.clear()
    for metric in (registry.REQUESTS, registry.REQUEST_DURATION, registry.RESPONSE_SIZE, registry.EXCEPTIONS):
        metric.clear()


@pytest.fixture(scope="session", autouse=True)
def static_files_are_looked_for_once() -> Iterator[None]:
    """Each test client has middleware of its own, and WhiteNoise's would look at every file again: 0.1 s a test."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    look = WhiteNoise.update_files_dictionary

    def once(self: WhiteNoise, root: str, prefix: str) -> None:
        if (root, prefix) not in found:
            before = dict(self.files)
            look(self, root, prefix)
            found[root, prefix] = {url: file for url, file in self.files.items() if file is not before.get(url)}
        self.files.update(found[root, prefix])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WhiteNoise, "update_files_dictionary", once)
        yield
