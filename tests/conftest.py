from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """The test database; the threads that check and count let go of it before it is dropped."""
    from health import runner
    from metrics import collectors

    yield
    runner.stop()
    collectors.close()
