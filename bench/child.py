"""`python -m bench.child`: the site in a process of its own, which does what it is told line by line.

Commands and answers are JSON, one a line, over standard input and output:

    ["serve", N]    N requests -> {"cpu": seconds, "wall": seconds} of all N; BENCH_HANDLER says through what:
                    `wsgi`, `asgi` (each the whole handler), or `chain` (middleware and view alone, natively async)
    ["scrape", N]   N scrapes -> {"cpu": [seconds], "wall": [seconds], "bytes": size, "series": number of lines}
    ["fill", N]     each worker counts a request of each of N routes, 5 methods and 20 statuses -> {"wall": seconds}
    ["noise", N]    each worker counts N requests whose path, method and status are made up -> {"wall": seconds}
    ["imported", 0] -> {"modules": how many of OpenTelemetry and Sentry are imported}
    ["lives", N]    N times the second worker ends, and another takes its place -> {"wall": seconds}

It is what a gunicorn master with preload_app is to its workers: it makes the folder of the metrics ready, loads the
site, and forks two workers, of which each serves every route once. The first one does what is told.
"""

import asyncio
import gc
import gzip
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import django
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.core.handlers.wsgi import WSGIHandler
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import resolve
from django.utils.module_loading import import_string

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
STATUSES = (200, 201, 202, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 405, 409, 410, 422, 429, 500, 503)
PATHS = [f"/route{index}/1/" for index in range(30)]
HEADERS = {"host": "127.0.0.1", "accept": "*/*", "user-agent": "bench"}
if os.environ.get("BENCH_GZIP"):
    HEADERS["accept-encoding"] = "gzip"

# Asks for a path some times over, and returns the body of the last answer; all must be 200.
Ask = Callable[[str, int], bytes]


def on_starting() -> None:
    if folder := os.environ.get("METRICS_DIR"):
        from metrics import store

        store.start(folder)


def post_fork() -> None:
    if "METRICS_DIR" in os.environ:
        from metrics import store

        store.lease()


def child_exit(pid: int) -> None:
    """The documentation of prometheus_client asks for it."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid)  # type: ignore[no-untyped-call]


def wsgi(handler: WSGIHandler) -> Ask:
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
    } | {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in HEADERS.items()}
    said = ""

    def start_response(status: str, headers: object) -> None:
        nonlocal said
        said = status

    def ask(path: str, times: int) -> bytes:
        body = b""
        for _ in range(times):
            response: Any = handler(environ | {"PATH_INFO": path}, start_response)  # type: ignore[arg-type]
            body = b"".join(response)
            response.close()
            assert said == "200 OK", said
        return body

    return ask


def scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in HEADERS.items()],
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
    }


def asgi(handler: ASGIHandler) -> Ask:
    loop = asyncio.new_event_loop()

    async def once(path: str) -> bytes:
        body = b""
        messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> dict[str, Any]:
            for message in messages:
                return message
            return await loop.create_future()  # type: ignore[no-any-return]  # the client does not go away

        async def send(message: Mapping[str, Any]) -> None:
            nonlocal body
            assert message.get("status", 200) == 200, message
            body += message.get("body", b"")

        await handler(scope(path), receive, send)
        return body

    async def repeat(path: str, times: int) -> bytes:
        body = b""
        for _ in range(times):
            body = await once(path)
        return body

    return lambda path, times: loop.run_until_complete(repeat(path, times))


def chain(handler: ASGIHandler) -> Ask:
    loop = asyncio.new_event_loop()

    async def repeat(path: str, times: int) -> bytes:
        body = b""
        for _ in range(times):
            response: Any = await handler.get_response_async(ASGIRequest(scope(path), io.BytesIO()))
            assert response.status_code == 200, response
            body = response.content
        return body

    return lambda path, times: loop.run_until_complete(repeat(path, times))


def serve(ask: Ask, times: int) -> dict[str, Any]:
    cpu, wall = time.process_time(), time.perf_counter()
    ask(PATHS[7], times)
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def scrape(ask: Ask, times: int) -> dict[str, Any]:
    ended = [(time.process_time(), time.perf_counter())]
    body = b""
    for _ in range(times):
        body = ask("/metrics", 1)
        ended.append((time.process_time(), time.perf_counter()))
    pairs = list(zip(ended, ended[1:], strict=False))
    text = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
    return {
        "cpu": [after[0] - before[0] for before, after in pairs],
        "wall": [after[1] - before[1] for before, after in pairs],
        "bytes": len(body),
        "series": sum(not line.startswith(b"#") for line in text.splitlines()),
    }


def count(requests: Iterable[tuple[str | None, str, int]]) -> dict[str, Any]:
    """Sends requests, each a route, a method and a status, through the middleware that counts them and nothing else."""
    started = time.perf_counter()
    response = HttpResponse(b"x" * 2000)
    path = next(path for path in settings.MIDDLEWARE if path.endswith("MetricsMiddleware"))
    middleware = import_string(path)(lambda request: response)
    for route, method, status in requests:
        request: Any = HttpRequest()
        request.method, request.path_info = method, "/"
        request.resolver_match = SimpleNamespace(route=route) if route else None
        response.status_code = status
        middleware(request)
    return {"wall": time.perf_counter() - started}


def fill(ask: Ask, routes: int) -> dict[str, Any]:
    return count(product((f"part/route{index}/<int:number>/" for index in range(routes)), METHODS, STATUSES))


def noise(ask: Ask, number: int) -> dict[str, Any]:
    return count((None, f"METHOD{index}", 600 + index) for index in range(number))


def imported(ask: Ask, _: int) -> dict[str, Any]:
    foreign = ("opentelemetry", "sentry_sdk")
    return {"modules": sum(bool(module) and name.startswith(foreign) for name, module in sys.modules.items())}


DOES = {"imported": imported, "serve": serve, "scrape": scrape, "fill": fill, "noise": noise}


class Worker:
    """A fork of this process; it has served every route once."""

    def __init__(self, make: Callable[[], Ask]) -> None:
        self.asks, commands = os.pipe()
        answers, self.answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(commands)
            self.work(make())
            os._exit(0)
        os.close(self.asks)
        os.close(self.answers)
        self.commands, self.results = os.fdopen(commands, "w"), os.fdopen(answers)

    def work(self, ask: Ask) -> None:
        post_fork()
        for path in PATHS:
            ask(path, 1)
        with os.fdopen(self.asks) as commands, os.fdopen(self.answers, "w") as answers:
            for line in commands:
                name, times = json.loads(line)
                if name == "end":  # the pipe stays open: later forks have it, too
                    break
                print(json.dumps(DOES[name](ask, times)), file=answers, flush=True)

    def tell(self, line: str) -> str:
        self.commands.write(line)
        self.commands.flush()
        return self.results.readline()

    def end(self) -> None:
        self.commands.write('["end", 0]\n')
        self.commands.close()
        self.results.close()
        os.waitpid(self.pid, 0)
        child_exit(self.pid)


def main() -> None:
    """Until standard input ends."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.site.settings"
    on_starting()
    django.setup()
    for path in PATHS:
        resolve(path)  # patterns are compiled here, once, and not by every fork
    gc.freeze()  # so that a fork's collector leaves the pages shared
    kind = os.environ.get("BENCH_HANDLER", "wsgi")
    if kind == "wsgi":
        make = partial(wsgi, WSGIHandler())
    else:
        make = partial(asgi if kind == "asgi" else chain, ASGIHandler())
    workers = [Worker(make), Worker(make)]
    print("{}", flush=True)
    for line in sys.stdin:
        name, times = json.loads(line)
        if name == "lives":
            started = time.perf_counter()
            for _ in range(times):
                workers[1].end()
                workers[1] = Worker(make)
            print(json.dumps({"wall": time.perf_counter() - started}), flush=True)
        elif name in ("fill", "noise"):
            print([worker.tell(line) for worker in workers][0], end="", flush=True)
        else:
            print(workers[0].tell(line), end="", flush=True)
    for worker in workers:
        worker.end()


if __name__ == "__main__":
    main()
