"""A client of Prometheus' HTTP API: instant and range queries, each with a deadline for the whole call.

https://prometheus.io/docs/prometheus/latest/querying/api/

What is unknown is left out: a value that is NaN has no sample, and a series that Prometheus does not have is not in the
list. So nobody takes "unknown" for 0.
"""

import json
import math
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException, HTTPResponse
from io import BytesIO
from queue import Empty, SimpleQueue
from typing import Any, cast
from urllib.parse import urlencode, urlsplit

MAX_BYTES = 4_000_000  # of an answer with its headers; a range of 20 series with 300 values each has 200,000
SAID = 200  # characters of Prometheus' own error message that are repeated
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?|Inf)|NaN")


class PrometheusError(Exception):
    """Prometheus gave no usable answer. The message is one line that says why and what to do, and names hosts, so it is
    for operators only.
    """


@dataclass(frozen=True)
class Series:
    """A series' labels, with `__name__`, and its values as (Unix time, value) in order of time. No value is NaN."""

    labels: dict[str, str]
    points: list[tuple[float, float]]

    @property
    def value(self) -> float:
        """The last value."""
        return self.points[-1][1]


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus server, or one that speaks its API. `url` has no slash at its end; an empty token is not sent."""

    url: str
    token: str = ""

    def query(self, expression: str, seconds: float, at: float | None = None) -> list[Series]:
        """Returns the series of an expression, with one value each, as of the Unix time `at` or now; a scalar is a
        series without labels. Waits for `seconds` at most. Raises PrometheusError.
        """
        given = {"query": expression} | ({} if at is None else {"time": f"{at:.3f}"})
        kind, result = self.ask("query", given, seconds)
        with strictly():
            if kind == "scalar":
                return known([({}, [result])])
            expect(kind == "vector")
            return known([(each["metric"], [each["value"]]) for each in result])

    def query_range(self, expression: str, start: float, end: float, step: float, seconds: float) -> list[Series]:
        """Returns the series of an expression from `start` to `end` (Unix times), with a value each `step` seconds.
        Waits for `seconds` at most. Raises PrometheusError.
        """
        times = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        kind, result = self.ask("query_range", {"query": expression} | times, seconds)
        with strictly():
            expect(kind == "matrix")
            return known([(each["metric"], each["values"]) for each in result])

    def ask(self, method: str, parameters: dict[str, str], seconds: float) -> tuple[str, Any]:
        """Returns the type of the result and the result itself. Raises PrometheusError."""
        until = time.monotonic() + seconds
        path = f"/api/v1/{method}?" + urlencode(parameters | {"timeout": f"{max(seconds, 0.001):.3f}"})
        try:
            status, body = self.get(path, until)
        except TimeoutError:
            raise self.error(f"timed out after {seconds:g} s") from None
        except ConnectionRefusedError:
            raise self.error("refused the connection; is it running, and on this port?") from None
        except socket.gaierror as error:
            raise self.error(f"host not found ({error.strerror})") from None
        except ssl.SSLCertVerificationError as error:
            raise self.error(f"its certificate is not trusted ({error.verify_message})") from None
        except ssl.SSLError as error:
            raise self.error(f"TLS failed ({error.reason}); should it be http://?") from None
        except HTTPException as error:
            raise self.error(f"did not answer in HTTP ({type(error).__name__}); should it be https://?") from None
        except OSError as error:
            raise self.error(str(error.strerror or error)) from None
        if status in (401, 403):
            raise self.error(f"answered {status}; check PROMETHEUS_TOKEN")
        if 300 <= status < 400:
            raise self.error(f"answered {status}, a redirect; PROMETHEUS_URL must be the final address")
        try:
            answer = json.loads(body)
            if answer["status"] == "success" and 200 <= status < 300:
                return str(answer["data"]["resultType"]), answer["data"]["result"]
            said = " ".join(str(answer["error"]).split())[:SAID]
        except (ValueError, TypeError, LookupError, RecursionError):
            raise self.error(f"answered {status} with something that is not an answer of Prometheus") from None
        raise self.error(f"rejected the query: {said}" if status in (400, 422) else f"answered {status}: {said}")

    def error(self, why: str) -> PrometheusError:
        """The exception, with the address."""
        return PrometheusError(f"Prometheus ({self.url}): {why}")

    def get(self, path: str, until: float) -> tuple[int, bytes]:
        """Returns the status and the body of a GET. Follows no redirect, as that would send the token elsewhere, and
        uses no proxy. `until` is by the monotonic clock. Raises OSError, HTTPException and PrometheusError.

        A timeout of a socket is for each of its operations, so a server that sends a byte now and then is never late.
        Therefore each one gets what is left of the whole.
        """
        parts = urlsplit(self.url)
        headers = [f"Host: {parts.netloc}", "Accept: application/json", "Connection: close"]
        headers += [f"Authorization: Bearer {self.token}"] if self.token else []
        request = "\r\n".join([f"GET {parts.path}{path} HTTP/1.1", *headers, "", ""])
        with connect(parts.scheme, parts.hostname or "", parts.port, until) as link:
            link.settimeout(left(until))
            link.sendall(request.encode())
            chunks, size = [], 0
            while chunk := self.receive(link, until):
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_BYTES:
                    raise self.error(f"answered with more than {MAX_BYTES / 1e6:g} MB; ask for less")
        response = HTTPResponse(cast(socket.socket, Received(b"".join(chunks))), method="GET")
        response.begin()
        return response.status, response.read()

    def receive(self, link: socket.socket, until: float) -> bytes:
        """The next bytes; empty at the end, also one without the farewell that TLS asks for."""
        link.settimeout(left(until))
        try:
            return link.recv(65_536)
        except ssl.SSLEOFError:
            return b""  # HTTP itself says whether the answer is whole


class Received:
    """What a socket has received, where http.client expects the socket."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, _mode: str) -> BytesIO:
        """A file to read it from."""
        return BytesIO(self.data)


def left(until: float) -> float:
    """The seconds until then. Raises TimeoutError if there are none."""
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def connect(scheme: str, host: str, port: int | None, until: float) -> socket.socket:
    """Connects to the first of the host's addresses that accepts. Raises OSError."""
    failed: OSError = socket.gaierror(socket.EAI_NONAME, "no address")
    for family, kind, protocol, _, address in addresses(host, port or {"http": 80, "https": 443}[scheme], until):
        link = socket.socket(family, kind, protocol)
        try:
            link.settimeout(left(until))
            link.connect(address)
            if scheme == "https":
                return trusted().wrap_socket(link, server_hostname=host)
            return link
        except OSError as error:
            link.close()
            failed = error
    raise failed


@cache
def trusted() -> ssl.SSLContext:
    """What certificates are checked against. Reading the authorities takes some 20 ms."""
    return ssl.create_default_context()


def addresses(host: str, port: int, until: float) -> list[Any]:
    """What getaddrinfo() finds, in a thread, as it has no timeout of its own. Raises OSError."""
    found: SimpleQueue[list[Any] | OSError] = SimpleQueue()

    def look_up() -> None:
        try:
            found.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except UnicodeError:  # a label of the name that is too long
            found.put(socket.gaierror(socket.EAI_NONAME, "not a valid name"))
        except OSError as error:
            found.put(error)

    threading.Thread(target=look_up, name="look up Prometheus", daemon=True).start()
    try:
        result = found.get(timeout=left(until))
    except Empty:
        raise TimeoutError from None
    if isinstance(result, OSError):
        raise result
    return result


class strictly:
    """Turns what an answer of another form raises into PrometheusError."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, (ValueError, TypeError, LookupError, AttributeError)):
            raise PrometheusError("Prometheus answered with a result of another form than its API has") from None


def expect(right: bool) -> None:
    """Raises ValueError if that is not so."""
    if not right:
        raise ValueError


def known(found: list[tuple[Any, list[Any]]]) -> list[Series]:
    """Returns the series that have a value that is not NaN. Raises ValueError and others for anything malformed."""
    series = []
    for labels, pairs in found:
        expect(isinstance(labels, dict) and all(isinstance(value, str) for value in labels.values()))
        points = [point for point in map(pair, pairs) if not math.isnan(point[1])]
        if points:
            series.append(Series(labels, points))
    return series


def pair(given: Any) -> tuple[float, float]:
    """Returns [time, "value"] as numbers. Raises ValueError and TypeError."""
    at, value = given
    expect(isinstance(at, (int, float)) and math.isfinite(at) and isinstance(value, str))
    expect(bool(NUMBER.fullmatch(value)))
    return float(at), float(value)


def quoted(text: str) -> str:
    """Returns `text` as a string of PromQL. https://prometheus.io/docs/prometheus/latest/querying/basics/"""
    return json.dumps(text, ensure_ascii=False)
