import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from whitenoise import WhiteNoise

# kubectl, as requirements-dev.txt has it
os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
# A shell starts what it runs in the background with SIGINT ignored, which all children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """The test database; the threads that check and count let go of it before it is dropped."""
    from health import runner
    from metrics import collectors

    yield
    runner.stop()
    collectors.close()


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
