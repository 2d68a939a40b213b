"""GET /metrics: who may read, in which format, and from where. The collectors have tests of their own."""

import gzip
from collections.abc import Callable, Iterable

import pytest
from django.test import Client, RequestFactory
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric, parser
from prometheus_client.openmetrics import exposition
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.registry import Collector
from pytest_django import Settings

from metrics import views

generate_openmetrics: Callable[[Collector], bytes] = exposition.generate_latest
parse_text: Callable[[str], Iterable[Metric]] = parser.text_string_to_metric_families
parse_openmetrics: Callable[[str], Iterable[Metric]] = openmetrics_parser.text_string_to_metric_families

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"


@pytest.fixture(autouse=True)
def _settings(settings: Settings) -> None:
    settings.METRICS_COLLECTORS = ["metrics.collectors.app_info"]


@pytest.fixture
def scraper() -> Client:
    return Client()


def test_the_text_format_is_the_default(scraper: Client) -> None:
    response = scraper.get("/metrics")
    assert response.status_code == 200
    assert response["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response["Cache-Control"] == "no-store"
    families = {family.name: family for family in parse_text(response.content.decode())}
    assert families["http_requests"].type == "counter"
    assert families["app_info"].samples[0].labels == {
        "version": "dev",
        "commit": "unknown",
        "environment": "testing",
    }


def test_openmetrics_is_there_for_who_asks_for_it(scraper: Client) -> None:
    response = scraper.get("/metrics", headers={"accept": OPENMETRICS})
    assert response["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    text = response.content.decode()
    assert text.endswith("# EOF\n")
    assert {"http_requests", "app"} <= {family.name for family in parse_openmetrics(text)}


@pytest.mark.django_db
def test_both_formats_hold_the_same_samples(scraper: Client) -> None:
    scraper.get("/")

    def samples(families: Iterable[Metric]) -> set[tuple[str, str]]:
        return {
            (sample.name, str(sorted(sample.labels.items())))
            for family in families
            for sample in family.samples
            if "scrapes" not in sample.name
        }

    text = samples(parse_text(scraper.get("/metrics").content.decode()))
    other = scraper.get("/metrics", headers={"accept": OPENMETRICS}).content.decode()
    assert text == samples(parse_openmetrics(other))
    assert len(text) > 50


def test_openmetrics_is_what_prometheus_client_makes_of_the_same(scraper: Client, settings: Settings) -> None:
    settings.METRICS_COLLECTORS = []
    scraper.get("/no/such/page")

    def lines(body: bytes) -> list[bytes]:
        return [line for line in body.split(b"\n") if not line.startswith(b"metrics_scrapes_total")]

    found = scraper.get("/metrics", headers={"accept": OPENMETRICS}).content
    assert lines(found) == lines(generate_openmetrics(views.STORED))


# As Prometheus 3 asks
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (PROMETHEUS, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("application/*", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ('APPLICATION/OpenMetrics-Text; Version="1.0.0"', "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("application/openmetrics-text, */*", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("text/plain;q=0, */*;q=0.1", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("text/plain;q=0", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=x", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;version=2.0.0", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;version=x", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;q=0", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;q=0, */*", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;q=0.1, text/plain;q=0.2", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;q=x", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/html, image/png", "text/plain; version=0.0.4; charset=utf-8"),
        (";;,=;q,\x00", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
def test_the_format_is_the_one_that_is_preferred_in_the_version_that_is_written(
    scraper: Client, accept: str, kind: str
) -> None:
    response = scraper.get("/metrics", headers={"accept": accept})
    assert (response.status_code, response["Content-Type"]) == (200, kind)
    assert response.content.endswith(b"# EOF\n") == kind.startswith("application/openmetrics-text")


@pytest.mark.parametrize("accept", ["*/*;q=0", "text/*;q=0.0, application/openmetrics-text;q=0.000"])
def test_a_format_that_is_refused_is_not_sent(scraper: Client, accept: str) -> None:
    response = scraper.get("/metrics", headers={"accept": accept})
    assert response.status_code == 406
    assert b"text/plain;version=0.0.4 or application/openmetrics-text;version=1.0.0" in response.content


@given(st.text(st.characters(codec="latin-1")), st.text(st.characters(codec="latin-1")))
def test_no_header_breaks_the_scrape(accept: str, encoding: str) -> None:
    request = RequestFactory().get("/metrics", headers={"accept": accept, "accept-encoding": encoding})
    assert views.metrics(request).status_code in (200, 406)


@pytest.mark.parametrize("refused", ["gzip;q=0", "gzip; q=0.000", "br, gzip;Q=0", "*;q=0", "gzip;q=x", "identity"])
def test_gzip_is_not_used_where_it_is_refused(scraper: Client, refused: str) -> None:
    assert "Content-Encoding" not in scraper.get("/metrics", headers={"accept-encoding": refused}).headers


def test_gzip_is_used_where_it_is_accepted(scraper: Client) -> None:
    response = scraper.get("/metrics", headers={"accept-encoding": "gzip"})
    assert response["Content-Encoding"] == "gzip"
    assert response["Vary"] == "Accept, Accept-Encoding"
    assert b"# TYPE http_requests_total counter" in gzip.decompress(response.content)
    assert len(response.content) == int(response["Content-Length"])
    assert "Content-Encoding" not in scraper.get("/metrics").headers


def test_head_has_the_headers_and_no_body() -> None:
    response = views.metrics(RequestFactory().head("/metrics"))  # a test client would drop the body itself
    assert response.status_code == 200
    assert int(response["Content-Length"]) > 1000
    assert response.content == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_are_refused(scraper: Client, method: str) -> None:
    response = scraper.generic(method, "/metrics")
    assert (response.status_code, response["Allow"]) == (405, "GET, HEAD")


def test_a_scraper_may_name_any_host_and_come_without_tls(scraper: Client, settings: Settings) -> None:
    settings.SECURE_SSL_REDIRECT = True
    settings.ALLOWED_HOSTS = ["example.com"]
    assert scraper.get("/metrics", headers={"host": "10.1.2.3:8000"}).status_code == 200


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/metrics/", "/metrics/x", "/Metrics", "//metrics"])
def test_no_other_path_shows_metrics(scraper: Client, path: str) -> None:
    assert b"http_requests_total" not in scraper.get(path).content


@pytest.mark.parametrize(
    ("authorization", "status", "challenge"),
    [
        (None, 401, "Bearer"),
        ("Basic c2VjcmV0", 401, "Bearer"),
        ("Bearer", 401, 'Bearer error="invalid_token"'),
        ("Bearer secre", 401, 'Bearer error="invalid_token"'),
        ("Bearer sécret", 401, 'Bearer error="invalid_token"'),
        ("Bearer secret", 200, None),
        ("bearer  secret ", 200, None),
    ],
)
def test_a_token_when_set_must_be_shown(
    scraper: Client, settings: Settings, authorization: str | None, status: int, challenge: str | None
) -> None:
    settings.METRICS_TOKEN = "secret"
    headers = {"authorization": authorization} if authorization else {}
    response = scraper.get("/metrics", headers=headers, REMOTE_ADDR="203.0.113.7")
    assert (response.status_code, response.headers.get("WWW-Authenticate")) == (status, challenge)
    assert (b"http_requests_total" in response.content) == (status == 200)


def test_the_token_is_asked_for_before_anything_else(scraper: Client, settings: Settings) -> None:
    settings.METRICS_TOKEN = "secret"
    assert scraper.post("/metrics").status_code == 401


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("10.2.3.4", {}, 200),
        ("fd00::1", {}, 200),
        ("", {}, 200),
        ("8.8.8.8", {}, 403),
        ("2001:4860:4860::8888", {}, 403),
        ("no address", {}, 403),
        ("172.18.0.5", {"x-forwarded-for": "8.8.8.8"}, 403),
        ("172.18.0.5", {"x-forwarded-for": "10.0.0.1"}, 403),
        ("127.0.0.1", {"x-forwarded-for": "10.0.0.1"}, 403),
        ("172.18.0.5", {"forwarded": "for=8.8.8.8"}, 403),
        ("172.18.0.5", {"via": "1.1 proxy"}, 403),
    ],
)
def test_without_a_token_only_a_neighbour_may_read(
    scraper: Client, address: str, headers: dict[str, str], status: int
) -> None:
    response = scraper.get("/metrics", headers=headers, REMOTE_ADDR=address)
    assert response.status_code == status
    assert (b"http_requests_total" in response.content) == (status == 200)
