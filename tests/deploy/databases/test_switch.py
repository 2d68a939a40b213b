"""Switch and rollback, with real writers, and with faults at each of its steps."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from psycopg2 import sql

from deploy.databases import fence, heartbeat, statements
from deploy.databases import switch as module
from deploy.databases.errors import DatabaseError, TimedOut
from deploy.databases.recover import Recovered, recover
from deploy.databases.side import Session, Side
from deploy.databases.switch import Switched, switch
from deploy.errors import DeployRefused
from tests.support.bluegreen import killed, link, unlink
from tests.support.gate import Gate
from tests.support.servers import PATIENCE, Postgres, eventually
from tests.support.writers import TABLES, writing

pytestmark = pytest.mark.slow

Pair = tuple[Side, Side]
STEPS = ["checked", "level", "claimed source", "claimed target", "locked", "fenced", "arrived", "committed", "left"]
STEPS += ["returned"]
# A try that a slow machine can keep. The limits themselves are measured by bench/bluegreen.py.
SLOW: dict[str, Any] = {"deadline": PATIENCE, "lag": 10.0}
LIMITS = {"DRAIN": 3.0, "ANSWER": 3.0, "ARRIVAL": 5.0, "COMMIT": 30.0, "ABANDONED": 20.0}
MORE = """
create table thing (id serial primary key, name text);
create sequence never;
create sequence small as smallint
"""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time for a machine that does something else as well."""
    for name, seconds in LIMITS.items():
        monkeypatch.setattr(module, name, seconds)


@pytest.fixture(scope="module")
def linked(clusters: tuple[Postgres, Postgres]) -> Iterator[Pair]:
    """Blue and green in two servers, replicating both ways."""
    blue, green = Side("blue", clusters[0].url), Side("green", clusters[1].url)
    for side in (blue, green):
        side.run(TABLES + MORE)
    link(blue, green)
    yield blue, green
    blue.close()
    green.close()


@pytest.fixture
def pair(linked: Pair) -> Pair:
    """The same, settled, with blue writable."""
    blue, green = linked
    if recover(blue, green).writable == "green":
        switch(green, blue, **SLOW)
    assert writable(blue, green) == "blue"
    return linked


def writable(*sides: Side) -> str:
    """The colours that can be written to."""
    return " ".join(side.colour for side in sides if fence.read(side).writable)


def at(step: str, act: Callable[[], object]) -> Callable[[str], None]:
    """A hook that acts once, after `step`."""
    done: list[str] = []

    def hook(name: str) -> None:
        if name == step and not done:
            done.append(name)
            act()

    return hook


# --- What it does -----------------------------------------------------------------------------------------------------


def test_writes_move_there_and_back_and_none_is_lost(pair: Pair, full: bool) -> None:
    blue, green = pair
    steps: list[str] = []
    with writing(blue, green, count=8 if full else 4, rate=50 if full else 25) as writers:
        for _ in range(20 if full else 2):
            for source, target in ((blue, green), (green, blue)):
                writers.wait_for(10)
                steps.clear()
                before = fence.read(source).attempt
                done = switch(source, target, on_step=steps.append, **SLOW)
                assert done.lossless and done.attempt == before + 1 and 0 < done.held < PATIENCE
                assert steps[0] == "checked" and steps[-6:] == STEPS[-6:]
                assert fence.read(source) == fence.FenceState(False, done.attempt, "standby")
                assert fence.read(target) == fence.FenceState(True, done.attempt, "active")
        assert {each.colour for each in writers.acknowledged} == {"blue", "green"}


def test_two_databases_of_one_server(two_databases: Pair) -> None:
    blue, green = two_databases
    for side in two_databases:
        side.run(TABLES)
    link(blue, green)
    with writing(blue, green, count=2) as writers:
        for source, target in ((blue, green), (green, blue)):
            writers.wait_for(5)
            assert switch(source, target, **SLOW).lossless
    unlink(blue, green)


def test_sequences_go_on_where_the_other_side_was(pair: Pair) -> None:
    blue, green = pair
    last = "select last_value from thing_id_seq"
    blue.run("insert into thing (name) select 'x' from generate_series(1, 10)")

    def busy() -> None:  # more than the margin, so that the switch itself has to move it, and one for the first time
        blue.run("insert into thing (name) select 'x' from generate_series(1, 5000)")
        blue.run("select nextval('small')")

    used = blue.value("select last_value from small")
    switch(blue, green, on_step=at("claimed target", busy), **SLOW)
    assert green.value(last) == blue.value(last) >= 5010
    assert green.value("select nextval('never')") == 1, "nobody has ever called it"
    assert green.value("select nextval('small')") > used
    with writing(blue, green, count=1):
        green.run("insert into thing (name) values ('y')")
    assert eventually(lambda: blue.value("select count(*) from thing where name = 'y'")) == 1


def test_the_fence_is_lifted_last(pair: Pair) -> None:
    """As setval takes effect at once, and is not undone with the transaction."""
    _, green = pair
    green.run("update bg.state set phase = 'target', attempt = 900, deadline = clock_timestamp() + interval '1 min'")
    fails = sql.SQL("setval('small', 40000), ")
    with pytest.raises(DatabaseError, match="out of bounds"):
        green.run(sql.SQL(statements.COMMIT).format(attempt=sql.Literal(900), sequences=fails))
    assert not fence.read(green).writable
    commit = sql.SQL(statements.COMMIT).format(attempt=sql.Literal(900), sequences=sql.SQL(""))
    green.run("update bg.state set deadline = clock_timestamp()")
    assert green.run(commit) == [], "too late"
    green.run("update bg.state set attempt = 901, deadline = clock_timestamp() + interval '1 min'")
    assert green.run(commit) == [] and not fence.read(green).writable, "another attempt's"


def test_the_source_is_fenced_by_the_attempt_that_claimed_it_alone(pair: Pair) -> None:
    blue, _ = pair
    blue.run("update bg.state set phase = 'fencing', attempt = 900")
    message = sql.SQL(statements.FENCE).format(
        attempt=sql.Literal(901),
        deadline=sql.Literal(None),
        beat=heartbeat.beating("blue", heartbeat.new_marker()),
        version=sql.SQL("select ''"),
        sequences=sql.SQL("select 0 as oid, 0 as last, true as called"),
    )
    ((fenced, _, _),) = blue.run(message)
    assert not fenced and fence.read(blue) == fence.FenceState(True, 900, "fencing")


def test_the_target_takes_over_only_with_the_last_write(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    blue, green = pair
    monkeypatch.setattr(module, "ARRIVAL", 0.3)
    said: list[str] = []
    there: list[int] = []
    count = "select count(*) from thing where name = 'last'"
    with green.session() as reader:  # which keeps what applies changes waiting

        def hook(name: str) -> None:
            if name == "claimed target":
                reader.run("begin; lock table thing in access exclusive mode")
                blue.run("insert into thing (name) values ('last')")
            if name == "committed":
                there.append(green.value(count))

        def say(text: str) -> None:
            if not said:
                assert writable(blue, green) == "blue"
                reader.run("commit")
            said.append(text)

        switch(blue, green, on_step=hook, say=say, **SLOW)
    assert said[0] == "The last write did not reach green within 0.3 s. Trying again." and there == [1]


# --- What it refuses, with nothing changed ----------------------------------------------------------------------------


def refused(source: Side, target: Side, **options: Any) -> str:
    before = [fence.read(side) for side in (source, target)]
    with pytest.raises(DeployRefused) as caught:
        switch(source, target, **SLOW | options)
    assert [fence.read(side) for side in (source, target)] == before
    return str(caught.value)


def test_what_has_been_done_or_was_interrupted_is_refused(pair: Pair) -> None:
    blue, green = pair
    assert refused(green, blue) == "blue takes the writes already; nothing to do."
    blue.run("update bg.state set phase = 'fencing'")
    assert refused(blue, green) == (
        "A switch was interrupted (blue is fencing, green is standby). Run manage.py bluegreen recover."
    )


def test_a_target_that_does_not_follow_is_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    blue, green = pair
    monkeypatch.setattr(module, "ARRIVAL", 0.2)
    (name,) = green.run("select subname from pg_subscription")[0]
    green.run(sql.SQL("alter subscription {} disable").format(sql.Identifier(name)))
    said: list[str] = []
    try:
        text = refused(blue, green, deadline=1, say=said.append)
    finally:
        green.run(sql.SQL("alter subscription {} enable").format(sql.Identifier(name)))
    late = "A change takes more than 0.2 s to reach green (limit 10000 ms)."
    assert said[0] == f"{late} Trying again."
    assert text.startswith(late) and text.endswith("times. blue still takes the writes.")


def test_a_long_transaction_is_waited_for_while_others_write(pair: Pair) -> None:
    blue, green = pair
    with blue.session() as long, writing(blue, green) as writers:
        long.run("begin; insert into thing (name) values ('long')")
        eventually(lambda: blue.value(statements.OLDEST_WRITER) > module.OLD)
        text = refused(blue, green, deadline=0.5)
        assert "A transaction has been writing to blue for " in text
        writers.wait_for(5)
        done = threading.Timer(0.3, long.run, ["commit"])
        done.start()
        assert switch(blue, green, **SLOW).tries > 1
        done.join()
    assert green.value("select count(*) from thing where name = 'long'") == 1


def test_an_unguarded_table_is_refused(pair: Pair) -> None:
    blue, green = pair
    for side in pair:
        side.run("alter table thing disable trigger bg_guard")
        try:
            text = refused(blue, green)
        finally:
            side.run("alter table thing enable trigger bg_guard")
        assert text.startswith(f"Nothing stops writes to public.thing of the {side.colour} database.")


def test_of_two_commands_one_switches(pair: Pair) -> None:
    blue, green = pair
    first: list[Switched] = []
    others = Side("blue", blue.url), Side("green", green.url)
    with pytest.raises(DeployRefused, match="Another switch or recovery has begun."):
        switch(blue, green, on_step=at("level", lambda: first.append(switch(*others, **SLOW))), **SLOW)
    assert first[0].lossless and writable(blue, green) == "green"


# --- DDL --------------------------------------------------------------------------------------------------------------


def test_ddl_between_the_check_and_the_fence_undoes_the_switch(pair: Pair) -> None:
    blue, green = pair
    blue.run("drop event trigger bg_ddl")  # as if no superuser had installed it
    attempt = fence.read(blue).attempt
    said: list[str] = []
    try:
        with pytest.raises(
            DeployRefused, match="Tables of the blue database have changed .*: public.thing. Run manage"
        ):
            alter = at("locked", lambda: blue.run("alter table thing add column extra int"))
            switch(blue, green, on_step=alter, say=said.append, **SLOW)
    finally:
        blue.run("alter table thing drop column if exists extra")
        fence.install(blue)
        fence.remember_tables(blue)
    assert said == ["A table of the blue database was changed at this moment. Trying again."]
    assert fence.read(blue) == fence.FenceState(True, attempt + 2, "active")
    assert not fence.read(green).writable


def test_ddl_waits_for_the_switch_and_is_refused_then(pair: Pair) -> None:
    blue, green = pair
    app = Session("blue", blue.url, **{"bg.bypass": "off"})
    refusal: list[str] = []

    def alter() -> None:
        try:
            app.run("alter table thing add column extra int", timeout=PATIENCE)
        except DatabaseError as error:
            refusal.append(error.code)

    waiting = threading.Thread(target=alter)

    def begin() -> None:
        waiting.start()
        eventually(
            lambda: blue.value("select exists (select from pg_locks where locktype = 'advisory' and not granted)")
        )

    switch(blue, green, on_step=at("locked", begin), **SLOW)
    waiting.join()
    app.close()
    assert refusal == ["BG001"]


# --- Faults -----------------------------------------------------------------------------------------------------------


def test_a_command_killed_after_any_step_loses_nothing(pair: Pair, full: bool) -> None:
    blue, green = pair
    with writing(blue, green, count=2) as writers:
        # Each step in one direction, and with --full in both.
        for number, step in enumerate(STEPS * 2 if full else STEPS):
            source, target = (blue, green) if number % 2 != number // len(STEPS) else (green, blue)
            if writable(blue, green) != source.colour:
                switch(target, source, **SLOW)
            writers.wait_for(2)
            killed(source, target, step, **LIMITS)
            gone_on = step in ("committed", "left", "returned")
            started = time.monotonic()
            done = recover(blue, green)
            took = time.monotonic() - started
            assert done.writable == writable(blue, green) == (target if gone_on else source).colour, step
            assert took < 20, f"{step}: {took:.1f} s; a second is promised on a machine that does nothing else"
            assert recover(blue, green) == replace(done, direction="none"), "it can be repeated"
            writers.wait_for(2)


@pytest.mark.parametrize("step", STEPS[3:7])
def test_a_command_that_comes_back_to_life_cannot_commit(pair: Pair, step: str) -> None:
    blue, green = pair
    others = Side("blue", blue.url), Side("green", green.url)
    found: list[Recovered] = []
    with writing(blue, green, count=1) as writers:
        with pytest.raises(DatabaseError) as caught:
            switch(blue, green, on_step=at(step, lambda: found.append(recover(*others))), **SLOW)
        assert found == [Recovered("blue", "back")] and writable(blue, green) == "blue", caught.value
        writers.wait_for(2)
    assert switch(blue, green, **SLOW).lossless, "and nothing of it stands in the way"


class Doubtful(Side):
    """A target whose answer to the commit is lost, or that never gets it."""

    def __init__(self, side: Side, *, commits: bool) -> None:
        super().__init__(side.colour, side.url)
        self.commits = commits
        self.late: Any = None

    def run(self, statement: Any, args: Sequence[Any] | None = None, *, timeout: float = 10.0) -> list[tuple[Any, ...]]:
        text = statement if isinstance(statement, str) else repr(statement)
        if "setval('bg.fence', 1)" not in text or "Literal(-1)" in text or self.late:
            return super().run(statement, args, timeout=timeout)
        self.late = statement
        if self.commits:
            super().run(statement, args, timeout=timeout)
        raise TimedOut("The green database did not answer within 0.5 s.", in_doubt=True)


def test_a_commit_without_an_answer_is_asked_about(pair: Pair) -> None:
    blue, green = pair
    said: list[str] = []
    doubtful = Doubtful(green, commits=True)
    with writing(blue, green, count=1):
        assert switch(blue, doubtful, say=said.append, **SLOW).lossless
    assert doubtful.late and writable(blue, green) == "green"
    assert said == ["green has not answered. Asking whether it has taken over; nobody can write meanwhile."]


def test_a_commit_that_never_arrived_cannot_arrive_later(pair: Pair) -> None:
    blue, green = pair
    doubtful = Doubtful(green, commits=False)
    with writing(blue, green, count=1):
        with pytest.raises(TimedOut):
            switch(blue, doubtful, **SLOW)
        assert writable(blue, green) == "blue"
        assert green.run(doubtful.late) == [] and writable(blue, green) == "blue"


def test_an_interrupt_before_the_commit_returns_the_writes_and_after_it_does_not(pair: Pair) -> None:
    blue, green = pair

    def interrupt() -> None:
        raise KeyboardInterrupt

    for step in STEPS[2:8]:
        with pytest.raises(KeyboardInterrupt):
            switch(blue, green, on_step=at(step, interrupt), **SLOW)
        assert writable(blue, green) == ("green" if step == "committed" else "blue"), step
        assert [fence.read(side).phase for side in pair].count("standby") == 1, step


def test_a_command_that_stops_while_it_holds_the_lock_loses_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    blue, green = pair
    monkeypatch.setattr(module, "ABANDONED", 0.5)
    said: list[str] = []
    with writing(blue, green, count=2) as writers:
        done = switch(blue, green, on_step=at("locked", lambda: writers.wait_for(5)), say=said.append, **SLOW)
    assert said[0].startswith("The connection to the blue database was lost") and said[0].endswith("Trying again.")
    assert done.tries > 1 and done.attempt == fence.read(green).attempt and writable(blue, green) == "green"


FROZEN = [(1, "level"), (1, "fenced"), (1, "arrived"), (0, "claimed target"), (0, "locked"), (0, "fenced")]


@pytest.mark.parametrize(("index", "step"), FROZEN)
def test_a_server_frozen_for_two_seconds(
    pair: Pair, clusters: tuple[Postgres, Postgres], monkeypatch: pytest.MonkeyPatch, index: int, step: str
) -> None:
    blue, green = pair
    monkeypatch.setattr(module, "ANSWER", 0.5)
    thaw = threading.Timer(2, clusters[index].resume)

    def freeze() -> None:
        clusters[index].pause()
        thaw.start()

    with writing(blue, green, count=2, answer=1.0) as writers:
        with suppress(DatabaseError):
            switch(blue, green, on_step=at(step, freeze), **SLOW)
        thaw.join()
        assert recover(blue, green).writable == writable(blue, green)
        writers.wait_for(5)


@pytest.mark.parametrize(("index", "step"), [(0, "fenced"), (1, "arrived"), (1, "committed"), (0, "committed")])
def test_a_server_killed_in_the_middle(pair: Pair, clusters: tuple[Postgres, Postgres], index: int, step: str) -> None:
    blue, green = pair

    def kill() -> None:
        clusters[index].kill()
        clusters[index].start()

    with writing(blue, green, count=2) as writers:
        with suppress(DatabaseError):
            switch(blue, green, on_step=at(step, kill), **SLOW)
        found = recover(blue, green)
        assert found.writable == writable(blue, green)
        if step != "fenced":  # after which the source's last word may have arrived before it ended
            assert found.writable == ("green" if step == "committed" else "blue")
        writers.wait_for(5)


def behind(gate: Gate, side: Side) -> Side:
    """The side as the command sees it, over a network that can be cut."""
    url = urlsplit(side.url)
    return Side(side.colour, url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:{gate.port}").geturl())


@pytest.mark.parametrize(("index", "step"), [(1, "fenced"), (1, "arrived"), (0, "locked")])
def test_the_network_between_the_command_and_a_side_cut(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, index: int, step: str
) -> None:
    """Others reach both sides; what was under way arrives once the network is back."""
    blue, green = pair
    for name, seconds in {"ANSWER": 0.5, "ABANDONED": 1.0, "IN_DOUBT": 1.0}.items():
        monkeypatch.setattr(module, name, seconds)
    with Gate(urlsplit(pair[index].url).port or 0) as gate, writing(blue, green, count=2) as writers:
        seen = [behind(gate, side) if number == index else side for number, side in enumerate(pair)]
        with pytest.raises((DatabaseError, DeployRefused)):
            switch(*seen, deadline=2, lag=10, on_step=at(step, gate.drop))
        if step != "arrived":  # the target's network is cut before the commit, or the lock is gone
            writers.wait_for(5)
        assert recover(blue, green).writable == writable(blue, green) == "blue"
        writers.wait_for(5)
        gate.restore()
        writers.wait_for(20)
        assert writable(blue, green) == "blue"


def test_a_walsender_killed_in_the_middle(pair: Pair) -> None:
    blue, green = pair

    def kill() -> None:
        assert blue.run("select pg_terminate_backend(pid) from pg_stat_replication") == [(True,)]

    with writing(blue, green, count=2):
        assert switch(blue, green, on_step=at("locked", kill), **SLOW).lossless


def test_a_large_transaction_that_is_still_on_its_way(pair: Pair, full: bool) -> None:
    """The writes stay with the source until the target has caught up."""
    blue, green = pair
    rows = 150_000 if full else 20_000
    with writing(blue, green, count=2):
        blue.run(f"insert into thing (name) select 'large' from generate_series(1, {rows})", timeout=PATIENCE)
        switch(blue, green, deadline=PATIENCE, lag=1.0)
        assert green.value("select count(*) from thing where name = 'large'", timeout=PATIENCE) == rows
    green.run("delete from thing where name = 'large'", timeout=PATIENCE)
    assert heartbeat.arrives(blue, "green", heartbeat.beat(green), PATIENCE)
