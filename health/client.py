"""Reads the health report of a running instance, without Django: `python -m health` starts in a tenth of a second."""

import http.client
import json
import socket
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

TIMEOUT = 3.0  # seconds; an instance responds within one
MAX_BYTES = 65_536  # of a response


class Unreachable(Exception):
    """There is no health report; the message is one line that says why."""


class TimedOut(Unreachable):
    """There was no response in time. One timeout is no proof of an outage."""


def inconclusive(report: dict[str, Any]) -> bool:
    """Whether timeouts are all that is wrong. A process that has just started cannot tell a late answer from an outage
    (see health.runner), so whoever needs to know must ask again.
    """
    wrong = [state for state in report["checks"].values() if state != "healthy"]
    return bool(wrong) and all(state == "unhealthy: timeout" for state in wrong)


def ask(
    url: str, timeout: float = TIMEOUT, on_certificate: Callable[[float], None] = lambda expiry: None
) -> dict[str, Any]:
    """Returns the report (the JSON object of /health/) at `url`, whose path defaults to /health/. `timeout`: seconds.

    `on_certificate` is called with the time at which the server's certificate expires (Unix time), also if it then
    sends no report; not if the certificate is not trusted, as one that has expired.

    Uses no proxy and follows no redirect. Raises ValueError if `url` is not valid, and Unreachable.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not a valid URL; expected something like http://127.0.0.1:8000")
    path = parts.path if parts.path not in ("", "/") else "/health/"
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    link = kind(parts.hostname, parts.port, timeout=timeout)  # parts.port raises ValueError
    try:
        link.request("GET", path, headers={"Accept": "application/json", "Connection": "close"})
        if isinstance(link.sock, ssl.SSLSocket) and (certificate := link.sock.getpeercert()):
            on_certificate(ssl.cert_time_to_seconds(str(certificate["notAfter"])))
        with link.getresponse() as response:
            body = response.read(MAX_BYTES)
    except ssl.SSLCertVerificationError as error:
        raise Unreachable(f"{url}: certificate not trusted ({error.verify_message})") from None
    except ssl.SSLError as error:
        raise Unreachable(f"{url}: TLS failed ({error.reason}); should it be http://?") from None
    except TimeoutError:
        raise TimedOut(f"{url}: timed out after {timeout:g} s") from None
    except ConnectionRefusedError:
        raise Unreachable(f"{url}: connection refused; is it running, and on this port?") from None
    except socket.gaierror as error:
        raise Unreachable(f"{url}: host not found ({error.strerror})") from None
    except http.client.HTTPException as error:
        raise Unreachable(f"{url}: not an HTTP response ({type(error).__name__}); should it be https://?") from None
    except OSError as error:
        raise Unreachable(f"{url}: {error.strerror or error}") from None
    finally:
        link.close()
    if place := response.getheader("Location"):
        raise Unreachable(f"{url}: status {response.status}, redirects to {place}; use that URL")
    try:
        report = json.loads(body)
        checks = report.setdefault("checks", {})
        if not all(isinstance(text, str) and text.isprintable() for text in (report["status"], *checks.values())):
            raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Unreachable(f"{url}: status {response.status}, but not a health report") from None
    return dict(report)
