from collections.abc import Iterator
from typing import Any

import pytest
from pytest_django import DjangoDbBlocker

from tests.support.scratch import scratch_database


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def scratch(
    request: pytest.FixtureRequest, django_db_blocker: DjangoDbBlocker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """The connection to a database of its own in which every migration has been applied."""
    with scratch_database(request.param, django_db_blocker, tmp_path_factory.mktemp("scratch")) as connection:
        yield connection
