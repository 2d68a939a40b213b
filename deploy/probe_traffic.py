"""Probe traffic: requests to the environment's own address while a release is being changed, as a visitor sends them.

One keep-alive connection reads a page and one sends a form, as these fail in different ways: a proxy may retry a GET by
itself, and never a POST. Nothing is retried here; what fails is counted.
"""

import http.client
import re
import ssl
import statistics
import threading
import time
from collections import deque
from types import TracebackType
from urllib.parse import urlsplit

RATE = 5  # requests a second on each connection
TIMEOUT = 10.0  # seconds for an answer
READ, SEND, FORM = "/", "/accounts/logout/", "/accounts/login/"  # signing out nobody: changes nothing, is not limited
GOOD = (200, 302)
SLOW = 2.0  # seconds after which a visitor notices


class Traffic:
    """Runs from start() to stop(). `total` counts requests, `failed` those that failed and `slow` those that took over
    SLOW seconds and did not; `first` describes the first failure.
    """

    def __init__(self, url: str) -> None:
        self.parts = urlsplit(url)
        self.total = self.failed = self.slow = 0
        self.first = ""
        self.recent: deque[tuple[float, bool, float]] = deque(maxlen=1000)  # when, whether it failed, seconds
        self.counting = threading.Lock()
        self.ending = threading.Event()
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> "Traffic":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> str:
        """Starts the requests. Returns why there are none, or fewer: no URL, or a site that fails already."""
        if not self.parts.hostname:
            return "the environment has no url in environments.toml"
        link = self.connect()
        try:
            status, _, _ = self.request(link, "GET", READ, {})
            if status not in GOOD:
                return f"{self.parts.geturl()}{READ} already answers {status}"
            _, headers, body = self.request(link, "GET", FORM, {})
        except (OSError, http.client.HTTPException) as error:
            return f"{self.parts.geturl()} does not answer ({error or type(error).__name__})"
        finally:
            link.close()
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', body)
        cookie = re.search(r"((?:__Host-)?csrf(?:token)?=[^;]+)", headers.get("Set-Cookie", ""))
        jobs: list[tuple[str, str, dict[str, str], str]] = [("GET", READ, {}, "")]
        if token and cookie:
            sent = {
                "Cookie": cookie[1],
                "Content-Type": "application/x-www-form-urlencoded",
                "Referer": f"{self.parts.geturl()}{FORM}",  # Django wants one over TLS
            }
            jobs.append(("POST", SEND, sent, f"csrfmiddlewaretoken={token[1]}"))
        for job in jobs:
            thread = threading.Thread(target=self.run, args=job, daemon=True)
            thread.start()
            self.threads.append(thread)
        return "" if token and cookie else f"{FORM} has no usable form, so only GET requests are sent"

    def stop(self) -> None:
        """Ends the requests and waits for those in flight. May be called again."""
        self.ending.set()
        for thread in self.threads:
            thread.join(TIMEOUT + 1)

    def lately(self, seconds: float) -> tuple[int, int, float]:
        """Of the last `seconds`: how many requests failed, of how many, and their median latency in seconds."""
        since = time.monotonic() - seconds
        with self.counting:
            found = [(failed, took) for at, failed, took in self.recent if at >= since]
        times = [took for _, took in found]
        return sum(failed for failed, _ in found), len(found), statistics.median(times) if times else 0.0

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the site, which the first request opens."""
        host = str(self.parts.hostname)
        if self.parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, self.parts.port, timeout=TIMEOUT, context=context)
        return http.client.HTTPConnection(host, self.parts.port, timeout=TIMEOUT)

    def request(
        self, link: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str], body: str = ""
    ) -> tuple[int, http.client.HTTPMessage, str]:
        """The status, headers and body of the answer. Raises OSError and HTTPException."""
        link.request(method, self.parts.path + path, body or None, headers)
        response = link.getresponse()
        text = response.read().decode(errors="replace")
        if response.will_close:
            link.close()
        return response.status, response.headers, text

    def run(self, method: str, path: str, headers: dict[str, str], body: str) -> None:
        """Sends this request RATE times a second until stop(), over one connection, and counts. Runs in a thread."""
        link, due = self.connect(), time.monotonic()
        while not self.ending.wait(max(0.0, due - time.monotonic())):
            due = max(due + 1 / RATE, time.monotonic() - 1)  # what a slow answer delays is not made up for in a burst
            said, began = "", time.monotonic()
            try:
                status, _, _ = self.request(link, method, path, headers, body)
                if status not in GOOD:
                    said = f"answered {status}"
            except (OSError, http.client.HTTPException) as error:
                link.close()
                said = str(error) or type(error).__name__
            with self.counting:
                self.total += 1
                self.recent.append((time.monotonic(), bool(said), time.monotonic() - began))
                self.slow += not said and self.recent[-1][2] > SLOW
                if said:
                    self.failed += 1
                    self.first = self.first or f"{method} {path} {said}"
        link.close()
