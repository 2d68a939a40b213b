"""Reads the environment strictly: what is missing or malformed stops the process and says what to do.

Every variable may also be given as NAME_FILE, the path of a file that holds the value: the way in which Docker
and Kubernetes mount secrets. All variables are documented in .env.example.
"""

import ipaddress
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import dj_database_url
from django.core.exceptions import ImproperlyConfigured
from redis.connection import parse_url

TRUE = ("true", "1", "yes", "on")
FALSE = ("false", "0", "no", "off")
ENGINES = ("django.db.backends.postgresql", "django.db.backends.sqlite3")


class Refused(ImproperlyConfigured):
    """What a person has to set right. manage.py and wsgi.py end the process with its text, without a stack trace."""


def text(name: str, default: str = "") -> str:
    """The variable's value, or that of the file named by NAME_FILE; an empty value counts as not set.

    Raises Refused if both are set, or if the file cannot be read.
    """
    value, path = os.environ.get(name, ""), os.environ.get(f"{name}_FILE", "")
    if value and path:
        raise Refused(f"{name} and {name}_FILE are both set: unset one of them. See .env.example.")
    if path:
        try:
            value = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise Refused(
                f"{name}_FILE names a file that cannot be read ({type(error).__name__}): {path}. See .env.example."
            ) from None
    return value or default


def required(name: str, example: str) -> str:
    """Like text(), for what the service cannot do without; `example` shows what it should look like."""
    value = text(name)
    if not value:
        raise Refused(
            f"{name} is not set. It should look like this: {name}={example} "
            f"(or {name}_FILE, the path of a file that holds it). See .env.example."
        )
    return value


def flag(name: str, default: bool) -> bool:
    """A boolean; anything but true, 1, yes, on, false, 0, no or off stops the process."""
    value = text(name).lower()
    if not value:
        return default
    if value not in TRUE + FALSE:
        raise malformed(name, f"one of {', '.join(TRUE + FALSE)}")
    return value in TRUE


def number(name: str, default: float, *, minimum: float = 0) -> float:
    """A finite number of at least `minimum`."""
    try:
        value = float(text(name) or default)
    except ValueError:
        raise malformed(name, "a number") from None
    if not minimum <= value < float("inf"):
        raise malformed(name, f"a number, {minimum:g} or more")
    return value


def port(name: str, default: int) -> int:
    """A TCP port."""
    value = text(name, str(default))
    if not re.fullmatch("[1-9][0-9]{0,4}", value) or int(value) > 65535:
        raise malformed(name, "a port from 1 to 65535")
    return int(value)


def path(name: str, default: str) -> str:
    """A path below / in the site's addresses, with one slash at its end."""
    value = text(name, default).strip("/")
    if not re.fullmatch("[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", value):
        raise malformed(name, f"letters, digits, - and _, such as {default}")
    return f"{value}/"


def site(value: str) -> bool:
    """Whether `value` is a web site's address without a path, such as https://example.com."""
    try:
        parts = urlsplit(value)
        parts.port  # raises ValueError if it is none
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and f"{parts.scheme}://{parts.netloc}" == value


def private(address: str) -> bool:
    """Whether nobody on the way can read what is sent to `address`: it is not http, or goes to this machine."""
    host = urlsplit(address).hostname or ""
    return not address.startswith("http://") or host == "localhost" or bool(re.fullmatch(r"127(\.\d+){3}|::1", host))


def words(name: str, default: str = "") -> list[str]:
    """A list separated by commas; blanks around its words do not count."""
    return [word.strip() for word in text(name, default).split(",") if word.strip()]


def ascending(name: str, default: str) -> list[float]:
    """Numbers above 0, separated by commas, each greater than the one before."""
    try:
        values = [float(word) for word in words(name, default)]
    except ValueError:
        values = []
    if not values or not all(low < high for low, high in zip([0.0, *values], [*values, float("inf")], strict=True)):
        raise malformed(name, "numbers above 0 in ascending order, such as 0.1,0.5,1")
    return values


def choice(name: str, default: str, allowed: tuple[str, ...]) -> str:
    """One of `allowed`."""
    value = text(name, default)
    if value not in allowed:
        raise malformed(name, f"one of {', '.join(allowed)}")
    return value


def networks(name: str, default: str = "") -> list[str]:
    """IP addresses or networks (CIDR), separated by commas; `unix` stands for a Unix socket."""
    values = words(name, default)
    for value in values:
        try:
            value == "unix" or ipaddress.ip_network(value)
        except ValueError:
            raise malformed(name, "addresses or networks such as 10.0.0.0/8,::1,unix") from None
    return values


def secret_key() -> str:
    """SECRET_KEY, which signs sessions and password-reset links; a short one stops the process."""
    value = required("SECRET_KEY", "50-or-more-random-characters")
    if len(value) < 50 or len(set(value)) < 5:
        raise malformed("SECRET_KEY", "50 or more random characters")
    return value


def hosts(default: str) -> list[str]:
    """ALLOWED_HOSTS; `*` stops the process, for it would let a forged Host into password-reset links.

    So does an address with scheme or port, which Django would match with nothing.
    """
    values = words("ALLOWED_HOSTS", default)
    if not all(re.fullmatch(r"\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\]", value) for value in values):
        raise malformed("ALLOWED_HOSTS", "host names such as example.com,www.example.com: no *, scheme or port")
    return values


def no_debug() -> None:
    """Stops the process if DEBUG is set: it shows settings and source to anybody."""
    if flag("DEBUG", False):
        raise Refused("DEBUG is true; only development runs with it. Unset DEBUG. See .env.example.")


def database(user: str = "", host: str = "", name: str = "") -> dict[str, Any]:
    """A DATABASES entry from DATABASE_URL, or from DB_PASSWORD and the given defaults.

    PostgreSQL gets time-outs, and connections that persist for a minute and are checked before their first use
    in a request, so that a restarted database costs no failed request, and none is kept to one that refuses writes
    (backstagetest1/postgresql). No pool: a worker has few threads, and
    each keeps one connection.
    """
    example = "postgresql://USER:PASSWORD@HOST:5432/NAME"
    url = text("DATABASE_URL")
    if not url and host and (password := text("DB_PASSWORD")):
        url = f"postgresql://{user}:{quote(password, safe='')}@{host}:5432/{name}"
    if not url:
        also = f", nor DB_PASSWORD for {user} at {host}" if host else ""
        raise Refused(
            f"DATABASE_URL is not set{also}. It should look like this: DATABASE_URL={example} "
            "(or DATABASE_URL_FILE, the path of a file that holds it). See .env.example."
        )
    try:
        parsed: dict[str, Any] = dict(dj_database_url.parse(url))
    except Exception:  # the parser raises many kinds, and their text may hold the password
        raise malformed("DATABASE_URL", example) from None
    if not parsed.get("NAME") or parsed["ENGINE"] not in ENGINES:
        raise malformed("DATABASE_URL", example)
    if parsed["ENGINE"] == "django.db.backends.postgresql":
        parsed |= {"ENGINE": "backstagetest1.postgresql", "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}
        parsed["OPTIONS"] = {
            "connect_timeout": 3,
            "tcp_user_timeout": 5000,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "options": "-c statement_timeout=15s -c idle_in_transaction_session_timeout=60s",
        } | parsed.get("OPTIONS", {})
    return parsed


def redis_url(default: str) -> str:
    """REDIS_URL; one that cannot be parsed stops the process here, as the cache fails open and would hide it."""
    url = text("REDIS_URL", default)
    try:
        parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:  # its text may hold the password
        raise malformed("REDIS_URL", "redis://HOST:6379/1") from None
    return url


def malformed(name: str, expected: str) -> Refused:
    """What to raise when a variable does not hold what it should. It never repeats the value: it may be a secret."""
    return Refused(f"{name} is malformed: expected {expected}. See .env.example.")
