"""Errors, sent to Sentry: whatever is logged at level ERROR, in a request or in a thread in the background.

What is sent is built here, field by field, and nothing else leaves the process. The SDK's integrations, which collect
headers, cookies, forms, users and local variables, are off. https://docs.sentry.io/platforms/python/
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, cast

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from sentry_sdk import Client
from sentry_sdk.transport import HttpTransport
from sentry_sdk.types import Event
from sentry_sdk.utils import event_from_exception

from backstagetest1.logs import trace_id
from backstagetest1.proxy import request_id
from backstagetest1.telemetry import deployment, failures
from metrics.middleware import METHODS, OTHER, UNROUTED, endpoint

logger = logging.getLogger(__name__)

QUEUE = 100  # events that wait to be sent; later ones are dropped
MOST = 10  # events a minute from the same place: an outage fails every request
GRACE = 2.0  # seconds that a worker's end waits for the last events

# Clients cause these by what they send: a wrong Host, a path that leads out of a folder.
IGNORED = ("django.security", "sentry_sdk", "opentelemetry", "urllib3")

# Of a stack's frame, the code; the SDK adds local variables only if it is told to, which it is not.
FRAME = ("filename", "function", "module", "lineno", "pre_context", "context_line", "post_context", "in_app")
EVENT = (
    "event_id",
    "timestamp",
    "platform",
    "level",
    "logger",
    "logentry",
    "transaction",
    "exception",
    "release",
    "environment",
    "tags",
    "contexts",
    "sdk",
)

request: ContextVar[HttpRequest | None] = ContextVar("request", default=None)


class Transport(HttpTransport):
    """The SDK's transport, a thread with a queue. It gives up on a server that does not answer in TIMEOUT seconds."""

    TIMEOUT = 5


class Handler(logging.Handler):
    """Sends records of level ERROR."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.client = Client(
            dsn=settings.SENTRY_DSN,
            release=settings.VERSION,  # as the board calls it
            environment=settings.ENVIRONMENT,
            server_name="",  # not the host's
            transport=Transport,
            transport_queue_size=QUEUE,
            default_integrations=False,
            auto_enabling_integrations=False,
            auto_session_tracking=False,
            enable_backpressure_handling=False,
            include_local_variables=False,
            spotlight=False,
            debug=False,
            max_breadcrumbs=0,
            project_root=str(settings.BASE_DIR),
            before_send=only,
        )
        self.limit = Limit()

    def emit(self, record: logging.LogRecord) -> None:
        """Queues the record; it is sent in a thread. A failure is printed, as of any handler, and never raised."""
        if record.name.startswith(IGNORED):
            return
        try:
            if self.limit.allows(place(record)):
                self.client.capture_event(event(record, self.client.options))
        except Exception:
            self.handleError(record)


class Limit:
    """Allows MOST events a minute for each place."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.until = 0.0
        self.lock = threading.Lock()

    def allows(self, place: str) -> bool:
        """Whether another event from this place may be sent; it then counts."""
        with self.lock:
            now = time.monotonic()
            if now >= self.until:
                self.counts.clear()
                self.until = now + 60
            self.counts[place] += 1
            return self.counts[place] <= MOST


def place(record: logging.LogRecord) -> str:
    """Returns where the record comes from: the line that raised the error, or the line that logged it."""
    trace = record.exc_info[2] if record.exc_info else None
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else f"{record.pathname}:{record.lineno}"


def event(record: logging.LogRecord, options: Mapping[str, Any]) -> Event:
    """Returns what is sent of a record: types and places, and a message only if it is written in our code. Texts of
    errors, and what is filled into messages, may contain anything; the log has them.
    """
    found: dict[str, Any] = {"level": record.levelname.lower(), "logger": record.name}
    error = record.exc_info[1] if record.exc_info else None
    if error:
        found |= event_from_exception(error, dict(options))[0]
        found["level"] = record.levelname.lower()
        for one in found["exception"]["values"]:
            one["value"] = ""
    if ours(record.name) and isinstance(record.msg, str):
        found["logentry"] = {"message": record.msg}
    elif not error:
        found["logentry"] = {"message": f"Logged by {record.name} in {record.funcName}, line {record.lineno}"}
    tags = {
        "request_id": request_id.get(),
        "revision": settings.REVISION,
        "commit": settings.COMMIT,
        "deployment": deployment.current(),
        "thread": record.threadName,
        "sqlstate": sqlstate(error),
    }
    asked = getattr(record, "request", None) or request.get()
    if isinstance(asked, HttpRequest):
        tags["method"] = asked.method if asked.method in METHODS else OTHER
        tags["route"] = endpoint(asked.resolver_match.route) if asked.resolver_match else UNROUTED
        found["transaction"] = tags["route"]
    found["tags"] = {name: value for name, value in tags.items() if value}
    if trace_id.get():
        found["contexts"] = {"trace": span()}
    return cast(Event, found)


def span() -> dict[str, str]:
    """Returns the ids of the current trace and span, where traces are on."""
    from opentelemetry import trace

    current = trace.get_current_span().get_span_context()
    return {"trace_id": trace.format_trace_id(current.trace_id), "span_id": trace.format_span_id(current.span_id)}


def ours(name: str) -> bool:
    """Whether the logger `name` is of this project, whose messages are written in the code: a test holds them to it."""
    return name.partition(".")[0] in {"backstagetest1", *(app for app in settings.INSTALLED_APPS if "." not in app)}


def sqlstate(error: BaseException | None) -> str:
    """Returns PostgreSQL's code of the error, or of one that caused it; "" if there is none."""
    while error:
        if code := getattr(error, "pgcode", None):
            return str(code)
        error = error.__cause__ or error.__context__
    return ""


def only(found: Event, _: Any) -> Event:
    """Receives an event before it is sent, and keeps nothing but the known fields, whatever the SDK has added."""
    kept: dict[str, Any] = {name: value for name, value in found.items() if name in EVENT}
    for one in kept.get("exception", {}).get("values", []):
        for frame in one.get("stacktrace", {}).get("frames", []):
            for name in [name for name in frame if name not in FRAME]:
                del frame[name]
    return cast(Event, kept)


_handler: Handler | None = None
_starting = threading.Lock()


def start() -> Handler:
    """Starts sending, unless it is started. Returns the handler."""
    global _handler
    with _starting:
        if _handler is None:
            failures.limit("urllib3.connectionpool")
            _handler = Handler()
            for log in (logging.getLogger(), logging.getLogger("gunicorn.error")):  # which does not propagate
                log.addHandler(_handler)
            threading.excepthook = log_uncaught
            deployment.current()  # so that the first events have it
        return _handler


def stop() -> None:
    """Sends what is still waiting, within GRACE."""
    global _handler
    with _starting:
        handler, _handler = _handler, None
    if handler:
        for log in (logging.getLogger(), logging.getLogger("gunicorn.error")):
            log.removeHandler(handler)
        threading.excepthook = threading.__excepthook__
        handler.client.close(timeout=GRACE)


def log_uncaught(args: threading.ExceptHookArgs) -> None:
    """Receives what ends a thread, which Python would print only."""
    if args.exc_type is SystemExit:
        return
    error = args.exc_value or args.exc_type()
    logger.error("A thread ended with an error", exc_info=(args.exc_type, error, args.exc_traceback))


class Middleware:
    """Notes which request a thread serves, for its errors. Without gunicorn, the first request starts the sending."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, asked: HttpRequest) -> HttpResponseBase:
        if _handler is None:
            start()
        noted = request.set(asked)
        try:
            return self.get_response(asked)
        finally:
            request.reset(noted)
