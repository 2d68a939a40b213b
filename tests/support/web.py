"""A web server of a few lines, on a free port of 127.0.0.1."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Page(BaseHTTPRequestHandler):
    """What answers: a subclass has do_GET(). Nothing is logged, as the test's output is the program's."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(page: type[Page]) -> Iterator[int]:
    """Serves the page, each connection in a thread of its own. Yields the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), page)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
