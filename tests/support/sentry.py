"""A Sentry of a few lines: it reads envelopes, and keeps the events in them.

https://develop.sentry.dev/sdk/foundations/transport/envelopes/
"""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import brotli

from tests.support.servers import PATIENCE
from tests.support.web import Page, serving

KEY, PROJECT = "a1b2c3d4e5f60718293a4b5c6d7e8f90", 42


class Sentry:
    """What arrived: the events, and all that was sent, decoded."""

    def __init__(self) -> None:
        self.port = 0
        self.events: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self.answers = threading.Event()  # cleared, it is frozen: connections are accepted, and nothing answers
        self.answers.set()

    @property
    def dsn(self) -> str:
        return f"http://{KEY}@127.0.0.1:{self.port}/{PROJECT}"

    def take(self, path: str, auth: str, body: bytes) -> None:
        assert path == f"/api/{PROJECT}/envelope/" and f"sentry_key={KEY}" in auth
        self.raw.append(body.decode())
        for kind, payload in items(body):
            assert kind in ("event", "client_report"), kind
            if kind == "event":
                self.events.append(json.loads(payload))

    def of_request(self, identifier: str) -> dict[str, Any] | None:
        """The event of the request with this id, once it is here."""
        return next((one for one in list(self.events) if one["tags"].get("request_id") == identifier), None)


def items(envelope: bytes) -> Iterator[tuple[str, bytes]]:
    """The items of an envelope: each its type and its payload."""
    head, _, rest = envelope.partition(b"\n")
    assert isinstance(json.loads(head), dict)
    while rest:
        line, _, rest = rest.partition(b"\n")
        item = json.loads(line)
        length = item.get("length", rest.find(b"\n"))
        yield item["type"], rest[:length]
        rest = rest[length:].removeprefix(b"\n")


@contextmanager
def reading() -> Iterator[Sentry]:
    """A Sentry on a free port."""
    sentry = Sentry()

    class Envelopes(Page):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if sentry.answers.wait(PATIENCE):
                body = {"br": brotli.decompress, "gzip": gzip.decompress}[self.headers["Content-Encoding"]](body)
                sentry.take(self.path, self.headers["X-Sentry-Auth"], body)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

    with serving(Envelopes) as sentry.port:
        try:
            yield sentry
        finally:
            sentry.answers.set()
