"""Traces: a span for each request, with one for each of its database queries, sent by OTLP over HTTP.

Attributes are those of OpenTelemetry's conventions, where it has any:
https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

import sys
import threading
import uuid
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.signals import got_request_exception
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponseBase
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from backstagetest1.logs import trace_id
from backstagetest1.telemetry import deployment, failures
from backstagetest1.telemetry.queries import LONGEST, Queries
from metrics.middleware import METHODS, SCRAPE_PATH, UNROUTED, exception_type

# A collector that is slow, frozen or gone costs spans and nothing else: a thread sends them from a queue of bounded
# length, which drops the oldest. The SDK's own variables (OTEL_BSP_MAX_QUEUE_SIZE, ...) change its size.
TIMEOUT = 5.0  # seconds that an export may take, with its retries
GRACE = 2.0  # seconds that a worker's end waits for the last export

PARENT = TraceContextTextMapPropagator()


class Traces:
    """The tracer of this process, and the thread that sends what it records."""

    def __init__(self) -> None:
        self.processor = BatchSpanProcessor(
            OTLPSpanExporter(
                endpoint=f"{settings.OTLP_ENDPOINT}/v1/traces", headers=settings.OTLP_HEADERS, timeout=TIMEOUT
            )
        )
        about = {
            "service.name": settings.OTEL_SERVICE_NAME,
            "service.version": settings.VERSION,
            "service.instance.id": str(uuid.uuid4()),  # not the host's name
            "deployment.environment.name": settings.ENVIRONMENT,
            "vcs.ref.head.revision": settings.COMMIT,
            "app.revision": settings.REVISION,
        }
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.OTEL_TRACES_SAMPLER_ARG)),
            resource=Resource.create({name: value for name, value in about.items() if value}),
            span_limits=SpanLimits(max_span_attribute_length=LONGEST),
            shutdown_on_exit=False,  # it would wait for as long as an export may take
        )
        provider.add_span_processor(self.processor)
        self.tracer = provider.get_tracer("backstagetest1")

    def stop(self) -> None:
        """Sends what is still waiting. Returns after GRACE at the latest."""
        stopping = threading.Thread(target=self.processor.shutdown, name="last spans", daemon=True)
        stopping.start()
        stopping.join(GRACE)


_traces: Traces | None = None
_starting = threading.Lock()


def start() -> Traces:
    """Starts the traces of this process, unless they are started. Returns them."""
    global _traces
    with _starting:
        if _traces is None:
            failures.limit(OTLPSpanExporter.__module__)
            _traces = Traces()
            deployment.current()  # so that the first traces have it
        return _traces


def stop() -> None:
    """Stops the traces of this process, within GRACE."""
    global _traces
    with _starting:
        traces, _traces = _traces, None
    if traces:
        traces.stop()


def tracer() -> Tracer:
    """Returns the tracer of this process. Without gunicorn, its first use starts it."""
    return (_traces or start()).tracer


class Middleware:
    """Traces requests, except scrapes; probes do not get here. In META, TRACE_ID is the id of a request's trace."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response
        connection_created.connect(QUERIES.watch, dispatch_uid=__name__)
        got_request_exception.connect(note_exception, dispatch_uid=__name__)

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path_info == SCRAPE_PATH:
            return self.get_response(request)
        meta = request.META
        span = tracer().start_span("request", parent(meta), kind=SpanKind.SERVER)
        if not span.is_recording():  # not in the sample
            return self.get_response(request)
        meta["TRACE_ID"] = trace.format_trace_id(span.get_span_context().trace_id)
        attached = context.attach(trace.set_span_in_context(span))
        logged = trace_id.set(meta["TRACE_ID"])
        try:
            response = self.get_response(request)
        except BaseException:  # the error page failed too, or the worker is being stopped
            finish(span, request, 500)
            raise
        finally:
            trace_id.reset(logged)
            context.detach(attached)
        if response.streaming:
            closers: list[Callable[[], object]] = response._resource_closers  # type: ignore[attr-defined]
            closers.append(lambda: finish(span, request, response.status_code))
        else:
            finish(span, request, response.status_code)
        return response


def parent(meta: dict[str, Any]) -> context.Context:
    """Returns the context that a trusted proxy names in `traceparent`, else an empty one, which starts a new trace.

    ProxyMiddleware has removed the headers of all others. https://www.w3.org/TR/trace-context/
    """
    if "HTTP_TRACEPARENT" not in meta:
        return context.Context()
    carrier = {name: meta.get(f"HTTP_{name.upper()}", "") for name in ("traceparent", "tracestate")}
    return PARENT.extract(carrier, context.Context())


def finish(span: Span, request: HttpRequest, status: int) -> None:
    """Ends a request's span with what is known by now. The metrics middleware has found the route."""
    meta = request.META
    method = request.method if request.method in METHODS else "_OTHER"
    route = meta.get("ROUTE", UNROUTED)
    span.set_attributes(
        {
            "http.request.method": str(method),
            "http.response.status_code": status,
            "url.scheme": str(request.scheme),
            "request.id": meta.get("REQUEST_ID", ""),
        }
    )
    if route == UNROUTED:
        span.update_name(str(method))
    else:
        span.set_attribute("http.route", route)
        span.update_name(f"{method} {route}")
    if found := deployment.current():
        span.set_attribute("deployment.id", found)
    if status >= 500:
        span.set_status(StatusCode.ERROR)
    span.end()


def note_exception(sender: object, **_: Any) -> None:
    """Receives Django's got_request_exception: notes the error's type on the request's span. Its text may contain
    anything, so it is in the log only.
    """
    if error := sys.exc_info()[1]:
        trace.get_current_span().set_attribute("error.type", exception_type(error))


QUERIES = Queries(tracer)
