"""Where a deployment is written down by whoever carries it out: on a laptop, in a pipeline or on the machine itself.

With LEDGER_URL the ledger is asked over its API (docs/api.md), else it is the database of the settings. A ledger that
is unavailable stops no deployment but one whose promotion it must confirm. What it could not be told is kept in a file,
and told at the next opportunity; the file goes when its row has been seen in the ledger.
"""

import json
import os
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
from django.db import DataError, Error, IntegrityError, connection

from deploy.targets.base import Refused
from ledger import rules, steps
from ledger.models import FINISHED, IN_FLIGHT, Deployment, Environment, Release

TIMEOUT = 5.0  # seconds that the API gets for an answer
TRIES = 3  # for what is still to be told at the end
PAUSE = 2.0  # seconds between them
AGAIN = ("environment-busy", "conflict")  # refusals that pass by themselves
KEPT = ("step", "finish")  # methods of Book that a kept file may name
STEPS_OF_OURS = {steps.MIGRATE, steps.START}  # one of them is the first that a deployment of these commands has


class Away(Exception):
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
class Flight:
    """A deployment that is under way by the ledger, with the names of its steps so far, and their outcome."""

    key: int
    version: str
    kind: str
    status: str
    steps: dict[str, str]


class Book(Protocol):
    """A ledger. Every method may raise Away; those that write also rules.RuleViolation or rules.Invalid."""

    name: str

    def gate(self, environment: str) -> str:
        """Where a release must have succeeded before; empty if nowhere."""

    def succeeded(self, version: str, environment: str) -> bool: ...

    def in_flight(self, environment: str) -> Flight | None: ...

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
        raise Away(f"the database of {settings.SETTINGS_MODULE} ({type(error).__name__})") from None


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class OwnDatabase:
    """The ledger in the database of the settings."""

    name = "the database"

    @database()
    def gate(self, environment: str) -> str:
        place = Environment.objects.select_related("promotes_from").filter(name=environment).first()
        if place is None:
            raise Away("its database has no environments: manage.py migrate")
        return place.promotes_from.name if place.promotes_from else ""

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


class Api:
    """The ledger of another instance, over its API."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url.rstrip("/"), token
        self.name = self.url

    def ask(self, path: str, sent: dict[str, Any] | None = None, method: str = "") -> Any:
        """Raises Away, rules.RuleViolation (403, 409), LookupError (404) and rules.Invalid (422)."""
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
                raise Away(
                    f"{self.url} answers {error.code}, a redirect: LEDGER_URL must be the final address"
                ) from None
            if error.code == 422:
                where = problem.get("errors") or [{}]
                raise rules.Invalid(str(where[0].get("pointer", "")), str(where[0].get("detail", detail))) from None
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


def book() -> Book:
    """The ledger that the settings name."""
    if settings.LEDGER_URL:
        return Api(settings.LEDGER_URL, settings.LEDGER_TOKEN)
    return OwnDatabase()


class Record:
    """One deployment's row. The ledger is told of each step as it comes. While it is unavailable, what it is to be told
    is kept, after the end in a file of `folder`, and told by the next deployment from there.
    """

    def __init__(self, book: Book, request: Request, folder: Path, note: Callable[[str], None]) -> None:
        self.book, self.request, self.folder, self.note = book, request, folder, note
        self.release: tuple[str, str, str] | None = None  # commit, when it was built, image
        self.key: int | None = None
        self.started = False  # as far as is known
        self.waiting: list[list[Any]] = []  # [method of Book, its arguments after the key]
        self.ended: set[str] = set()
        self.hopeless = False  # the ledger has answered, and does not take it
        self.code = self.why = ""  # of its last refusal, or why it is unavailable
        self.path: Path | None = None  # of the file that it was kept in

    def refuse_unproven(self) -> str:
        """Raises Refused if the release may not go there: it has not succeeded where it must before, or the ledger is
        unavailable and cannot say so. Returns a note.
        """
        request = self.request
        try:
            if request.kind == "rollback":
                return "rollbacks skip the promotion check"
            gate = self.book.gate(request.environment)
            if not gate:
                return f"{request.environment} takes every release"
            if self.book.succeeded(request.release, gate):
                return f"{request.release} has succeeded in {gate}"
            if request.hotfix:
                return f"{request.release} has not succeeded in {gate}, but is a hotfix"
            raise Refused(
                f"Release {request.release} has not succeeded in {gate}. Deploy it there first, or pass "
                "--hotfix --reason TEXT if it cannot wait."
            )
        except Away as error:
            if request.environment == "production" and request.kind == "deploy" and not request.hotfix:
                raise Refused(
                    f"The ledger is unavailable, so it is unknown whether {request.release} has succeeded in staging: "
                    f"{error}. Wait for it, or pass --hotfix --reason TEXT if it cannot wait."
                ) from None
            return f"the ledger is unavailable, so this is recorded later: {error}"

    def refuse_unrecordable(self, known: bool) -> str:
        """What begin() would raise or say, without writing anything. `known` is whether the release's commit is known.
        Raises Refused.
        """
        request = self.request
        try:
            left = self.book.in_flight(request.environment)
            if left and self.is_of_this(left):
                return f"deployment {left.key} is resumed"
            if left and not STEPS_OF_OURS & left.steps.keys():
                busy = f"Deployment {left.key} of {left.version} to {request.environment} is {left.status}."
                if request.kind == "deploy":
                    raise Refused(f"{busy} Wait for its end, or report it as failed if its pipeline is gone.")
                return f"not recorded: {busy}"
            if not known and not self.book.registered(request.release):
                return f"not recorded: release {request.release} is not registered; pass --commit SHA"
            if request.kind == "rollback" and not self.book.succeeded(request.release, request.environment):
                return f"not recorded: release {request.release} was never live in {request.environment}"
        except Away as error:
            return f"the ledger is unavailable, so this is recorded later: {error}"
        return f"recorded in {self.book.name}"

    def begin(self, commit: str, built_at: str, image: str) -> Flight | None:
        """Begins the row, or resumes the one that an interrupted run of the same has left, which it returns.

        Only whoever holds the environment's lock may call it. Raises Refused.
        """
        self.release = (commit, built_at, image) if commit and built_at else None
        try:
            self.catch_up()
            left = self.book.in_flight(self.request.environment)
            if left and self.is_of_this(left):
                self.adopt(left)
                self.resume(left.key)
                return left
            if left and STEPS_OF_OURS & left.steps.keys():  # its process is gone: the lock was free
                self.book.finish(left.key, "failed", None)
                self.note(f"Deployment {left.key} of {left.version} was interrupted; it is now recorded as failed.")
            self.open()
        except Away as error:
            self.note(f"The ledger is unavailable, so this is recorded later: {error}.")
        except LookupError:
            self.hopeless = True
            self.why = f"release {self.request.release} is not registered, and its commit is unknown"
            self.note(
                f"Not recorded: {self.why}. Pass --commit SHA, or let the pipeline that builds it register it "
                "(docs/api.md)."
            )
        except (rules.RuleViolation, rules.Invalid) as error:
            if self.request.kind == "deploy":
                raise Refused(named(error)) from None
            self.hopeless, self.why = True, named(error)  # no rule of the ledger bars a rollback
            self.note(f"Not recorded: {self.why}")
        return None

    def is_of_this(self, left: Flight) -> bool:
        """Whether the row in flight is this deployment's, by a run that was interrupted or an answer that was lost."""
        return (left.version, left.kind) == (self.request.release, self.request.kind)

    def adopt(self, left: Flight) -> None:
        self.key, self.ended = left.key, {name for name, outcome in left.steps.items() if outcome != "running"}

    def resume(self, key: int) -> None:
        """Starts it if it is pending. Asked also if it is running, so that a token that may not continue it is refused
        now, before anything is changed. Raises rules.RuleViolation.
        """
        try:
            self.book.start(key)
        except rules.RuleViolation as error:
            if error.code != "wrong-state":
                raise
        self.started = True

    def open(self) -> None:
        """Gets the row: the one that was made when its answer was lost, or a new one."""
        left = self.book.in_flight(self.request.environment)
        if left and self.is_of_this(left):
            self.key = left.key
        else:
            if self.release:
                try:
                    self.book.register(self.request.release, *self.release)
                except rules.RuleViolation:
                    pass  # whoever built it has registered it, in other words; or only they may
            self.key = self.book.create(self.request)
        if self.path:
            self.write(self.path)  # or the next one would make another row, should this one not get to the end
        self.resume(self.key)

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
        if not self.waiting:
            return
        ending = "refused.json" if self.hopeless else "json"
        path = self.folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{self.request.environment}.{ending}"
        try:
            self.write(path)
        except OSError as error:
            self.note(f"{path} cannot be written ({error.strerror}). Not recorded: {json.dumps(self.kept())}")
            return
        if self.hopeless:
            self.note(f"This {self.request.kind} is not in the ledger: {self.why}. It is kept in {path}.")
        else:
            self.note(
                f"The ledger ({self.book.name}) is still unavailable. The next deployment here records it ({path})."
            )

    def say(self, *what: Any) -> None:
        self.waiting.append(list(what))
        self.tell()

    def tell(self) -> None:
        """Tells the ledger what waits, in its order. What it refuses is noted; its end stays, if it has none yet."""
        self.why = "" if not self.hopeless else self.why
        try:
            if self.key is None and not self.hopeless:
                self.open()
            while self.waiting and self.key is not None and not self.hopeless:
                if not self.started:
                    self.resume(self.key)
                method, *words = self.waiting[0]
                try:
                    getattr(self.book, method)(self.key, *words)
                except (rules.RuleViolation, rules.Invalid) as error:
                    self.note(f"The ledger refused the {method}: {named(error)}")
                    if method == "finish" and not self.seen():
                        raise
                self.waiting.pop(0)
        except Away as error:
            self.why = str(error)
        except (rules.RuleViolation, rules.Invalid, LookupError) as error:
            self.hopeless, self.why, self.code = True, named(error), getattr(error, "code", "")
            self.note(f"Not recorded: {self.why}")

    def seen(self) -> bool:
        """Whether the ledger has the row, ended. Raises Away."""
        try:
            return self.key is not None and self.book.status(self.key) in FINISHED
        except LookupError:
            return False

    # What is kept

    def kept(self) -> dict[str, Any]:
        return {
            "request": asdict(self.request),
            "release": self.release,
            "key": self.key,
            "waiting": self.waiting,
            "why": self.why,
        }

    def write(self, path: Path) -> None:
        """Raises OSError. Whole or not at all: a process may end at any moment."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self.kept(), indent=1) + "\n", encoding="utf-8")
        os.replace(new, path)

    def read(self, path: Path) -> "Record":
        """The deployment that was kept there. Raises OSError, ValueError, KeyError and TypeError."""
        kept = json.loads(path.read_text(encoding="utf-8"))
        late = Record(self.book, Request(**kept["request"]), self.folder, self.note)
        late.key, late.waiting, late.path = kept["key"], [list(each) for each in kept["waiting"]], path
        late.release = tuple(kept["release"]) if kept["release"] else None
        if not all(each and each[0] in KEPT for each in late.waiting) or late.waiting[-1][0] != "finish":
            raise ValueError("it does not end with a finish")
        if not (late.key is None or isinstance(late.key, int)):
            raise ValueError("its key is not a number")
        return late

    def catch_up(self) -> None:
        """Tells the ledger of earlier deployments from here that it was unavailable for. Raises Away."""
        for path in sorted(self.folder.glob(f"*-{self.request.environment}.json")):
            try:
                late = self.read(path)
            except (OSError, ValueError, LookupError, TypeError) as error:
                self.note(f"{path} is not a kept deployment ({type(error).__name__}: {error}). Correct or delete it.")
                continue
            what = f"The {late.request.kind} of {late.request.release} from {path.name[:15]}"
            if not late.seen():
                late.tell()
                if late.why and not late.hopeless:
                    raise Away(late.why)
            if late.seen():
                path.unlink()
                self.note(f"{what} is now in the ledger, as deployment {late.key}.")
            elif late.code in AGAIN:
                self.note(f"{what} is still not in the ledger: {late.why} It is tried again next time ({path}).")
            else:
                aside = path.with_name(f"{path.stem}.refused.json")
                late.write(aside)
                path.unlink()
                self.note(f"{what} is not in the ledger: {late.why} It is kept in {aside}, and not tried again.")


def named(error: Exception) -> str:
    """What the ledger refused, with the name of the field that is wrong."""
    field = getattr(error, "field", "").removeprefix("#/")
    return f"{field}: {error}" if field else str(error)
