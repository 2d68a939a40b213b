import os
import sys
from collections.abc import Iterator

import pytest

# kubectl, as requirements-dev.txt has it
os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """The test database; the threads that check and count let go of it before it is dropped."""
    from health import runner
    from metrics import collectors

    yield
    runner.stop()
    collectors.close()
