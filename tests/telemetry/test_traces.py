"""Traces: what the collector gets from real workers, what it never gets, and what a frozen one costs."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from django.contrib.auth import get_user_model
from django.db import DatabaseError, connection, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import RequestFactory
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import Metric
from prometheus_client.openmetrics import parser

from backstagetest1.logs import trace_id
from backstagetest1.telemetry import deployment, queries, traces
from ledger import rules
from tests.support.collector import Collector, collecting
from tests.support.prometheus import PrometheusServer
from tests.support.servers import PATIENCE, ROOT, Gunicorn, eventually
from tests.support.tools import needs
from tests.telemetry.asking import ask, median, time_to_end

parse: Callable[[str], Iterable[Metric]] = parser.text_string_to_metric_families
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
BUILT = datetime(2026, 11, 1, tzinfo=UTC)
PAGE = "/accounts/login/"
SECRET = "Bearer s3cret-t0ken"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def server(collector: Collector, django_db_setup: None) -> Iterator[Gunicorn]:
    with Gunicorn(
        DJANGO_SETTINGS_MODULE="tests.support.more_settings",
        TRUSTED_PROXIES="127.0.0.1",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="100",
        OTEL_EXPORTER_OTLP_HEADERS=f"Authorization={SECRET.replace(' ', '%20')}",
        APP_VERSION="1.4.0",
        APP_COMMIT="abcdef0",
        APP_REVISION="5d8f7c",
    ) as server:
        yield server


@pytest.mark.django_db
def test_a_request_is_a_span_with_its_release_and_its_queries(server: Gunicorn, collector: Collector) -> None:
    assert ask(server, "/?q=1", X_Request_ID="trace-page-1", traceparent=PARENT)[0] == 200
    span = eventually(lambda: collector.of_request("trace-page-1"))
    assert (span.name, span.kind, span.failed) == ("GET /", 2, False)
    assert (span.trace_id, span.parent_id) == (TRACE, SPAN), "the trusted proxy's"
    assert span.attributes == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/",
        "url.scheme": "http",
        "request.id": "trace-page-1",
    }
    about = span.resource
    assert [about[f"service.{name}"] for name in ("name", "version")] == ["backstagetest1", "1.4.0"]
    assert about["deployment.environment.name"] == "testing"
    assert (about["vcs.ref.head.revision"], about["app.revision"]) == ("abcdef0", "5d8f7c")
    below = [one for one in collector.spans if one.parent_id == span.span_id]
    assert "SELECT ledger_deployment" in {one.name for one in below}
    assert {(one.kind, one.trace_id, one.attributes["db.system.name"]) for one in below} == {(3, TRACE, "postgresql")}
    assert all("authorization" in headers and headers["authorization"] == SECRET for headers in collector.headers)


@pytest.mark.django_db
def test_log_lines_have_the_traces_id_and_the_error_page_the_requests(server: Gunicorn, collector: Collector) -> None:
    status, page = ask(server, "/fail/", X_Request_ID="trace-fail-1", traceparent=PARENT)
    assert status == 500 and "trace-fail-1" in page
    span = eventually(lambda: collector.of_request("trace-fail-1"))
    assert (span.name, span.failed, span.attributes["error.type"]) == ("GET /fail/", True, "ZeroDivisionError")

    def logged() -> set[str]:
        lines = [json.loads(text) for text in server.log.splitlines() if text.startswith("{")]
        return {
            line["logger"] for line in lines if (line["request_id"], line.get("trace_id")) == ("trace-fail-1", TRACE)
        }

    eventually(lambda: logged() == {"django.request", "gunicorn.access"})


@pytest.mark.django_db
def test_both_workers_send_until_they_end(server: Gunicorn, collector: Collector) -> None:
    def instances() -> set[str]:
        ask(server, "/pid/")
        return {span.resource["service.instance.id"] for span in list(collector.spans)}

    eventually(lambda: len(instances()) == 2)


@pytest.mark.django_db
def test_probes_and_scrapes_are_not_traced(server: Gunicorn, collector: Collector) -> None:
    for path in ("/health/", "/health/live/", "/metrics"):
        assert ask(server, path, X_Request_ID=f"trace{path.replace('/', '-')}")[0] == 200
    ask(server, "/nowhere/", X_Request_ID="trace-last-1")
    last = eventually(lambda: collector.of_request("trace-last-1"))
    assert last.name == "GET" and "http.route" not in last.attributes, "what clients make up names no span"
    servers = {str(span.attributes.get("http.route")) for span in collector.spans if span.kind == 2}
    assert not [route for route in servers if "health" in route or "metrics" in route]
    ids = {span.attributes["request.id"] for span in collector.spans if span.kind == 2}
    assert not [one for one in ids if one.startswith(("trace-health", "trace-metrics"))]


@pytest.mark.django_db
def test_nothing_private_is_sent(server: Gunicorn, collector: Collector) -> None:
    _, page = ask(server, "/accounts/login/")
    private = ["ann@example.com", "hunter2hunter2", "s3cret", "c00kie", "198.51.100.7", "agent-x"]
    ask(
        server,
        "/accounts/login/?next=/s3cret/",
        "POST",
        "login=ann@example.com&password=hunter2hunter2&csrfmiddlewaretoken=" + "a" * 64,
        Content_Type="application/x-www-form-urlencoded",
        Cookie=f"session=c00kie; csrf={'a' * 64}",
        X_Request_ID="trace-private-1",
        X_Forwarded_For="198.51.100.7",
        User_Agent="agent-x",
    )
    ask(server, "/accounts/password/reset/key/1-s3cret-k3y/", X_Request_ID="trace-private-2")
    ask(server, "/ann@example.com", X_Request_ID="trace-private-3")
    for number in (1, 2, 3):
        eventually(lambda: collector.of_request(f"trace-private-{number}"))
    sent = b"".join(collector.raw).decode(errors="replace")
    assert [word for word in [*private, os.uname().nodename, "127.0.0.1"] if word in sent] == []


@pytest.mark.django_db
def test_the_histograms_buckets_lead_to_traces_in_openmetrics_alone(server: Gunicorn) -> None:
    """Whichever worker answers the scrape."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    ask(server, "/pid/", traceparent=f"00-{trace}-{SPAN}-01")
    for _ in range(4):
        _, text = ask(server, "/metrics", Accept="application/openmetrics-text;version=1.0.0")
        (family,) = [each for each in parse(text) if each.name == "http_request_duration_seconds"]
        found = [one for one in family.samples if one.exemplar and one.exemplar.labels == {"trace_id": trace}]
        assert [one.labels["endpoint"] for one in found] == ["/pid/"]
        assert found[0].exemplar and 0 < found[0].exemplar.value <= float(found[0].labels["le"])
        assert trace not in ask(server, "/metrics")[1], "the text format has no exemplars"


@needs("prometheus")
@pytest.mark.django_db
def test_prometheus_finds_the_trace_of_a_request(server: Gunicorn) -> None:
    """Started as in the stack; it asks for OpenMetrics by itself."""
    stack = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["prometheus"]["command"]
    flags = [flag for flag in stack if flag.startswith("--enable-feature")]
    trace = "5bf92f3577b34da6a3ce929d0e0e4736"
    ask(server, "/pid/", traceparent=f"00-{trace}-{SPAN}-01")
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "app", "static_configs": [{"targets": [f"127.0.0.1:{server.port}"]}]}],
    }
    with PrometheusServer(yaml.safe_dump(config), *flags) as prometheus:
        query = 'http_request_duration_seconds_bucket{endpoint="/pid/"}'

        def found() -> set[str]:
            about = urlencode({"query": query, "start": time.time() - 3600, "end": time.time() + 3600})
            with urlopen(f"{prometheus.url}/api/v1/query_exemplars?{about}", timeout=PATIENCE) as answer:
                series = json.load(answer)["data"]
            return {one["labels"]["trace_id"] for each in series for one in each["exemplars"]}

        eventually(lambda: trace in found())


@pytest.mark.slow
@pytest.mark.django_db
def test_a_frozen_collector_slows_no_request_and_delays_no_end(collector: Collector) -> None:
    small = {"OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "32"}
    with Gunicorn(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="100", **small) as server:
        median(server, PAGE, 20)
        before = median(server, PAGE, 100)
        collector.answers.clear()
        try:
            during = median(server, PAGE, 100)
            took = time_to_end(server)
            assert "Queue full" in server.log
        finally:
            collector.answers.set()
    assert during < 2 * before + 0.1, "one that waited for it would take TIMEOUT, 5 s"
    assert took < 25, "GRACEFUL_TIMEOUT"


def test_what_is_off_is_not_imported() -> None:
    code = "import sys; import backstagetest1.wsgi; from backstagetest1 import telemetry; telemetry.start()\n"
    code += "foreign = ('opentelemetry', 'sentry_sdk', 'google', 'requests', 'urllib3')\n"
    code += "print(sorted(name for name, module in sys.modules.items() if module and name.startswith(foreign)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# In this process, with a memory in place of the collector


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    memory, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(traces, "tracer", lambda: provider.get_tracer("test"))
    monkeypatch.setattr(deployment, "current", lambda: "61")
    yield memory


def traced(view: Any, **meta: Any) -> HttpRequest:
    request = RequestFactory().get("/", **meta)
    traces.Middleware(view)(request)
    return request


def test_a_span_has_the_deployments_id(memory: InMemorySpanExporter) -> None:
    request = traced(lambda _: HttpResponse())
    (span,) = memory.get_finished_spans()
    assert (span.attributes or {})["deployment.id"] == "61"
    assert span.context and request.META["TRACE_ID"] == f"{span.context.trace_id:032x}"


def test_a_streams_span_ends_with_its_last_byte(memory: InMemorySpanExporter) -> None:
    response = StreamingHttpResponse(iter([b"a", b"b"]))
    traced(lambda _: response)
    assert memory.get_finished_spans() == ()
    assert b"".join(cast(Iterator[bytes], response)) == b"ab"
    response.close()
    assert len(memory.get_finished_spans()) == 1


def test_a_request_that_a_stopping_worker_ends_is_a_failed_span(memory: InMemorySpanExporter) -> None:
    def view(_: HttpRequest) -> HttpResponse:
        raise SystemExit

    with pytest.raises(SystemExit):
        traced(view)
    (span,) = memory.get_finished_spans()
    assert (span.attributes or {})["http.response.status_code"] == 500 and not span.status.is_ok
    assert trace_id.get() == "", "the thread's next line is not of this trace"


@pytest.mark.django_db
def test_a_query_is_sent_without_its_values(memory: InMemorySpanExporter) -> None:
    wrap = queries.Queries(lambda: traces.tracer())

    def view(_: HttpRequest) -> HttpResponse:
        with connection.execute_wrapper(wrap):
            get_user_model().objects.filter(email="ann@example.com").first()
            with connection.cursor() as cursor:
                cursor.execute("SELECT 'ann@example.com', %s /* hunter2 */", ["hunter2"])
                with pytest.raises(DatabaseError), transaction.atomic():
                    cursor.execute("SELECT 1/0")
        return HttpResponse()

    traced(view)
    found = [dict(span.attributes or {}) for span in memory.get_finished_spans()]
    assert not [one for one in found if "hunter2" in str(one) or "ann@" in str(one)]
    assert [one["db.query.summary"] for one in found if "db.query.summary" in one][:2] == [
        "SELECT accounts_user",
        "SELECT",
    ]
    (failed,) = [one for one in found if "error.type" in one]
    assert (failed["error.type"], failed["db.response.status_code"]) == ("DataError", "22012")


@pytest.mark.parametrize(
    ("sql", "sent"),
    [
        ("SELECT 'O''Hara'", "SELECT ?"),
        (r"SELECT E'it\'s', 1", "SELECT ?, 1"),
        ("SELECT $a$x$a$, $$y$$", "SELECT ?, ?"),
        ("SELECT 'cut off", "SELECT ?"),
        ("-- ann@example.com\nSELECT 1", "SELECT 1"),
        ('SELECT "it\'s"', 'SELECT "it?'),
    ],
)
def test_values_are_removed_from_statements(sql: str, sent: str) -> None:
    assert queries.statement(sql) == sent


@pytest.mark.parametrize("sampled", [True, False])
def test_what_is_not_sampled_is_not_recorded(
    sampled: bool, settings: Any, monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    """The proxy's decision counts; the share is for requests without one."""
    settings.OTLP_ENDPOINT, settings.OTEL_TRACES_SAMPLER_ARG = collector.url, 0.0
    monkeypatch.setattr(deployment, "current", lambda: "")
    flags = "01" if sampled else "00"
    try:
        request = traced(lambda _: HttpResponse(), HTTP_TRACEPARENT=f"00-{TRACE}-{SPAN}-{flags}")
        assert request.META.get("TRACE_ID") == (TRACE if sampled else None)
        assert "TRACE_ID" not in traced(lambda _: HttpResponse()).META
    finally:
        traces.stop()


def deploy(version: str) -> str:
    """Deploys a version to testing; returns the deployment's id."""
    rules.register(version, "abcdef0", BUILT)
    one = rules.create("testing", version, "rolling", "ann")
    rules.start(one.pk)
    return str(rules.finish(one.pk, "succeeded").pk)


@pytest.mark.django_db
def test_the_deployment_is_the_latest_of_this_version_here(settings: Any) -> None:
    settings.ENVIRONMENT, settings.VERSION = "testing", "1.4.0"
    assert deployment.latest() == ""
    found = {version: deploy(version) for version in ("1.4.0", "1.4.1", "1.4.0", "1.4.1")}
    assert deployment.latest() == found["1.4.0"]


@pytest.mark.django_db(transaction=True)
def test_the_ledger_is_asked_in_a_thread_and_once_a_minute(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.ENVIRONMENT, settings.VERSION = "testing", "1.4.0"
    monkeypatch.setattr(deployment, "_found", "")
    monkeypatch.setattr(deployment, "_next", 0.0)
    look, may = deployment.latest, threading.Event()
    monkeypatch.setattr(deployment, "latest", lambda: may.wait(PATIENCE) and look())
    first = deploy("1.4.0")
    assert deployment.current() == deployment.current() == "", "it does not wait"
    may.set()
    eventually(lambda: deployment.current() == first)
    deploy("1.4.1")
    second = deploy("1.4.0")
    assert deployment.current() == first
    monkeypatch.setattr(deployment, "_next", 0.0)
    eventually(lambda: deployment.current() == second)
