"""DATABASE_URL, its two for a database per colour, and REDIS_URL, checked before their drivers see them."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import dj_database_url
from redis import ConnectionPool

from settings.env import HOST, ConfigError, invalid, number, text

# The address of a service (RFC 3986), stricter than its drivers: what could be read in two ways is rejected. So the
# characters that separate its parts (: / ? # @) must be written as %XX wherever they are meant literally.
WORD = r"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})"
ADDRESS = re.compile(
    rf"(?P<scheme>[a-z]+)://(?:(?P<user>{WORD}*)(?::(?P<password>{WORD}*))?@)?(?P<host>{HOST}|%2F{WORD}*|)"
    rf"(?::(?P<port>[0-9]+))?(?P<path>(?:/{WORD}*)*)(?:\?(?P<query>(?:{WORD}|[/:])*))?"
)
ESCAPES = "In the user and the password write : as %3A, / as %2F, ? as %3F, # as %23, @ as %40, and % as %25"

# What may follow a `?`, with a pattern for each value: the options that the driver knows, except those that the
# settings set themselves and those that would turn off the verification of certificates.
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
    "options": r"-c ?[a-z_.]+=\S+( -c ?[a-z_.]+=\S+)*",
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


class Address(NamedTuple):
    """The parts of a service's address. `name` is its path, decoded; `path` is the same as it was written."""

    scheme: str
    host: str
    name: str
    path: str
    options: dict[str, str]


def address(name: str, value: str, options: Mapping[str, Mapping[str, str]], example: str) -> Address:
    """Returns the parts of a service's address, each checked. `options` has, by scheme, what may follow a `?`.

    Raises ConfigError, which says what is wrong without repeating anything secret, and how to write it.
    """
    expected = f"{example}. {ESCAPES}"
    scheme = value.partition("://")[0]
    if scheme not in options:
        raise invalid(name, f"an address starting with {'://, '.join(options)}://, such as {expected}")
    found = ADDRESS.fullmatch(value)
    if not found:
        raise invalid(name, f"an address such as {expected}", f"the part after {scheme}:// is not valid")
    number = found["port"]
    if number is not None and not 0 < int(number) < 65536:
        raise invalid(name, "a port from 1 to 65535", "the port is out of range")
    query: dict[str, str] = {}
    for pair in filter(None, (found["query"] or "").split("&")):
        key, _, given = pair.partition("=")
        given = unquote(given)
        pattern = options[scheme].get(key)
        if pattern is None:
            known = ", ".join(options[scheme]) or "none"
            raise invalid(name, f"one of these options after the ?: {known}", f"{scheme}:// has no option {key}")
        if key in query:
            raise invalid(name, f"{key} once", f"the option {key} is repeated")
        if not re.fullmatch(pattern, given):
            raise invalid(name, f"{key} as {pattern} (a regular expression)", f"the option {key} is not valid")
        query[key] = given
    return Address(scheme, found["host"], unquote(found["path"].removeprefix("/")), found["path"], query)


EXAMPLE = "postgresql://USER:PASSWORD@HOST:5432/NAME"
COLOURS = {"blue": "DATABASE_URL_BLUE", "green": "DATABASE_URL_GREEN"}


def colours() -> dict[str, str]:
    """Returns the URL of each colour's database, by colour; nothing if there is one database. Raises ConfigError."""
    urls = {colour: text(name) for colour, name in COLOURS.items()}
    if not any(urls.values()):
        return {}
    for colour, name in COLOURS.items():
        if not urls[colour]:
            (other,) = COLOURS.keys() - {colour}
            raise ConfigError(
                f"{name} is not set, but {COLOURS[other]} is. Set both for a database per colour, or DATABASE_URL for "
                "one database. See .env.example."
            )
    if urls["blue"] == urls["green"]:
        raise invalid("DATABASE_URL_GREEN", "another database than that of DATABASE_URL_BLUE")
    return urls


def database(user: str = "", host: str = "", name: str = "") -> dict[str, Any]:
    """Returns a DATABASES entry from DATABASE_URL, or from DB_PASSWORD and the given defaults. Raises ConfigError.

    With DATABASE_URL_BLUE and DATABASE_URL_GREEN these take precedence, and the entry has both. It begins with blue;
    the backend finds out which colour takes writes (backstagetest1/bluegreen), and reads DATABASE_COLOUR while that is
    prepared for this release.
    """
    hold_limit, own = number("DATABASE_HOLD_LIMIT", 5), text("DATABASE_COLOUR")
    if own not in ("", *COLOURS):
        raise invalid("DATABASE_COLOUR", "blue or green")
    if urls := colours():
        entries = {colour: postgresql(COLOURS[colour], url) for colour, url in urls.items()}
        both = {"ENGINE": "backstagetest1.bluegreen", "COLOURS": entries, "HOLD_LIMIT": hold_limit, "OWN": own}
        return entries["blue"] | both
    url = text("DATABASE_URL")
    if not url and host and (password := text("DB_PASSWORD")):
        url = f"postgresql://{user}:{quote(password, safe='')}@{host}:5432/{name}"
    if not url:
        also = f", nor DB_PASSWORD for {user} at {host}" if host else ""
        raise ConfigError(
            f"DATABASE_URL is not set{also}. Expected something like DATABASE_URL={EXAMPLE} "
            "(or DATABASE_URL_FILE, the path of a file that holds it). See .env.example."
        )
    if url == "sqlite://:memory:" or re.fullmatch("sqlite:///[^?#]+", url):
        return dict(dj_database_url.parse(url))
    return {"ENGINE": "backstagetest1.postgresql"} | postgresql("DATABASE_URL", url)


def postgresql(variable: str, url: str) -> dict[str, Any]:
    """Returns a DATABASES entry without an engine from the `url` of PostgreSQL in `variable`. Raises ConfigError.

    It has timeouts, and connections that persist for a minute and are checked before their first use in a request: a
    restarted database then fails no request, and no connection is kept to one that rejects writes
    (backstagetest1/postgresql). There is no pool: a worker has few threads, and each keeps one connection.
    """
    given = address(variable, url, dict.fromkeys(("postgresql", "postgres"), POSTGRESQL), EXAMPLE)
    if not given.name or "/" in given.name:
        raise invalid(variable, EXAMPLE, "the database name is missing or contains a slash")
    parsed: dict[str, Any] = dict(dj_database_url.parse(url))
    del parsed["ENGINE"]
    parsed |= {"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}
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
    """Returns REDIS_URL. Raises ConfigError for what the driver would read differently or not at all: the cache fails
    open, so it would hide the mistake.
    """
    url = text("REDIS_URL", default)
    example = "redis://HOST:6379/1, or redis://:PASSWORD@HOST:6379/1"
    given = address("REDIS_URL", url, {"redis": REDIS, "rediss": REDIS_TLS, "unix": REDIS_SOCKET}, example)
    if given.scheme == "unix":
        if given.host or not given.name:
            raise invalid("REDIS_URL", "unix:///PATH?db=1", "the path of the socket is missing")
    elif not given.host or given.host.startswith("%"):
        raise invalid("REDIS_URL", example, "the host is missing")
    elif not re.fullmatch("[0-9]{0,4}", given.name) or "%" in given.path:
        raise invalid(
            "REDIS_URL", f"the number of the database after the host, as in {example}", "the database is not a number"
        )
    try:
        ConnectionPool.from_url(url).make_connection()  # this does not connect
    except Exception:  # the driver raises many types, and their text may contain the password
        raise invalid("REDIS_URL", example, "the driver rejects it") from None
    return url
