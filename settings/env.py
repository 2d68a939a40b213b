"""Reads the environment strictly: what is missing or malformed stops the process and says what to do.

Every variable may also be given as NAME_FILE, the path of a file that holds the value: the way in which Docker
and Kubernetes mount secrets. All variables are documented in .env.example.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from email.utils import parseaddr
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import dj_database_url
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.validators import validate_email
from redis import ConnectionPool

TRUE = ("true", "1", "yes", "on")
FALSE = ("false", "0", "no", "off")
CONTROL = re.compile("[\x00-\x1f\x7f]")

# A host: a name, an IPv4 address, or an IPv6 address in brackets. One, and nothing else around it.
HOST = r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]+\]"
SITE = re.compile(rf"https?://({HOST})(:(?P<port>[0-9]+))?")

# The address of a service (RFC 3986), stricter than its drivers: what could be read in two ways is not read at all. So
# whatever divides the parts (: / ? # @) is written %XX where it is meant as itself.
WORD = r"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})"
ADDRESS = re.compile(
    rf"(?P<scheme>[a-z]+)://(?:(?P<user>{WORD}*)(?::(?P<password>{WORD}*))?@)?(?P<host>{HOST}|%2F{WORD}*|)"
    rf"(?::(?P<port>[0-9]+))?(?P<path>(?:/{WORD}*)*)(?:\?(?P<query>(?:{WORD}|[/:])*))?"
)
ESCAPES = "In the user and the password write : as %3A, / as %2F, ? as %3F, # as %23, @ as %40, and % as %25"

# What may follow a `?`, and a pattern of what it may be: options that the driver knows, without those that the settings
# set or that would switch the verification of certificates off.
WHOLE, FILE, ANY = "[0-9]{1,9}", r"/\S+", r"\S+"
POSTGRESQL = {
    "application_name": ANY,
    "channel_binding": "require|prefer|disable",
    "connect_timeout": WHOLE,
    "gssencmode": "disable|prefer|require",
    "keepalives": "[01]",
    "keepalives_count": WHOLE,
    "keepalives_idle": WHOLE,
    "keepalives_interval": WHOLE,
    "options": r"-c ?[a-z_]+=\S+( -c ?[a-z_]+=\S+)*",
    "sslcert": FILE,
    "sslcrl": FILE,
    "sslkey": FILE,
    "sslmode": "disable|allow|prefer|require|verify-ca|verify-full",
    "sslrootcert": f"system|{FILE}",
    "target_session_attrs": "any|read-write|primary|prefer-standby|read-only|standby",
    "tcp_user_timeout": WHOLE,
}
REDIS = {
    "client_name": ANY,
    "health_check_interval": WHOLE,
    "max_connections": WHOLE,
    "protocol": "[23]",
}
REDIS_TLS = REDIS | {
    "ssl_ca_certs": FILE,
    "ssl_cert_reqs": "required",
    "ssl_certfile": FILE,
    "ssl_check_hostname": "true|True",
    "ssl_keyfile": FILE,
}
REDIS_SOCKET = REDIS | {"db": WHOLE}


class Refused(ImproperlyConfigured):
    """What a person has to set right. manage.py and wsgi.py end the process with its text, without a stack trace."""


def text(name: str, default: str = "") -> str:
    """The variable's value, or that of the file named by NAME_FILE, without what editors and secret stores add to it:
    a byte order mark, and blanks and line ends around it. An empty value counts as not set.

    Raises Refused if both are set, if the file cannot be read, or if a control character is within the value.
    """
    value, path = tidy(os.environ.get(name, "")), tidy(os.environ.get(f"{name}_FILE", ""))
    if value and path:
        raise Refused(f"{name} and {name}_FILE are both set: unset one of them. See .env.example.")
    if path:
        try:
            value = tidy(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise Refused(
                f"{name}_FILE names a file that cannot be read ({type(error).__name__}): {path}. See .env.example."
            ) from None
    if found := CONTROL.search(value):
        raise Refused(
            f"{name} contains a line break or control character (U+{ord(found[0]):04X}): expected one line. "
            "See .env.example."
        )
    return value or default


def tidy(value: str) -> str:
    return value.strip().removeprefix("\ufeff").strip()


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
    found = SITE.fullmatch(value)
    return found is not None and (found["port"] is None or 0 < int(found["port"]) < 65536)


def comparison(name: str) -> str:
    """Where two commits are compared: the address of a page with {old} and {new} in it, or empty."""
    value = text(name)
    page = value.replace("{old}", "0").replace("{new}", "1")
    if value and not (
        "{old}" in value and "{new}" in value and re.fullmatch(rf"https?://({HOST})(:[0-9]+)?/[!#-;=?-Z_a-z~]*", page)
    ):
        raise malformed(name, "an address with {old} and {new}, as in https://example.com/{old}...{new}")
    return value


def host(name: str, default: str) -> str:
    """One host's name or address, without scheme, port or user."""
    value = text(name, default)
    if not re.fullmatch(f"{HOST}|[0-9A-Fa-f:]+", value):
        raise malformed(name, f"one host's name, such as {default}: no scheme, port or user")
    return value


def sender(name: str, default: str) -> str:
    """An e-mail address, or a name with one in angle brackets."""
    value = text(name, default)
    try:
        validate_email(parseaddr(value)[1])
    except ValidationError:
        raise malformed(name, f"an address such as {default}, or Name <{default}>") from None
    return value


class Address(NamedTuple):
    """A service's address. `name` is its path, decoded; `path` as it was written."""

    scheme: str
    host: str
    name: str
    path: str
    options: dict[str, str]


def address(name: str, value: str, options: Mapping[str, Mapping[str, str]], example: str) -> Address:
    """The parts of a service's address, each checked. `options` has, by scheme, what may follow a `?`.

    Raises Refused, which says what was read as far as it cannot be a secret, and how to write it.
    """
    expected = f"{example}. {ESCAPES}"
    scheme = value.partition("://")[0]
    if scheme not in options:
        raise malformed(name, f"an address that begins with {'://, '.join(options)}://, such as {expected}")
    found = ADDRESS.fullmatch(value)
    if not found:
        raise malformed(name, f"an address such as {expected}", f"the part after {scheme}:// has another form")
    number = found["port"]
    if number is not None and not 0 < int(number) < 65536:
        raise malformed(name, "a port from 1 to 65535", "the port is out of range")
    query: dict[str, str] = {}
    for pair in filter(None, (found["query"] or "").split("&")):
        key, _, given = pair.partition("=")
        given = unquote(given)
        pattern = options[scheme].get(key)
        if pattern is None:
            known = ", ".join(options[scheme]) or "none"
            raise malformed(name, f"one of these options after the ?: {known}", f"{scheme}:// has no option {key}")
        if key in query:
            raise malformed(name, f"{key} once", f"the option {key} is there twice")
        if not re.fullmatch(pattern, given):
            raise malformed(name, f"{key} as {pattern} (a regular expression)", f"the option {key} is not valid")
        query[key] = given
    return Address(scheme, found["host"], unquote(found["path"].removeprefix("/")), found["path"], query)


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
    (backstagetest1/postgresql). No pool: a worker has few threads, and each keeps one connection.
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
    if url == "sqlite://:memory:" or re.fullmatch("sqlite:///[^?#]+", url):
        return dict(dj_database_url.parse(url))
    given = address("DATABASE_URL", url, dict.fromkeys(("postgresql", "postgres"), POSTGRESQL), example)
    if not given.name or "/" in given.name:
        raise malformed("DATABASE_URL", example, "it names no database, or one with a slash")
    parsed: dict[str, Any] = dict(dj_database_url.parse(url))
    parsed |= {"ENGINE": "backstagetest1.postgresql", "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}
    limits = "-c statement_timeout=15s -c idle_in_transaction_session_timeout=60s"
    parsed["OPTIONS"] = {
        "connect_timeout": 3,
        "tcp_user_timeout": 5000,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        **{key: int(value) if value.isdecimal() else value for key, value in given.options.items()},
        "options": f"{limits} {given.options.get('options', '')}".strip(),  # the later one of two wins
    }
    return parsed


def redis_url(default: str) -> str:
    """REDIS_URL; what the driver would read differently, or not at all, stops the process here, as the cache fails open
    and would hide it.
    """
    url = text("REDIS_URL", default)
    example = "redis://HOST:6379/1, or redis://:PASSWORD@HOST:6379/1"
    given = address("REDIS_URL", url, {"redis": REDIS, "rediss": REDIS_TLS, "unix": REDIS_SOCKET}, example)
    if given.scheme == "unix":
        if given.host or not given.name:
            raise malformed("REDIS_URL", "unix:///PATH?db=1", "there is no path of a socket")
    elif not given.host or given.host.startswith("%"):
        raise malformed("REDIS_URL", example, "it names no host")
    elif not re.fullmatch("[0-9]{0,4}", given.name) or "%" in given.path:
        raise malformed("REDIS_URL", f"the database's number after the host, as in {example}", "it is not a number")
    try:
        ConnectionPool.from_url(url).make_connection()  # which connects nowhere
    except Exception:  # the driver raises many kinds, and their text may hold the password
        raise malformed("REDIS_URL", example, "the driver does not know it") from None
    return url


def malformed(name: str, expected: str, read: str = "") -> Refused:
    """What to raise when a variable does not hold what it should. It never repeats the value, which may be a secret;
    `read` says what is wrong with it in other words.
    """
    return Refused(f"{name} is malformed: {f'{read}; ' if read else ''}expected {expected}. See .env.example.")
