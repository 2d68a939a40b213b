"""A span for each database query of a traced request: its statement, never its parameters."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from metrics.middleware import exception_type

# Values that are written into a statement: 'it''s', E'it\'s', $$it's$$. A cut-off one is a value to its end.
VALUE = re.compile(r"(?i:\bE)'(?:[^'\\]|''|\\.)*(?:'|$)|'(?:[^']|'')*(?:'|$)|\$(\w*)\$.*?(?:\$\1\$|$)", re.DOTALL)
COMMENT = re.compile(r"/\*.*?\*/|--[^\n]*", re.DOTALL)
TABLE = re.compile(r'\b(?:FROM|INTO|UPDATE)\s+"?(\w+)', re.IGNORECASE)
LONGEST = 2_000  # characters of a statement


@lru_cache(256)  # most queries are the same few, again and again
def statement(sql: str) -> str:
    """Returns `sql` without the values and comments in it.

    >>> statement("SELECT 1 FROM people WHERE name = 'O''Hara' AND id = %s")
    'SELECT 1 FROM people WHERE name = ? AND id = %s'
    """
    return COMMENT.sub("", VALUE.sub("?", sql[: 2 * LONGEST])).strip()[:LONGEST]


@lru_cache(256)
def summary(text: str) -> str:
    """Returns the name of a statement's span: what it does, and the first table that it names.

    >>> summary('SELECT "accounts_user"."id" FROM "accounts_user"')
    'SELECT accounts_user'
    """
    verb = text.partition(" ")[0].upper()
    if not re.fullmatch("[A-Z]{2,12}", verb):
        return "query"
    return f"{verb} {table[1]}" if (table := TABLE.search(text)) else verb


class Queries:
    """What Django calls for each query. https://docs.djangoproject.com/en/5.2/topics/db/instrumentation/"""

    def __init__(self, tracer: Callable[[], Tracer]) -> None:
        """`tracer` returns the tracer of this process."""
        self.tracer = tracer

    def watch(self, connection: BaseDatabaseWrapper, **_: Any) -> None:
        """Receives Django's connection_created."""
        if self not in connection.execute_wrappers:
            # First, because connection.execute_wrapper() removes the last one when it ends.
            connection.execute_wrappers.insert(0, self)

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        """Runs the query, in a span if the request is traced. Raises what the query raises."""
        if not trace.get_current_span().is_recording():
            return execute(sql, params, many, context)
        text = statement(sql) if isinstance(sql, str) else ""  # a psycopg2.sql.Composable may contain values
        system = context["connection"].vendor
        attributes = {"db.system.name": system, "db.query.text": text, "db.query.summary": (name := summary(text))}
        span = self.tracer().start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        try:
            return execute(sql, params, many, context)
        except Exception as error:
            span.set_attribute("error.type", exception_type(error))
            if code := getattr(error.__cause__, "pgcode", None):
                span.set_attribute("db.response.status_code", code)
            span.set_status(StatusCode.ERROR)
            raise
        finally:
            span.end()
