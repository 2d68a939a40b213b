"""The probes under gunicorn with its workers and threads: under load, while frozen, while draining."""

import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
from django.conf import settings

from tests.health.test_outages import write_migrations
from tests.support.servers import ROOT, Gunicorn, Postgres, Redis, eventually, frozen

pytestmark = pytest.mark.slow

DEADLINE = 0.8 + 0.2  # seconds; the promise
SLACK = 20.0  # for 200 clients and the server on a busy machine; who waits for each other or for the server takes 60 s
FLOOD = 200

# One thread a worker is the hardest: there every probe waits for all that came before it.
FOUR, ONE = pytest.param("4", id="four threads"), pytest.param("1", id="one thread")


@pytest.fixture(scope="module")
def app(request: pytest.FixtureRequest, own_postgres: Postgres, own_redis: Redis) -> Iterator[Gunicorn]:
    """Two workers that have made all their threads and connections, and so make no more."""
    full = 1 + int(request.param) + len(settings.HEALTH_CHECKS)  # the main one, those for requests, one per check
    write_migrations(own_postgres)
    env = {
        "DJANGO_SETTINGS_MODULE": "tests.support.patient_settings",
        "DATABASE_URL": own_postgres.url,
        "REDIS_URL": own_redis.url,
        "THREADS": request.param,
        "HEALTH_DOWN_AFTER": "0",
    }
    with Gunicorn(2, **env) as server:

        def warm() -> bool:
            assert {status for status, _, _ in flood(server)} == {200}
            made = len(backends(own_postgres)) == len(clients(own_redis)) == 2
            return made and threads(server) == [full, full]

        assert eventually(warm)
        yield server


def flood(server: Gunicorn) -> list[tuple[int, dict[str, Any], float]]:
    with ThreadPoolExecutor(FLOOD) as pool:
        return list(pool.map(lambda _: ask(server), range(FLOOD)))


def ask(server: Gunicorn, path: str = "/health/", host: str = "10.1.2.3") -> tuple[int, dict[str, Any], float]:
    """The status, the JSON and the time it took in seconds."""
    started = time.monotonic()
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    link.request("GET", path, headers={"Host": host})
    response = link.getresponse()
    body = response.read()
    link.close()
    return response.status, json.loads(body) if body.startswith(b"{") else {}, time.monotonic() - started


def threads(server: Gunicorn) -> list[int]:
    return [len(os.listdir(f"/proc/{worker}/task")) for worker in server.workers()]


def backends(postgres: Postgres) -> set[int]:
    """The process ids of the connections to the app's database, without the one that asks."""
    connection = postgres.connect()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE datname = 'app' AND pid <> pg_backend_pid()")
        found = {pid for (pid,) in cursor.fetchall()}
    connection.close()
    return found


def clients(redis: Redis) -> set[str]:
    with redis.client() as client:
        own = client.client_id()
        return {each["id"] for each in client.client_list() if int(each["id"]) != own}


@pytest.mark.parametrize("app", [FOUR, ONE], indirect=True)
@pytest.mark.parametrize("part", ["database", "cache"])
def test_two_hundred_probes_of_a_frozen_server_are_told_in_time_by_one_connection(
    app: Gunicorn, own_postgres: Postgres, own_redis: Redis, part: str
) -> None:
    """A frozen server holds up a naive check for minutes, and the probes behind it."""
    server: Postgres | Redis = own_postgres if part == "database" else own_redis
    time.sleep(1.1)  # no result is shared any more
    before = threads(app), backends(own_postgres), clients(own_redis)
    calm = statistics.median(ask(app, "/nowhere/", host="localhost")[2] for _ in range(20))
    with frozen(server):
        for wave in range(2):
            answers = flood(app)
            times = sorted(took for _, _, took in answers)
            print(f"{part}, wave {wave}: median {times[FLOOD // 2]:.3f} s, longest {times[-1]:.3f} s")
            assert {status for status, _, _ in answers} == {503}
            assert {body["checks"][part] for _, body, _ in answers} == {"unhealthy: timeout"}
            assert times[-1] < DEADLINE + SLACK
        pages = [ask(app, "/nowhere/", host="localhost") for _ in range(20)]
        assert {status for status, _, _ in pages} == {404}
        assert statistics.median(took for _, _, took in pages) < max(0.5, 5 * calm)
        assert ask(app, "/health/live/")[0] == 200
        assert threads(app) == before[0]
        time.sleep(0.5)
    status, body, took = ask(app)
    print(f"{part}: healthy {took:.3f} s after SIGCONT")
    assert (status, body["checks"][part]) == (200, "healthy")
    assert (backends(own_postgres), clients(own_redis)) == before[1:], "a connection was made or lost"


@pytest.mark.parametrize("app", [FOUR], indirect=True)
def test_a_flood_of_probes_is_no_flood_of_queries(app: Gunicorn, own_redis: Redis) -> None:
    """Results are shared for a second, so two workers write to the cache at most twice as often as that."""
    with own_redis.client() as client:
        time.sleep(1.1)
        before = client.info("commandstats")["cmdstat_set"]["calls"]
        started = time.monotonic()
        assert {status for status, _, _ in flood(app)} == {200}
        seconds = time.monotonic() - started
        made = client.info("commandstats")["cmdstat_set"]["calls"] - before
    assert 1 <= made <= 2 * (seconds + 1)


@pytest.mark.parametrize("app", [FOUR], indirect=True)
def test_every_worker_drains_at_once_and_so_does_a_new_one(app: Gunicorn) -> None:
    def drain(*arguments: str) -> None:
        command = [sys.executable, "manage.py", "drain", *arguments]
        subprocess.run(command, cwd=ROOT, env=app.environment(), check=True, capture_output=True)

    def ready(times: int = 20) -> set[int]:
        return {ask(app, "/health/ready/")[0] for _ in range(times)}

    assert ready() == {200}
    drain()
    try:
        assert ready() == {503}
        assert {ask(app)[0] for _ in range(5)} == {200}
        first = app.workers()[0]
        os.kill(first, SIGKILL)
        assert eventually(lambda: len(set(app.workers()) - {first}) == 2 and not Path(f"/proc/{first}").exists())
        assert ready() == {503}
    finally:
        drain("--undo")
    assert ready() == {200}


@pytest.mark.parametrize("app", [FOUR], indirect=True)
def test_without_its_database_what_was_ready_stays_ready_in_every_worker_and_a_new_one(
    app: Gunicorn, own_postgres: Postgres
) -> None:
    """If all instances became unready during an outage, visitors would get no page at all."""

    def ready(server: Gunicorn) -> set[tuple[int, str]]:
        return {(status, body["status"]) for status, body, _ in (ask(server, "/health/ready/") for _ in range(20))}

    assert ready(app) == {(200, "healthy")}
    own_postgres.stop()
    try:
        assert eventually(lambda: ready(app) == {(200, "degraded")})  # a result is shared for a second
        first = app.workers()[0]
        os.kill(first, SIGKILL)
        assert eventually(lambda: len(set(app.workers()) - {first}) == 2 and not Path(f"/proc/{first}").exists())
        assert ready(app) == {(200, "degraded")}
        assert {ask(app)[0] for _ in range(10)} == {503}
        urls = {"DATABASE_URL": own_postgres.url, "REDIS_URL": app.env["REDIS_URL"]}
        with Gunicorn(2, **urls) as new:
            assert ready(new) == {(503, "unhealthy")}, "a release that has not reached it yet gets no traffic"
    finally:
        own_postgres.start()
    assert eventually(lambda: ready(app) == {(200, "healthy")})


@pytest.mark.parametrize("app", [FOUR], indirect=True)
def test_a_frozen_database_does_not_hold_the_threads_that_other_pages_need(
    app: Gunicorn, own_postgres: Postgres
) -> None:
    """Requests that wait for the server fail as soon as the health check knows that it is silent."""
    path = "/deployments/"  # which asks the database
    assert ask(app, path, host="localhost")[0] != 503 and ask(app, "/health/ready/")[0] == 200
    with frozen(own_postgres):
        ask(app)
        with ThreadPoolExecutor(40) as pool:  # five for each thread that there is
            answers = list(pool.map(lambda _: ask(app, path, host="localhost"), range(40)))
        assert {status for status, _, _ in answers} == {503}
        status, body, took = ask(app, "/health/ready/")
        assert (status, body["status"]) == (200, "degraded") and took < DEADLINE + SLACK
        assert ask(app, "/health/live/")[0] == 200
