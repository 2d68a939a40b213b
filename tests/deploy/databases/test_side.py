"""A colour's database, asked with time-outs that a frozen server cannot exceed."""

import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
from psycopg2 import sql

from deploy.databases.errors import DatabaseError, TimedOut, Unreachable
from deploy.databases.side import APPLICATION, Side
from tests.support.servers import PATIENCE, Postgres, frozen


def test_it_returns_the_rows_of_the_last_statement(two_databases: tuple[Side, Side]) -> None:
    side, _ = two_databases
    assert side.run("create table t (n int); insert into t values (1), (2); select n from t order by n") == [(1,), (2,)]
    assert side.run("insert into t values (3)") == []
    assert side.value("select max(n) from t") == 3 and side.value("select n from t where n > 9") is None
    assert side.value("select %s::text", ["50 % of 'it'"]) == "50 % of 'it'"
    assert side.value(sql.SQL("select count(*) from {}").format(sql.Identifier("t"))) == 3


def test_several_statements_of_one_message_take_effect_together(two_databases: tuple[Side, Side]) -> None:
    side, _ = two_databases
    side.run("create table t (n int)")
    with pytest.raises(DatabaseError) as caught:
        side.run("insert into t values (1); select 1 / 0")
    assert caught.value.code == "22012" and not caught.value.in_doubt
    assert str(caught.value) == "The blue database reports: division by zero"
    assert side.value("select count(*) from t") == 0


def test_it_names_itself_and_waits_for_the_disk_whatever_the_role_has_set(two_databases: tuple[Side, Side]) -> None:
    side, _ = two_databases
    name = side.value("select current_database()")
    side.run(sql.SQL("alter database {} set synchronous_commit = off").format(sql.Identifier(name)))
    side.close()
    shown = "select current_setting('application_name'), current_setting('synchronous_commit')"
    assert side.run(shown) == [(APPLICATION, "on")]


def test_options_of_the_url_are_kept(two_databases: tuple[Side, Side]) -> None:
    side = Side("blue", two_databases[0].url + "?options=-c%20work_mem%3D9MB")
    assert side.value("show work_mem") == "9MB" and side.value("show statement_timeout") == "0"
    with side.session(idle_session_timeout="9 s") as session:
        assert session.value("show idle_session_timeout") == "9s"
    side.close()


@pytest.mark.slow
def test_a_frozen_server_cannot_hold_it(clusters: tuple[Postgres, Postgres], sides: tuple[Side, Side]) -> None:
    blue, green = sides
    assert green.value("select 1") == 1
    with frozen(clusters[1]):
        started = time.monotonic()
        with pytest.raises(TimedOut, match="The green database did not answer within 0.3 s.") as caught:
            green.run("select 1", timeout=0.3)
        assert caught.value.in_doubt, "the server may still do it"
        with pytest.raises(TimedOut, match="did not accept a connection within 0.3 s") as caught:
            green.run("select 1", timeout=0.3)
        assert not caught.value.in_doubt, "nothing was sent"
        assert time.monotonic() - started < 5
        assert blue.value("select 1") == 1
    assert green.value("select 1", timeout=PATIENCE) == 1


def test_a_late_answer_is_not_taken_for_that_of_the_next_statement(two_databases: tuple[Side, Side]) -> None:
    side, _ = two_databases
    with pytest.raises(TimedOut):
        side.run("select 'late' from pg_sleep(0.3)", timeout=0.1)
    assert side.value("select 'next'") == "next"


def test_after_a_lost_connection_it_connects_again_and_a_session_does_not(two_databases: tuple[Side, Side]) -> None:
    side, other = two_databases
    pid = side.value("select pg_backend_pid()")
    assert other.value("select pg_terminate_backend(%s, 10000)", [pid]) is True
    with pytest.raises(Unreachable) as caught:
        side.run("select 1")
    assert caught.value.in_doubt
    with pytest.raises(Unreachable, match="terminating connection") as caught:
        side.run("select pg_terminate_backend(pg_backend_pid())")
    assert caught.value.in_doubt
    assert side.value("select pg_backend_pid()") != pid
    with side.session() as session:
        session.run("select pg_advisory_lock(1)")
        other.value("select pg_terminate_backend(%s, 10000)", [session.value("select pg_backend_pid()")])
        for doubt in (True, False):  # lost while it ran; not sent, as the session and its lock are gone
            with pytest.raises(Unreachable) as caught:
                session.run("select 1")
            assert caught.value.in_doubt is doubt
    assert side.value("select pg_try_advisory_lock(1)") is True


def test_a_server_that_ended_is_unreachable_and_nothing_was_sent(clusters: tuple[Postgres, Postgres]) -> None:
    url = urlsplit(clusters[0].url)
    side = Side("blue", url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:1").geturl())
    with pytest.raises(Unreachable, match="Cannot connect to the blue database") as caught:
        side.run("select 1")
    assert not caught.value.in_doubt


def test_messages_have_no_passwords(two_databases: tuple[Side, Side]) -> None:
    side, _ = two_databases
    wrong = Side("blue", side.url.replace(str(urlsplit(side.url).password), "wrong-secret"))
    broken = Side("blue", "postgresql://app:half-a-secret%zz@127.0.0.1/app")
    statement = "create subscription s connection 'host=127.0.0.1 password=third-secret' publication"
    inner = "do $$ begin raise 'cannot use postgresql://app:fourth-secret@db/app password=''fifth secret''' ; end $$"
    for asked, text in ((wrong, "select 1"), (broken, "select 1"), (side, statement), (side, inner)):
        with pytest.raises(DatabaseError) as caught:
            asked.run(text)
        assert "secret" not in str(caught.value), caught.value
        assert "secret" not in repr(asked) and caught.value.__suppress_context__
    assert str(caught.value).endswith("cannot use postgresql://app:***@db/app password=***")


def test_an_interrupt_ends_the_connection(two_databases: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch) -> None:
    side, _ = two_databases
    pid = side.value("select pg_backend_pid()")
    with monkeypatch.context() as patch:
        patch.setattr(Side, "_wait", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            side.run("select 1")
    assert side.value("select pg_backend_pid()") != pid


def test_a_name_that_is_never_looked_up_cannot_hold_it(
    clusters: tuple[Postgres, Postgres], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = Side("blue", clusters[0].url.replace("127.0.0.1", "localhost"))
    assert "@localhost:" in named.url and named.value("select 1") == 1
    named.close()
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **given: released.wait(PATIENCE) and [])
    began = time.monotonic()
    with pytest.raises(TimedOut, match="did not accept a connection"):
        named.value("select 1", timeout=0.2)
    assert time.monotonic() - began < PATIENCE / 2
    released.set()
    monkeypatch.undo()
    with pytest.raises(Unreachable, match="Cannot connect to the blue database: "):
        Side("blue", "postgresql://u:p@no-such-host.invalid/app").value("select 1")
