"""Probe traffic: requests to the environment's own address while a release is being changed, as a visitor sends them.

One keep-alive connection reads a page and one sends a form, as these fail in different ways: a proxy may retry a GET by
itself, and never a POST. Others read a page over a new connection each time, as a switch moves new connections first.
Nothing is retried here; what fails is counted, and which release answered.
"""

import http.client
import math
import re
import ssl
import statistics
import threading
import time
from collections import Counter, deque
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit

RATE = 5  # requests a second on each connection
TIMEOUT = 10.0  # seconds for an answer
READ, SEND, FORM = "/", "/accounts/logout/", "/accounts/login/"  # signing out nobody: changes nothing, is not limited
GOOD = (200, 302)
SLOW = 2.0  # seconds after which a visitor notices
RELEASE, REVISION = "App-Version", "App-Revision"  # the headers in which an answer names what gave it


class Source(NamedTuple):
    """Where an answer came from: the release, empty if it did not say, over a connection that was kept or a new one.
    Its revision tells two of one version apart, which differ in their settings; empty if it did not say.
    """

    release: str
    kept: bool
    revision: str = ""

    def of(self, release: str, revision: str) -> bool:
        """Whether it is this release, in this revision as far as both are known."""
        return self.release == release and (self.revision == revision or not self.revision or not revision)


class Sample(NamedTuple):
    """One request: when it ended by the monotonic clock, whether it failed, seconds, who answered if anybody did."""

    at: float
    failed: bool
    took: float
    source: Source | None


class Traffic:
    """Runs from start() to stop(). `total` counts requests, `failed` those that failed and `slow` those that took over
    SLOW seconds and did not; `first` describes the first failure, and `answers` counts answers by their source.
    """

    def __init__(self, url: str) -> None:
        self.parts = urlsplit(url)
        self.total = self.failed = self.slow = 0
        self.first = ""
        self.answers: Counter[Source] = Counter()
        self.recent: deque[Sample] = deque(maxlen=1000)
        self.counting = threading.Lock()
        self.ending = threading.Event()
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> "Traffic":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self, judged: bool = False) -> str:
        """Starts the requests. Returns why there are none, or fewer: no URL, or a site that fails already. If it is
        `judged` by them, its failures count from the beginning.
        """
        if not self.parts.hostname:
            return "the environment has no url in environments.toml"
        link, problem, body, cookies = self.connect(), "", "", ""
        try:
            status, _, _ = self.request(link, "GET", READ, {})
            if status not in GOOD:
                problem = f"{self.parts.geturl()}{READ} already answers {status}"
            _, headers, body = self.request(link, "GET", FORM, {})
            cookies = headers.get("Set-Cookie", "")
        except (OSError, http.client.HTTPException) as error:
            problem = problem or f"{self.parts.geturl()} does not answer ({error or type(error).__name__})"
        finally:
            link.close()
        if problem and not judged:
            return problem
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', body)
        cookie = re.search(r"((?:__Host-)?csrf(?:token)?=[^;]+)", cookies)
        jobs: list[tuple[str, str, dict[str, str], str, bool]] = [("GET", READ, {}, "", True)]
        jobs.append(("GET", READ, {"Connection": "close"}, "", False))
        if token and cookie:
            sent = {
                "Cookie": cookie[1],
                "Content-Type": "application/x-www-form-urlencoded",
                "Referer": f"{self.parts.geturl()}{FORM}",  # Django wants one over TLS
            }
            jobs.append(("POST", SEND, sent, f"csrfmiddlewaretoken={token[1]}", True))
        for job in jobs:
            thread = threading.Thread(target=self.run, args=job, daemon=True)
            thread.start()
            self.threads.append(thread)
        if problem or (token and cookie):
            return problem
        return f"{FORM} has no usable form, so only GET requests are sent"

    def stop(self) -> None:
        """Ends the requests and waits for those in flight. May be called again."""
        self.ending.set()
        for thread in self.threads:
            thread.join(TIMEOUT + 1)

    def lately(self, seconds: float) -> tuple[int, int, float]:
        """Of the last `seconds`: how many requests failed, of how many, and their median latency in seconds."""
        since = time.monotonic() - seconds
        with self.counting:
            found = [each for each in self.recent if each.at >= since]
        times = [each.took for each in found]
        return sum(each.failed for each in found), len(found), statistics.median(times) if times else 0.0

    def sources(self, seconds: float = math.inf) -> Counter[Source]:
        """How many answers came from where: all of them, or those of the last `seconds`."""
        since = time.monotonic() - seconds
        with self.counting:
            if math.isinf(seconds):
                return Counter(self.answers)
            return Counter(each.source for each in self.recent if each.source and each.at >= since)

    def last_from_others(self, release: str, revision: str, since: float) -> float:
        """How many seconds after `since`, by the monotonic clock, anybody but the release last answered; else 0."""
        with self.counting:
            times = [each.at for each in self.recent if each.source and not each.source.of(release, revision)]
        return max(0.0, max(times, default=since) - since)

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

    def run(self, method: str, path: str, headers: dict[str, str], body: str, kept: bool) -> None:
        """Sends this request RATE times a second until stop(), over one connection that is kept or a new one each time,
        and counts. Runs in a thread.
        """
        link, due = self.connect(), time.monotonic()
        while not self.ending.wait(max(0.0, due - time.monotonic())):
            due = max(due + 1 / RATE, time.monotonic() - 1)  # what a slow answer delays is not made up for in a burst
            said, source, began = "", None, time.monotonic()
            try:
                status, told, _ = self.request(link, method, path, headers, body)
                # With an Age (RFC 9111, section 5.1) it came from a cache, and says who answered somebody else.
                release, revision = ("" if "Age" in told else told.get(name, "") for name in (RELEASE, REVISION))
                source = Source(release, kept, revision)
                if status not in GOOD:
                    said = f"answered {status}"
            except (OSError, http.client.HTTPException) as error:
                link.close()
                said = str(error) or type(error).__name__
            if not kept:
                link.close()
            with self.counting:
                self.total += 1
                self.recent.append(Sample(time.monotonic(), bool(said), time.monotonic() - began, source))
                self.slow += not said and self.recent[-1].took > SLOW
                if source:
                    self.answers[source] += 1
                if said:
                    self.failed += 1
                    self.first = self.first or f"{method} {path} {said}"
        link.close()
