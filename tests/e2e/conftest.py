"""./run e2e --full: what is long by nature in its full length, as it runs each night; without it, in a short form."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="in full length, as each night: many switches, a long soak")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether what is long by nature is to run in its full length."""
    return bool(request.config.getoption("--full"))
