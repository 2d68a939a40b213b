"""What is computed at a scrape: deadlines, threads, and the numbers themselves."""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.core.cache import cache
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from pytest_django import Settings

from backstagetest1.cache import RedisCache
from metrics import collectors
from metrics.registry import CACHE_HITS, CACHE_MISSES, COLLECTOR_ERRORS, DATABASE_QUERY_DURATION
from metrics.store.internals import buckets_of, value_of
from tests.support.servers import PATIENCE, eventually

TIMEOUT = 0.5  # seconds; what is quick must come within it on a busy machine, too
STUCK = 60.0  # seconds, far above what twenty scrapes take on a slow machine

release = threading.Event()
runs: list[int] = []


def quick() -> Iterable[Metric]:
    runs.append(threading.get_ident())
    return [GaugeMetricFamily("quick", "Answers at once.", 1)]


def quick_too() -> Iterable[Metric]:
    runs.append(threading.get_ident())
    return [GaugeMetricFamily("quick_too", "Answers at once, too.", 1)]


def stuck() -> Iterable[Metric]:
    runs.append(threading.get_ident())
    release.wait(STUCK)
    return [GaugeMetricFamily("stuck", "Answers when released.", 1)]


def failing() -> Iterable[Metric]:
    raise ZeroDivisionError


def lazy() -> Iterator[Metric]:
    yield GaugeMetricFamily("lazy", "Made as it is read.", 1)
    raise ZeroDivisionError


@pytest.fixture(autouse=True)
def _fresh(settings: Settings) -> Iterator[None]:
    settings.METRICS_COLLECTOR_TIMEOUT = TIMEOUT
    collectors.close()
    release.clear()
    runs.clear()
    yield
    release.set()
    collectors.close()


def use(settings: Settings, *functions: Any) -> None:
    settings.METRICS_COLLECTORS = [f"{__name__}.{function.__name__}" for function in functions]


def names() -> list[str]:
    return [family.name for family in collectors.collect()]


def errors(function: Any) -> float:
    return value_of(COLLECTOR_ERRORS.labels(f"{__name__}.{function.__name__}")).get()


def test_a_stuck_collector_is_left_out_by_the_deadline_and_the_others_are_not(settings: Settings) -> None:
    use(settings, stuck, quick)
    before = errors(stuck)
    started = time.monotonic()
    assert names() == ["quick"]
    assert TIMEOUT <= time.monotonic() - started < STUCK / 2
    assert errors(stuck) == before + 1


def test_a_stuck_collector_holds_one_thread_and_delays_one_scrape(settings: Settings) -> None:
    use(settings, stuck, quick)
    names()
    threads, before = threading.active_count(), errors(stuck)
    started = time.monotonic()
    for _ in range(100):
        assert names() == ["quick"]
    assert time.monotonic() - started < 50 * TIMEOUT, "its deadline has passed: nobody waits for it again"
    assert threading.active_count() == threads
    assert errors(stuck) == before + 100
    assert len(set(runs)) == 2 and len(runs) == 1 + 101


def test_a_collector_that_comes_unstuck_is_back_in_the_next_scrape(settings: Settings) -> None:
    use(settings, stuck)
    assert names() == []
    release.set()
    assert eventually(names) == ["stuck"]


def test_collectors_of_a_group_share_a_thread_and_its_deadline(settings: Settings) -> None:
    settings.METRICS_COLLECTORS = [tuple(f"{__name__}.{name}" for name in ("quick", "failing", "quick_too", "stuck"))]
    settings.METRICS_COLLECTORS += [f"{__name__}.quick"]
    before = errors(failing), errors(quick), errors(stuck)
    assert names() == ["quick"], "of a group that is late, nothing is shown"
    assert (errors(failing), errors(quick), errors(stuck)) == tuple(each + 1 for each in before)
    release.set()
    assert eventually(lambda: names() if len(names()) > 1 else None) == ["quick", "quick_too", "stuck", "quick"]
    assert errors(failing) > before[0] + 1, "the others do not suffer from one that fails"
    assert len(set(runs)) == 2


@pytest.mark.parametrize("function", [failing, lazy])
def test_a_failing_collector_is_left_out_and_counted_and_asked_again(
    settings: Settings, function: Any, caplog: pytest.LogCaptureFixture
) -> None:
    use(settings, function, quick)
    before = errors(function)
    assert names() == names() == ["quick"]
    assert errors(function) == before + 2
    assert len(caplog.records) == 2


def test_a_collector_that_is_not_there_is_left_out(settings: Settings) -> None:
    settings.METRICS_COLLECTORS = ["no.such.module", f"{__name__}.quick"]
    assert names() == ["quick"]


def test_collectors_run_side_by_side(settings: Settings) -> None:
    settings.METRICS_COLLECTOR_TIMEOUT = PATIENCE
    use(settings, meeting_one, meeting_two)
    assert names() == ["one", "two"]


meeting = threading.Barrier(2)


def meeting_one() -> Iterable[Metric]:
    meeting.wait(PATIENCE)
    return [GaugeMetricFamily("one", "One.", 1)]


def meeting_two() -> Iterable[Metric]:
    meeting.wait(PATIENCE)
    return [GaugeMetricFamily("two", "Two.", 1)]


def test_scrapes_at_the_same_time_share_a_run(settings: Settings) -> None:
    settings.METRICS_COLLECTOR_TIMEOUT = PATIENCE
    use(settings, stuck)
    found: list[list[str]] = []
    scrapes = [threading.Thread(target=lambda: found.append(names())) for _ in range(5)]
    for scrape in scrapes:
        scrape.start()
    eventually(lambda: runs)
    release.set()
    for scrape in scrapes:
        scrape.join(PATIENCE)
    assert found == [["stuck"]] * 5
    assert len(runs) < 5


def test_a_forked_worker_starts_threads_of_its_own(settings: Settings) -> None:
    settings.METRICS_COLLECTOR_TIMEOUT = PATIENCE
    use(settings, quick)
    names()
    child = os.fork()
    if not child:
        try:
            os._exit(0 if names() == ["quick"] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def value(families: Iterable[Metric]) -> float:
    (family,) = families
    (sample,) = family.samples
    return sample.value


def test_the_cache_ratio_is_of_the_totals() -> None:
    cache.clear()
    hits, misses = value_of(CACHE_HITS).get(), value_of(CACHE_MISSES).get()
    cache.set("here", 1)
    for key in ("here", "here", "here", "away"):
        cache.get(key)
    assert value(collectors.cache_hit_ratio()) == (hits + 3) / (hits + misses + 4)


def of_database() -> dict[str, float]:
    return {family.name: sample.value for family in collectors.database() for sample in family.samples}


@pytest.mark.django_db
def test_connections_to_this_database_are_counted() -> None:
    before = of_database()["database_connections_active"]
    other = connection.copy()
    try:
        other.connect()
        connection.cursor().execute("SELECT pg_stat_clear_snapshot()")  # kept for the length of a transaction
        assert of_database()["database_connections_active"] == before + 1
    finally:
        other.close()


@pytest.mark.django_db
def test_the_limit_of_connections_is_what_the_role_may_use() -> None:
    with connection.cursor() as cursor:

        def shown(name: str) -> int:
            cursor.execute(f"SHOW {name}")
            return int(cursor.fetchone()[0])

        def limit(*changes: str, role: str = "limited") -> float:
            for change in changes:
                cursor.execute(change)
            cursor.execute(f"SET SESSION AUTHORIZATION {role}")
            try:
                return of_database()["database_connections_limit"]
            finally:
                cursor.execute("RESET SESSION AUTHORIZATION")

        most, for_superusers, reserved = (
            shown(name) for name in ("max_connections", "superuser_reserved_connections", "reserved_connections")
        )
        assert for_superusers > 0 and reserved > 0
        assert of_database()["database_connections_limit"] == most, "of the tests' role, a superuser"
        name = connection.settings_dict["NAME"]
        assert limit("CREATE ROLE limited") == most - for_superusers - reserved
        assert limit("GRANT pg_use_reserved_connections TO limited") == most - for_superusers
        assert limit(f'ALTER DATABASE "{name}" CONNECTION LIMIT 7') == 7
        assert limit("ALTER ROLE limited CONNECTION LIMIT 5") == 5
        assert limit("ALTER ROLE limited CONNECTION LIMIT 9") == 7


@pytest.mark.django_db
def test_the_offset_is_that_of_the_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert abs(of_database()["clock_offset_seconds"]) < 0.5 * PATIENCE
    monkeypatch.setattr(collectors, "time", lambda: time.time() + 86_400)
    assert abs(of_database()["clock_offset_seconds"] - 86_400) < 0.5 * PATIENCE


def test_the_offset_is_measured_at_the_middle_of_the_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        """A database whose clock is 5 s ahead, and whose network takes 4 s each way."""

        vendor, now = "postgresql", 1_000.0

        def cursor(self) -> "Slow":
            return self

        def __enter__(self) -> "Slow":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def execute(self, sql: str) -> None:
            self.now += 8

        def fetchone(self) -> tuple[int, None, float]:
            return 1, None, self.now - 4 + 5

    slow = Slow()
    monkeypatch.setattr(collectors, "connections", {"default": slow})
    monkeypatch.setattr(collectors, "time", lambda: slow.now)
    assert of_database() == {"database_connections_active": 1, "clock_offset_seconds": -5}, "no limit is known"


@pytest.mark.django_db
def test_each_query_is_timed_once_also_after_a_reconnection() -> None:
    child = DATABASE_QUERY_DURATION.labels("default")

    def count() -> float:
        return sum(bucket.get() for bucket in buckets_of(child)[1])

    other = connection.copy()
    try:
        for _ in range(2):
            before = count()
            with other.cursor() as cursor:
                cursor.execute("SELECT 1")
                with pytest.raises(Exception, match="no_such_table"):
                    cursor.execute("SELECT * FROM no_such_table")
            assert count() == before + 2
            other.close()
    finally:
        other.close()


# Active users


def page(request: HttpRequest) -> HttpResponse:
    if "look" in request.GET:
        assert request.user is not None
        str(request.user)
    return HttpResponse()


urlpatterns = [path("", page)]


@pytest.fixture
def members(settings: Settings, db: None, monkeypatch: pytest.MonkeyPatch) -> list[Client]:
    """Two signed-in browsers; nobody has been seen yet."""
    settings.ROOT_URLCONF = __name__
    cache.clear()
    monkeypatch.setattr(collectors, "_noted_until", 0.0)
    clients = []
    for number in range(2):
        client = Client()
        client.force_login(get_user_model()._default_manager.create(email=f"user{number}@example.com"))
        clients.append(client)
    return clients


def active() -> float:
    return value(collectors.active_users())


def test_distinct_users_are_counted(members: list[Client]) -> None:
    for client in (*members, *members):
        client.get("/?look")
    Client().get("/?look")
    assert active() == 2


def test_a_request_that_does_not_look_at_its_user_asks_for_none(
    members: list[Client], django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(0):
        members[0].get("/")
    assert active() == 0


def test_a_user_is_noted_once_a_minute_and_after_the_response(
    members: list[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[str] = []
    now = time.monotonic()
    monkeypatch.setattr(RedisCache, "remember", lambda self, name, member, seconds: noted.append(member))
    monkeypatch.setattr(collectors, "monotonic", lambda: now)
    for _ in range(5):
        members[0].get("/?look")
    assert len(noted) == 1
    now += 61
    members[0].get("/?look")
    assert len(noted) == 2


def test_a_visitor_is_nobody() -> None:
    request = HttpRequest()
    request._cached_user = AnonymousUser()  # type: ignore[attr-defined]
    assert collectors.note_user(request) is None
