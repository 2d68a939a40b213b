"""The app's backend for a database per colour: writes move to the colour that takes them, none lost, none doubled."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import Any

import psycopg2
import pytest
from django.core.signals import request_finished
from django.db import OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test.utils import CaptureQueriesContext
from psycopg2 import sql
from psycopg2.extensions import ISOLATION_LEVEL_REPEATABLE_READ
from pytest_django import DjangoDbBlocker

from backstagetest1.bluegreen import base
from backstagetest1.errors import database_is_unavailable
from deploy.databases import links, statements
from deploy.databases.side import APPLICATION, Side
from health import checks, databases, runner
from health.reasons import Reason, Unhealthy
from settings.services import postgresql
from tests.deploy.databases.fences import flip, prepare
from tests.support.servers import PATIENCE, Postgres, eventually, free_port, frozen

pytestmark = pytest.mark.slow

ALIAS = "colours"
ROWS = "select string_agg(n::text, ',' order by n) from t"


class Colours:
    """Two databases with a table `t` and a fence each; blue's is open."""

    def __init__(self, blue: Side, green: Side) -> None:
        self.blue, self.green = blue, green
        for side in (blue, green):
            side.run("create table t (n int); create table django_migrations (n int)")
            prepare(side)
        flip(blue, True)

    def to_green(self) -> None:
        flip(self.blue, False)
        flip(self.green, True)

    def to_blue(self) -> None:
        flip(self.green, False)
        flip(self.blue, True)

    def rows(self) -> tuple[str | None, str | None]:
        """What is in `t`, of blue and of green."""
        return self.blue.value(ROWS), self.green.value(ROWS)


@pytest.fixture(autouse=True, scope="module")
def connections_are_allowed(django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    with django_db_blocker.unblock():
        yield


@pytest.fixture
def colours(two_databases: tuple[Side, Side]) -> Iterator[Colours]:
    yield Colours(*two_databases)


@contextmanager
def connected(colours: Colours, **settings: Any) -> Iterator[Any]:
    """The app's connection to the two databases, under the alias of this module."""
    common, options = settings.pop("common", {}), settings.pop("options", {})
    entries = {
        side.colour: postgresql("DATABASE_URL", side.url) | common | settings.pop(side.colour, {})
        for side in (colours.blue, colours.green)
    }
    own = {"ENGINE": "backstagetest1.bluegreen", "COLOURS": entries, "HOLD_LIMIT": 1.0, "OWN": "", "AUTOCOMMIT": True}
    entry = entries["blue"] | own | {"ATOMIC_REQUESTS": False, "TIME_ZONE": None, "TEST": {}} | settings
    for each in entries.values():
        each["OPTIONS"] = each["OPTIONS"] | options
    connections.settings[ALIAS] = entry
    try:
        yield connections[ALIAS]
    finally:
        connections[ALIAS].close()
        del connections[ALIAS]
        del connections.settings[ALIAS]
        base._writable.pop(ALIAS, None)
        for colour in entries:
            base._retry_at.pop((ALIAS, colour), None)


@pytest.fixture
def app(colours: Colours) -> Iterator[Any]:
    with connected(colours) as connection:
        yield connection


def insert(app: BaseDatabaseWrapper, *numbers: int) -> None:
    with app.cursor() as cursor:
        for number in numbers:
            cursor.execute("insert into t values (%s)", [number])


def alone(number: int) -> None:
    insert(connections[ALIAS], number)


def atomically(number: int) -> None:
    with transaction.atomic(using=ALIAS):
        insert(connections[ALIAS], number)


def in_thread(work: Callable[[], None]) -> Callable[[], None]:
    """Starts `work` in a thread. Returns a function that waits for its end, and raises what it raised."""
    pool = ThreadPoolExecutor(1)

    def whole() -> None:
        try:
            work()
        finally:
            connections[ALIAS].close()

    future = pool.submit(whole)
    pool.shutdown(wait=False)
    return lambda: future.result(PATIENCE)


def hold_lock(side: Side) -> Side:
    """A session that holds the lock for which a switch waits."""
    holder = Side(side.colour, side.url)
    holder.run("select pg_advisory_lock(%s)", [statements.LOCK])
    return holder


def request_begins(app: BaseDatabaseWrapper) -> None:
    """What Django does at the start and at the end of each request."""
    app.close_if_unusable_or_obsolete()


def test_statements_and_transactions_move_to_the_colour_that_takes_writes(colours: Colours, app: Any) -> None:
    insert(app, 1)
    with transaction.atomic(using=ALIAS):
        insert(app, 2, 3)
    colours.to_green()
    insert(app, 4)
    colours.to_blue()
    with transaction.atomic(using=ALIAS):
        insert(app, 5, 6)
    colours.to_green()
    with transaction.atomic(using=ALIAS):
        with transaction.atomic(using=ALIAS):  # whose savepoint is the transaction's first statement
            insert(app, 7)
    assert colours.rows() == ("1,2,3,5,6", "4,7")


def test_begin_and_enter_cost_no_message_of_their_own(colours: Colours, app: Any) -> None:
    with CaptureQueriesContext(app) as queries, transaction.atomic(using=ALIAS):
        insert(app, 1, 2)
    sent = [query["sql"] for query in queries]
    assert sent == ["BEGIN", "select bg.enter(); insert into t values (1)", "insert into t values (2)", "COMMIT"]


def test_a_cursor_made_before_the_move_follows_and_results_are_read_to_their_end(colours: Colours, app: Any) -> None:
    insert(app, 1, 2)
    colours.green.run("set bg.bypass = 'on'; insert into t values (1), (2)")
    with app.cursor() as first, app.cursor() as second:
        first.execute("select n from t order by n")
        assert first.fetchone() == (1,)
        colours.to_green()
        second.execute("insert into t values (3)")
        assert app.colour == "green" and first.fetchone() == (2,)
        first.execute("insert into t values (4)")
        second.execute("select count(*) from t")
        assert app.colour == "green" and second.fetchone() == (4,)
    assert colours.rows() == ("1,2", "1,2,3,4")


@pytest.mark.parametrize("atomic", [True, False])
def test_server_side_cursors_are_read_to_their_end_and_enter_first(colours: Colours, app: Any, atomic: bool) -> None:
    insert(app, *range(10))
    colours.green.run("set bg.bypass = 'on'; insert into t select generate_series(0, 9)")
    with nullcontext() if atomic else app.chunked_cursor() as cursor:
        if cursor:  # outside a transaction, where a write may move while its rows are read
            cursor.execute("select n from t order by n")
            assert cursor.fetchmany(2) == [(0,), (1,)]
        colours.to_green()
        if cursor:
            insert(app, 10)
            assert cursor.fetchmany(2) == [(2,), (3,)]
    with transaction.atomic(using=ALIAS), app.chunked_cursor() as cursor:
        cursor.execute("select n from t where n < 3 order by n for update")
        assert app.colour == "green", "a cursor's transaction enters, too"
        assert cursor.fetchmany(2) == [(0,), (1,)] and cursor.fetchall() == [(2,)]


def test_a_batch_outside_a_transaction_goes_on_with_the_refused_row(colours: Colours, app: Any) -> None:
    def rows() -> Iterator[tuple[int]]:
        for number in range(6):
            if number == 3:
                colours.to_green()
            yield (number,)

    with app.cursor() as cursor:
        cursor.executemany("insert into t values (%s)", rows())
    assert colours.rows() == ("0,1,2", "3,4,5")


def test_a_batch_in_a_transaction_enters_before_its_first_row(colours: Colours, app: Any) -> None:
    insert(app, 0)
    colours.to_green()
    with transaction.atomic(using=ALIAS), app.cursor() as cursor:
        cursor.executemany("insert into t values (%s)", [(1,), (2,)])
    assert colours.rows() == ("0", "1,2")


def test_a_function_is_called_where_writes_are_taken(colours: Colours, app: Any) -> None:
    for side in (colours.blue, colours.green):
        side.run("create function put(n int) returns int language sql as 'insert into t values (n) returning n'")
    for number in (1, 2):
        with app.cursor() as cursor:
            cursor.callproc("put", [number])
            assert cursor.fetchone() == (number,)
        with transaction.atomic(using=ALIAS), app.cursor() as cursor:
            cursor.callproc("put", [number + 10])
        colours.to_green()
    assert colours.rows() == ("1,11", "2,12")


def test_what_may_have_committed_by_itself_is_not_repeated(colours: Colours, app: Any) -> None:
    for side in (colours.blue, colours.green):
        side.run(
            "create procedure half() language plpgsql as $$begin"
            " commit; insert into t values (1); end$$; create table u (n int)"
        )
    with app.cursor() as cursor:
        cursor.execute("call half()")
        colours.to_green()
        with pytest.raises(base.Fenced):
            cursor.execute("call half()")
    assert colours.rows() == ("1", None)


def test_a_repeatable_read_transaction_sees_the_fence_of_now(colours: Colours) -> None:
    with connected(colours, options={"isolation_level": ISOLATION_LEVEL_REPEATABLE_READ}) as app:
        insert(app, 0)
        with transaction.atomic(using=ALIAS), app.cursor() as cursor:
            cursor.execute("show transaction_isolation")
            assert cursor.fetchone() == ("repeatable read",)
        held = hold_lock(colours.blue)  # as a switch does, so that the snapshot is older than the fence's new value
        thread = in_thread(lambda: atomically(2))
        assert eventually(lambda: colours.blue.value("select count(*) from pg_locks where not granted") == 1)
        colours.blue.run("select setval('bg.fence', 0)")
        flip(colours.green, True)
        held.close()
        thread()
    assert colours.rows() == ("0", "2")


def test_set_transaction_comes_before_entering_also_after_a_move(colours: Colours, app: Any) -> None:
    insert(app, 0)
    colours.to_green()
    with transaction.atomic(using=ALIAS), app.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        insert(app, 1)
        cursor.execute("show transaction_isolation")
        assert cursor.fetchone() == ("serializable",)
    assert colours.rows() == ("0", "1")


def test_on_commit_runs_once_and_durable_and_rollback_mean_what_they_mean(colours: Colours, app: Any) -> None:
    done: list[int] = []
    insert(app, 0)
    colours.to_green()
    with transaction.atomic(using=ALIAS, durable=True):
        transaction.on_commit(lambda: done.append(1), using=ALIAS)
        insert(app, 1)
        with pytest.raises(RuntimeError, match="durable"), transaction.atomic(using=ALIAS, durable=True):
            pass
        assert done == []
    with suppress(LookupError), transaction.atomic(using=ALIAS):
        transaction.on_commit(lambda: done.append(2), using=ALIAS)
        insert(app, 2)
        raise LookupError
    with transaction.atomic(using=ALIAS):
        insert(app, 3)
        with suppress(LookupError), transaction.atomic(using=ALIAS):
            insert(app, 4)
            raise LookupError
    assert done == [1] and colours.rows() == ("0", "1,3")


def test_manual_transactions_enter_each_time(colours: Colours, app: Any) -> None:
    app.set_autocommit(False)
    insert(app, 1)
    app.commit()
    colours.to_green()
    insert(app, 2)
    app.rollback()
    colours.to_blue()
    insert(app, 3)
    app.commit()
    app.set_autocommit(True)
    assert colours.rows() == ("1,3", None)


def test_select_for_update_holds_the_switch_until_the_transaction_ends(colours: Colours, app: Any) -> None:
    insert(app, 1)
    with transaction.atomic(using=ALIAS), app.cursor() as cursor:
        cursor.execute("select n from t for update")
        tried = "select pg_try_advisory_lock(7220001)"
        with colours.blue.session() as session:
            assert session.value(tried) is False
    with colours.blue.session() as session:
        assert session.value(tried) is True


def test_a_write_waits_while_no_colour_takes_any_and_goes_where_it_may(colours: Colours) -> None:
    with connected(colours, HOLD_LIMIT=PATIENCE) as app:
        insert(app, 1)
        flip(colours.blue, False)
        threads = [in_thread(lambda: alone(2)), in_thread(lambda: atomically(3))]
        waiting = "select count(*) from pg_stat_activity where datname = current_database() and query like '%bg.fence%'"
        assert eventually(lambda: colours.green.value(waiting) >= 2)
        flip(colours.green, True)
        for thread in threads:
            thread()
        colours.to_blue()
        insert(app, 4)
        assert colours.rows() == ("1,4", "2,3")


def test_after_the_limit_the_error_says_what_is_wrong_and_nothing_was_written(colours: Colours) -> None:
    with connected(colours, HOLD_LIMIT=0.2) as app:
        flip(colours.blue, False)
        with pytest.raises(OperationalError, match="Neither colour's database took writes for 0.2 s") as caught:
            insert(app, 1)
        assert database_is_unavailable(caught.value), "answered with 503 and Retry-After"
        with pytest.raises(base.Fenced), transaction.atomic(using=ALIAS):
            insert(app, 2)
        flip(colours.blue, True)
        insert(app, 3)
    assert colours.rows() == ("3", None)


def test_reads_move_at_the_first_query_of_the_next_request(colours: Colours, app: Any) -> None:
    colours.green.run("set bg.bypass = 'on'; insert into t values (5)")
    with app.cursor() as cursor:
        cursor.execute("select n from t")
        assert cursor.fetchall() == []
        colours.to_green()
        cursor.execute("select n from t")
        assert cursor.fetchall() == [], "a request keeps to the colour that it has read from, until it writes"
    request_begins(app)
    with app.cursor() as cursor:
        cursor.execute("select n from t")
        assert cursor.fetchall() == [(5,)]
    flip(colours.green, False)
    request_begins(app)
    with app.cursor() as cursor:
        cursor.execute("select n from t")
        assert cursor.fetchall() == [(5,)], "while no colour takes writes, reads go on where they were"


def test_a_standby_is_kept_after_a_request_so_that_moving_connects_to_nothing(colours: Colours, app: Any) -> None:
    insert(app, 1)
    assert not app.standby
    request_finished.send(sender=None)
    standby, here = app.standby, app.connection
    assert standby is not None
    colours.to_green()
    insert(app, 2)
    assert app.connection is standby and app.standby is here
    with colours.blue.session() as session:  # an administrator, or a timeout in between, ends the old one
        session.run(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name <> %s and datname ="
            " current_database()",
            [APPLICATION],
        )
    colours.to_blue()
    insert(app, 3)
    assert colours.rows() == ("1,3", "2")


def test_both_connections_end_when_their_age_is_reached(colours: Colours) -> None:
    with connected(colours, common={"CONN_MAX_AGE": 0}) as app:
        insert(app, 1)
        base.keep_standbys()
        here, standby = app.connection, app.standby
        request_begins(app)
        assert app.connection is None and app.standby is None and here.closed and standby.closed


def test_each_thread_has_connections_of_its_own_and_starts_with_the_right_colour(colours: Colours, app: Any) -> None:
    insert(app, 1)
    colours.to_green()
    insert(app, 2)
    found: list[str] = []

    def look() -> None:
        insert(connections[ALIAS], 3)
        own: Any = connections[ALIAS]
        found.append(own.colour)
        assert own.connection is not app.connection and own.standby is None

    in_thread(look)()
    assert found == ["green"] and colours.rows() == ("1", "2,3")


def test_an_app_that_starts_later_finds_the_colour(colours: Colours) -> None:
    colours.to_green()
    with connected(colours) as app:
        with app.cursor() as cursor:
            cursor.execute("select current_database()")
            assert cursor.fetchone()[0].endswith("_green") and app.settings_dict["NAME"].endswith("_green")


def test_before_preparation_the_database_with_tables_is_used_and_two_of_them_are_refused(
    two_databases: tuple[Side, Side],
) -> None:
    blue, green = two_databases
    bare = object.__new__(Colours)
    bare.blue, bare.green = blue, green
    with connected(bare) as app, app.cursor() as cursor:
        cursor.execute("select current_database()")
        assert cursor.fetchone()[0].endswith("_blue"), "both are empty"
    green.run("create table django_migrations (n int); create table t (n int)")
    with connected(bare) as app:
        insert(app, 1)
        assert app.settings_dict["NAME"].endswith("_green")
        prepare(green)
        flip(green, True)
        request_begins(app)
        insert(app, 2)
        assert app.guarded, "the fence is noticed at the next request"
    green.run("drop schema bg cascade")
    blue.run("create table django_migrations (n int)")
    with connected(bare) as app, pytest.raises(OperationalError, match="Neither database has a fence"):
        insert(app, 3)


@pytest.mark.parametrize("down", ["blue", "green"])
def test_one_colour_that_is_down_at_the_start_does_not_matter(colours: Colours, down: str) -> None:
    up = "green" if down == "blue" else "blue"
    colours.to_green() if up == "green" else colours.to_blue()
    with connected(colours, **{down: {"PORT": free_port()}}) as app:
        insert(app, 1)
        base.keep_standbys()
        assert app.colour == up and app.standby is None
        request_begins(app)
        insert(app, 2)
    assert sorted(colours.rows(), key=str) == ["1,2", None]


def test_reads_go_on_if_the_colour_that_takes_writes_is_down_at_the_start(colours: Colours) -> None:
    with connected(colours, blue={"PORT": free_port()}, HOLD_LIMIT=0.1) as app, app.cursor() as cursor:
        cursor.execute("select 1")
        assert cursor.fetchone() == (1,)
        with pytest.raises(base.Fenced):
            cursor.execute("insert into t values (1)")


@pytest.mark.parametrize("how", ["frozen", "stopped"])
def test_a_colour_that_was_left_and_does_not_answer_holds_nobody(
    clusters: tuple[Postgres, Postgres], sides: tuple[Side, Side], how: str
) -> None:
    colours = Colours(*sides)
    with connected(colours) as app:
        insert(app, 1)
        base.keep_standbys()
        colours.to_green()
        with frozen(clusters[0]) if how == "frozen" else stopped(clusters[0], colours.blue):
            request_begins(app)
            started = time.monotonic()
            with app.cursor() as cursor:
                cursor.execute("select 1")
            assert app.colour == "green" and time.monotonic() - started < 60, "a frozen server would never answer"
            insert(app, 2)
            request_begins(app)
            base.keep_standbys()
            assert not app.standby
            insert(app, 3)
    assert colours.rows() == ("1", "2,3")


def test_a_transaction_that_has_not_written_yet_moves_if_the_standby_was_cut(
    clusters: tuple[Postgres, Postgres], sides: tuple[Side, Side]
) -> None:
    colours = Colours(*sides)
    with connected(colours) as app:
        insert(app, 1)
        base.keep_standbys()
        with stopped(clusters[1], colours.green):
            pass
        colours.to_green()
        atomically(2)
    assert colours.rows() == ("1", "2")


@contextmanager
def stopped(server: Postgres, side: Side) -> Iterator[None]:
    """`server` stopped for as long as the block lasts. It cuts all connections."""
    server.stop()
    side.close()
    try:
        yield
    finally:
        server.start()


@pytest.fixture
def probe(app: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[databases.ColoursProbe]:
    """What the health checks ask."""
    found = databases.ColoursProbe(
        {colour: databases.plain(each) for colour, each in app.parameters_by_colour().items()}, app.fence_query
    )
    monkeypatch.setattr(databases, "database_probe", lambda: found)
    yield found
    found.close()


def test_the_database_check_is_that_of_the_colour_that_takes_writes(
    colours: Colours, probe: databases.ColoursProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = checks.Database()
    check.run()
    assert check.note == "blue"
    colours.to_green()
    check.run()
    assert check.note == "green"
    read_only = sql.SQL("alter database {} set default_transaction_read_only = on")
    colours.green.run(read_only.format(sql.Identifier(colours.green.value("select current_database()"))))
    probe.close()
    with pytest.raises(Unhealthy) as caught:
        check.run()
    assert caught.value.reason is Reason.READ_ONLY
    colours.to_blue()
    check.run()
    assert check.note == "blue", "what is wrong with the other colour does not matter"
    flip(colours.blue, False)
    check.run()  # as during each switch
    monkeypatch.setattr(databases, "SHUT_AFTER", 0)
    with pytest.raises(Unhealthy, match="neither colour's database takes writes"):
        check.run()


@pytest.mark.parametrize("colour", ["blue", "green"])
def test_the_database_check_fails_if_the_colour_that_takes_writes_is_down_alone(colours: Colours, colour: str) -> None:
    with connected(colours, **{colour: {"PORT": free_port()}}) as app:
        found = databases.ColoursProbe(
            {each: databases.plain(parameters) for each, parameters in app.parameters_by_colour().items()},
            app.fence_query,
        )
        if colour == "green":
            assert found.rows("select 1") == [(1,)]
        else:
            with pytest.raises(psycopg2.OperationalError, match="refused"):
                found.rows("select 1")
        found.close()


def test_the_migrations_of_either_colour_are_enough(colours: Colours, probe: databases.ColoursProbe) -> None:
    for side in (colours.blue, colours.green):
        side.run("drop table django_migrations; create table django_migrations (app text, name text)")
    check = checks.Migrations()
    with pytest.raises(Unhealthy):
        check.run()
    fill = "insert into django_migrations values (%s, %s)"
    for key in check.needed:
        colours.green.run(fill, key)
    check.run()


def test_a_report_says_which_colour_takes_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = runner.Report(datetime.now(UTC), {"database": runner.Result(None, 0.1, "green")})
    assert found.as_dict()["notes"] == {"database": "green"}
    found = runner.Report(datetime.now(UTC), {"database": runner.Result(None, 0.1)})
    assert "notes" not in found.as_dict()


def link(colours: Colours, target: str) -> None:
    """Notes on both sides that `target` was prepared for a release, as prepare does; nothing ends that."""
    for side in (colours.blue, colours.green):
        links.forget(side, "link")
        if target:
            links.note(side, "link", "link", f'{{"target": "{target}"}}')


def served_by(app: Any) -> str:
    """The colour whose database the reads of a new request use."""
    request_begins(app)
    with app.cursor() as cursor:
        cursor.execute("select current_database()")
        name: str = cursor.fetchone()[0]
    colour: str = app.colour
    assert name in app.colours[colour]["NAME"]
    return colour


def test_a_release_in_its_trial_reads_its_own_database_and_writes_to_the_other_one(colours: Colours) -> None:
    colours.green.run("alter table t add column new int default 7")
    link(colours, "green")
    with connected(colours, OWN="green") as app:
        with app.cursor() as cursor:
            cursor.execute("select new from t")  # which blue has not
        assert app.colour == "green"
        for number, write in enumerate((alone, atomically)):
            write(number)
            assert app.colour == "blue", "what it has written it also reads, in this request"
            assert served_by(app) == "green"
        assert colours.rows() == ("0,1", None)
        app.close()
        assert served_by(app) == "green", "so do workers that start later"
        colours.to_green()
        alone(2)
        assert served_by(app) == "green"
        colours.to_blue()  # rolled back: the traffic has left it
        assert served_by(app) == "green"
        link(colours, "")
        assert served_by(app) == "blue", "finalized"


def test_the_release_before_follows_the_fence_whatever_its_own_colour(colours: Colours) -> None:
    link(colours, "green")
    with connected(colours, OWN="blue") as app:
        assert served_by(app) == "blue"
        colours.to_green()
        assert served_by(app) == "green"
        app.close()
        assert served_by(app) == "green", "so do workers that start later"
        colours.to_blue()
        assert served_by(app) == "blue"


def test_a_release_in_its_trial_whose_own_database_is_down_uses_the_other_one(colours: Colours) -> None:
    link(colours, "green")
    with connected(colours, OWN="green", green={"PORT": free_port()}) as app:
        assert served_by(app) == "blue"
        alone(1)
        assert served_by(app) == "blue"
    assert colours.rows() == ("1", None)
