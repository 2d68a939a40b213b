"""Conditions of preflight that few databases meet: with real rows where rows decide, with made-up answers elsewhere."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from deploy.databases import fence, preflight, statements
from deploy.databases.casts import Change, change
from deploy.databases.catalogs import Sequence, read
from deploy.databases.requirements import server
from deploy.databases.schemas import sequence
from deploy.databases.side import Side
from tests.deploy.databases.conftest import OPTIONS
from tests.deploy.databases.pairs import Pair
from tests.support.servers import Postgres, eventually

T = "create table t (id int primary key, a int);"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    with Postgres(OPTIONS) as it:
        yield it


@pytest.fixture(scope="module", name="server")
def same(cluster: Postgres) -> Postgres:
    """The server of the fixture `databases`."""
    return cluster


@pytest.fixture
def pair(databases: Pair) -> Iterator[Callable[..., Pair]]:
    """Makes the given schema in both databases, or one in each."""
    yield databases.begin
    databases.end()


# Unique columns that one side lacks


@pytest.mark.parametrize(
    ("change", "collides"),
    [
        ("add b text unique", False),
        ("add b text, add unique nulls not distinct (b)", True),
        ("add b text default 'x' unique", True),
        ("add b uuid default gen_random_uuid() unique", False),
        ("add b text, add unique nulls not distinct (b, a)", False),
    ],
)
def test_a_unique_column_that_one_side_lacks_collides_at_the_second_row(
    pair: Callable[..., Pair], change: str, collides: bool
) -> None:
    it = pair(T)
    it.release(f"alter table t {change}")
    assert ("default-collides" in it.codes()) == collides
    it.link()
    it.sent(it.target, "insert into t (id, a, b) values (9, 9, 'd2a0c24e-6a0a-4a5e-9d54-c0ffee000000')", "select 1")
    if collides:
        it.stops(it.source, "insert into t values (1, 1), (2, 2)")
    else:
        assert it.sent(it.source, "insert into t values (1, 1), (2, 2)", "select count(*) from t") == [(3,)]


# Guards


@pytest.mark.parametrize(
    "damage",
    [
        "alter table t disable trigger bg_guard",
        "alter table t enable replica trigger bg_guard",
        "alter table t enable always trigger bg_guard",
        "drop trigger bg_guard on t;"
        "create trigger bg_guard before insert or update or delete on t for each row execute function bg.guard();"
        "create trigger other before truncate on t for each statement execute function bg.guard()",
        "drop trigger bg_guard on t;"
        "create trigger bg_guard before insert or update or delete on t for each statement execute function bg.guard()",
    ],
)
def test_a_guard_that_does_not_stop_everything_is_none(pair: Callable[..., Pair], damage: str) -> None:
    it = pair(T)
    it.guard()
    assert [each for each in preflight.links(*it.catalogs()) if each.code == "unguarded"] == []
    it.target.run(damage)
    found = [each.table for each in preflight.links(*it.catalogs()) if each.code == "unguarded"]
    assert found == ["t"] and fence.unguarded(it.target) == [("public", "t")]
    assert fence.guard_tables(it.target) == [("public", "t")] and fence.unguarded(it.target) == []


def test_a_guard_that_always_fires_stops_replicated_truncates(pair: Callable[..., Pair]) -> None:
    it = pair(T)
    it.guard()
    it.link()
    it.source.run("insert into t values (1, 1)")
    it.sync(it.source)
    it.target.run("select setval('bg.fence', 0)")
    assert it.sent(it.source, "truncate t", "select count(*) from t") == [(0,)]
    it.target.run("alter table t enable always trigger bg_guard")
    it.stops(it.source, "truncate t")
    fence.guard_tables(it.target)
    eventually(lambda: it.errors(it.source) >= 1)
    it.sync(it.source)


@pytest.mark.parametrize(("enabled", "refused"), [("", False), ("always", True), ("replica", True)])
def test_triggers_that_fire_for_replicated_rows_are_refused(
    pair: Callable[..., Pair], enabled: str, refused: bool
) -> None:
    it = pair(
        T + "create function f() returns trigger language plpgsql as $$begin new.a = new.a + 1; return new; end$$;"
        "create trigger f before insert on t for each row execute function f();"
    )
    if enabled:
        it.target.run(f"alter table t enable {enabled} trigger f")
    assert ("trigger-always" in it.codes()) == refused
    it.link()
    assert it.sent(it.source, "insert into t values (1, 1)", "select a from t") == [(3 if refused else 2,)]


# Constraints that are not validated


def test_a_check_that_is_not_validated_is_the_same_rule_and_stops_what_is_new(pair: Callable[..., Pair]) -> None:
    it = pair(T + "insert into t values (1, -1);", T + "alter table t add constraint c check (a > 0) not valid;")
    assert "check-new" in it.codes()
    it.source.run("delete from t; alter table t add constraint other check (a > 0)")
    assert it.codes() == set(), "the name does not matter, nor does the validation"
    it.source.run("alter table t drop constraint other")
    it.link()
    it.stops(it.source, "insert into t values (2, -2)")


def test_a_foreign_key_that_is_not_validated_promises_nothing_of_the_rows_there(pair: Callable[..., Pair]) -> None:
    it = pair(T + "create table p (id int primary key); insert into t values (1, 7);")
    it.release("alter table t add constraint k foreign key (a) references p not valid")
    assert it.codes() == {"foreign-key-new"}
    it.target.run(
        "insert into p values (7); alter table t validate constraint k; delete from t; insert into t values (1, 7)"
    )
    it.link()
    assert it.codes() == {"foreign-key-new"}
    it.sent(it.source, "insert into t values (2, 8)", "select 1")
    assert "orphans" in it.codes()
    it.source.run("alter table t add constraint k foreign key (a) references p not valid")
    assert it.codes() == set(), "both sides have it"


# Counters


def test_what_counts_as_a_conflict() -> None:
    told = {
        "subid": 16400,
        "subname": "bg_0_f",
        "apply_error_count": 2,
        "sync_error_count": 0,
        "confl_insert_exists": 3,
        "confl_update_origin_differs": 900,
        "confl_delete_missing": None,
        "stats_reset": None,
    }
    assert preflight.numbers(told) == {"apply_error_count": 2, "sync_error_count": 0, "confl_insert_exists": 3}
    side = Side("green", "")
    grown = list(preflight.grown(side, "bg_0_f", {"apply_error_count": 2, "confl_x": 3}, {"apply_error_count": 2}))
    assert [each.code for each in grown] == ["conflicts"] and "3 more of confl_x" in grown[0].reason


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (None, "slot-missing"),
        (("reserved", "9 GB"), ""),
        (("extended", "1 GB"), "slot-lost"),
        (("unreserved", ""), "slot-lost"),
        (("lost", ""), "slot-lost"),
    ],
)
def test_a_slot_must_be_reserved(found: tuple[str, str] | None, code: str) -> None:
    assert [each.code for each in preflight.slot_state(Side("blue", ""), "s", found)] == [code][: bool(code)]


# What a server must have


class Answering(Side):
    """A side that gives one answer."""

    def __init__(self, *row: Any) -> None:
        super().__init__("blue", "")
        self.row = row

    def run(self, statement: Any, args: Any = None, *, timeout: float = 10.0) -> list[tuple[Any, ...]]:
        assert statement == statements.SETTINGS
        return [self.row]


ENOUGH = (180000, "logical", "1GB", 3, 3, 3, 3, 3)


@pytest.mark.parametrize(
    ("place", "value", "codes"),
    [
        (0, 160000, []),
        (0, 159999, ["server-version"]),
        (1, "replica", ["wal-level"]),
        (2, "-1", ["wal-unlimited"]),
        (3, 2, ["slots"]),
        (4, 2, ["slots"]),
        (5, 2, ["walsenders"]),
        (6, 2, ["workers"]),
        (7, 2, ["workers"]),
        (7, -4, ["workers"]),
    ],
)
def test_what_a_server_must_have(place: int, value: Any, codes: list[str]) -> None:
    row = [*ENOUGH]
    row[place] = value
    found = list(server(Answering(*row), 1))
    assert [each.code for each in found] == codes
    assert not any("-4" in each.reason for each in found)
    twice = [each.code for each in server(Answering(*ENOUGH), 2)]
    assert twice == ["slots", "slots", "walsenders", "workers", "workers"], "two databases in one server"
    assert list(server(Answering(*ENOUGH[:3], 6, 6, 6, 6, 6), 2)) == []


# Sequences

ITS = Sequence("public", "s", 1, 1, 2**31 - 1, False, None, None)


@pytest.mark.parametrize(
    ("ours", "theirs", "near"),
    [
        (ITS, None, False),
        (replace(ITS, last=2**31 - 100_001), None, False),
        (replace(ITS, last=2**31 - 100_000), None, True),
        (ITS, replace(ITS, last=2**31 - 2), True),
        (replace(ITS, last=5), replace(ITS, last=2**31 - 2), True),
        (replace(ITS, last=2**31 - 2, cycles=True), None, False),
        (replace(ITS, highest=1000, last=900), None, False),
        (replace(ITS, highest=1000, last=902), None, True),
        (replace(ITS, increment=-1, lowest=-(2**31), highest=-1, last=-5), None, False),
        (replace(ITS, increment=-1, lowest=-(2**31), highest=-1, last=-(2**31) + 2), None, True),
        (replace(ITS, increment=1000, last=2**31 - 10**8 + 5000), None, True),
        (replace(ITS, increment=1000, last=10**9), None, False),
    ],
)
def test_a_sequence_needs_values_left_in_its_own_direction(
    cluster: Postgres, ours: Sequence, theirs: Sequence | None, near: bool
) -> None:
    side = Side("blue", cluster.url)
    nothing = read(side)
    side.close()
    assert [each.code for each in sequence(ours, theirs, nothing)] == ["sequence-near-end"][:near]


# Types


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("real", "double precision", "rounds"),
        ("date", "timestamp without time zone", "rounds"),
        ("interval(3)", "interval", "rounds"),
        ("time(0) without time zone", "time without time zone", "rounds"),
        ("numeric(6,2)", "numeric(9,2)", "looser"),
        ("numeric(9,2)", "numeric(6,2)", "stricter"),
        ("numeric(9,2)", "numeric(9,3)", "changed"),
        ("bigint", "numeric(19,0)", "looser"),
        ("bigint", "numeric(18,0)", "changed"),
        ("smallint", "numeric(5,0)", "looser"),
        ("integer", "numeric(12,2)", "changed"),
        ("character varying", "text", "same"),
        ("character varying(5)[]", "text[]", "looser"),
        ("character varying(5)[]", "text", "changed"),
        ("character(5)", "character(9)", "changed"),
        ("uuid", "text", "changed"),
    ],
)
def test_more_types(old: str, new: str, expected: Change) -> None:
    assert change(old, new, {}, {}) == expected
