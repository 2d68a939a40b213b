"""The fence stops every kind of write by every role, as soon as it is set; and who applies changes passes."""

import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest

from deploy.databases import fence
from deploy.databases.errors import DatabaseError
from deploy.databases.side import Side
from tests.support.servers import eventually

TABLES = """
create table t (id int primary key, n int);
create table parted (id int, at date) partition by range (at);
create table parted_26 partition of parted for values from ('2026-01-01') to ('2027-01-01');
create schema other;
create table other."Odd name" (id int);
create table root (id int);
create table child () inherits (root)
"""
WRITES = [
    "insert into t values (1, 1)",
    "update t set n = 2",
    "delete from t",
    "truncate t",
    "truncate parted",
    "with new as (insert into t values (1, 1) returning *) select * from new",
    "merge into t using (values (1)) v(id) on t.id = v.id when not matched then insert values (v.id, 0)",
    "insert into t values (1, 1) on conflict do nothing",
    "insert into t select where false",  # stopped though it would write nothing
    "copy t from program 'echo 1,2' with (format csv)",
    "copy parted from program 'echo 1,2026-05-05' with (format csv)",
    "insert into parted values (1, '2026-05-05')",
    "insert into parted_26 values (1, '2026-05-05')",
    """insert into other."Odd name" values (1)""",
    "insert into child values (1)",
    "do $$ begin insert into t values (1, 1); end $$",
    "update t set n = 2 where id = (select max(id) from parted)",
]


@pytest.fixture
def side(two_databases: tuple[Side, Side]) -> Side:
    """A fenced database with tables, partitions, a schema of its own."""
    side, _ = two_databases
    side.run(TABLES)
    fence.install(side)
    assert len(fence.guard_tables(side)) == 6 and fence.unguarded(side) == []
    return side


@pytest.fixture
def app(side: Side) -> Iterator[Any]:
    """A cursor as the app has one, in autocommit mode."""
    yield from cursor_of(side.url)


def cursor_of(url: str) -> Iterator[Any]:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        yield cursor
    connection.close()


def set_fence(side: Side, value: int) -> None:
    side.run("select setval('bg.fence', %s)", [value])


def test_every_kind_of_write_is_refused_until_the_fence_is_lifted(side: Side, app: Any) -> None:
    for statement in WRITES:
        with pytest.raises(psycopg2.Error) as caught:
            app.execute(statement)
        assert caught.value.pgcode == "BG001", statement
    set_fence(side, 1)
    for statement in WRITES:
        app.execute("begin")
        app.execute(statement)
        app.execute("rollback")


def test_every_role_is_refused_and_needs_no_rights_in_the_schema(side: Side) -> None:
    role = f"{side.value('select current_database()')}_writer"
    side.run(f"create role {role} login password 'secret'; grant insert on t to {role}")
    url = urlsplit(side.url)
    try:
        for cursor in cursor_of(url._replace(netloc=f"{role}:secret@{url.hostname}:{url.port}").geturl()):
            cursor.execute("set search_path = pg_temp")  # what the guard calls is not looked up in it
            with pytest.raises(psycopg2.Error) as caught:
                cursor.execute("insert into public.t values (1, 1)")
            assert caught.value.pgcode == "BG001"
            set_fence(side, 1)
            cursor.execute("insert into public.t values (1, 1)")
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute("select setval('bg.fence', 1)")
    finally:
        side.run(f"drop owned by {role}; drop role {role}")


def test_a_snapshot_from_before_sees_the_fence_of_now(side: Side, app: Any) -> None:
    set_fence(side, 1)
    for level in ("repeatable read", "serializable"):
        app.execute(f"begin isolation level {level}")
        app.execute("select count(*) from t")
        set_fence(side, 0)
        with pytest.raises(psycopg2.Error) as caught:
            app.execute("insert into t values (1, 1)")
        assert caught.value.pgcode == "BG001"
        app.execute("rollback")
        set_fence(side, 1)


def test_a_transaction_that_wrote_holds_the_lock_to_its_end(side: Side, app: Any) -> None:
    set_fence(side, 1)
    taken = "select pg_try_advisory_lock(7220001)"
    app.execute("begin")
    app.execute("insert into t values (1, 1)")
    assert side.value(taken) is False
    app.execute("select 1")
    assert side.value(taken) is False
    app.execute("commit")
    assert side.value(taken) is True


def test_a_migration_passes_with_the_bypass(side: Side, app: Any) -> None:
    app.execute("set bg.bypass = on")
    app.execute("insert into t values (1, 1)")
    app.execute("create table passed ()")


def test_ddl_is_refused_behind_the_fence(side: Side, app: Any) -> None:
    assert fence.refuses_ddl(side)
    for statement in (
        "create table late ()",
        "alter table t add column late int",
        "drop table t",
        "create index on t (n)",
    ):
        with pytest.raises(psycopg2.Error) as caught:
            app.execute(statement)
        assert caught.value.pgcode == "BG001"
    set_fence(side, 1)
    app.execute("create index on t (n)")


def test_who_is_no_superuser_has_a_fence_without_the_event_trigger(two_databases: tuple[Side, Side]) -> None:
    side, _ = two_databases
    name = side.value("select current_database()")
    role = f"{name}_owner"
    side.run(f"create role {role} login password 'secret'; alter database {name} owner to {role}")
    url = urlsplit(side.url)
    owner = Side("blue", url._replace(netloc=f"{role}:secret@{url.hostname}:{url.port}").geturl())
    try:
        owner.run("create schema app; create table app.t (n int)")
        fence.install(owner, writable=True)
        assert fence.guard_tables(owner) == [("app", "t")] and not fence.refuses_ddl(owner)
        assert fence.read(owner).writable
    finally:
        owner.close()
        side.run(f"alter database {name} owner to app; drop owned by {role} cascade; drop role {role}")


def test_unguarded_tables_are_found(side: Side) -> None:
    side.run(
        "create table later (n int); create table parted_27 partition of parted default; create temp table mine ()"
    )
    assert fence.unguarded(side) == [("public", "later"), ("public", "parted_27")]
    assert fence.guard_tables(side) == [("public", "later"), ("public", "parted_27")]
    side.run("alter table t disable trigger bg_guard")
    side.run('drop trigger bg_guard on other."Odd name"')
    side.run("create or replace trigger bg_guard before insert on later for each statement execute function bg.guard()")
    assert fence.unguarded(side) == [("other", "Odd name"), ("public", "later"), ("public", "t")]


def test_installed_again_it_keeps_its_state(two_databases: tuple[Side, Side]) -> None:
    side, other = two_databases
    for database in (side, other):
        with pytest.raises(DatabaseError, match="is not prepared. Run manage.py bluegreen prepare."):
            fence.read(database)
    fence.install(side, writable=True)
    fence.install(other)
    assert fence.read(side) == fence.FenceState(True, 0, "active")
    assert fence.read(other) == fence.FenceState(False, 0, "standby")
    side.run("update bg.state set attempt = 7, phase = 'fencing'")
    set_fence(side, 0)
    fence.install(side, writable=True)
    assert fence.read(side) == fence.FenceState(False, 7, "fencing")


def test_a_busy_table_is_guarded_later_and_its_writers_hardly_wait(two_databases: tuple[Side, Side]) -> None:
    side, _ = two_databases
    side.run("create table t (n int)")
    fence.install(side, writable=True)
    with side.session() as busy:
        busy.run("begin; insert into t values (1)")
        with pytest.raises(DatabaseError, match="Table public.t of the blue database was locked for 0 s"):
            fence.guard_tables(side, patience=0)
        guarding = threading.Thread(target=fence.guard_tables, args=(side,))
        guarding.start()
        waiting = "select exists (select from pg_locks where not granted)"
        for cursor in cursor_of(side.url):
            eventually(lambda: busy.value(waiting))
            cursor.execute("insert into t values (2)")
        busy.run("commit")
    guarding.join()
    assert fence.unguarded(side) == []


def test_a_fingerprint_tells_which_tables_have_changed(side: Side) -> None:
    assert fence.changed_tables(side) == []  # nothing to compare with
    fence.remember_tables(side)
    side.run("insert into t values (1, 1); truncate t")
    side.run("vacuum analyze t")
    side.run("create index on t (n)")  # decides nothing about rows
    assert fence.changed_tables(side) == []
    for statement, table in (
        ("alter table t add column later text", "public.t"),
        ("alter table t alter column n type bigint", "public.t"),
        ("alter table t alter column n set not null", "public.t"),
        ("alter table t alter column n set default 4", "public.t"),
        ("alter table t rename column n to m", "public.t"),
        ("alter table t add check (m > 0)", "public.t"),
        ("create unique index on t (m)", "public.t"),
        ("alter table t disable trigger bg_guard", "public.t"),
        ("alter table t enable row level security", "public.t"),
        ("create table later ()", "public.later"),
        ("drop table later", "public.later"),
        ('alter table other."Odd name" replica identity full', "other.Odd name"),
    ):
        side.run(statement)
        assert fence.changed_tables(side) == [table], statement
        fence.remember_tables(side)


def test_removed_it_stops_nothing(side: Side, app: Any) -> None:
    fence.remove(side)
    app.execute("insert into t values (1, 1)")
    app.execute("create table later ()")
    assert side.value("select count(*) from pg_trigger where tgname = 'bg_guard'") == 0
    assert side.value("select to_regnamespace('bg')") is None
