"""What goes wrong while people use the stack, and what they notice of it."""

import http.client
import itertools
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.e2e.stack import Client, Load, Stack, docker, say
from tests.support.servers import PATIENCE, eventually

SEEN = 50  # requests at least, for a load to have seen what went wrong: a tenth of what it sends in five seconds


def visits(stack: Stack, person: Client, path: str = "/accounts/profile/") -> Callable[[int], Callable[[], int]]:
    """For Load: the requests of people who are signed in, each over a connection of its own."""

    def start(_: int) -> Callable[[], int]:
        client = stack.client()
        client.cookies = dict(person.cookies)
        return lambda: client.get(path).status

    return start


def checked_healthy(stack: Stack, since: datetime) -> None:
    """Waits for Docker's next health check of the app, every five seconds; three that fail would make it unhealthy."""

    def next_check() -> Any:
        checks = stack.inspect("web")["State"]["Health"]["Log"]
        return next((each for each in checks if datetime.fromisoformat(each["Start"]) > since), None)

    assert eventually(next_check, every=0.5)["ExitCode"] == 0
    assert stack.inspect("web")["State"]["Health"]["Status"] == "healthy"


def test_without_the_database_there_is_a_page_that_says_so_and_then_it_recovers_by_itself(
    stack: Stack, person: Client
) -> None:
    stack.compose("stop", "db")
    try:
        answer = person.get("/accounts/profile/")
        assert answer.status == 503 and answer.headers["retry-after"]
        assert "unavailable" in answer.text
        assert stack.direct().get("/health/live/").status == 200
        report = stack.client().get("/health/")
        assert report.status == 503 and report.json()["checks"]["database"].startswith("unhealthy")
        ready = stack.direct().get("/health/ready/")
        assert (ready.status, ready.json()["status"]) == (200, "degraded")
        assert stack.client().get("/status/").status == 200
        checked_healthy(stack, since=datetime.now(UTC))
    finally:
        stack.compose("start", "db")
    began = time.monotonic()
    eventually(lambda: person.get("/accounts/profile/").status == 200, every=0.1)
    say(f"served again {time.monotonic() - began:.1f} s after the database's start")
    assert stack.inspect("web")["RestartCount"] == 0


def test_while_the_database_is_frozen_visitors_get_the_status_page_and_a_page_that_explains(
    stack: Stack, person: Client, full: bool
) -> None:
    """Each asks for a page that needs the database and then for the status page."""

    def start(_: int) -> Callable[[], int]:
        turns = itertools.cycle(("/deployments/", "/status/"))
        return lambda: stack.client().get(next(turns)).status

    assert stack.client().get("/status/").status == 200
    stack.compose("pause", "db")
    try:
        eventually(lambda: stack.client().get("/deployments/").status == 503)
        with Load(start) as load:
            time.sleep(20 if full else 10)
        say(f"database frozen: {load}")
        assert set(load.outcomes) == {"200", "503"} and min(load.outcomes.values()) > 10
        assert stack.direct().get("/health/ready/").json()["status"] == "degraded"
        assert stack.client().get("/health/").json()["checks"]["database"] == "unhealthy: timeout"
        checked_healthy(stack, since=datetime.now(UTC))
    finally:
        stack.compose("unpause", "db")
    eventually(lambda: person.get("/accounts/profile/").status == 200, every=0.1)
    assert stack.inspect("web")["RestartCount"] == 0


def test_a_restart_of_the_database_shows_nothing_but_pages(stack: Stack, person: Client) -> None:
    with Load(visits(stack, person)) as load:
        time.sleep(1)
        stack.compose("restart", "db")
        eventually(stack.ready, every=0.1)
        time.sleep(2)
        after = Load(visits(stack, person))
    say(f"database restarted: {load}")
    assert set(load.outcomes) <= {"200", "503"} and load.total > SEEN
    with after:
        time.sleep(2)
    assert not after.failed, after.outcomes


def test_a_restart_of_redis_fails_no_request_and_signs_nobody_out(stack: Stack, person: Client) -> None:
    with Load(visits(stack, person)) as load:
        time.sleep(1)
        stack.compose("restart", "redis")
        time.sleep(2)
    say(f"redis restarted: {load}")
    assert set(load.outcomes) == {"200"} and load.total > SEEN


def test_without_redis_people_stay_signed_in_and_new_ones_sign_in(stack: Stack, person: Client) -> None:
    stack.compose("stop", "redis")
    try:
        assert person.signed_in()
        assert person.rename("Still here").status == 302
        assert person.get("/health/ready/").status == 200
        report = stack.client().get("/health/")
        assert report.status == 503 and report.json()["checks"]["cache"].startswith("unhealthy")
    finally:
        stack.compose("start", "redis")
    eventually(lambda: stack.client().get("/health/").status == 200, every=0.5)
    assert person.signed_in()


def test_a_restart_of_the_app_shows_nothing_but_the_page_about_it(stack: Stack, person: Client) -> None:
    with Load(visits(stack, person)) as load:
        time.sleep(1)
        stack.compose("restart", "web")
        stack.serves()
        time.sleep(1)
    say(f"app restarted: {load}")
    assert set(load.outcomes) <= {"200", "503"} and load.total > SEEN


def test_while_the_app_is_away_nginx_shows_the_page_about_it_in_the_site_s_own_look(
    stack: Stack, person: Client
) -> None:
    stack.compose("stop", "web")
    try:
        answer = person.get("/accounts/profile/")
        assert answer.status == 503 and answer.headers["retry-after"] == "30"
        assert "unavailable" in answer.text and "/static/style.css" in answer.text
        assert stack.client().get("/static/style.css").status == 200
        assert stack.client().post("/accounts/login/", {}, token="x").status == 503
        assert stack.inspect("nginx")["State"]["Health"]["Status"] == "healthy"
    finally:
        stack.compose("start", "web")
    say(f"served again {stack.serves():.1f} s after the app's start")


def test_a_killed_worker_costs_no_reader_more_than_an_answer_that_was_half_sent(stack: Stack, person: Client) -> None:
    with Load(visits(stack, person)) as load:
        for _ in range(3):
            time.sleep(1)
            pids = docker("top", stack.container("web"), "-eo", "pid,ppid").splitlines()[1:]
            workers = [pid for pid, parent in map(str.split, pids) if parent in [line.split()[0] for line in pids]]
            subprocess.run(["kill", "-9", workers[0]], check=True)
        time.sleep(2)
    say(f"three workers killed: {load}")
    assert load.outcomes["200"] > SEEN
    assert set(load.outcomes) <= {"200", "IncompleteRead"} and load.outcomes["IncompleteRead"] <= 3


def test_a_reload_of_nginx_fails_no_request(stack: Stack, person: Client) -> None:
    with Load(visits(stack, person)) as load:
        for _ in range(5):
            time.sleep(0.5)
            stack.exec("nginx", "nginx", "-s", "reload")
        time.sleep(1)
    say(f"nginx reloaded five times: {load}")
    assert set(load.outcomes) == {"200"} and load.total > SEEN


def test_a_slow_request_in_flight_ends_well_when_the_app_is_told_to_stop(stack: Stack, person: Client) -> None:
    token, name, answers = person.token("/accounts/profile/"), f"Slow {time.time():.0f}", []
    lock = "BEGIN; SELECT 1 FROM accounts_user FOR UPDATE; SELECT pg_sleep(6); COMMIT"
    blocker = threading.Thread(target=stack.sql, args=(lock,))
    blocker.start()
    eventually(
        lambda: stack.sql("SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(6)%' AND pid <> pg_backend_pid()")
    )

    def slow() -> None:
        answers.append(person.rename(name, token=token, timeout=40))

    sender, began = threading.Thread(target=slow), time.monotonic()
    sender.start()
    eventually(lambda: stack.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
    stack.compose("stop", "web")
    stopped = time.monotonic() - began
    try:
        sender.join(PATIENCE)
        blocker.join(PATIENCE)
        say(f"stopped after {stopped:.1f} s, with the answer {answers[0].status} to what was sent before")
        assert answers[0].status == 302
        assert stack.inspect("web")["State"]["ExitCode"] == 0
        assert stack.sql(f"SELECT count(*) FROM accounts_user WHERE display_name = '{name}'") == "1"
    finally:
        stack.compose("start", "web")
        stack.serves()


def test_a_connection_that_is_refused_is_an_error_of_the_client_and_of_nobody_else(stack: Stack) -> None:
    """So that the outcomes counted above mean something: what breaks is recorded as broken."""

    def start(_: int) -> Callable[[], int]:
        return lambda: Client(1).get("/").status

    with Load(start, rate=50) as load:
        time.sleep(0.5)
    assert set(load.outcomes) == {"ConnectionRefusedError"} and load.failed
    with pytest.raises((OSError, http.client.HTTPException)):
        Client(1).get("/")
