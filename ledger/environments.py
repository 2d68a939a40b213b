"""environments.toml: where each environment runs, how releases reach it and what they are judged by. Read strictly."""

import math
import re
import tomllib
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from ledger.models import Deployment, Environment
from metrics.prometheus import Prometheus
from settings import text

CHOICES = {
    "target": ("compose", "kubernetes"),
    "strategy": tuple(Deployment.Strategy.values),
    "database": ("shared", "per-colour"),
    "error_budget": ("hold", "report"),
}
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
    """Returns every environment by name, as in settings.ENVIRONMENTS_FILE; one without a section has the defaults.

    Raises ImproperlyConfigured, which names the invalid key and what was expected.
    """
    return read(Path(settings.ENVIRONMENTS_FILE))


@lru_cache(maxsize=4)
def read(path: Path) -> dict[str, EnvironmentConfig]:
    """Returns the environments of the file `path`. Raises ImproperlyConfigured."""
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ImproperlyConfigured(
            f"{path} cannot be read ({error.strerror}). Check the setting ENVIRONMENTS_FILE."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ImproperlyConfigured(f"{path} is not valid TOML: {error}.") from None
    for name in sections:
        if name not in Environment.Name.values:
            raise ImproperlyConfigured(
                f"{path}: unknown environment {name}; expected one of {', '.join(Environment.Name.values)}."
            )
    return {name: section(path, name, sections.get(name, {})) for name in Environment.Name.values}


def section(path: Path, name: str, values: Any) -> EnvironmentConfig:
    """Returns the environment `name` with the `values` of its section. Raises ImproperlyConfigured."""
    known = [field.name for field in fields(EnvironmentConfig) if field.name not in ("name", "digest")]
    if not isinstance(values, dict):
        raise ImproperlyConfigured(f"{path}: {name} is not a section. Write [{name}], and its keys below.")
    for key, value in values.items():
        where = f"{path}, [{name}] {key}"
        if key not in known:
            raise ImproperlyConfigured(f"{where}: unknown key; expected one of {', '.join(known)}.")
        if key == "watch":
            continue
        if not isinstance(value, str):
            raise ImproperlyConfigured(f'{where} = {value!r}: expected a string, as in {key} = "...".')
        if key in CHOICES and value not in CHOICES[key]:
            raise ImproperlyConfigured(f'{where} = "{value}": expected {" or ".join(CHOICES[key])}.')
        if key == "namespace" and not NAMESPACE.fullmatch(value):
            raise ImproperlyConfigured(f'{where} = "{value}": expected lower-case letters, digits and dashes.')
        if key == "image" and not REPOSITORY.fullmatch(value):
            raise ImproperlyConfigured(f'{where} = "{value}": expected a repository without tag, as in host/team/app.')
        if key in ("url", "prometheus_url") and value:
            if not URL.fullmatch(value):  # which may hold a password, so it is not repeated
                raise ImproperlyConfigured(f"{where}: expected a URL without credentials, such as https://example.com.")
            if key == "prometheus_url" and settings.PROMETHEUS_TOKEN and not PRIVATE.match(value):
                raise ImproperlyConfigured(f"{where}: expected https://, as PROMETHEUS_TOKEN must not be readable.")
    addresses = {key: values.get(key, "").rstrip("/") for key in ("url", "prometheus_url")}
    watch = watch_section(path, name, values.get("watch", {}))
    return EnvironmentConfig(name, **cast(dict[str, Any], {**values, **addresses, "watch": watch}))


def watch_section(path: Path, name: str, values: Any) -> WatchConfig:
    """Returns what [NAME.watch] of the file says. Raises ImproperlyConfigured."""
    where, place = f"{path}, [{name}.watch]", f"{path}, [[{name}.watch.checks]]"
    known = [field.name for field in fields(WatchConfig)]
    if not isinstance(values, dict):
        raise ImproperlyConfigured(f"{where}: not a section. Write [{name}.watch], and its keys below.")
    for key, value in values.items():
        if key not in known:
            raise ImproperlyConfigured(f"{where} {key}: unknown key; expected one of {', '.join(known)}.")
        if key == "max_error_rate" and not (is_number(value) and 0 < value <= 1):
            raise ImproperlyConfigured(f"{where} {key} = {value!r}: expected a share above 0, at most 1, such as 0.05.")
        if key == "max_p95_seconds" and not (is_number(value) and value > 0):
            raise ImproperlyConfigured(f"{where} {key} = {value!r}: expected seconds above 0, such as 1.0.")
    given = values.get("checks", [])
    if not isinstance(given, list):
        raise ImproperlyConfigured(f"{place}: expected tables, each of which begins with that line.")
    checks = tuple(check(f"{place} number {number}", each) for number, each in enumerate(given, 1))
    names = [each.name for each in checks]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ImproperlyConfigured(f'{place} name = "{repeated[0]}": used twice; the names must differ.')
    return WatchConfig(**{**values, "checks": checks})


def check(where: str, values: Any) -> Check:
    """Returns a check of [[NAME.watch.checks]]. `where` is for messages. Raises ImproperlyConfigured."""
    known = [field.name for field in fields(Check)]
    if not isinstance(values, dict):
        raise ImproperlyConfigured(f"{where}: expected a table with name, query, and max or min.")
    for key in values:
        if key not in known:
            raise ImproperlyConfigured(f"{where} {key}: unknown key; expected one of {', '.join(known)}.")
    for key, longest in (("name", 50), ("query", QUERY)):
        value = values.get(key)
        if not isinstance(value, str) or not 0 < len(value.strip()) <= longest:
            raise ImproperlyConfigured(f"{where} {key}: expected text of 1 to {longest} characters.")
    if text.clean(values["name"], 50) != values["name"]:
        raise ImproperlyConfigured(f"{where} name: expected one line without control characters or blanks at its ends.")
    limits = [key for key in ("max", "min") if key in values]
    if len(limits) != 1 or not is_number(values[limits[0]]):
        raise ImproperlyConfigured(f"{where}: expected either max or min, a number.")
    return Check(**values)


def is_number(value: Any) -> bool:
    """Whether TOML has the value as a number that is finite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
