"""An OpenTelemetry collector of a few lines, which parses the protobufs that it gets."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.servers import PATIENCE
from tests.support.web import Page, serving


class Span(NamedTuple):
    """A span as it arrived, ids in hex."""

    name: str
    kind: int  # 2: server, 3: client
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    failed: bool


class Collector:
    """What arrived: the spans, the bytes of each export, and its headers."""

    def __init__(self) -> None:
        self.port = 0
        self.spans: list[Span] = []
        self.raw: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.answers = threading.Event()  # cleared, it is frozen: connections are accepted, and nothing answers
        self.answers.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        assert (path, headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        self.headers.append(headers)
        self.raw.append(body)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = plain(group.resource.attributes)
            for scope in group.scope_spans:
                for one in scope.spans:
                    ids = (one.trace_id.hex(), one.span_id.hex(), one.parent_span_id.hex())
                    failed = one.status.code == one.status.STATUS_CODE_ERROR
                    self.spans.append(Span(one.name, one.kind, *ids, plain(one.attributes), resource, failed))

    def of_request(self, identifier: str) -> Span | None:
        """The span of the request with this id, once it is here."""
        return next((span for span in list(self.spans) if span.attributes.get("request.id") == identifier), None)


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes (KeyValue) as a dictionary."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    collector = Collector()

    class Exports(Page):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if collector.answers.wait(PATIENCE):
                collector.take(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                self.send_response(200)
                self.end_headers()

    with serving(Exports) as collector.port:
        try:
            yield collector
        finally:
            collector.answers.set()
