"""The servers that the other tests stand on are what they say."""

import time

import pytest
from django.core.cache import cache
from django.db import connection

from tests.support.servers import Gunicorn, Postgres, Redis, eventually, frozen

pytestmark = pytest.mark.slow


@pytest.mark.django_db
def test_the_database_is_a_real_postgresql() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version_num")
        assert int(cursor.fetchone()[0]) >= 180000


def test_the_cache_is_a_real_redis() -> None:
    cache.set("who", "there", 5)
    assert cache.client.get_client().info("server")["redis_version"]  # type: ignore[attr-defined]
    assert cache.get("who") == "there"


@pytest.mark.parametrize("kind", [Postgres, Redis])
def test_a_server_stops_freezes_and_comes_back(kind: type[Postgres] | type[Redis]) -> None:
    with kind() as server:
        with frozen(server):
            started = time.monotonic()
            with pytest.raises(Exception):
                server.ready()
            assert time.monotonic() - started > 1, "a frozen server refused at once"
        assert eventually(server.ready)
        server.stop()
        with pytest.raises(Exception):
            server.ready()
        server.start()


def test_gunicorn_serves() -> None:
    with Gunicorn(2) as server:
        assert eventually(lambda: len(server.workers()) == 2)
