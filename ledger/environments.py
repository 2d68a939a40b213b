"""environments.toml: which environments there are, where each runs, how releases reach it and what they are judged by.

The file is read strictly, and an error names its line. ledger.environment_rows writes the same to the database.
"""

import math
import re
import tomllib
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from ledger import durations
from ledger.models import Deployment, Environment
from ledger.toml_lines import line_of
from metrics.prometheus import Prometheus
from settings import text

CHOICES = {
    "target": ("compose", "kubernetes"),
    "strategy": tuple(Deployment.Strategy.values),
    "database": ("shared", "per-colour"),
    "error_budget": ("hold", "report"),
    "colour": tuple(Environment.Colour.values),
}
WORDS = ("purpose", "data", "access", "deployment")  # for people; each fits the column of its name
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")  # a DNS label, short enough for a namespace with a prefix
# A Kubernetes namespace is a DNS label (RFC 1123); a repository follows the OCI distribution specification.
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
URL = re.compile(
    r"https?://([A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\])(:[1-9][0-9]{0,4})?(/[A-Za-z0-9._~/-]*)?"
)
REPOSITORY = re.compile(r"([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*")


PRIVATE = re.compile(r"https://|http://(localhost|127(\.[0-9]+){3}|\[::1\])(:|/|$)")  # what nobody can listen to
QUERY = 1_000  # characters of a check's query, which is part of an address


@dataclass(frozen=True)
class Check:
    """A query that Prometheus answers during the watch, and the limit for each of its values: `max` or `min`."""

    name: str
    query: str
    max: float | None = None
    min: float | None = None

    def exceeded(self, value: float) -> bool:
        """Whether the value is beyond the limit."""
        return value > self.max if self.max is not None else value < cast(float, self.min)

    @property
    def limit(self) -> str:
        """The limit in words."""
        return f"max {self.max:g}" if self.max is not None else f"min {self.min:g}"

    def expression(self, environment: str, version: str) -> str:
        """The query, for a release: $environment and $version stand for their values."""
        return self.query.replace("$environment", environment).replace("$version", version)


@dataclass(frozen=True)
class WatchConfig:
    """What a release is judged by under traffic: [NAME.watch] and [[NAME.watch.checks]].

    `max_error_rate` is a share of the responses, from 0 to 1. `max_p95_seconds` is the limit of the p95 latency.
    """

    max_error_rate: float = 0.05
    max_p95_seconds: float = 1.0
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class EnvironmentConfig:
    """One environment's section of the file.

    A release must have succeeded in one of `promotes_from`, and been live there for `soak` without a break.
    `production`: visitors are here, so people confirm on a terminal, and the status page's headline is about it.
    `url` and `prometheus_url` have no trailing slash. `context` is kubectl's; empty means the current one. `digest`
    (sha256:...) is not in the file: the pipeline passes it to pin the build of a version.
    """

    name: str
    url: str = ""
    target: Literal["compose", "kubernetes"] = "compose"
    strategy: str = Deployment.Strategy.ROLLING
    image: str = "backstagetest1"
    context: str = ""
    namespace: str = "default"
    database: Literal["shared", "per-colour"] = "shared"
    error_budget: Literal["hold", "report"] = "report"
    prometheus_url: str = ""
    colour: str = Environment.Colour.GREY
    purpose: str = ""
    data: str = ""
    access: str = ""
    deployment: str = ""
    promotes_from: tuple[str, ...] = ()
    soak: timedelta = timedelta()
    approvals: int = 0
    production: bool = False
    watch: WatchConfig = WatchConfig()
    digest: str = ""

    def tagged(self, version: str) -> str:
        """Returns the image of a version: repository:version, or repository:version@sha256:..."""
        return f"{self.image}:{version}{self.digest and '@'}{self.digest}"

    @property
    def prometheus(self) -> Prometheus | None:
        """The Prometheus that scrapes this environment; None if neither the file nor the settings name one."""
        url = self.prometheus_url or settings.PROMETHEUS_URL
        return Prometheus(url, settings.PROMETHEUS_TOKEN) if url else None


def environment_configs() -> dict[str, EnvironmentConfig]:
    """Returns every environment by name, in the order of settings.ENVIRONMENTS_FILE.

    Raises ImproperlyConfigured, which names the line, the invalid key and what was expected.
    """
    return read(Path(settings.ENVIRONMENTS_FILE))


def names() -> tuple[str, ...]:
    """Returns the names of the environments, in the order of the file. Raises ImproperlyConfigured."""
    return tuple(environment_configs())


def config_of(name: str) -> EnvironmentConfig:
    """Returns the environment's section, or the defaults if the file has none, as after it was removed."""
    return environment_configs().get(name) or EnvironmentConfig(name)


def production_names() -> tuple[str, ...]:
    """Returns the names of the production environments, at least one, in the order of the file."""
    return tuple(name for name, config in environment_configs().items() if config.production)


def production_first() -> tuple[str, ...]:
    """Returns the names of the environments: production, then the others from the last to the first."""
    first = production_names()
    return first + tuple(name for name in reversed(names()) if name not in first)


class Misfit(Exception):
    """A mistake in the file: the table that it is in (of `number` with that name), its key if it has one, and why."""

    def __init__(self, why: str, table: str, key: str = "", number: int = 1) -> None:
        super().__init__(why)
        self.table, self.key, self.number = table, key, number


@lru_cache(maxsize=4)
def read(path: Path) -> dict[str, EnvironmentConfig]:
    """Returns the environments of the file `path`. Raises ImproperlyConfigured."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ImproperlyConfigured(
            f"{path} cannot be read ({error.strerror}). Check the setting ENVIRONMENTS_FILE."
        ) from None
    except UnicodeDecodeError as error:
        raise ImproperlyConfigured(f"{path} is not valid TOML: {error}.") from None
    try:
        return parse(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"at line ([0-9]+)", str(error))
        line = at[1] if at else max(1, len(text.splitlines()))
        raise ImproperlyConfigured(f"{path}:{line}: is not valid TOML: {error}.") from None
    except Misfit as error:
        line = line_of(text, error.table, error.key, error.number)
        raise ImproperlyConfigured(f"{path}:{line}: {error}") from None


def parse(text: str) -> dict[str, EnvironmentConfig]:
    """Returns the environments of the text of a file. Raises tomllib.TOMLDecodeError and Misfit."""
    sections = tomllib.loads(text)
    if not sections:
        raise Misfit("no environment; expected a section such as [production] for each", "")
    found: dict[str, EnvironmentConfig] = {}
    for name, values in sections.items():
        found[name] = section(name, values)
        for source in found[name].promotes_from:
            if source not in found or source == name:
                known = ", ".join(each for each in found if each != name)
                refuse(name, "promotes_from", f'"{source}"', f"expected environments above it: {known or 'none'}")
    if not any(config.production for config in found.values()):  # the one of that name, or else the last
        name = "production" if "production" in found else list(found)[-1]
        found[name] = replace(found[name], production=True)
    return found


def refuse(name: str, key: str, value: str, expected: str) -> NoReturn:
    """Raises Misfit for a key of the section `name`. An empty `value` is not repeated."""
    raise Misfit(f"[{name}] {key}{value and f' = {value}'}: {expected}.", name, key)


def section(name: str, values: Any) -> EnvironmentConfig:
    """Returns the environment `name` with the `values` of its section. Raises Misfit."""
    known = [field.name for field in fields(EnvironmentConfig) if field.name not in ("name", "digest")]
    if not isinstance(values, dict):
        raise Misfit(f"{name} is not a section. Write [{name}], and its keys below.", name)
    if not NAME.fullmatch(name):
        raise Misfit(
            f"[{name}]: not a valid name; expected at most 40 lower-case letters, digits and dashes, as in eu-1.", name
        )
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            refuse(name, key, "", f"unknown key; expected one of {', '.join(known)}")
        if key in READERS:
            given[key] = READERS[key](name, key, value)
        elif not isinstance(value, str):
            refuse(name, key, repr(value), f'expected a string, as in {key} = "..."')
        else:
            given[key] = word(name, key, value)
    if given.get("soak") and not given.get("promotes_from"):
        refuse(name, "soak", "", "requires promotes_from, as it says how long a release must have been live there")
    return EnvironmentConfig(name, **given)


def word(name: str, key: str, value: str) -> str:
    """Returns the string of a key. Raises Misfit."""
    if key in CHOICES and value not in CHOICES[key]:
        refuse(name, key, f'"{value}"', f"expected {' or '.join(CHOICES[key])}")
    if key == "namespace" and not NAMESPACE.fullmatch(value):
        refuse(name, key, f'"{value}"', "expected lower-case letters, digits and dashes")
    if key == "image" and not REPOSITORY.fullmatch(value):
        refuse(name, key, f'"{value}"', "expected a repository without tag, as in host/team/app")
    if key in WORDS and text.clean(value, 100) != value:
        refuse(name, key, "", "expected one line of at most 100 characters")
    if key in ("url", "prometheus_url") and value:
        if not URL.fullmatch(value):  # which may hold a password, so it is not repeated
            refuse(name, key, "", "expected a URL without credentials, such as https://example.com")
        if key == "prometheus_url" and settings.PROMETHEUS_TOKEN and not PRIVATE.match(value):
            refuse(name, key, "", "expected https://, as PROMETHEUS_TOKEN must not be readable")
        return value.rstrip("/")
    return value


def sources(name: str, key: str, value: Any) -> tuple[str, ...]:
    """Returns the environments that are named: by one string, or a list of them. Raises Misfit."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        refuse(name, key, repr(value), 'expected names of environments, as in promotes_from = ["eu", "us"]')
    if len(set(found)) != len(found):
        refuse(name, key, repr(value), "names an environment twice")
    return tuple(found)


def duration(name: str, key: str, value: Any) -> timedelta:
    """Returns the duration. Raises Misfit."""
    try:
        return durations.parse(value if isinstance(value, str) else str(value))
    except ValueError as error:
        raise Misfit(f"[{name}] {key}: {error}", name, key) from None


def number_of_approvals(name: str, key: str, value: Any) -> int:
    """Returns the number. Raises Misfit."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 10:
        refuse(name, key, repr(value), "expected how many people must approve, from 0 to 10")
    return value


def truth(name: str, key: str, value: Any) -> bool:
    """Returns true or false. Raises Misfit."""
    if not isinstance(value, bool):
        refuse(name, key, repr(value), "expected true or false")
    return value


def watch_section(name: str, key: str, values: Any) -> WatchConfig:
    """Returns what [NAME.watch] of the file says. Raises Misfit."""
    table, checks_table = f"{name}.{key}", f"{name}.{key}.checks"
    known = [field.name for field in fields(WatchConfig)]
    if not isinstance(values, dict):
        raise Misfit(f"[{table}]: not a section. Write [{table}], and its keys below.", name, key)
    for each, value in values.items():
        if each not in known:
            raise Misfit(f"[{table}] {each}: unknown key; expected one of {', '.join(known)}.", table, each)
        if each == "max_error_rate" and not (is_number(value) and 0 < value <= 1):
            refuse(table, each, repr(value), "expected a share above 0, at most 1, such as 0.05")
        if each == "max_p95_seconds" and not (is_number(value) and value > 0):
            refuse(table, each, repr(value), "expected seconds above 0, such as 1.0")
    given = values.get("checks", [])
    if not isinstance(given, list):
        raise Misfit(f"[[{checks_table}]]: expected tables, each of which begins with that line.", table, "checks")
    checks = tuple(check(checks_table, number, each) for number, each in enumerate(given, 1))
    titles = [each.name for each in checks]
    for number, title in enumerate(titles, 1):
        if title in titles[: number - 1]:
            why = f'[[{checks_table}]] name = "{title}": used twice; the names must differ.'
            raise Misfit(why, checks_table, "name", number)
    return WatchConfig(**{**values, "checks": checks})


def check(table: str, number: int, values: Any) -> Check:
    """Returns the check of the `number`th table of [[NAME.watch.checks]]. Raises Misfit."""
    where = f"[[{table}]] number {number}"
    known = [field.name for field in fields(Check)]
    if not isinstance(values, dict):
        raise Misfit(f"{where}: expected a table with name, query, and max or min.", table, number=number)
    for key in values:
        if key not in known:
            why = f"{where} {key}: unknown key; expected one of {', '.join(known)}."
            raise Misfit(why, table, key, number)
    for key, longest in (("name", 50), ("query", QUERY)):
        value = values.get(key)
        if not isinstance(value, str) or not 0 < len(value.strip()) <= longest:
            raise Misfit(f"{where} {key}: expected text of 1 to {longest} characters.", table, key, number)
    if text.clean(values["name"], 50) != values["name"]:
        why = f"{where} name: expected one line without control characters or blanks at its ends."
        raise Misfit(why, table, "name", number)
    limits = [key for key in ("max", "min") if key in values]
    if len(limits) != 1 or not is_number(values[limits[0]]):
        raise Misfit(f"{where}: expected either max or min, a number.", table, number=number)
    return Check(**values)


def is_number(value: Any) -> bool:
    """Whether TOML has the value as a number that is finite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


READERS = {
    "promotes_from": sources,
    "soak": duration,
    "approvals": number_of_approvals,
    "production": truth,
    "watch": watch_section,
}
