"""What preflight says of replication while it works and when it does not, and of a server before anything is begun."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from psycopg2 import sql

from deploy.databases import preflight
from deploy.databases.catalogs import read
from deploy.databases.errors import DatabaseError
from deploy.databases.findings import Finding
from deploy.databases.requirements import requirements
from deploy.databases.schemas import compare
from deploy.databases.side import Side
from tests.deploy.databases.conftest import OPTIONS
from tests.deploy.databases.pairs import Pair
from tests.support.servers import Postgres, eventually

TABLE = "create table t (id int primary key, a varchar(5));"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(OPTIONS | {"max_slot_wal_keep_size": "16MB"}) as it:
        yield it


@pytest.fixture
def pair(databases: Pair) -> Iterator[Pair]:
    """Two databases that replicate to each other, guarded."""
    databases.begin(TABLE)
    databases.guard()
    databases.link()
    eventually(lambda: not codes(databases))
    yield databases
    databases.end()


def state(pair: Pair) -> list[Finding]:
    return preflight.state(pair.source, pair.target)[0]


def codes(pair: Pair) -> set[str]:
    return {each.code for each in state(pair)}


def test_nothing_is_found_while_all_works(pair: Pair) -> None:
    assert pair.sent(pair.source, "insert into t values (1, 'x')", "select a from t") == [("x",)]
    assert pair.sent(pair.target, "insert into t values (2, 'y')", "select a from t where id = 2") == [("y",)]
    found, counters = preflight.state(pair.source, pair.target)
    assert found == [] == pair.findings()
    assert preflight.state(pair.source, pair.target, since=counters)[0] == []


def test_tables_that_are_not_guarded_or_not_published_are_refused(pair: Pair) -> None:
    for side in (pair.source, pair.target):
        side.run("alter publication bg_pub set table mark, t (id, a)")
        side.run("create table u (id int primary key); alter table t add b text")
    pair.target.run("create table v (id int primary key); alter publication bg_pub add table v")
    assert {(each.code, each.table, each.column) for each in state(pair)} == {
        ("unguarded", "u", ""),
        ("unpublished", "u", ""),
        ("columns-unpublished", "t", "b"),
        ("unguarded", "v", ""),
        ("published-alone", "v", ""),
    }
    pair.source.run("select setval('bg.fence', 0)")
    with pair.source.session(**{"bg.bypass": "off"}) as app:
        with pytest.raises(DatabaseError, match="fenced"):
            app.run("insert into t values (1)")
        app.run("insert into u values (1)")  # nothing stops it
    pair.source.run("select setval('bg.fence', 1)")
    assert pair.sent(pair.source, "insert into t values (1, 'x', 'y')", "select b from t") == [(None,)]
    assert pair.target.run("select 1 from u") == []
    pair.stops(pair.target, "insert into v values (1)")


def test_a_column_that_the_other_side_does_not_have_must_not_be_published(pair: Pair) -> None:
    pair.source.run("alter table t add b text; alter publication bg_pub set table mark, t")
    assert {(each.code, each.table, each.column) for each in state(pair)} == {("published-alone", "t", "b")}
    pair.stops(pair.source, "insert into t values (1, 'x', 'y')")


def test_a_publication_must_send_everything(pair: Pair) -> None:
    pair.source.run("alter publication bg_pub set (publish = 'insert, update')")
    pair.target.run("alter publication bg_pub set table mark, t where (id > 5)")
    assert [(each.code, each.table) for each in state(pair)] == [
        ("publication-partial", "mark"),
        ("publication-partial", "t"),
        ("publication-partial", "t"),
    ]
    pair.sent(pair.source, "insert into t values (1, 'x'), (9, 'x')", "select 1")
    assert pair.sent(pair.source, "delete from t where id = 9", "select id from t order by id") == [(1,), (9,)]
    assert pair.sent(pair.target, "insert into t values (2, 'y')", "select id from t") == [(1,)]


def test_errors_are_counted_from_the_last_look(pair: Pair) -> None:
    pair.source.run("alter table t add check (length(a) < 4)")
    _, before = preflight.state(pair.source, pair.target)
    pair.stops(pair.target, "insert into t values (1, 'abcd')")
    found, after = preflight.state(pair.source, pair.target, since=before)
    assert "apply-errors" in {each.code for each in found} and "blue" in found[-1].reason
    (looser,) = pair.findings()
    pair.loosen(looser)
    eventually(lambda: pair.source.run("select 1 from t"))
    _, healed = preflight.state(pair.source, pair.target)
    eventually(lambda: not preflight.state(pair.source, pair.target, since=healed)[0])


def test_conflicts_are_counted_but_not_those_of_ordinary_rows(pair: Pair) -> None:
    _, before = preflight.state(pair.source, pair.target)
    pair.sent(pair.source, "insert into t values (1, 'x'), (2, 'x')", "select 1")
    pair.sent(pair.target, "update t set a = 'y'", "select 1")
    pair.sent(pair.source, "update t set a = 'z'", "select 1")
    assert preflight.state(pair.source, pair.target, since=before)[0] == []
    subscription = pair.slot(pair.source)
    pair.target.run(f"alter subscription {subscription} disable")
    for side in (pair.source, pair.target):
        side.run("delete from t where id = 2")
    pair.target.run(f"alter subscription {subscription} enable")
    pair.sync(pair.source)
    found = eventually(
        lambda: [
            each for each in preflight.state(pair.source, pair.target, since=before)[0] if each.code == "conflicts"
        ]
    )
    assert "confl_delete_missing" in found[0].reason


def test_workers_that_are_down_and_slots_that_are_gone_are_refused(pair: Pair) -> None:
    name = pair.slot(pair.source)
    pair.target.run(f"alter subscription {name} disable")
    assert codes(pair) == {"worker-down"}
    pair.drop_slot(pair.source, name)
    assert codes(pair) == {"worker-down", "slot-missing"}
    pair.target.run(f"alter subscription {name} set (slot_name = none); drop subscription {name}")
    assert codes(pair) == {"subscription-missing"}


def test_a_copy_that_goes_on_is_waited_for(pair: Pair) -> None:
    pair.source.run("create table big (id int primary key); alter publication bg_pub add table big")
    pair.source.run("insert into big select generate_series(1, 5)")
    pair.target.run("create table big (id int primary key, check (id < 3)); alter publication bg_pub add table big")
    pair.target.run(f"alter subscription {pair.slot(pair.source)} refresh publication")
    assert {(each.code, each.table) for each in state(pair) if each.code == "copy-unfinished"} == {
        ("copy-unfinished", "big")
    }
    pair.target.run("alter table big drop constraint big_id_check")
    eventually(lambda: "copy-unfinished" not in codes(pair))


def test_transactions_that_stay_open_are_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "LONG", 0.0)
    with pair.source.session() as session:
        session.run("begin")
        session.run("select 1")
        found = [each for each in state(pair) if each.code == "long-transaction"]
        assert found and str(session.value("select pg_backend_pid()")) in found[0].reason
    pair.source.run("begin; insert into t values (1); prepare transaction 'forgotten'")
    assert "forgotten" in str([each.reason for each in state(pair) if each.code == "prepared-transaction"])
    pair.source.run("rollback prepared 'forgotten'")
    assert codes(pair) <= {"long-transaction"}


def test_clocks_must_agree(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "offset", lambda side: {"blue": 0.2, "green": -0.4}[side.colour])
    (found,) = state(pair)
    assert found.code == "clocks" and "0.6 s apart" in found.reason
    monkeypatch.setattr(preflight, "offset", lambda side: {"blue": 0.2, "green": -0.2}[side.colour])
    assert state(pair) == []


def test_a_slot_that_has_lost_its_log_is_refused(pair: Pair) -> None:
    """As when the other side was away for longer than max_slot_wal_keep_size allows."""
    name = pair.slot(pair.source)
    pair.target.run(f"alter subscription {name} disable")
    for _ in range(4):
        pair.source.run("insert into mark select coalesce(max(id), 0) + 2 from mark; select pg_switch_wal()")
    assert "slot-lost" in codes(pair)  # "unreserved" until a checkpoint removes the log
    pair.source.run("checkpoint")
    # The other slot is in the same server, and what it keeps may have grown too long as well.
    (lost,) = (each for each in state(pair) if each.code == "slot-lost" and name in each.reason)
    assert f"{name} of the blue database is lost; expected: reserved" in lost.reason
    assert lost.cure == "Prepare again."
    found = list(preflight.slot_state(pair.source, "bg_x", ("extended", "12 MB")))
    assert [each.code for each in found] == ["slot-lost"] and "12 MB before it is lost" in found[0].reason


def test_versions_before_16_are_refused(server: Postgres) -> None:
    side = Side("blue", server.url)
    new = read(side)
    found = list(compare(new, replace(new, version=150018)))
    assert [each.code for each in found] == ["server-version"] and "PostgreSQL 15" in found[0].reason
    side.close()


def test_a_server_that_lacks_something_says_what(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """The role `app` may do everything; the other one only what it is granted, one by one."""
    admin = Side("blue", server.url)
    assert requirements(admin, installed=["plpgsql"]) == []
    assert [each.code for each in requirements(admin, installed=["plpgsql", "nonsuch"])] == ["extension"]
    admin.run("create table t (id int primary key); create role owner; alter table t owner to owner;")
    admin.run("create role plain login password 'secret'")
    url = server.url.replace(f"app:{server.password}@", "plain:secret@")
    assert url != server.url
    plain = Side("blue", url)
    assert [each.code for each in requirements(plain)] == ["role", "role", "role", "owner"]
    admin.run("alter role plain replication; grant pg_create_subscription to plain; grant owner to plain;")
    admin.run(sql.SQL("grant create on database app to plain"))
    plain.close()
    assert requirements(plain) == []
    monkeypatch.setenv("PGPASSWORD", "secret")
    without = Side("blue", url.replace(":secret@", "@"))
    assert [each.code for each in requirements(without)] == ["password"]
    without.close()
    admin.run("alter role plain superuser")
    plain.close()
    assert requirements(plain) == []
    admin.close()
    plain.close()


def test_a_server_with_too_little_left_is_refused(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.databases.requirements.SLOTS", 100)
    monkeypatch.setattr("deploy.databases.requirements.WORKERS", 100)
    side = Side("green", server.url)
    found = requirements(side)
    side.close()
    assert [each.code for each in found] == ["slots", "slots", "walsenders", "workers", "workers"]
    assert "has 40 of max_wal_senders left; 100 are needed" in found[2].reason


def test_a_server_without_logical_replication_is_refused() -> None:
    """The server of all the other tests, which is set up as PostgreSQL comes."""
    side = Side("green", os.environ["DATABASE_URL"])
    found = {each.code for each in requirements(side)}
    assert ("wal-level" in found) == (side.value("show wal_level") != "logical")
    assert ("wal-unlimited" in found) == (side.value("show max_slot_wal_keep_size") == "-1")
    side.close()
