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
from django.utils import timezone

from ledger import freezes, queries, rules
from ledger.models import IN_FLIGHT, Deployment, Environment, Release

TIMEOUT = 5.0  # seconds that the API gets to answer


class LedgerUnavailable(Exception):
    """The ledger does not answer, or not as a ledger does. The text says why."""


@dataclass(frozen=True)
class Request:
    """What the row of a deployment says when it is made."""

    environment: str
    release: str  # its version
    strategy: str
    actor: str
    kind: str = "deploy"  # or "rollback"
    hotfix: bool = False
    reason: str = ""
    run_url: str = ""
    revision: str = ""  # what a rollback returns to, beside the version
    break_glass: bool = False  # a hotfix without approval
    digest: str = ""  # of the image (sha256:...): what is approved


@dataclass(frozen=True)
class OpenDeployment:
    """A deployment that has not ended, with the outcome of each step so far by its name."""

    key: int
    version: str
    kind: str
    status: str
    steps: dict[str, str]


@dataclass(frozen=True)
class Approval:
    """How it stands with a deployment that was requested. `decided` says who decided what, a sentence each."""

    status: str
    given: int
    needed: int
    approved: bool
    ends: str  # until when the approvals are valid (ISO 8601); empty without any
    page: str  # its address, for people
    decided: tuple[str, ...]


class Ledger(Protocol):
    """A ledger. Every method may raise LedgerUnavailable; those that write also RuleViolation and Invalid."""

    name: str  # for messages

    def promotion(self, version: str, environment: str) -> tuple[bool, str]:
        """Whether the release may be deployed there without a hotfix, and why, in a sentence."""

    def freeze(self, environment: str) -> str:
        """Why nothing begins there now, until when and how to pass, in sentences; empty if it is not frozen."""

    def succeeded(self, version: str, environment: str) -> bool:
        """Whether a deployment of the version has succeeded there."""

    def in_flight(self, environment: str) -> OpenDeployment | None:
        """The deployment there that has not ended."""

    def registered(self, version: str) -> bool:
        """Whether the release is known."""

    def status(self, key: int) -> str:
        """The status of a deployment. Raises LookupError if there is none."""

    def register(self, version: str, commit: str, built_at: str, image: str) -> None:
        """Registers a release. `built_at` is a time in ISO 8601."""

    def create(self, request: Request) -> int:
        """Makes a pending deployment and returns its key; where approvals are required, one that waits, or the one that
        waits already. Raises LookupError if the release is not registered.
        """

    def approvals(self, environment: str) -> int:
        """How many people must approve a deployment there."""

    def approval(self, key: int) -> Approval:
        """How it stands with the deployment. Raises LookupError."""

    def start(self, key: int) -> None:
        """Makes a pending deployment a running one."""

    def step(self, key: int, name: str, outcome: str, note: str = "") -> None:
        """Records a step of a running deployment, or a new outcome of it. `note` says what happened."""

    def finish(self, key: int, result: str, failed_requests: int | None) -> None:
        """Ends a deployment. `failed_requests` is None if nobody counted."""

    def lock(self, environment: str, holder: str, reason: str, since: str) -> None:
        """Records that the lock is held by hand. `since` is a time in ISO 8601."""

    def unlock(self, environment: str) -> None:
        """Records that nobody holds the lock by hand."""


def configured() -> Ledger:
    """The ledger that the settings name."""
    if settings.LEDGER_URL:
        return RemoteLedger(settings.LEDGER_URL, settings.LEDGER_TOKEN)
    return DatabaseLedger()


@contextmanager
def database_errors() -> Iterator[None]:
    """Tells a database that refuses what it is given, which is an answer, from one that cannot answer.

    Raises Invalid and RuleViolation for the former, LedgerUnavailable for the latter.
    """
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
    """The first line of an error's text, without the query that PostgreSQL quotes."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class DatabaseLedger:
    """The ledger in the database of the settings. Methods are as in Ledger."""

    name = "the database"

    @database_errors()
    def promotion(self, version: str, environment: str) -> tuple[bool, str]:
        """By the ledger's rules."""
        row = Environment.objects.filter(name=environment).first()
        if row is None:
            raise LedgerUnavailable(f"its database has no environment {environment}; run manage.py migrate")
        found = rules.promotion(row, version)
        return found.allowed, found.text

    @database_errors()
    def freeze(self, environment: str) -> str:
        """By the rows."""
        row = Environment.objects.filter(name=environment).first()
        found = freezes.active(row) if row else None
        return found.sentence(environment) if found else ""

    @database_errors()
    def succeeded(self, version: str, environment: str) -> bool:
        """By any deployment in its history."""
        found = Deployment.objects.filter(release__version=version, environment__name=environment)
        return found.filter(status=Deployment.Status.SUCCEEDED).exists()

    @database_errors()
    def in_flight(self, environment: str) -> OpenDeployment | None:
        """The one that the database allows."""
        found = Deployment.objects.filter(environment__name=environment, status__in=IN_FLIGHT)
        row = found.select_related("release").first()
        if row is None:
            return None
        outcomes = dict(row.steps.values_list("name", "outcome"))
        return OpenDeployment(row.pk, row.release.version, row.kind, row.status, outcomes)

    @database_errors()
    def registered(self, version: str) -> bool:
        """By the table of releases."""
        return Release.objects.filter(version=version).exists()

    @database_errors()
    def status(self, key: int) -> str:
        """From its row."""
        found = Deployment.objects.filter(pk=key).values_list("status", flat=True).first()
        if found is None:
            raise LookupError(f"Deployment {key} not found.")
        return str(found)

    @database_errors()
    def register(self, version: str, commit: str, built_at: str, image: str) -> None:
        """By the ledger's rules."""
        rules.register(version, commit, datetime.fromisoformat(built_at), image=image)

    @database_errors()
    def create(self, request: Request) -> int:
        """By the ledger's rules. Nobody has signed in here, so nobody can break the glass."""
        if request.break_glass:
            raise rules.RuleViolation(
                "may-not",
                "--break-glass requires the token of an approver: set LEDGER_URL and LEDGER_TOKEN (docs/approvals.md).",
            )
        try:
            return rules.create(**asdict(request)).pk
        except Release.DoesNotExist:
            raise LookupError(request.release) from None

    @database_errors()
    def approvals(self, environment: str) -> int:
        """From the environment's row."""
        found = Environment.objects.filter(name=environment).values_list("approvals", flat=True).first()
        return found or 0

    @database_errors()
    def approval(self, key: int) -> Approval:
        """From the rows. The page is that of SITE_URL."""
        row = Deployment.objects.select_related("environment").filter(pk=key).first()
        if row is None:
            raise LookupError(f"Deployment {key} not found.")
        found = queries.standing(row, timezone.now())
        ends = found.ends.isoformat(timespec="seconds") if found.ends else ""
        approved = found.approved and queries.is_current(row)
        said = tuple(sentence(each.verdict, each.name, each.comment) for each in row.approvals.all())
        page = f"{settings.SITE_URL}/deployments/{key}/"
        return Approval(row.status, found.given, found.needed, approved, ends, page, said)

    @database_errors()
    def start(self, key: int) -> None:
        """By the ledger's rules."""
        rules.start(key)

    @database_errors()
    def step(self, key: int, name: str, outcome: str, note: str = "") -> None:
        """By the ledger's rules."""
        rules.step(key, name, outcome, note=note)

    @database_errors()
    def finish(self, key: int, result: str, failed_requests: int | None) -> None:
        """By the ledger's rules."""
        rules.finish(key, result, failed_requests=failed_requests)

    @database_errors()
    def lock(self, environment: str, holder: str, reason: str, since: str) -> None:
        """By the ledger's rules."""
        try:
            rules.report_lock(environment, holder, reason, datetime.fromisoformat(since))
        except Environment.DoesNotExist:
            raise LedgerUnavailable(f"its database has no environment {environment}; run manage.py migrate") from None

    @database_errors()
    def unlock(self, environment: str) -> None:
        """By the ledger's rules."""
        rules.report_unlock(environment)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, as that would send the token to wherever it points."""

    def redirect_request(self, *_: Any) -> None:
        """Makes no request, so the redirect is an HTTPError."""
        return None


OPENER = urllib.request.build_opener(NoRedirect)


class RemoteLedger:
    """The ledger of another instance, over its API (docs/api.md). Methods are as in Ledger."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url.rstrip("/"), token
        self.name = self.url

    def ask(self, path: str, body: dict[str, Any] | None = None, method: str = "") -> Any:
        """The JSON that the API answers; a `body` is sent as JSON, by POST. Waits TIMEOUT seconds for the answer.

        Raises RuleViolation (403, 409), LookupError (404), Invalid (422), and LedgerUnavailable for everything else.
        Refusals are problem details: https://www.rfc-editor.org/rfc/rfc9457
        """
        method = method or ("GET" if body is None else "POST")
        code, text = self.send(method, path, json.dumps(body) if body is not None else "")
        found = parsed(text)
        if not 200 <= code < 300:
            raise self.error_of(code, found if isinstance(found, dict) else {})
        if found is None:
            raise LedgerUnavailable(f"{self.name} answers {code} with something that is not JSON")
        return found

    def send(self, method: str, path: str, body: str) -> tuple[int, str]:
        """Sends a request for `path` below /api/ with a JSON body, empty for none, and returns the answer's status and
        body. Waits TIMEOUT seconds for it. Raises LedgerUnavailable if none comes.
        """
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/{path}", body.encode() or None, headers, method=method)
        try:
            with OPENER.open(request, timeout=TIMEOUT) as response:
                return response.status, response.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            try:
                return error.code, error.read().decode(errors="replace")
            except (OSError, HTTPException):
                return error.code, ""
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise LedgerUnavailable(f"{self.name} ({reason})") from None

    def error_of(self, code: int, problem: dict[str, Any]) -> Exception:
        """What an answer that is not a success means, as an exception."""
        detail, kind = str(problem.get("detail", "")), str(problem.get("type", "")).rpartition("#")[2]
        if problem and (code == 404 or kind == "unknown-release"):
            return LookupError(detail)
        if code == 409 or code == 403 and problem:
            return rules.RuleViolation(kind, detail)
        if 300 <= code < 400:
            return LedgerUnavailable(f"{self.name} answers {code}, a redirect; LEDGER_URL must be the final address")
        if code == 422:
            first = (problem.get("errors") or [{}])[0]
            return rules.Invalid(str(first.get("pointer", "")), str(first.get("detail", detail)))
        return LedgerUnavailable(f"{self.name} answers {code} {detail}".strip())

    def promotion(self, version: str, environment: str) -> tuple[bool, str]:
        """GET /api/environments/NAME/promotable/VERSION."""
        found = self.ask(f"environments/{environment}/promotable/{version}")
        return bool(found["allowed"]), str(found["text"])

    def freeze(self, environment: str) -> str:
        """From the environment; one of an older release has none."""
        found = self.ask(f"environments/{environment}").get("freeze")
        if not found:
            return ""
        until = datetime.fromisoformat(found["until"]) if found["until"] else None
        return freezes.sentence(environment, until, str(found["reason"]))

    def succeeded(self, version: str, environment: str) -> bool:
        """By a search for the version, which finds longer ones as well."""
        query = {"environment": environment, "status": "succeeded", "search": version, "limit": 100}
        return any(row["release"]["version"] == version for row in self.ask(f"deployments?{urlencode(query)}")["items"])

    def in_flight(self, environment: str) -> OpenDeployment | None:
        """From the environment, then the deployment."""
        found = self.ask(f"environments/{environment}")["in_flight"]
        if not found:
            return None
        row = self.ask(f"deployments/{found['id']}")
        outcomes = {step["name"]: step["outcome"] for step in row["steps"]}
        return OpenDeployment(row["id"], row["release"]["version"], row["kind"], row["status"], outcomes)

    def registered(self, version: str) -> bool:
        """By asking for the release."""
        try:
            self.ask(f"releases/{version}")
        except LookupError:
            return False
        return True

    def status(self, key: int) -> str:
        """From the deployment."""
        return str(self.ask(f"deployments/{key}")["status"])

    def register(self, version: str, commit: str, built_at: str, image: str) -> None:
        """POST /api/releases."""
        self.ask("releases", {"version": version, "commit": commit, "built_at": built_at, "image": image})

    def create(self, request: Request) -> int:
        """POST /api/deployments."""
        return int(self.ask("deployments", asdict(request))["id"])

    def approvals(self, environment: str) -> int:
        """From the environment."""
        return int(self.ask(f"environments/{environment}")["approvals"])

    def approval(self, key: int) -> Approval:
        """From the deployment."""
        row = self.ask(f"deployments/{key}")
        found = row["standing"] or {"given": 0, "needed": 0, "approved": False, "ends": None}
        said = tuple(sentence(each["verdict"], each["name"], each["comment"]) for each in row["approvals"])
        page = self.url and f"{self.url}/deployments/{key}/" or str(row["page"])
        return Approval(
            row["status"], found["given"], found["needed"], found["approved"], found["ends"] or "", page, said
        )

    def start(self, key: int) -> None:
        """POST /api/deployments/KEY/start."""
        self.ask(f"deployments/{key}/start", method="POST")

    def step(self, key: int, name: str, outcome: str, note: str = "") -> None:
        """POST /api/deployments/KEY/steps."""
        self.ask(f"deployments/{key}/steps", {"name": name, "outcome": outcome} | ({"note": note} if note else {}))

    def finish(self, key: int, result: str, failed_requests: int | None) -> None:
        """POST /api/deployments/KEY/finish."""
        self.ask(f"deployments/{key}/finish", {"result": result, "failed_requests": failed_requests})

    def lock(self, environment: str, holder: str, reason: str, since: str) -> None:
        """PUT /api/environments/NAME/lock."""
        given = {"holder": holder, "reason": reason, "since": since}
        self.ask(f"environments/{environment}/lock", given, "PUT")

    def unlock(self, environment: str) -> None:
        """DELETE /api/environments/NAME/lock."""
        self.ask(f"environments/{environment}/lock", method="DELETE")


def sentence(verdict: str, name: str, comment: str) -> str:
    """Who decided what, such as "approved by ann@example.com: looks good"."""
    return f"{verdict} by {name}{comment and f': {comment}'}"


def parsed(text: str) -> Any:
    """What the JSON says; None if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None
