"""The metrics of gunicorn with two workers, PostgreSQL and Redis, as a real scrape shows them."""

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from django.urls import URLResolver, get_resolver
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from deploy import metrics as bluegreen
from ledger.metrics import in_progress, locks
from metrics.middleware import METHODS, endpoint
from statuspage.uptime import uptime_samples
from tests.support.servers import PATIENCE, ROOT, Gunicorn, Postgres, Redis, eventually, frozen

pytestmark = pytest.mark.slow

parse: Callable[[str], Iterable[Metric]] = text_string_to_metric_families
WORKERS = 2
T = TypeVar("T")


@pytest.fixture(scope="module")
def app(own_postgres: Postgres, own_redis: Redis) -> Iterator[Gunicorn]:
    settings = {"DJANGO_SETTINGS_MODULE": "tests.support.more_settings", "DATABASE_URL": own_postgres.url}
    with Gunicorn(WORKERS, REDIS_URL=own_redis.url, **settings) as server:
        yield server


def ask(app: Gunicorn, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    link = http.client.HTTPConnection("127.0.0.1", app.port, timeout=PATIENCE)
    link.request(method, path, headers=headers | {"Connection": "close"})
    response = link.getresponse()
    try:
        return response.status, response.read().decode()
    finally:
        link.close()


class Scrape:
    """What /metrics says now."""

    def __init__(self, app: Gunicorn) -> None:
        started = time.monotonic()
        status, self.text = ask(app, "/metrics")
        self.took = time.monotonic() - started
        assert status == 200, self.text
        self.families = {family.name: family for family in parse(self.text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def values(self, name: str, **labels: str) -> list[float]:
        """The samples of `name` that have these labels."""
        wanted = labels.items()
        return [sample.value for sample in self.samples if sample.name == name and wanted <= sample.labels.items()]

    def sum(self, name: str, **labels: str) -> float:
        return sum(self.values(name, **labels))


def by_each(app: Gunicorn, do: Callable[[], T]) -> list[T]:
    """What `do` returns when the first worker answers it, and when the second does: the other is stopped meanwhile."""
    found = []
    for stopped in app.workers():
        os.kill(stopped, signal.SIGSTOP)
        try:
            found.append(do())
        finally:
            os.kill(stopped, signal.SIGCONT)
    return found


def test_the_counts_of_two_workers_equal_the_requests_sent(app: Gunicorn) -> None:
    before = Scrape(app)
    paths = ["/pid/", "/accounts/login/", "/no/such/page", "/fail/"]

    def visit() -> None:
        for number in range(60):
            ask(app, paths[number % 4])

    visitors = [threading.Thread(target=visit) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(PATIENCE)
    answered = by_each(app, lambda: int(ask(app, "/pid/")[1]))
    assert sorted(answered) == sorted(app.workers())
    expected = {("/pid/", "200"): 62, ("/accounts/login/", "200"): 60, ("unrouted", "404"): 60, ("/fail/", "500"): 60}
    for after in by_each(app, lambda: Scrape(app)):
        for (page, status), sent in expected.items():
            labels = {"endpoint": page, "status": status, "method": "GET"}
            assert after.sum("http_requests_total", **labels) - before.sum("http_requests_total", **labels) == sent
            count = "http_request_duration_seconds_count"
            assert after.sum(count, endpoint=page) - before.sum(count, endpoint=page) == sent
        failed = "http_exceptions_total"
        assert after.sum(failed, type="ZeroDivisionError") - before.sum(failed, type="ZeroDivisionError") == 60
        assert after.sum("http_requests_in_progress") == 0


def test_the_cache_ratio_is_of_the_totals_of_both_workers(app: Gunicorn) -> None:
    before = Scrape(app)
    asked = iter((1, 5))
    answers = by_each(app, lambda: ask(app, f"/cached/{next(asked)}/"))
    assert answers == [(200, str([1, None])), (200, str([1, 1, 1, 1, 1, None]))]
    for after in by_each(app, lambda: Scrape(app)):
        hits, misses = after.sum("cache_hits_total"), after.sum("cache_misses_total")
        assert (hits, misses) == (before.sum("cache_hits_total") + 6, before.sum("cache_misses_total") + 2)
        assert after.sum("cache_hit_ratio") == pytest.approx(hits / (hits + misses))


def test_a_stream_of_a_second_is_recorded_as_one(app: Gunicorn) -> None:
    before = Scrape(app).sum("http_request_duration_seconds_sum", endpoint="/stream/")
    started = time.monotonic()
    ask(app, "/stream/")
    recorded = eventually(lambda: Scrape(app).sum("http_request_duration_seconds_sum", endpoint="/stream/") - before)
    assert 1 <= recorded <= time.monotonic() - started


def hold(app: Gunicorn) -> tuple[socket.socket, int]:
    """A connection on which a page is being streamed, and the process id of its worker."""
    link = socket.create_connection(("127.0.0.1", app.port), timeout=PATIENCE)
    link.sendall(b"GET /hold/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
    received = b""
    while not (found := re.search(rb"\r\n(\d+)\n", received)):
        received += link.recv(1000)
    return link, int(found[1])


def test_a_client_that_leaves_a_stream_ends_its_request(app: Gunicorn) -> None:
    before = Scrape(app)
    link, _ = hold(app)
    assert Scrape(app).sum("http_requests_in_progress") == 1
    link.close()
    eventually(lambda: Scrape(app).sum("http_requests_in_progress") == 0)
    after = Scrape(app)
    assert (
        after.sum("http_requests_total", endpoint="/hold/") - before.sum("http_requests_total", endpoint="/hold/") == 1
    )
    duration = "http_request_duration_seconds_sum"
    assert 0 < after.sum(duration, endpoint="/hold/") - before.sum(duration, endpoint="/hold/") < PATIENCE


def test_a_killed_worker_leaves_nothing_in_progress_and_its_totals(app: Gunicorn) -> None:
    ask(app, "/pid/")
    before = Scrape(app)
    link, pid = hold(app)
    assert Scrape(app).sum("http_requests_in_progress") == 1
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(app.workers()) == WORKERS and pid not in app.workers())
    eventually(lambda: Scrape(app).sum("http_requests_in_progress") == 0)
    after = Scrape(app)
    link.close()
    for name in ("http_requests_total", "cache_misses_total", "process_cpu_seconds_total"):
        assert after.sum(name) >= before.sum(name)
    assert after.sum("process_workers") == WORKERS


def test_the_process_metrics_are_those_of_the_master_and_its_workers(app: Gunicorn) -> None:
    scrape = Scrape(app)
    memory = 0
    for pid in [app.pid, *app.workers()]:
        memory += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert scrape.sum("process_workers") == WORKERS
    assert scrape.sum("process_resident_memory_bytes") == pytest.approx(memory, rel=0.1)
    assert abs(scrape.sum("process_start_time_seconds") - Path(f"/proc/{app.pid}").stat().st_ctime) < PATIENCE
    assert 0 < scrape.sum("process_open_fds") < scrape.sum("process_max_fds")


def all_show(app: Gunicorn, name: str) -> bool:
    """Whether the metric is in the scrape of each worker: each has its own view of what is frozen."""
    return all(name in scrape.families for scrape in by_each(app, lambda: Scrape(app)))


def threads(app: Gunicorn) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in app.workers())


def test_a_frozen_database_is_left_out_of_the_scrape(app: Gunicorn, own_postgres: Postgres) -> None:
    by_each(app, lambda: Scrape(app))
    before, threads_before = Scrape(app), threads(app)
    assert before.sum("database_connections_active") >= 1
    with frozen(own_postgres):
        for _ in range(10):
            scrape = Scrape(app)
            assert scrape.took < 0.5 + 1
            assert "database_connections_active" not in scrape.families
            assert "active_users" in scrape.families
        failed = "metrics_collector_errors_total"
        collector = "metrics.collectors.database"
        assert scrape.sum(failed, collector=collector) - before.sum(failed, collector=collector) == 10
        eventually(lambda: Scrape(app).values("health_check_up", check="database") == [0])
        assert Scrape(app).values("health_check_up", check="cache") == [1]
        assert threads(app) <= threads_before + 3 * WORKERS, "one for each health check, and none for each scrape"
    eventually(lambda: all_show(app, "database_connections_active"))


def test_a_frozen_redis_is_left_out_of_the_scrape(app: Gunicorn, own_redis: Redis) -> None:
    by_each(app, lambda: Scrape(app))
    before = Scrape(app)
    assert "active_users" in before.families
    with frozen(own_redis):
        for _ in range(10):
            scrape = Scrape(app)
            assert scrape.took < 0.5 + 1
            assert "active_users" not in scrape.families
            assert "database_connections_active" in scrape.families
        assert scrape.sum("cache_errors_total") > before.sum("cache_errors_total")
    eventually(lambda: all_show(app, "active_users"))


token = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcxyz-!#$%&'*+.^_`|~0123456789", min_size=1, max_size=15)
text = st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"]), max_size=20)


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(sorted(METHODS)) | token,
    target=st.sampled_from(["/pid/", "/accounts/login/", "/static/x", "/media/avatars/x", "*", "http://x/pid/"])
    | text.map(lambda path: f"/{path}"),
    host=st.sampled_from(["localhost", "evil.example", "", "[::1]:1"]) | text,
    headers=st.lists(st.tuples(token, text), max_size=3),
)
def test_no_request_line_breaks_the_app_or_makes_a_label(
    app: Gunicorn, method: str, target: str, host: str, headers: list[tuple[str, str]]
) -> None:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    with socket.create_connection(("127.0.0.1", app.port), timeout=PATIENCE) as link:
        link.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))
        answer = link.recv(100)
    status = re.match(rb"HTTP/1\.[01] (\d+)", answer)
    # 503 is for a database that did not answer in time, as on a busy machine.
    assert status and (int(status[1]) < 500 or status[1] == b"503"), answer


def templates(resolver: URLResolver | None = None, prefix: str = "") -> Iterator[str]:
    """The endpoint of every route of the site."""
    for pattern in (resolver or get_resolver("tests.support.more_pages")).url_patterns:
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from templates(pattern, route)
        else:
            yield endpoint(route)


def test_after_all_that_every_label_is_one_that_the_code_names(app: Gunicorn) -> None:
    for number in range(50):
        ask(app, f"/made/up/{number}", f"METHOD{number}", Host=f"host{number}.example")
    scrape = Scrape(app)
    requests = [sample.labels for sample in scrape.samples if sample.name == "http_requests_total"]
    assert {labels["method"] for labels in requests} <= METHODS | {"OTHER"}
    assert {labels["endpoint"] for labels in requests} <= {"unrouted", "/static/<path>", *templates()}
    assert scrape.sum("http_requests_total", method="OTHER") >= 50


# The reference


def documented() -> dict[str, tuple[str, list[str]]]:
    """Type and labels of each metric in docs/metrics.md."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*)\|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    found = {name: (kind, sorted(filter(None, labels.replace(",", " ").split()))) for name, kind, labels in rows}
    assert len(found) == len(rows), "a metric has two rows"
    return found


# What has no series, and so no labels, as long as there is nothing to tell
UNKNOWN_HERE = {"metrics_store_errors_total", "certificate_expiry_timestamp_seconds"}


@pytest.mark.django_db
def test_the_reference_and_a_real_scrape_name_the_same_metrics(app: Gunicorn) -> None:
    ask(app, "/fail/")
    Scrape(app)  # whose status the next one shows
    scrape = Scrape(app)
    shown: dict[str, tuple[str, list[str]]] = {}
    for line in re.findall(r"^# TYPE (\w+) (\w+)$", scrape.text, re.MULTILINE):
        labels: set[str] = set()
        for sample in scrape.samples:
            if re.fullmatch(rf"{line[0]}(_bucket|_count|_sum)?", sample.name):
                labels |= sample.labels.keys() - {"le"}
        shown[line[0]] = (line[1], sorted(labels))
    reference = documented()
    for name in UNKNOWN_HERE - {sample.name for sample in scrape.samples}:
        shown[name] = (shown[name][0], reference[name][1])
    # Whose tables are not in this server's database, and what only a database per colour has
    for family in (*in_progress(), *locks(), *uptime_samples(), *bluegreen.families(None)):
        shown[family.name] = (family.type, sorted(vars(family)["_labelnames"]))
    assert shown == reference


def test_promtool_finds_nothing_to_say(app: Gunicorn) -> None:
    promtool = shutil.which("promtool")
    if not promtool and os.environ.get("CI") != "true":
        pytest.skip("promtool is not here (Debian, Ubuntu: apt install prometheus)")
    assert promtool, "CI needs promtool (Debian, Ubuntu: apt install prometheus)"
    found = subprocess.run([promtool, "check", "metrics"], input=Scrape(app).text, capture_output=True, text=True)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")
