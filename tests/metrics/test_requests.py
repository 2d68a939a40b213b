"""What is counted of each request, however it ends. The URLs are this module's own."""

import asyncio
import gc
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import Client
from django.urls import include, path, re_path, reverse
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django import Settings

from metrics import middleware
from metrics.middleware import MetricsMiddleware, endpoint, exception_type
from metrics.registry import REGISTRY, REQUESTS
from metrics.store import Exposition
from metrics.store.internals import value_of
from tests.support.servers import PATIENCE

pytestmark = pytest.mark.django_db  # a response that is closed looks after the thread's connections
STORED = Exposition(REGISTRY)
Series = tuple[str, tuple[tuple[str, str], ...]]  # a name and its labels


class Clock:
    """The time that the middleware reads; it stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


clock = Clock()


def hello(request: HttpRequest, **_: object) -> HttpResponse:
    clock.now += 0.25
    return HttpResponse("hello")


def missing(request: HttpRequest) -> HttpResponse:
    raise Http404


def forbidden(request: HttpRequest) -> HttpResponse:
    raise PermissionDenied


def failing(request: HttpRequest) -> HttpResponse:
    raise ZeroDivisionError


def unusual(request: HttpRequest) -> HttpResponse:
    response = HttpResponse()
    response.status_code = int(request.GET["status"])
    return response


def ending(request: HttpRequest) -> HttpResponse:
    raise SystemExit(1)


def chunks() -> Iterator[bytes]:
    for _ in range(4):
        clock.now += 1
        yield b"x" * 100


def streaming(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(chunks())


def breaking(request: HttpRequest) -> StreamingHttpResponse:
    def start() -> Iterator[bytes]:
        yield b"x"
        raise OSError

    return StreamingHttpResponse(start())


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(io.BytesIO(b"x" * 5000))


async def ahello(request: HttpRequest) -> HttpResponse:
    seen_threads.append(threading.get_ident())
    return HttpResponse("hello")


async def afailing(request: HttpRequest) -> HttpResponse:
    raise ZeroDivisionError


async def astreaming(request: HttpRequest) -> StreamingHttpResponse:
    async def start() -> AsyncIterator[bytes]:
        for _ in range(3):
            clock.now += 1
            yield b"x" * 100

    return StreamingHttpResponse(start())


async def awaiting(request: HttpRequest) -> HttpResponse:
    waiting.set()
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


seen_threads: list[int] = []
waiting = asyncio.Event()
inner = [path("<int:pk>/", hello), re_path(r"^key/(?P<uidb36>[0-9A-Za-z]+)-(?P<key>.+)/$", hello)]
urlpatterns = [
    path("", hello),
    path("metrics", include("metrics.urls")),
    path("inner/", include((inner, "inner"), namespace="one")),
    path("other/", include((inner, "inner"), namespace="two")),
    *(
        path(f"{view.__name__}/", view)
        for view in (hello, missing, forbidden, failing, unusual, ending, streaming, breaking, file)
    ),
    *(path(f"{view.__name__}/", view) for view in (ahello, afailing, astreaming, awaiting)),
]


@pytest.fixture(autouse=True)
def _site(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.ROOT_URLCONF = __name__
    settings.METRICS_COLLECTORS = []
    clock.now = 0.0
    monkeypatch.setattr(middleware, "perf_counter", clock)


@pytest.fixture
def browser() -> Client:
    return Client(raise_request_exception=False)


def stored() -> dict[Series, float]:
    """Every stored series with its value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in STORED.collect()
        for sample in family.samples
    }


class Changes:
    """What happened to the stored series since this was made."""

    def __init__(self) -> None:
        self.before = stored()

    def of(self, name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return stored().get(key, 0) - self.before.get(key, 0)

    def all(self, name: str) -> dict[tuple[str, ...], float]:
        """The series of `name` that changed, by the values of their labels in alphabetical order."""
        now = stored()
        changed = {key: value - self.before.get(key, 0) for key, value in now.items() if key[0] == name}
        return {tuple(value for _, value in labels): count for (_, labels), count in changed.items() if count}

    def requests(self) -> list[str]:
        """'METHOD endpoint status' of each request counted."""
        counts = self.all("http_requests_total")
        return [f"{method} {route} {status}" for (route, method, status), n in counts.items() for _ in range(int(n))]


@pytest.fixture
def changes() -> Changes:
    return Changes()


def consume(response: Any) -> bytes:
    """As a server does: all of the body, then close()."""
    body: bytes = b"".join(response)
    response.close()
    return body


@pytest.mark.parametrize(
    ("url", "counted"),
    [
        ("/", "GET / 200"),
        ("/hello/", "GET /hello/ 200"),
        ("/hello", "GET unrouted 301"),
        ("/nowhere/at/all", "GET unrouted 404"),
        ("/missing/", "GET /missing/ 404"),
        ("/forbidden/", "GET /forbidden/ 403"),
        ("/failing/", "GET /failing/ 500"),
        ("/streaming/", "GET /streaming/ 200"),
        ("/breaking/", "GET /breaking/ 200"),
        ("/file/", "GET /file/ 200"),
        ("/static/no-such-file.css", "GET /static/<path> 404"),
        ("/inner/17/", "GET /inner/<pk>/ 200"),
        ("/other/18/", "GET /other/<pk>/ 200"),
        ("/inner/key/a1-b2/", "GET /inner/key/<uidb36>-<key>/ 200"),
        ("/unusual/?status=799", "GET /unusual/ OTHER"),
        ("/ahello/", "GET /ahello/ 200"),
    ],
)
def test_a_request_counts_once_by_its_routes_template(
    browser: Client, changes: Changes, url: str, counted: str
) -> None:
    response: Any = browser.get(url)
    try:
        b"".join(response)
    except OSError:
        assert url == "/breaking/"
    response.close()
    assert changes.requests() == [counted]
    method, route, _ = counted.split()
    assert changes.of("http_request_duration_seconds_count", method=method, endpoint=route) == 1
    assert changes.of("http_response_size_bytes_count", method=method, endpoint=route) == 1
    assert changes.of("http_requests_in_progress") == 0


def test_a_refused_host_counts(browser: Client, changes: Changes) -> None:
    assert browser.get("/hello/", headers={"host": "evil.example"}).status_code == 400
    assert changes.requests() == ["GET unrouted 400"]


def test_a_redirect_to_tls_counts(browser: Client, changes: Changes, settings: Settings) -> None:
    settings.SECURE_SSL_REDIRECT = True
    assert browser.get("/hello/").status_code == 301
    assert changes.requests() == ["GET unrouted 301"]


def test_made_up_methods_and_paths_share_one_series_each(browser: Client) -> None:
    browser.generic("MADEUP", "/hello/")
    browser.get("/made/up")
    browser.get("/inner/0/")
    before, kept = set(stored()), len(middleware._series)
    for number in range(300):
        browser.generic(f"METHOD{number}", "/hello/")
        browser.get(f"/made/up/{number}")
        browser.get(f"/inner/{number}/")
    changed = set(stored()) - before
    assert {dict(labels)["endpoint"] for _, labels in changed} <= {"/inner/<pk>/"}
    assert len(middleware._series) == kept, "what is kept does not grow either"


KNOWN = {"/", "unrouted", "/static/<path>", "/inner/<pk>/", "/inner/key/<uidb36>-<key>/"} | {
    f"/{name}/" for name in ("hello", "missing", "forbidden", "unusual", "streaming", "file", "ahello")
}


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "BREW"]) | st.text("ABCdef-!#$%&'*+.^_`|~", min_size=1, max_size=12),
    target=st.sampled_from(sorted(KNOWN)) | st.text(max_size=30).map(lambda text: f"/{text}"),
    host=st.sampled_from(["testserver", "10.0.0.1", "[::1]", "", "a b"]) | st.text(max_size=10),
    headers=st.dictionaries(
        st.sampled_from(["HTTP_ACCEPT", "HTTP_COOKIE", "HTTP_X_REQUEST_ID", "HTTP_X_FORWARDED_FOR", "CONTENT_TYPE"]),
        st.text(st.characters(max_codepoint=255), max_size=20),
    ),
)
def test_no_request_line_makes_a_new_label_value_or_a_server_error(
    method: str, target: str, host: str, headers: dict[str, str]
) -> None:
    line = {"REQUEST_METHOD": method, "HTTP_HOST": wsgi(host), "QUERY_STRING": "status=200"}
    statuses: list[str] = []
    before, application = counted(), handler()
    consume(application(environ(target) | line | headers, lambda *a: statuses.append(a[0])))
    assert statuses[0] < "500"
    (key,) = (key for key, count in counted().items() if count != before.get(key, 0))
    assert counted()[key] == before.get(key, 0) + 1
    assert key[0] in middleware.METHODS | {"OTHER"}
    assert key[1] in KNOWN
    assert key[2] == statuses[0][:3]


def counted() -> dict[tuple[str, ...], float]:
    """http_requests_total by method, endpoint and status."""
    children: Any = REQUESTS._metrics
    return {labels: value_of(child).get() for labels, child in children.items()}


def wsgi(text: str) -> str:
    """As PEP 3333 has it: bytes in the disguise of Latin-1."""
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def environ(url: str) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": wsgi(url),
        "QUERY_STRING": "",
        "SERVER_NAME": "testserver",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.input": io.BytesIO(),
        "wsgi.url_scheme": "http",
    }


def handler() -> Any:
    if not _handlers:
        _handlers.append(WSGIHandler())
    return _handlers[0]


_handlers: list[WSGIHandler] = []


def test_an_exception_counts_once_with_its_type_and_route(browser: Client, changes: Changes) -> None:
    browser.get("/failing/")
    assert changes.all("http_exceptions_total") == {("/failing/", "ZeroDivisionError"): 1}
    assert changes.requests() == ["GET /failing/ 500"]
    assert changes.of("http_request_duration_seconds_count", method="GET", endpoint="/failing/") == 1


def test_an_exception_counts_once_when_the_error_page_fails_too(
    changes: Changes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "handler500", f"{__name__}.failing")
    browser = Client(raise_request_exception=False)
    with pytest.raises(ZeroDivisionError):
        browser.get("/failing/")
    assert sum(changes.all("http_exceptions_total").values()) == 1
    assert changes.requests() == ["GET /failing/ 500"]
    assert changes.of("http_requests_in_progress") == 0


@pytest.mark.parametrize("url", ["/missing/", "/forbidden/", "/nowhere"])
def test_answers_that_are_raised_are_no_exceptions(browser: Client, changes: Changes, url: str) -> None:
    browser.get(url)
    assert changes.all("http_exceptions_total") == {}


def test_a_stream_that_breaks_off_counts_as_an_exception(browser: Client, changes: Changes) -> None:
    response: Any = browser.get("/breaking/")
    with pytest.raises(OSError):
        b"".join(response)
    response.close()
    assert changes.of("http_exceptions_total", type="OSError", endpoint="/breaking/") == 1


def test_a_class_made_at_run_time_counts_as_its_nearest_named_base() -> None:
    class Local(KeyError):
        pass

    made = type("Made", (Local,), {})
    assert exception_type(made()) == "KeyError"
    assert exception_type(Http404()) == "Http404"
    assert exception_type(StopIteration()) == "StopIteration"


def test_a_stream_lasts_until_its_last_byte(browser: Client, changes: Changes) -> None:
    response: Any = browser.get("/streaming/")
    assert changes.requests() == []
    assert changes.of("http_requests_in_progress") == 1
    assert len(consume(response)) == 400
    labels = {"method": "GET", "endpoint": "/streaming/"}
    assert changes.of("http_request_duration_seconds_sum", **labels) == 4
    assert changes.of("http_response_size_bytes_sum", **labels) == 400
    assert changes.requests() == ["GET /streaming/ 200"]
    assert changes.of("http_requests_in_progress") == 0


def test_a_stream_lasts_until_the_client_disconnects(browser: Client, changes: Changes) -> None:
    response: Any = browser.get("/streaming/")
    next(iter(response))
    response.close()
    response.close()
    labels = {"method": "GET", "endpoint": "/streaming/"}
    assert changes.of("http_request_duration_seconds_sum", **labels) == 1
    assert changes.of("http_response_size_bytes_sum", **labels) == 100
    assert changes.requests() == ["GET /streaming/ 200"]
    assert changes.of("http_requests_in_progress") == 0


def test_a_stream_that_no_server_closes_counts_when_it_is_collected(changes: Changes) -> None:
    request = HttpRequest()
    request.method, request.path_info = "GET", "/streaming/"
    MetricsMiddleware(streaming)(request)
    gc.collect()
    assert changes.requests() == ["GET unrouted 200"]
    assert changes.of("http_requests_in_progress") == 0


def test_a_file_counts_with_its_size_and_keeps_the_servers_short_cut(changes: Changes) -> None:
    closing: list[Any] = []

    class Wrapper:
        def __init__(self, file: Any, size: int) -> None:
            closing.append(file)

    handler()(environ("/file/") | {"wsgi.file_wrapper": Wrapper}, lambda status, headers: None)
    assert closing, "the file itself was handed to the server"
    assert changes.of("http_requests_in_progress") == 1
    closing[0].close()
    assert changes.of("http_requests_in_progress") == 0
    assert changes.of("http_response_size_bytes_sum", method="GET", endpoint="/file/") == 5000


@pytest.mark.parametrize(("method", "size"), [("GET", 5), ("HEAD", 0)])
def test_the_size_is_that_of_the_body_sent(browser: Client, changes: Changes, method: str, size: int) -> None:
    browser.generic(method, "/hello/")
    assert changes.of("http_response_size_bytes_sum", method=method, endpoint="/hello/") == size


def test_a_request_lasts_as_long_as_its_view(browser: Client, changes: Changes) -> None:
    browser.get("/hello/")
    labels = {"method": "GET", "endpoint": "/hello/"}
    assert changes.of("http_request_duration_seconds_sum", **labels) == 0.25
    assert changes.of("http_request_duration_seconds_bucket", **labels, le="0.25") == 1
    assert changes.of("http_request_duration_seconds_bucket", **labels, le="0.1") == 0


def test_a_request_is_in_progress_while_it_is_answered(changes: Changes) -> None:
    def look(request: HttpRequest) -> HttpResponse:
        assert changes.of("http_requests_in_progress") == 1
        return HttpResponse()

    MetricsMiddleware(look)(Client().get("/hello/").wsgi_request)
    assert changes.of("http_requests_in_progress") == 0


def test_a_worker_that_is_being_ended_counts_its_request(changes: Changes) -> None:
    request = HttpRequest()
    request.method = "GET"
    with pytest.raises(SystemExit):
        MetricsMiddleware(ending)(request)
    assert changes.requests() == ["GET unrouted 500"]
    assert changes.of("http_requests_in_progress") == 0


def test_the_access_log_is_told_the_route(browser: Client) -> None:
    assert browser.get("/inner/key/secret-key/").wsgi_request.META["ROUTE"] == "/inner/key/<uidb36>-<key>/"
    assert browser.get("/nowhere").wsgi_request.META["ROUTE"] == "unrouted"


@pytest.mark.parametrize(
    ("route", "label"),
    [
        ("", "/"),
        ("posts/<int:pk>/", "/posts/<pk>/"),
        (
            "accounts/password/reset/key/(?P<uidb36>[0-9A-Za-z]+)-(?P<key>.+)/$",
            "/accounts/password/reset/key/<uidb36>-<key>/",
        ),
        (r"^a/(?:b/)?(\d+)/$", "/a/<var>/"),
        (r"admin/^(?P<app_label>auth|accounts)/$", "/admin/<app_label>/"),
    ],
)
def test_a_template_is_readable(route: str, label: str) -> None:
    assert endpoint(route) == label


def test_scrapes_are_not_counted_as_requests(browser: Client, changes: Changes) -> None:
    assert reverse("metrics:metrics") == middleware.SCRAPE_PATH
    assert browser.get("/metrics").status_code == 200
    assert changes.requests() == []
    assert changes.of("metrics_scrapes_total", status="200") == 1


# ASGI


async def ask(url: str) -> list[dict[str, Any]]:
    """What the ASGI application sends, with this middleware and no other."""
    return await talk(communicator(url))


def scope(url: str) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "GET",
        "path": url,
        "headers": [],
        "query_string": b"",
        "server": ("testserver", 80),
    }


def communicator(url: str) -> Any:
    made: Any = ApplicationCommunicator
    return made(ASGIHandler(), scope(url))


async def talk(client: Any) -> list[dict[str, Any]]:
    await client.send_input({"type": "http.request", "body": b""})
    messages = []
    while True:
        messages.append(await client.receive_output(10))
        if messages[-1]["type"] == "http.response.body" and not messages[-1].get("more_body"):
            break
    await client.wait(PATIENCE)
    return messages


@pytest.fixture
def _asgi(settings: Settings) -> None:
    settings.MIDDLEWARE = ["metrics.middleware.MetricsMiddleware"]


def run(make: Callable[[], Any]) -> Any:
    return asyncio.run(make())


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators")
@pytest.mark.usefixtures("_asgi")
@pytest.mark.parametrize(
    ("url", "status"),
    [("/ahello/", "200"), ("/afailing/", "500"), ("/astreaming/", "200"), ("/hello/", "200"), ("/streaming/", "200")],
)
def test_asynchronous_requests_count_once(changes: Changes, url: str, status: str) -> None:
    messages = run(lambda: ask(url))
    assert str(messages[0]["status"]) == status
    assert changes.requests() == [f"GET {url} {status}"]
    assert sum(changes.all("http_exceptions_total").values()) == (1 if status == "500" else 0)
    assert changes.of("http_requests_in_progress") == 0


@pytest.mark.usefixtures("_asgi")
def test_an_asynchronous_stream_lasts_until_its_last_byte(changes: Changes) -> None:
    run(lambda: ask("/astreaming/"))
    labels = {"method": "GET", "endpoint": "/astreaming/"}
    assert changes.of("http_request_duration_seconds_sum", **labels) == 3
    assert changes.of("http_response_size_bytes_sum", **labels) == 300


@pytest.mark.usefixtures("_asgi")
def test_an_asynchronous_request_stays_in_the_event_loops_thread() -> None:
    seen_threads.clear()
    run(lambda: ask("/ahello/"))
    assert seen_threads == [threading.get_ident()]


@pytest.mark.usefixtures("_asgi")
def test_an_asynchronous_request_whose_client_disconnects_counts_as_closed_by_it(changes: Changes) -> None:
    async def leave() -> None:
        global waiting
        waiting = asyncio.Event()
        client = communicator("/awaiting/")
        await client.send_input({"type": "http.request", "body": b""})
        await asyncio.wait_for(waiting.wait(), 10)
        assert changes.of("http_requests_in_progress") == 1
        await client.send_input({"type": "http.disconnect"})
        await client.wait(PATIENCE)

    run(leave)
    assert changes.requests() == ["GET /awaiting/ 499"]
    assert changes.of("http_requests_in_progress") == 0


@pytest.mark.usefixtures("_asgi")
def test_the_scrape_is_answered_asynchronously_too() -> None:
    messages = run(lambda: ask("/metrics"))
    assert messages[0]["status"] == 200
    assert b"http_requests_total" in messages[1]["body"]
