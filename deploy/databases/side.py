"""One colour's database: statements with a time-out that a frozen or cut-off server cannot exceed.

PostgreSQL's own time-outs are kept by the server, so a frozen one keeps none of them. psycopg2's asynchronous
connections never wait in libpq: https://www.psycopg.org/docs/advanced.html#asynchronous-support.
"""

import math
import re
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any

import psycopg2
from psycopg2 import extensions, sql

from deploy.databases.errors import DatabaseError, TimedOut, Unreachable

APPLICATION = "backstagetest1 bluegreen"
CONNECT = 5.0  # seconds to connect and sign in, within the time-out of the first statement
# A statement that the client has given up ends on the server too, within a second. A commit that was answered is on
# disk, whatever the role's own settings are. The client keeps the time-outs. The fence is for those who use the app, so
# that the side behind it can be prepared.
SETTINGS = {
    "client_connection_check_interval": "1s",
    "synchronous_commit": "on",
    "statement_timeout": "0",
    "jit": "off",  # it costs many times what such statements take
    "bg.bypass": "on",
}
# SQLSTATEs with which the server ends the session: by an administrator, by a crash, by the limit on idle sessions.
ENDED = ("57P01", "57P02", "57P05")


class Session:
    """One connection to a database, which the fence does not stop. Lost, or after a time-out, it is closed for good.

    Transactions that span several messages are begun and ended by statements of their own.
    """

    limit = math.inf  # seconds that no statement may exceed, whatever its own time-out

    def __init__(self, colour: str, url: str, **settings: str) -> None:
        """`settings` are those of PostgreSQL, for the connection."""
        self.colour, self.url = colour, url
        self._settings = SETTINGS | settings
        self._connection: Any = None
        self._closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.colour!r})"  # the URL has a password

    def run(
        self, statement: str | sql.Composable, args: Sequence[Any] | None = None, *, timeout: float = 10.0
    ) -> list[tuple[Any, ...]]:
        """Sends one message and returns the rows of its last statement; several statements are one transaction.

        `timeout` is in seconds. Raises DatabaseError, TimedOut or Unreachable.
        """
        timeout = min(timeout, self.limit)
        deadline = time.monotonic() + timeout
        connection = self._connected(min(deadline, time.monotonic() + CONNECT))
        cursor = connection.cursor()
        try:
            cursor.execute(statement, args)
            self._wait(connection, deadline)
            return list(cursor.fetchall()) if cursor.description else []
        except _Late:
            self._drop()
            raise TimedOut(f"The {self.colour} database did not answer within {timeout:g} s.", in_doubt=True) from None
        except psycopg2.Error as error:
            code = error.pgcode or ""
            if connection.closed or code in ENDED:
                self._drop()
                raise Unreachable(
                    f"The connection to the {self.colour} database was lost: {self._words(error)}",
                    code=code,
                    in_doubt=True,
                ) from None
            raise DatabaseError(f"The {self.colour} database reports: {self._words(error)}", code=code) from None
        except BaseException:  # as an interrupt: what comes back next would be the answer to this statement
            self._drop()
            raise

    def value(
        self, statement: str | sql.Composable, args: Sequence[Any] | None = None, *, timeout: float = 10.0
    ) -> Any:
        """The first column of the first row, or None. Raises what run() raises."""
        rows = self.run(statement, args, timeout=timeout)
        return rows[0][0] if rows else None

    def close(self) -> None:
        """Ends the connection, and with it its locks and an open transaction."""
        self._drop()

    def _connected(self, deadline: float) -> Any:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if self._closed:
            raise Unreachable(f"The session with the {self.colour} database has ended.")
        started = time.monotonic()
        try:
            given = extensions.parse_dsn(self.url)
        except psycopg2.ProgrammingError:  # whose text quotes the URL
            raise Unreachable(f"The URL of the {self.colour} database is not valid.") from None
        options = [
            given.get("options", ""),
            *(f"-c {name}={_escaped(value)}" for name, value in self._settings.items()),
        ]
        given |= {"options": " ".join(options).strip(), "application_name": APPLICATION}
        try:
            given |= _addresses(given.get("host", ""), deadline) if "hostaddr" not in given else {}
            self._connection = psycopg2.connect(extensions.make_dsn(**given), async_=1)
            self._wait(self._connection, deadline)
        except _Late:
            self._drop()
            late = time.monotonic() - started
            raise TimedOut(f"The {self.colour} database did not accept a connection within {late:.1f} s.") from None
        except OSError as error:
            self._drop()
            raise Unreachable(f"Cannot connect to the {self.colour} database: {error.strerror}") from None
        except psycopg2.Error as error:
            self._drop()
            raise Unreachable(f"Cannot connect to the {self.colour} database: {self._words(error)}") from None
        except BaseException:
            self._drop()
            raise
        return self._connection

    def _wait(self, connection: Any, deadline: float) -> None:
        """Waits until what was begun on the connection is done. Raises _Late, or psycopg2's errors."""
        while (state := connection.poll()) != extensions.POLL_OK:
            left = deadline - time.monotonic()
            if left <= 0:
                raise _Late
            waiter = select.poll()  # select.select() knows no file number above 1023
            waiter.register(connection.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT)
            waiter.poll(left * 1000)

    def _drop(self) -> None:
        connection, self._connection, self._closed = self._connection, None, True
        if connection is not None:
            with suppress(psycopg2.Error):
                connection.close()

    def _words(self, error: psycopg2.Error) -> str:
        """What the server says, in one line. Without the line of SQL that it quotes, which may have a password."""
        found = error.diag
        words = " ".join(word for word in (found.message_primary, found.message_detail, found.message_hint) if word)
        words = " ".join((words or str(error) or type(error).__name__).split())
        return re.sub(r"(password\s*=\s*)('[^']*'|\S+)|(://[^:@/\s]*:)[^@\s]*(?=@)", r"\1\3***", words)


class Side(Session):
    """One colour's database. Connects when first used, and again after a time-out or a lost connection."""

    def _connected(self, deadline: float) -> Any:
        self._closed = False
        return super()._connected(deadline)

    @contextmanager
    def session(self, **settings: str) -> Iterator[Session]:
        """A session of its own, for locks that outlast a statement. It never reconnects, as its locks would be gone.

        `settings` are those of PostgreSQL, for the connection.
        """
        session = Session(self.colour, self.url, **settings)
        try:
            yield session
        finally:
            session.close()


def _escaped(value: str) -> str:
    """As `options` need it: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-OPTIONS."""
    return re.sub(r"([\\\s])", r"\\\1", value)


def _addresses(host: str, deadline: float) -> dict[str, str]:
    """A host's addresses, as libpq takes them; nothing for sockets, addresses and lists of hosts.

    libpq would look the name up without a time-out: https://www.postgresql.org/docs/current/libpq-connect.html.
    Raises _Late, and OSError if the name is unknown.
    """
    if not host or re.search(r"^[/@]|,|:|^[\d.]+$", host):
        return {}
    answer: SimpleQueue[list[str] | OSError] = SimpleQueue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            answer.put(list(dict.fromkeys(str(address[0]) for *_, address in found)))
        except OSError as error:
            answer.put(error)

    threading.Thread(target=look_up, name="look up a host", daemon=True).start()
    try:
        addresses = answer.get(timeout=max(0.0, deadline - time.monotonic()))
    except Empty:
        raise _Late from None
    if isinstance(addresses, OSError):
        raise addresses
    return {"hostaddr": ",".join(addresses), "host": ",".join([host] * len(addresses))}


class _Late(Exception):
    """The deadline of a wait has passed."""
