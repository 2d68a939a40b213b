"""Where each environment is and how it is deployed to: environments.toml, read and checked."""

import re
import tomllib
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from ledger.models import Deployment, Environment

NAMES = tuple(Environment.Name.values)
CHOICES = {"target": ("compose", "kubernetes"), "strategy": tuple(Deployment.Strategy.values)}
# Kubernetes namespaces are DNS labels (RFC 1123); a repository is as the OCI distribution specification has it.
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
URL = re.compile(
    r"https?://([A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\])(:[1-9][0-9]{0,4})?(/[A-Za-z0-9._~/-]*)?"
)
REPOSITORY = re.compile(r"([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*")


@dataclass(frozen=True)
class EnvironmentConfig:
    """One environment's section of the file.

    `url` has no slash at its end. `context` is kubectl's, empty for the current one. `digest` is not of the file: it
    says which build of a version is meant (sha256:...), where the pipeline knows it.
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
        """The image of a version: repository:version, or repository:version@sha256:..."""
        return f"{self.image}:{version}{self.digest and '@'}{self.digest}"


def environment_configs() -> dict[str, EnvironmentConfig]:
    """Every environment of the file settings.ENVIRONMENTS_FILE, by name. One that it does not have has the defaults.

    Raises ImproperlyConfigured, saying which line of the file is wrong and what was expected.
    """
    return read(Path(settings.ENVIRONMENTS_FILE))


@lru_cache(maxsize=4)
def read(path: Path) -> dict[str, EnvironmentConfig]:
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ImproperlyConfigured(f"{path} cannot be read ({error.strerror}): ENVIRONMENTS_FILE names it.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ImproperlyConfigured(f"{path} is no TOML: {error}.") from None
    for name in sections:
        if name not in NAMES:
            raise ImproperlyConfigured(f"{path}: there is no environment {name}. Expected: {', '.join(NAMES)}.")
    return {name: section(path, name, sections.get(name, {})) for name in NAMES}


def section(path: Path, name: str, values: Any) -> EnvironmentConfig:
    known = [field.name for field in fields(EnvironmentConfig) if field.name not in ("name", "digest")]
    if not isinstance(values, dict):
        raise ImproperlyConfigured(f"{path}: {name} is no section. Write [{name}] and its lines below.")
    for key, value in values.items():
        where = f"{path}, [{name}] {key}"
        if key not in known:
            raise ImproperlyConfigured(f"{where}: no such key. Expected one of {', '.join(known)}.")
        if not isinstance(value, str):
            raise ImproperlyConfigured(f'{where} = {value!r}: expected a text, as in {key} = "...".')
        if key in CHOICES and value not in CHOICES[key]:
            raise ImproperlyConfigured(f'{where} = "{value}": expected {" or ".join(CHOICES[key])}.')
        if key == "namespace" and not NAMESPACE.fullmatch(value):
            raise ImproperlyConfigured(f'{where} = "{value}": expected lower-case letters, digits and dashes.')
        if key == "image" and not REPOSITORY.fullmatch(value):
            raise ImproperlyConfigured(f'{where} = "{value}": expected a repository without tag, as in host/team/app.')
        if key == "url" and value:
            if not URL.fullmatch(value):  # which may hold a password, so it is not repeated
                raise ImproperlyConfigured(f"{where}: expected an address, as in https://example.com, without user.")
    place = {**values, "url": values.get("url", "").rstrip("/")}
    return EnvironmentConfig(name, **cast(dict[str, Any], place))
