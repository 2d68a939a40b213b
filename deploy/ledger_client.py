"""The ledger that a deployment is recorded in: the database of the settings, or another instance over its API."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from http.client import HTTPException
from typing import Any, Protocol
from urllib.parse import urlencode

from django.conf import settings
from django.db import DataError, Error, IntegrityError, connection

from ledger import rules
from ledger.models import IN_FLIGHT, Deployment, Environment, Release

TIMEOUT = 5.0  # seconds that the API gets for an answer


class LedgerUnavailable(Exception):
    """The ledger is unavailable: it does not answer, or not as a ledger does. The text says why."""


@dataclass(frozen=True)
class Request:
    """What is to be written down."""

    environment: str
    release: str
    strategy: str
    actor: str
    kind: str = "deploy"
    hotfix: bool = False
    reason: str = ""
    run_url: str = ""


@dataclass(frozen=True)
class OpenDeployment:
    """A deployment that is under way by the ledger, with the names of its steps so far, and their outcome."""

    key: int
    version: str
    kind: str
    status: str
    steps: dict[str, str]


class Ledger(Protocol):
    """A ledger. Every method may raise LedgerUnavailable; those that write also RuleViolation and Invalid."""

    name: str

    def gate(self, environment: str) -> str:
        """Where a release must have succeeded before; empty if nowhere."""

    def succeeded(self, version: str, environment: str) -> bool: ...

    def in_flight(self, environment: str) -> OpenDeployment | None: ...

    def registered(self, version: str) -> bool: ...

    def status(self, key: int) -> str:
        """Of the deployment, as the ledger has it. Raises LookupError if there is none."""

    def register(self, version: str, commit: str, built_at: str, image: str) -> None: ...

    def create(self, request: Request) -> int:
        """The key of the new deployment, which is pending. Raises LookupError if the release is not registered."""

    def start(self, key: int) -> None: ...

    def step(self, key: int, name: str, outcome: str) -> None: ...

    def finish(self, key: int, result: str, failed_requests: int | None) -> None: ...


@contextmanager
def database() -> Iterator[None]:
    """Tells a database that refuses what it is given, which is an answer, from one that cannot answer."""
    try:
        yield
    except DataError as error:
        raise rules.Invalid("", first_line(error)) from None
    except IntegrityError as error:
        raise rules.RuleViolation("conflict", first_line(error)) from None
    except Error as error:
        connection.close()
        raise LedgerUnavailable(f"the database of {settings.SETTINGS_MODULE} ({type(error).__name__})") from None


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class DatabaseLedger:
    """The ledger in the database of the settings."""

    name = "the database"

    @database()
    def gate(self, environment: str) -> str:
        place = Environment.objects.select_related("promotes_from").filter(name=environment).first()
        if place is None:
            raise LedgerUnavailable("its database has no environments: manage.py migrate")
        return place.promotes_from.name if place.promotes_from else ""

    @database()
    def succeeded(self, version: str, environment: str) -> bool:
        found = Deployment.objects.filter(release__version=version, environment__name=environment)
        return found.filter(status=Deployment.Status.SUCCEEDED).exists()

    @database()
    def in_flight(self, environment: str) -> OpenDeployment | None:
        found = Deployment.objects.filter(environment__name=environment, status__in=IN_FLIGHT)
        row = found.select_related("release").first()
        if row is None:
            return None
        return OpenDeployment(
            row.pk, row.release.version, row.kind, row.status, dict(row.steps.values_list("name", "outcome"))
        )

    @database()
    def registered(self, version: str) -> bool:
        return Release.objects.filter(version=version).exists()

    @database()
    def status(self, key: int) -> str:
        found = Deployment.objects.filter(pk=key).values_list("status", flat=True).first()
        if found is None:
            raise LookupError(f"There is no deployment {key}.")
        return str(found)

    @database()
    def register(self, version: str, commit: str, built_at: str, image: str) -> None:
        rules.register(version, commit, datetime.fromisoformat(built_at), image=image)

    @database()
    def create(self, request: Request) -> int:
        try:
            return rules.create(**asdict(request)).pk
        except Release.DoesNotExist:
            raise LookupError(request.release) from None

    @database()
    def start(self, key: int) -> None:
        rules.start(key)

    @database()
    def step(self, key: int, name: str, outcome: str) -> None:
        rules.step(key, name, outcome)

    @database()
    def finish(self, key: int, result: str, failed_requests: int | None) -> None:
        rules.finish(key, result, failed_requests=failed_requests)


class Still(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the token would go along, to wherever it points."""

    def redirect_request(self, *_: Any) -> None:
        return None


OPENER = urllib.request.build_opener(Still)


class RemoteLedger:
    """The ledger of another instance, over its API."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url.rstrip("/"), token
        self.name = self.url

    def ask(self, path: str, sent: dict[str, Any] | None = None, method: str = "") -> Any:
        """Raises LedgerUnavailable, rules.RuleViolation (403, 409), LookupError (404) and rules.Invalid (422)."""
        method = method or ("GET" if sent is None else "POST")
        body = json.dumps(sent).encode() if sent is not None else None
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/{path}", body, headers, method=method)
        try:
            with OPENER.open(request, timeout=TIMEOUT) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            problem = self.problem(error)
            detail = str(problem.get("detail", ""))
            if error.code == 409 or error.code == 403 and problem:
                raise rules.RuleViolation(str(problem.get("type", "")).rpartition("#")[2], detail) from None
            kind = str(problem.get("type", "")).rpartition("#")[2]
            if problem and (error.code == 404 or kind == "unknown-release"):
                raise LookupError(detail) from None
            if 300 <= error.code < 400:
                raise LedgerUnavailable(
                    f"{self.url} answers {error.code}, a redirect: LEDGER_URL must be the final address"
                ) from None
            if error.code == 422:
                where = problem.get("errors") or [{}]
                raise rules.Invalid(str(where[0].get("pointer", "")), str(where[0].get("detail", detail))) from None
            raise LedgerUnavailable(f"{self.url} answers {error.code} {detail}".strip()) from None
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise LedgerUnavailable(f"{self.url} ({reason})") from None

    def problem(self, error: urllib.error.HTTPError) -> dict[str, Any]:
        try:
            found = json.load(error)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def gate(self, environment: str) -> str:
        return str(self.ask(f"environments/{environment}")["gate"] or "")

    def succeeded(self, version: str, environment: str) -> bool:
        words = {"environment": environment, "status": "succeeded", "search": version, "limit": 100}
        return any(row["release"]["version"] == version for row in self.ask(f"deployments?{urlencode(words)}")["items"])

    def in_flight(self, environment: str) -> OpenDeployment | None:
        found = self.ask(f"environments/{environment}")["in_flight"]
        if not found:
            return None
        row = self.ask(f"deployments/{found['id']}")
        steps = {step["name"]: step["outcome"] for step in row["steps"]}
        return OpenDeployment(row["id"], row["release"]["version"], row["kind"], row["status"], steps)

    def registered(self, version: str) -> bool:
        try:
            self.ask(f"releases/{version}")
        except LookupError:
            return False
        return True

    def status(self, key: int) -> str:
        return str(self.ask(f"deployments/{key}")["status"])

    def register(self, version: str, commit: str, built_at: str, image: str) -> None:
        self.ask("releases", {"version": version, "commit": commit, "built_at": built_at, "image": image})

    def create(self, request: Request) -> int:
        return int(self.ask("deployments", asdict(request))["id"])

    def start(self, key: int) -> None:
        self.ask(f"deployments/{key}/start", method="POST")

    def step(self, key: int, name: str, outcome: str) -> None:
        self.ask(f"deployments/{key}/steps", {"name": name, "outcome": outcome})

    def finish(self, key: int, result: str, failed_requests: int | None) -> None:
        self.ask(f"deployments/{key}/finish", {"result": result, "failed_requests": failed_requests})


def configured() -> Ledger:
    """The ledger that the settings name."""
    if settings.LEDGER_URL:
        return RemoteLedger(settings.LEDGER_URL, settings.LEDGER_TOKEN)
    return DatabaseLedger()
