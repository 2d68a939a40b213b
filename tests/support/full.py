"""--full: what is long by nature in its full length, as each night; without it, in a short form or not at all."""

import pytest

chosen = False  # whether --full was given


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run in full length what is long by nature, as each night")


def pytest_configure(config: pytest.Config) -> None:
    global chosen
    chosen = config.getoption("--full")
    config.addinivalue_line("markers", "full: repeats, at length, what a shorter test shows; runs with --full only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests with the mark, unless --full is given."""
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether what is long by nature is to run in its full length."""
    return bool(request.config.getoption("--full"))
