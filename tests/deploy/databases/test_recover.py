"""Recovery: exactly one colour is writable afterwards, or it says why that cannot be decided."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from psycopg2 import sql

from deploy.databases import fence, statements
from deploy.databases.errors import DatabaseError, Unreachable
from deploy.databases.recover import Recovered, recover
from deploy.databases.side import Side
from tests.support.servers import Postgres, free_port

pytestmark = pytest.mark.slow

Pair = tuple[Side, Side]


@pytest.fixture(scope="module")
def installed(clusters: tuple[Postgres, Postgres]) -> Iterator[Pair]:
    """Blue and green with the fence and nothing else, as recovery needs nothing else."""
    blue, green = (Side(colour, server.create("recovery")) for colour, server in zip(("blue", "green"), clusters))
    for side in (blue, green):
        fence.install(side, writable=side is blue)
    yield blue, green
    blue.close()
    green.close()


def given(side: Side, writable: bool, phase: str, attempt: int = 5, deadline: str = "-1 min") -> None:
    side.run("select setval('bg.fence', %s)", [int(writable)])
    side.run(
        "update bg.state set phase = %s, attempt = %s, deadline = clock_timestamp() + %s::interval",
        [phase, attempt, deadline],
    )


def states(*sides: Side) -> list[tuple[bool, int, str]]:
    return [(found.writable, found.attempt, found.phase) for found in map(fence.read, sides)]


def unreachable(side: Side) -> Side:
    url = urlsplit(side.url)
    return Side(side.colour, url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:{free_port()}").geturl())


@pytest.mark.parametrize("swapped", [False, True])
def test_the_fence_of_the_target_decides(installed: Pair, swapped: bool) -> None:
    source, target = reversed(installed) if swapped else installed
    for ours, theirs, after in (
        # claimed on one side; on both; fenced: back
        ((True, "fencing"), (False, "standby", 4), [(True, 6, "active"), (False, 5, "standby")]),
        ((True, "fencing"), (False, "target"), [(True, 6, "active"), (False, 6, "standby")]),
        ((False, "committing"), (False, "target"), [(True, 6, "active"), (False, 6, "standby")]),
        # committed; and committed by a server that crashed before its note was on disk: forward
        ((False, "committing"), (True, "active"), [(False, 5, "standby"), (True, 5, "active")]),
        ((False, "committing"), (True, "target"), [(False, 5, "standby"), (True, 6, "active")]),
        # the fence was lifted again, and the note was not on disk: back
        ((True, "committing"), (False, "target"), [(True, 6, "active"), (False, 6, "standby")]),
        # the claim was given up, but for the target's note
        ((True, "active", 6), (False, "target"), [(True, 6, "active"), (False, 6, "standby")]),
    ):
        given(source, *ours)
        given(target, *theirs)
        forward = after[1][0]
        direction = "none" if ours[1] == "active" else "forward" if forward else "back"
        expected = Recovered((target if forward else source).colour, direction)
        assert recover(*installed) == expected, (ours, theirs)
        assert states(source, target) == after, (ours, theirs)
        assert recover(*installed) == Recovered(expected.writable, "none")
        assert states(source, target) == after


def test_it_ends_whoever_holds_the_lock_or_waits_for_it(installed: Pair) -> None:
    blue, green = installed
    given(blue, False, "committing")
    given(green, False, "target")
    with blue.session() as holder, blue.session() as writer:
        holder.run("select pg_advisory_lock(7220001)")
        assert recover(blue, green) == Recovered("blue", "back")
        writer.run("begin; select bg.enter(); commit", timeout=5)
        with pytest.raises(Unreachable):
            holder.run("select 1")


class Late(Side):
    """A target that a commit reaches at the last moment, just before recovery bars it."""

    def run(self, statement: Any, args: Any = None, *, timeout: float = 10.0) -> list[tuple[Any, ...]]:
        if statement == statements.BAR:
            commit = sql.SQL(statements.COMMIT).format(attempt=sql.Literal(5), sequences=sql.SQL(""))
            assert super().run(commit) == [(1,)]
        return super().run(statement, args, timeout=timeout)


def test_a_commit_at_the_last_moment_counts(installed: Pair) -> None:
    blue, green = installed
    given(blue, False, "committing")
    given(green, False, "target", deadline="1 min")
    assert recover(blue, Late("green", green.url)) == Recovered("green", "forward")
    assert states(blue, green) == [(False, 5, "standby"), (True, 5, "active")]


def test_a_target_that_does_not_answer(installed: Pair) -> None:
    blue, green = installed
    away = unreachable(green)
    given(blue, True, "fencing")
    assert recover(blue, away) == Recovered("blue", "back", "green"), "nothing was sent to it that could commit"
    given(blue, False, "committing", deadline="1 h")
    with pytest.raises(
        Unreachable, match="green database does not answer, and may have taken over.*--force-back makes"
    ):
        recover(blue, away)
    with pytest.raises(DatabaseError, match="may still take over for 360[01]"):
        recover(blue, away, force_back=True)
    assert states(blue) == [(False, 5, "committing")]
    given(blue, False, "committing", deadline="-2 s")
    assert recover(blue, away, force_back=True) == Recovered("blue", "back", "green")
    assert states(blue) == [(True, 6, "active")]


def test_a_source_that_does_not_answer(installed: Pair) -> None:
    blue, green = installed
    away = unreachable(blue)
    given(green, True, "active")
    assert recover(away, green) == Recovered("green", "none", "blue")
    given(green, False, "target")
    with pytest.raises(Unreachable, match="The blue database does not answer, and the other one takes no writes."):
        recover(away, green)
    with pytest.raises(Unreachable, match="Neither database answers"):
        recover(away, unreachable(green))


def test_what_only_a_person_can_decide_is_left_alone(installed: Pair) -> None:
    blue, green = installed
    for ours, theirs, text in (
        ((True, "active"), (True, "active"), "Both databases accept writes"),
        ((False, "committing"), (False, "committing"), "Both databases are giving up the writes"),
        ((False, "standby"), (False, "standby"), "Neither database accepts writes"),
    ):
        given(blue, *ours)
        given(green, *theirs)
        before = states(blue, green)
        with pytest.raises(DatabaseError, match=text):
            recover(blue, green)
        assert states(blue, green) == before
