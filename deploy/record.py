"""Where a deployment is written down by whoever carries it out: on a laptop, in a pipeline or on the machine itself.

With LEDGER_URL the ledger is asked over its API (docs/api.md), else it is the database of the settings. A ledger that
is away stops no deployment but one that needs its leave: what it could not be told is told it at the next opportunity.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

from django.conf import settings
from django.db import DatabaseError, connection

from deploy import ledger, steps
from deploy.models import IN_FLIGHT, Deployment, Environment, Release
from deploy.targets import Refused

TIMEOUT = 5.0  # seconds that the API gets for an answer
TRIES = 3  # for what is still to be told at the end
PAUSE = 2.0  # seconds between them
RIGHTS = ("out-of-scope", "not-its-own")  # what the token lacks when the ledger refuses with these
STEPS_OF_OURS = {steps.MIGRATE, steps.START}  # one of them is the first that a deployment of these commands has


class Away(Exception):
    """The ledger does not answer, or not as a ledger does. The text says why."""


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
class Flight:
    """A deployment that is under way by the ledger, with the names of its steps so far, and their outcome."""

    key: int
    version: str
    kind: str
    status: str
    steps: dict[str, str]


class Book(Protocol):
    """A ledger. Every method may raise Away, and those that write ledger.Refused or ledger.Invalid, by its rules."""

    name: str

    def gate(self, environment: str) -> str:
        """Where a release must have succeeded before; empty if nowhere."""

    def succeeded(self, version: str, environment: str) -> bool: ...

    def in_flight(self, environment: str) -> Flight | None: ...

    def register(self, version: str, commit: str, built_at: str, image: str) -> None: ...

    def create(self, request: Request) -> int:
        """The key of the new deployment, which is pending. Raises LookupError if the release is not registered."""

    def start(self, key: int) -> None: ...

    def step(self, key: int, name: str, outcome: str) -> None: ...

    def finish(self, key: int, result: str, failed_requests: int | None) -> None: ...


@contextmanager
def database() -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        connection.close()
        raise Away(f"the database of {settings.SETTINGS_MODULE} ({type(error).__name__})") from None


class OwnDatabase:
    """The ledger in the database of the settings."""

    name = "the database"

    @database()
    def gate(self, environment: str) -> str:
        place = Environment.objects.select_related("gate").filter(name=environment).first()
        if place is None:
            raise Away("its database has no environments: manage.py migrate")
        return place.gate.name if place.gate else ""

    @database()
    def succeeded(self, version: str, environment: str) -> bool:
        found = Deployment.objects.filter(release__version=version, environment__name=environment)
        return found.filter(status=Deployment.Status.SUCCEEDED).exists()

    @database()
    def in_flight(self, environment: str) -> Flight | None:
        found = Deployment.objects.filter(environment__name=environment, status__in=IN_FLIGHT)
        row = found.select_related("release").first()
        if row is None:
            return None
        return Flight(row.pk, row.release.version, row.kind, row.status, dict(row.steps.values_list("name", "outcome")))

    @database()
    def register(self, version: str, commit: str, built_at: str, image: str) -> None:
        ledger.register(version, commit, datetime.fromisoformat(built_at), image=image)

    @database()
    def create(self, request: Request) -> int:
        try:
            return ledger.create(**asdict(request)).pk
        except Release.DoesNotExist:
            raise LookupError(request.release) from None

    @database()
    def start(self, key: int) -> None:
        ledger.start(key)

    @database()
    def step(self, key: int, name: str, outcome: str) -> None:
        ledger.step(key, name, outcome)

    @database()
    def finish(self, key: int, result: str, failed_requests: int | None) -> None:
        ledger.finish(key, result, failed_requests=failed_requests)


class Api:
    """The ledger of another instance, over its API."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url.rstrip("/"), token
        self.name = self.url

    def ask(self, path: str, sent: dict[str, Any] | None = None, method: str = "") -> Any:
        """Raises Away, ledger.Refused (403, 409), LookupError (404) and ledger.Invalid (422)."""
        method = method or ("GET" if sent is None else "POST")
        body = json.dumps(sent).encode() if sent is not None else None
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/{path}", body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            problem = self.problem(error)
            detail = str(problem.get("detail", ""))
            if error.code == 409 or error.code == 403 and problem:
                raise ledger.Refused(str(problem.get("type", "")).rpartition("#")[2], detail) from None
            if error.code == 404 and problem:
                raise LookupError(detail) from None
            if error.code == 422:
                where = problem.get("errors") or [{}]
                raise ledger.Invalid(str(where[0].get("pointer", "")), str(where[0].get("detail", detail))) from None
            raise Away(f"{self.url} answers {error.code} {detail}".strip()) from None
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise Away(f"{self.url} ({reason})") from None

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

    def in_flight(self, environment: str) -> Flight | None:
        found = self.ask(f"environments/{environment}")["in_flight"]
        if not found:
            return None
        row = self.ask(f"deployments/{found['id']}")
        steps = {step["name"]: step["outcome"] for step in row["steps"]}
        return Flight(row["id"], row["release"]["version"], row["kind"], row["status"], steps)

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


def book() -> Book:
    """The ledger that the settings name."""
    if settings.LEDGER_URL:
        return Api(settings.LEDGER_URL, settings.LEDGER_TOKEN)
    return OwnDatabase()


class Record:
    """One deployment's row. The ledger is told of each step as it comes. While it is away, what it is to be told is
    kept, after the end in a file of `folder`, and told by the next deployment from there.
    """

    def __init__(self, book: Book, request: Request, folder: Path, note: Callable[[str], None]) -> None:
        self.book, self.request, self.folder, self.note = book, request, folder, note
        self.release: tuple[str, str, str] | None = None  # commit, when it was built, image
        self.key: int | None = None
        self.waiting: list[list[Any]] = []  # [method of Book, its arguments after the key]
        self.ended: set[str] = set()
        self.hopeless = False

    def refuse_unproven(self) -> str:
        """Raises Refused if the release may not go there: it has not succeeded where it must before, or the ledger is
        away and cannot say so. Returns a note.
        """
        request = self.request
        try:
            gate = self.book.gate(request.environment)
            if request.kind == "rollback":
                return "a way back needs no leave"
            if not gate:
                return f"{request.environment} takes every release"
            if self.book.succeeded(request.release, gate):
                return f"{request.release} has succeeded in {gate}"
            if request.hotfix:
                return f"{request.release} has not succeeded in {gate}, but is a hotfix"
            raise Refused(
                f"Release {request.release} has not succeeded in {gate}. Deploy it there first, or say "
                "--hotfix --reason and why it cannot wait."
            )
        except Away as error:
            if request.environment == "production" and request.kind == "deploy" and not request.hotfix:
                raise Refused(
                    f"The ledger is away, so nobody can say whether {request.release} has succeeded in staging: "
                    f"{error}. Wait for it, or say --hotfix --reason and why it cannot wait."
                ) from None
            return f"the ledger is away and is told later: {error}"

    def begin(self, commit: str, built_at: str, image: str) -> Flight | None:
        """Begins the row, or goes on with the one that an interrupted run of the same has left, which it returns.

        Only whoever holds the environment's lock may call it. Raises Refused.
        """
        self.release = (commit, built_at, image) if commit and built_at else None
        try:
            self.catch_up()
            left = self.book.in_flight(self.request.environment)
            if left and (left.version, left.kind) == (self.request.release, self.request.kind):
                self.key, self.ended = left.key, {name for name, outcome in left.steps.items() if outcome != "running"}
                self.resume(left.key)
                return left
            if left and STEPS_OF_OURS & left.steps.keys():  # its process is gone: the lock was free
                self.book.finish(left.key, "failed", None)
                self.note(f"Deployment {left.key} of {left.version} was interrupted: it is recorded as failed now.")
            self.open()
        except Away as error:
            self.note(f"The ledger is away and is told later: {error}.")
        except LookupError:
            self.hopeless = True
            self.note(
                f"Not recorded: release {self.request.release} is not registered, and its commit is not known here. "
                "Say --commit SHA, or let the pipeline that builds it register it (docs/api.md)."
            )
        except (ledger.Refused, ledger.Invalid) as error:
            code = getattr(error, "code", "")
            if code not in ("never-live", "already-live") and (self.request.kind == "deploy" or code not in RIGHTS):
                raise Refused(str(error)) from None
            self.hopeless = True  # a way back is not barred because nobody has recorded how that version came there
            self.note(f"Not recorded: {error}")
        return None

    def resume(self, key: int) -> None:
        """Starts it if it is pending. Asked also if it is running, so that a token that may not continue it is refused
        now, before anything is changed. Raises ledger.Refused.
        """
        try:
            self.book.start(key)
        except ledger.Refused as error:
            if error.code != "wrong-state":
                raise

    def open(self) -> None:
        if self.release:
            try:
                self.book.register(self.request.release, *self.release)
            except ledger.Refused:
                pass  # whoever built it has registered it, in other words; or only they may
        key = self.book.create(self.request)
        self.book.start(key)
        self.key = key

    def step(self, name: str, outcome: str) -> None:
        name = f"{name} (again)" if name in self.ended else name
        if name not in self.ended:
            self.say("step", name, outcome)

    def finish(self, result: str, failed_requests: int | None) -> None:
        self.say("finish", result, failed_requests)
        for _ in range(TRIES - 1):
            if not self.waiting or self.hopeless:
                break
            time.sleep(PAUSE)
            self.tell()
        if self.waiting and not self.hopeless:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{self.request.environment}.json"
            kept = {"request": asdict(self.request), "release": self.release, "key": self.key, "waiting": self.waiting}
            path.write_text(json.dumps(kept, indent=1) + "\n")
            self.note(f"The ledger ({self.book.name}) is still away: the next deployment from here tells it ({path}).")

    def say(self, *what: Any) -> None:
        self.waiting.append(list(what))
        self.tell()

    def tell(self) -> None:
        """Tells the ledger what waits, in its order."""
        try:
            if self.key is None and not self.hopeless:
                self.open()
            while self.waiting and self.key is not None:
                method, *words = self.waiting[0]
                try:
                    getattr(self.book, method)(self.key, *words)
                except (ledger.Refused, ledger.Invalid, LookupError) as error:
                    self.note(f"The ledger did not take it: {error}")
                self.waiting.pop(0)
        except Away:
            return
        except (ledger.Refused, ledger.Invalid, LookupError) as error:
            self.hopeless = True
            self.note(f"Not recorded: {error}")

    def catch_up(self) -> None:
        """Tells the ledger of earlier deployments from here that it was away for."""
        for path in sorted(self.folder.glob(f"*-{self.request.environment}.json")):
            kept = json.loads(path.read_text())
            late = Record(self.book, Request(**kept["request"]), self.folder, self.note)
            late.key, late.waiting, release = kept["key"], kept["waiting"], kept["release"]
            late.release = tuple(release) if release else None
            late.tell()
            if late.waiting and not late.hopeless:
                raise Away(self.book.name)
            path.unlink()
            self.note(
                f"The ledger was told of the {late.request.kind} of {late.request.release} from {path.stem[:15]}."
            )
