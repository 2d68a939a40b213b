"""Two servers with a database per colour, and two databases in one server: real ones, with throw-away data."""

import secrets
from collections.abc import Iterator

import pytest

from deploy.databases.side import Side
from tests.deploy.databases.pairs import Pair
from tests.support.servers import Postgres

# What a slot that nobody reads may keep; a walsender and an apply worker notice a lost peer soon.
OPTIONS: dict[str, str | int] = {
    "wal_level": "logical",
    "max_slot_wal_keep_size": "256MB",
    "max_prepared_transactions": 5,
    "max_replication_slots": 40,
    "max_wal_senders": 40,
    "max_logical_replication_workers": 40,
    "max_worker_processes": 60,
    "wal_receiver_timeout": "5s",
    "wal_retrieve_retry_interval": "100ms",
}


@pytest.fixture(scope="module")
def clusters() -> Iterator[tuple[Postgres, Postgres]]:
    """Two servers, each with an empty database `app`; the tests of one module may stop, freeze and break them."""
    with Postgres(OPTIONS) as first, Postgres(OPTIONS) as second:
        yield first, second


@pytest.fixture
def sides(clusters: tuple[Postgres, Postgres]) -> Iterator[tuple[Side, Side]]:
    """Blue and green: a new, empty database in each of the two servers."""
    name = f"t{secrets.token_hex(4)}"
    blue, green = (Side(colour, server.create(name)) for colour, server in zip(("blue", "green"), clusters))
    yield blue, green
    blue.close()
    green.close()


@pytest.fixture
def two_databases(clusters: tuple[Postgres, Postgres]) -> Iterator[tuple[Side, Side]]:
    """Blue and green: two new, empty databases in one server."""
    name = f"t{secrets.token_hex(4)}"
    blue, green = (Side(colour, clusters[0].create(f"{name}_{colour}")) for colour in ("blue", "green"))
    yield blue, green
    blue.close()
    green.close()


@pytest.fixture(scope="module")
def databases(server: Postgres) -> Iterator[Pair]:
    """A pair of databases in the module's own `server`."""
    it = Pair(server)
    yield it
    it.source.close()
    it.target.close()
