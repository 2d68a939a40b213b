"""Reads the environment strictly: a variable that is missing or invalid stops the process with what to do about it.

Every variable may also be given as NAME_FILE, the path of a file that holds the value, as Docker and Kubernetes mount
secrets. Each reader registers its variable in VARIABLES; a test compares that with .env.example.
"""

import ipaddress
import os
import re
from email.utils import parseaddr
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.validators import validate_email

TRUE = ("true", "1", "yes", "on")
FALSE = ("false", "0", "no", "off")
ROLES = ("viewer", "deployer", "approver", "maintainer")  # accounts.roles has them too; a test compares the two
CONTROL = re.compile("[\x00-\x1f\x7f]")

# A host: a name, an IPv4 address, or an IPv6 address in brackets. One, and nothing else around it.
HOST = r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]+\]"
SITE = re.compile(rf"https?://({HOST})(:(?P<port>[0-9]+))?")


class ConfigError(ImproperlyConfigured):
    """A setting that a person has to fix. manage.py and wsgi.py exit with its text, without a stack trace."""


class Variable(NamedTuple):
    """A variable that has been read: its name, its default as it would be written ("" for none), and its reader."""

    name: str
    default: str
    reader: str


VARIABLES: dict[str, Variable] = {}


def read(name: str, default: str, reader: str) -> str:
    """Registers a variable and returns its value, or that of the file named by NAME_FILE, or else `default`.

    What editors and secret stores add does not count: a byte order mark, and blanks and line ends around the value. An
    empty value counts as not set. Raises ConfigError if both are set, if the file cannot be read, or if the value
    contains a control character.
    """
    VARIABLES[name] = Variable(name, default, reader)
    value, path = tidy(os.environ.get(name, "")), tidy(os.environ.get(f"{name}_FILE", ""))
    if value and path:
        raise ConfigError(f"{name} and {name}_FILE are both set; unset one of them. See .env.example.")
    if path:
        try:
            value = tidy(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise ConfigError(
                f"{name}_FILE names a file that cannot be read ({type(error).__name__}): {path}. See .env.example."
            ) from None
    if found := CONTROL.search(value):
        raise ConfigError(
            f"{name} contains a line break or control character (U+{ord(found[0]):04X}); expected a single line. "
            "See .env.example."
        )
    return value or default


def tidy(value: str) -> str:
    """Returns `value` without the blanks, line ends and byte order mark around it."""
    return value.strip().removeprefix("\ufeff").strip()


def invalid(name: str, expected: str, problem: str = "") -> ConfigError:
    """Returns the exception to raise for an invalid variable. It never repeats the value, which may be a secret;
    `problem` says what is wrong with it in other words.
    """
    return ConfigError(f"{name} is invalid: {f'{problem}; ' if problem else ''}expected {expected}. See .env.example.")


def text(name: str, default: str = "") -> str:
    """Returns a variable as it is. Raises ConfigError, as read() does."""
    return read(name, default, "text")


def required(name: str, example: str) -> str:
    """Returns a variable that has no default. Raises ConfigError, showing `example`, if it is not set."""
    value = read(name, "", "required")
    if not value:
        raise ConfigError(
            f"{name} is not set. Expected something like {name}={example} "
            f"(or {name}_FILE, the path of a file that holds it). See .env.example."
        )
    return value


def flag(name: str, default: bool) -> bool:
    """Returns a boolean. Raises ConfigError for anything but true, 1, yes, on, false, 0, no and off."""
    value = read(name, str(default).lower(), "flag").lower()
    if value not in TRUE + FALSE:
        raise invalid(name, f"one of {', '.join(TRUE + FALSE)}")
    return value in TRUE


def number(name: str, default: float, *, minimum: float = 0) -> float:
    """Returns a finite number of at least `minimum`. Raises ConfigError."""
    try:
        value = float(read(name, str(default), "number"))
    except ValueError:
        raise invalid(name, "a number") from None
    if not minimum <= value < float("inf"):
        raise invalid(name, f"a number, {minimum:g} or more")
    return value


def whole(name: str, default: int) -> int:
    """Returns a whole number, 0 or more. Raises ConfigError."""
    value = read(name, str(default), "whole")
    if not re.fullmatch("[0-9]{1,9}", value):
        raise invalid(name, "a whole number, 0 or more")
    return int(value)


def days(name: str, default: int) -> int:
    """Returns a number of days, at most a century, as dates have an end. Raises ConfigError."""
    value = whole(name, default)
    if value > 36_500:
        raise invalid(name, "days, at most 36500; 0 means for ever")
    return value


def port(name: str, default: int) -> int:
    """Returns a TCP port. Raises ConfigError."""
    value = read(name, str(default), "port")
    if not re.fullmatch("[1-9][0-9]{0,4}", value) or int(value) > 65535:
        raise invalid(name, "a port from 1 to 65535")
    return int(value)


def path(name: str, default: str) -> str:
    """Returns a path below / of the site, ending in one slash. Raises ConfigError."""
    value = read(name, default, "path").strip("/")
    if not re.fullmatch("[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", value):
        raise invalid(name, f"letters, digits, - and _, such as {default}")
    return f"{value}/"


def is_site(value: str) -> bool:
    """Whether `value` is the address of a web site without a path, such as https://example.com."""
    found = SITE.fullmatch(value)
    try:
        urlsplit(value)
    except ValueError:  # what is in brackets is not an address of IPv6
        return False
    return found is not None and (found["port"] is None or 0 < int(found["port"]) < 65536)


def site(name: str) -> str:
    """Returns the address of a web site without a path or a slash at its end, or "". Raises ConfigError."""
    value = read(name, "", "site").rstrip("/")
    if value and not is_site(value):
        raise invalid(name, "an address without a path, such as https://example.com")
    return value


def is_private(value: str) -> bool:
    """Whether nobody in between can read what is sent to the address `value`: https, or this machine."""
    host = urlsplit(value).hostname or ""
    local = host == "localhost" or bool(re.fullmatch(r"127(\.\d+){3}|::1", host))
    return local or not value.startswith("http://")


def private_site(name: str) -> str:
    """Returns what site() does, but only https or this machine, as secrets are sent there. Raises ConfigError."""
    value = site(name)
    if not is_private(value):
        raise invalid(name, "https://, because over http:// anyone in between can read the token (except to localhost)")
    return value


def prometheus(name: str, token: str) -> str:
    """Returns the address of a Prometheus, perhaps with a path before /api, without a slash at its end; "" for none.

    Raises ConfigError, also if the `token` would be sent over http to another machine.
    """
    value = service(name, read(name, "", "prometheus"), "http://prometheus:9090 or https://example.com/prometheus")
    if token and not is_private(value):
        raise invalid(name, "https://, because over http:// anyone in between can read the token (except to localhost)")
    return value


def collector(name: str, *, secret: bool) -> str:
    """Returns the address of an OpenTelemetry collector (OTLP over HTTP), without /v1/traces and without a slash at its
    end; "" for none.

    Raises ConfigError, also if headers that may be `secret` would be sent over http to another machine.
    """
    value = service(name, read(name, "", "collector"), "http://collector:4318")
    if value.endswith("/v1/traces"):
        raise invalid(name, "an address without /v1/traces, which is added, such as http://collector:4318")
    if secret and not is_private(value):
        raise invalid(
            name, "https://, because over http:// anyone in between can read the headers (except to localhost)"
        )
    return value


def service(name: str, value: str, example: str) -> str:
    """Returns the address `value` of a service, perhaps with a path, without a slash at its end. Raises ConfigError."""
    value = value.rstrip("/")
    site, path = re.fullmatch(r"(https?://[^/]*)?(.*)", value, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    if value and not (is_site(site) and re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", path)):
        raise invalid(name, f"an address such as {example}")
    return value


def headers(name: str) -> dict[str, str]:
    """Returns HTTP headers, given as NAME=VALUE separated by commas, with %XX in values. Raises ConfigError.

    https://opentelemetry.io/docs/specs/otel/protocol/exporter/#specifying-headers-via-environment-variables
    """
    found = {}
    for word in split(read(name, "", "headers")):
        key, _, value = word.partition("=")
        key, value = key.strip().lower(), unquote(value.strip())
        if not (re.fullmatch("[!#$%&'*+.^_`|~0-9a-z-]+", key) and re.fullmatch("[!-~]([ -~]*[!-~])?", value)):
            raise invalid(name, "headers such as authorization=Bearer%20TOKEN,x-team=web (a comma in a value is %2C)")
        found[key] = value
    return found


def dsn(name: str) -> str:
    """Returns the address of a project of Sentry, with its key; "" for none. Raises ConfigError.

    https://docs.sentry.io/concepts/key-terms/dsn-explainer/
    """
    value = read(name, "", "dsn")
    found = re.fullmatch(r"(https?://)[0-9A-Za-z]+(?::[0-9A-Za-z]*)?@([^/@]*)(/[A-Za-z0-9._~-]+)*/[0-9]+", value)
    if value and not (found and is_site(found[1] + found[2])):
        raise invalid(name, "an address such as https://KEY@sentry.example.com/42")
    return value


def share(name: str, default: float) -> float:
    """Returns a share, from 0 to 1. Raises ConfigError."""
    value = number(name, default)
    if value > 1:
        raise invalid(name, "a share from 0 to 1")
    return value


def origins(name: str) -> list[str]:
    """Returns a list of origins (scheme, host, port) separated by commas. Raises ConfigError."""
    values = split(read(name, "", "origins"))
    if not all(map(is_site, values)):
        raise invalid(name, "origins with a scheme and without a path, such as https://example.com")
    return values


def comparison(name: str) -> str:
    """Returns the address of a page that compares the commits {old} and {new}, or "". Raises ConfigError."""
    value = read(name, "", "comparison")
    page = value.replace("{old}", "0").replace("{new}", "1")
    if value and not (
        "{old}" in value and "{new}" in value and re.fullmatch(rf"https?://({HOST})(:[0-9]+)?/[!#-;=?-Z_a-z~]*", page)
    ):
        raise invalid(name, "an address with {old} and {new}, such as https://example.com/{old}...{new}")
    return value


def host(name: str, default: str) -> str:
    """Returns the name or address of one host. Raises ConfigError."""
    value = read(name, default, "host")
    if not re.fullmatch(f"{HOST}|[0-9A-Fa-f:]+", value):
        raise invalid(name, f"one host name, such as {default}, without scheme, port or user")
    return value


def sender(name: str, default: str) -> str:
    """Returns an e-mail address, or a name with an address in angle brackets. Raises ConfigError."""
    value = read(name, default, "sender")
    try:
        validate_email(parseaddr(value)[1])
    except ValidationError:
        raise invalid(name, f"an address such as {default}, or Name <{default}>") from None
    return value


def split(value: str) -> list[str]:
    """Returns the words of a list separated by commas, without blanks around them and without empty ones."""
    return [word.strip() for word in value.split(",") if word.strip()]


def words(name: str, default: str = "") -> list[str]:
    """Returns a list separated by commas. Raises ConfigError, as read() does."""
    return split(read(name, default, "words"))


def ascending(name: str, default: str) -> list[float]:
    """Returns numbers above 0 in ascending order, separated by commas. Raises ConfigError."""
    try:
        values = [float(word) for word in split(read(name, default, "ascending"))]
    except ValueError:
        values = []
    if not values or not all(low < high for low, high in zip([0.0, *values], [*values, float("inf")], strict=True)):
        raise invalid(name, "numbers above 0 in ascending order, such as 0.1,0.5,1")
    return values


def subset(name: str, allowed: tuple[str, ...]) -> list[str]:
    """Returns words of `allowed`, separated by commas. Raises ConfigError."""
    values = split(read(name, "", "subset"))
    if not set(values) <= set(allowed):
        raise invalid(name, f"words of {', '.join(allowed)}, separated by commas")
    return values


class ClaimRole(NamedTuple):
    """A role that a claim of the OpenID provider gives, in one environment or ("") in all of them."""

    claim: str
    value: str
    role: str
    environment: str


def claim_roles(name: str) -> list[ClaimRole]:
    """Returns what claims give which roles: CLAIM:VALUE=ROLE or CLAIM:VALUE=ROLE@ENVIRONMENT, separated by commas.

    The value may contain colons and equals signs, but no comma. Raises ConfigError.
    """
    found = []
    for word in split(read(name, "", "claim_roles")):
        pattern = rf"([A-Za-z0-9_./-]+):(.+)=({'|'.join(ROLES)})(?:@([a-z0-9][a-z0-9-]*))?"
        parts = re.fullmatch(pattern, word)
        if not parts:
            raise invalid(name, "words such as groups:sre=maintainer or groups:dev=deployer@staging")
        found.append(ClaimRole(*parts.groups(default="")))
    return found


def issuer(name: str) -> str:
    """Returns the address of an OpenID provider, perhaps with a path, without a slash at its end; "" for none.

    Raises ConfigError, also for http to another machine: whoever is in between could sign in as anybody.
    """
    value = service(name, read(name, "", "issuer"), "https://id.example.com/realms/team")
    if not is_private(value):
        raise invalid(name, "https://, because over http:// anyone in between can sign in as anybody")
    return value


def choice(name: str, default: str, allowed: tuple[str, ...]) -> str:
    """Returns one of `allowed`. Raises ConfigError."""
    value = read(name, default, "choice")
    if value not in allowed:
        raise invalid(name, f"one of {', '.join(allowed)}")
    return value


def label(name: str, default: str) -> str:
    """Returns the name of an environment, as environments.toml may have it. Raises ConfigError."""
    value = text(name, default)
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", value):
        raise invalid(name, "at most 40 lower-case letters, digits and dashes, such as eu-1")
    return value


def networks(name: str, default: str = "") -> list[str]:
    """Returns IP addresses or networks (CIDR), separated by commas; `unix` means a Unix socket. Raises ConfigError."""
    values = split(read(name, default, "networks"))
    for value in values:
        try:
            value == "unix" or ipaddress.ip_network(value)
        except ValueError:
            raise invalid(name, "addresses or networks such as 10.0.0.0/8,::1,unix") from None
    return values


def secret_key() -> str:
    """Returns SECRET_KEY, which signs sessions and password-reset links. Raises ConfigError if it is too short."""
    value = required("SECRET_KEY", "50-or-more-random-characters")
    if len(value) < 50 or len(set(value)) < 5:
        raise invalid("SECRET_KEY", "50 or more random characters")
    return value


def secret_key_fallbacks() -> list[str]:
    """Returns SECRET_KEY_FALLBACKS, earlier values of SECRET_KEY. Raises ConfigError if one of them is too short."""
    values = split(read("SECRET_KEY_FALLBACKS", "", "secret_key_fallbacks"))
    if any(len(value) < 50 for value in values):
        raise invalid("SECRET_KEY_FALLBACKS", "earlier values of SECRET_KEY, separated by commas")
    return values


def hosts(default: str) -> list[str]:
    """Returns ALLOWED_HOSTS. Raises ConfigError for *, which would let a forged Host into password-reset links, and for
    an address with scheme or port, which Django would never match.
    """
    values = split(read("ALLOWED_HOSTS", default, "hosts"))
    if not all(re.fullmatch(r"\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\]", value) for value in values):
        raise invalid("ALLOWED_HOSTS", "host names such as example.com,www.example.com, without *, scheme or port")
    return values


def no_debug() -> None:
    """Raises ConfigError if DEBUG is true: it shows settings and source to everyone."""
    if flag("DEBUG", False):
        raise ConfigError("DEBUG is true, which is allowed in development only. Unset DEBUG. See .env.example.")
