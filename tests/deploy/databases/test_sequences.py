"""The other side's sequences are moved past those in use, whatever their type, direction and history."""

import pytest
from psycopg2 import sql

from deploy.databases import sequences
from deploy.databases.errors import DatabaseError
from deploy.databases.side import Side

SEQUENCES = """
create sequence used; create sequence never; create sequence "Odd name"; create sequence small as smallint;
create sequence down increment -1; create sequence tens increment 10 start 7; create sequence restarted;
create sequence cached cache 20; create sequence cycling maxvalue 100 cycle
"""


@pytest.fixture
def pair(two_databases: tuple[Side, Side]) -> tuple[Side, Side]:
    for side in two_databases:
        side.run(SEQUENCES)
    return two_databases


def call(side: Side, *names: str, times: int = 1) -> None:
    for name in names:
        side.run("select nextval(%s) from generate_series(1, %s)", [f'public."{name}"', times])


def following(side: Side, name: str) -> int:
    return int(side.value("select nextval(%s)", [f'public."{name}"']))


def test_those_in_use_are_passed_by_the_gap(pair: tuple[Side, Side]) -> None:
    source, target = pair
    call(source, "used", "Odd name", "small", "down", "tens", "cached", "cycling", times=3)
    source.run("alter sequence restarted restart with 5000")
    sequences.advance(source, target, 1000)
    assert following(target, "used") == following(target, "Odd name") == 1004
    assert following(target, "small") == 3 + 32 + 1, "a thousandth of what is left"
    assert following(target, "down") == -1004 and following(target, "tens") == 7 + 20 + 10_000 + 10
    assert following(target, "cached") > 1000 + 3 and following(target, "cycling") == 4
    assert following(target, "never") == following(target, "restarted") == 1, "not called so far"


def test_those_never_called_move_too_if_asked(pair: tuple[Side, Side]) -> None:
    source, target = pair
    source.run("alter sequence restarted restart with 5000")
    sequences.advance(source, target, 1000, unused=True)
    assert following(target, "never") == 1001 and following(target, "restarted") == 4999 + 1000 + 1


def test_none_moves_back(pair: tuple[Side, Side]) -> None:
    source, target = pair
    call(source, "used", "down")
    call(target, "used", "down", times=2000)
    found = sequences.moves(sequences.read(source), sequences.read(target), 1000, unused=True)
    assert not {"used", "down"} & {sequence.name for sequence, _ in found}
    stale = sequences.read(target)["public", "used"]
    call(target, "used", times=2000)
    (setval,) = sequences.calls([(stale, 3000)])
    assert target.value(sql.SQL("select {}").format(setval)) == 4000, "called after it was read"


def test_what_was_read_is_brought_up_to_date_in_one_statement(pair: tuple[Side, Side]) -> None:
    source, _ = pair
    call(source, "used")
    known = sequences.read(source)
    assert not known["public", "never"].called and known["public", "never"].used == 0
    call(source, "used", "never")
    source.run("select setval('restarted', 70, false)")
    now = sequences.updated(known, source.run(sequences.reading(known)))
    assert [now["public", name].used for name in ("used", "never", "restarted")] == [2, 1, 69]
    assert now == sequences.read(source)


def test_a_value_that_does_not_fit_is_refused(pair: tuple[Side, Side]) -> None:
    source, target = pair
    source.run("alter sequence small as bigint; select setval('small', 40000)")
    with pytest.raises(DatabaseError, match="Sequence public.small is at 41000 and must not go past 32767"):
        sequences.advance(source, target, 1000)


def test_those_of_one_side_only_and_the_fence_do_not_count(pair: tuple[Side, Side]) -> None:
    source, target = pair
    source.run("create sequence gone; select nextval('gone'); create temp sequence mine; select nextval('mine')")
    for side in pair:
        side.run("create schema bg; create sequence bg.fence; select nextval('bg.fence')")
    target.run("create sequence new")
    sequences.advance(source, target, 1000, unused=True)
    assert target.value("select last_value from bg.fence") == 1
    assert ("bg", "fence") not in sequences.read(source)
