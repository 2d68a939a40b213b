"""Logs as JSON lines, each with the id of its request.

A line has `time` (RFC 3339, UTC), `level`, `logger`, `message`, `request_id`, `trace_id` if the request is traced, and
what the caller passed in `extra`.
"""

import logging
import re
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from gunicorn.glogging import Logger
from pythonjsonlogger.json import JsonFormatter as BaseJsonFormatter

from backstagetest1.proxy import request_id

# The id of the request's trace. backstagetest1/telemetry/traces.py sets it, where traces are on.
trace_id: ContextVar[str] = ContextVar("trace_id", default="")

# Django and allauth put one-time keys into paths; a log that many can read must not contain them.
ONE_TIME_KEY = re.compile(r"(/(?:password/reset/key|confirm-email)/)[^/\s?]+")


def without_keys(path: str) -> str:
    """Returns `path` for a log: without its query string, and with one-time keys replaced."""
    return ONE_TIME_KEY.sub(r"\1[key]", path.partition("?")[0])


class RequestIdFilter(logging.Filter):
    """Adds the current request's id to every record, and that of its trace if it is traced."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        if trace := trace_id.get():
            record.trace_id = trace
        return True


class JsonFormatter(BaseJsonFormatter):
    """One JSON object a line; a stack trace is its field `exception`."""

    def __init__(self) -> None:
        super().__init__(
            "{levelname}{name}{message}{request_id}",
            style="{",
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
        )

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        log_data["time"] = datetime.fromtimestamp(record.created, UTC).isoformat("T", "milliseconds")
        super().add_fields(log_data, record, message_dict)
        # Django attaches the request object; the status code has a field of its own.
        log_data.pop("request", None)
        log_data["message"] = ONE_TIME_KEY.sub(r"\1[key]", str(log_data["message"]))


class GunicornLogger(Logger):  # type: ignore[misc]
    """Writes gunicorn's own messages and its access log in the same format, to standard error."""

    def setup(self, cfg: Any) -> None:
        """Replaces gunicorn's handlers."""
        super().setup(cfg)
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        handler.addFilter(RequestIdFilter())
        for log in (self.error_log, self.access_log):
            log.handlers = [handler]
            log.propagate = False
        self.access_log.setLevel(logging.INFO)

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: Any) -> None:
        """Writes one line per request. The path has no query string, which may contain secrets."""
        trace = {"trace_id": environ["TRACE_ID"]} if "TRACE_ID" in environ else {}
        self.access_log.info(
            "request",
            extra={
                "request_id": environ.get("REQUEST_ID", ""),
                "client": environ.get("REMOTE_ADDR", ""),
                "method": environ.get("REQUEST_METHOD", ""),
                "path": without_keys(environ.get("RAW_URI", "")),
                "route": environ.get("ROUTE", ""),
                "status": int(str(resp.status).split(None, 1)[0]),
                "bytes": getattr(resp, "sent", None),
                "duration_ms": round(request_time.total_seconds() * 1000, 1),
            }
            | trace,
        )
