"""What the tests of traces and of errors share: requests to a real server, timed and not."""

import http.client
import statistics
import time

from tests.support.servers import PATIENCE, Gunicorn


def ask(server: Gunicorn, path: str, method: str = "GET", body: str = "", **headers: str) -> tuple[int, str]:
    """The status and the text of the answer. In the names of headers, _ stands for -."""
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    link.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = link.getresponse()
    text = response.read().decode()
    link.close()
    return response.status, text


def median(server: Gunicorn, path: str, number: int) -> float:
    """The median time of an answer, in seconds. One connection: it stays with one worker, whose queues fill up."""
    took = []
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    for _ in range(number):
        started = time.perf_counter()
        link.request("GET", path)
        assert link.getresponse().read()
        took.append(time.perf_counter() - started)
    link.close()
    return statistics.median(took)


def time_to_end(server: Gunicorn) -> float:
    """The seconds from SIGTERM until the server has ended."""
    started = time.monotonic()
    server.stop()
    return time.monotonic() - started
