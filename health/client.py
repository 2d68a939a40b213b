"""Asks a running instance for its health, without Django: `python -m health` starts in a tenth of a second."""

import http.client
import json
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

TIMEOUT = 3.0  # seconds; the answer is promised within one
LONGEST = 65_536  # bytes of an answer


class Unreachable(Exception):
    """No report could be had; the message is one line that says why."""


class Late(Unreachable):
    """No answer came in time, which once is no proof that none would have come."""


def doubtful(report: dict[str, Any]) -> bool:
    """Whether nothing is wrong but that answers were late. A process that has just begun cannot tell yet whether they
    will come (see health.runner), so whoever wants to know asks again.
    """
    wrong = [state for state in report["checks"].values() if state != "healthy"]
    return bool(wrong) and all(state == "unhealthy: timeout" for state in wrong)


def ask(url: str, timeout: float = TIMEOUT) -> dict[str, Any]:
    """The report (the JSON object of /health/) that `url` answers with; /health/ is asked if it has no path.

    No proxy is used, no redirect followed. Raises ValueError if `url` is none that can be asked, else Unreachable.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address of a web server: expected something like http://127.0.0.1:8000")
    path = parts.path if parts.path not in ("", "/") else "/health/"
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    link = kind(parts.hostname, parts.port, timeout=timeout)  # parts.port raises ValueError
    try:
        link.request("GET", path, headers={"Accept": "application/json", "Connection": "close"})
        with link.getresponse() as response:
            body = response.read(LONGEST)
    except ssl.SSLCertVerificationError as error:
        raise Unreachable(f"{url}: its certificate is not trusted ({error.verify_message})") from None
    except ssl.SSLError as error:
        raise Unreachable(f"{url}: no TLS is spoken there ({error.reason}); is it http://?") from None
    except TimeoutError:
        raise Late(f"{url}: no answer within {timeout:g} s") from None
    except ConnectionRefusedError:
        raise Unreachable(f"{url}: connection refused; is it running, and on this port?") from None
    except socket.gaierror as error:
        raise Unreachable(f"{url}: the host name is not known ({error.strerror})") from None
    except http.client.HTTPException as error:
        raise Unreachable(f"{url}: what answers is not HTTP ({type(error).__name__}); is it https://?") from None
    except OSError as error:
        raise Unreachable(f"{url}: {error.strerror or error}") from None
    finally:
        link.close()
    if place := response.getheader("Location"):
        raise Unreachable(f"{url}: answers {response.status} and points to {place}; ask there")
    try:
        report = json.loads(body)
        checks = report.setdefault("checks", {})
        if not all(isinstance(text, str) and text.isprintable() for text in (report["status"], *checks.values())):
            raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Unreachable(f"{url}: answers {response.status}, but not with a health report") from None
    return dict(report)
