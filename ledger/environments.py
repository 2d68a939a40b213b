"""environments.toml: the URL, target and strategy of each environment, read and validated."""

import re
import tomllib
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from ledger.models import Deployment, Environment

CHOICES = {"target": ("compose", "kubernetes"), "strategy": tuple(Deployment.Strategy.values)}
# A Kubernetes namespace is a DNS label (RFC 1123); a repository follows the OCI distribution specification.
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
URL = re.compile(
    r"https?://([A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\])(:[1-9][0-9]{0,4})?(/[A-Za-z0-9._~/-]*)?"
)
REPOSITORY = re.compile(r"([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*")


@dataclass(frozen=True)
class EnvironmentConfig:
    """One environment's section of the file.

    `url` has no trailing slash. `context` is kubectl's; empty means the current one. `digest` (sha256:...) is not in
    the file: the pipeline passes it to pin the build of a version.
    """

    name: str
    url: str = ""
    target: Literal["compose", "kubernetes"] = "compose"
    strategy: str = Deployment.Strategy.ROLLING
    image: str = "backstagetest1"
    context: str = ""
    namespace: str = "default"
    digest: str = ""

    def tagged(self, version: str) -> str:
        """Returns the image of a version: repository:version, or repository:version@sha256:..."""
        return f"{self.image}:{version}{self.digest and '@'}{self.digest}"


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
        if not isinstance(value, str):
            raise ImproperlyConfigured(f'{where} = {value!r}: expected a string, as in {key} = "...".')
        if key in CHOICES and value not in CHOICES[key]:
            raise ImproperlyConfigured(f'{where} = "{value}": expected {" or ".join(CHOICES[key])}.')
        if key == "namespace" and not NAMESPACE.fullmatch(value):
            raise ImproperlyConfigured(f'{where} = "{value}": expected lower-case letters, digits and dashes.')
        if key == "image" and not REPOSITORY.fullmatch(value):
            raise ImproperlyConfigured(f'{where} = "{value}": expected a repository without tag, as in host/team/app.')
        if key == "url" and value:
            if not URL.fullmatch(value):  # which may hold a password, so it is not repeated
                raise ImproperlyConfigured(f"{where}: expected a URL without credentials, such as https://example.com.")
    config = {**values, "url": values.get("url", "").rstrip("/")}
    return EnvironmentConfig(name, **cast(dict[str, Any], config))
