"""What the board shows of each environment: what runs, what is in flight, and the command that rolls it back."""

import math
import shlex
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from django.conf import settings
from django.db.models import prefetch_related_objects

from accounts.roles import Scope
from board import answers, databases
from board.databases import Databases
from ledger import freezes, queries
from ledger.environments import EnvironmentConfig, config_of, environment_configs
from ledger.freezes import State
from ledger.models import IN_FLIGHT, Deployment, Environment
from metrics.budgets import Budget, budgets
from statuspage.readings import Reading, readings

OVERDUE = 2  # times the median after which a deployment is overdue; half of all take longer than the median itself


@dataclass(frozen=True)
class Progress:
    """How long a deployment has been running, and the median of its kind (`typical`); None without earlier ones."""

    elapsed: timedelta
    typical: timedelta | None

    @property
    def percent(self) -> int | None:
        """The elapsed time in per cent of the median: at most 99, since it has not ended. None without a median."""
        return min(99, int(100 * self.elapsed / self.typical)) if self.typical else None

    @property
    def overdue(self) -> bool:
        """Whether it has taken more than OVERDUE times the median."""
        return bool(self.typical and self.elapsed > OVERDUE * self.typical)


@dataclass(frozen=True)
class Advice:
    """How to get rid of a release. `title` and `version` say what, `text` says how or why not now, and `command` is
    what to run; both are empty where there is none.
    """

    title: str
    version: str
    text: str
    command: str


@dataclass(frozen=True)
class Meter:
    """How much is left of an error budget: whose, in words, and in per cent; `tone` is the style sheet's."""

    label: str
    words: str
    percent: float
    tone: str

    @classmethod
    def of(cls, budget: Budget) -> "Meter":
        """That of a known budget. A part of one per cent is not rounded to nothing, nor is nothing to a part."""
        percent = 100 * budget.remaining
        if budget.spent:
            return cls(budget.slo, f"spent ({100 - percent:.0f}%)", 0.0, "bad")
        words = f"{math.floor(percent)}% left" if percent >= 1 else "less than 1% left"
        return cls(budget.slo, words, round(min(100.0, percent), 1), "ok" if percent > 25 else "warn")


@dataclass(frozen=True)
class ErrorBudget:
    """The error budgets of an environment, none if they are unknown; and whether they hold deployments now."""

    meters: list[Meter]
    holds: bool


@dataclass(frozen=True)
class Card:
    """One environment on the board. `people` says whether names are shown. `budget` is None without a Prometheus, and
    `databases` unless there are two.
    """

    environment: Environment
    reading: Reading
    progress: Progress | None
    advice: Advice | None
    people: bool
    budget: ErrorBudget | None = None
    production: bool = False
    databases: Databases | None = None
    freeze: State = State()

    @property
    def drifted(self) -> bool:
        """Whether the environment reports another version than the ledger has. "dev" means that it was never built."""
        current = self.environment.current
        return current is not None and self.reading.version not in ("", "dev", current.release.version)


def board_cards(now: datetime, *, people: Scope, until: float = 0.0) -> list[Card]:
    """Returns a card for each environment, in order; in those of `people` with names and the commands to roll back.

    The number of queries depends on the number of environments alone. A Prometheus or a database that has not answered
    yet is waited for until then, by the monotonic clock. Raises django.db.Error.
    """
    for prometheus in {config.prometheus for config in environment_configs().values()}:
        if prometheus:
            answers.begin((prometheus, "budgets"), partial(budgets, prometheus, answers.TIMEOUT))
    databases.begin()
    environments = queries.board()
    shown = [each for row in environments for each in (row.in_flight, row.failed) if each]
    prefetch_related_objects(shown, "steps")
    current_readings, frozen = readings(), freezes.states(environments, now)
    result = []
    for row in environments:
        advice = None
        reading = current_readings.get(row.name) or Reading(row.name)
        shown_people = row.name in people
        if shown_people and row.in_flight:
            advice = abort_advice(row, row.in_flight, row.current)
        elif shown_people and row.current:
            advice = rollback_advice(row, queries.previous_good(row))
        config = config_of(row.name)
        budget, pair = error_budget(config, until), databases.result(config, until)
        underway = progress(row.in_flight, now)
        state = frozen[row.pk]
        result.append(Card(row, reading, underway, advice, shown_people, budget, config.production, pair, state))
    return result


def error_budget(config: EnvironmentConfig, until: float) -> ErrorBudget | None:
    """Returns what is left of the environment's error budgets, as Prometheus has last said; None without one."""
    prometheus, hold = config.prometheus, config.error_budget == "hold"
    if prometheus is None:
        return None
    found: list[Budget] = (answers.result((prometheus, "budgets"), until).value or {}).get(config.name, [])
    return ErrorBudget([Meter.of(each) for each in found], hold and any(each.spent for each in found))


def deployment_advice(deployment: Deployment, current: Deployment | None) -> Advice | None:
    """Returns the advice for a deployment's page, or None. `current` is what its environment runs now."""
    environment = deployment.environment
    unfinished = Deployment.objects.filter(environment=environment, status__in=IN_FLIGHT)
    if in_flight := unfinished.select_related("release").first():
        if in_flight == deployment:
            return abort_advice(environment, in_flight, current)
        text = f"Deployment {in_flight.pk} to {environment} is in progress. Wait for it to finish, or abort it."
        return Advice("In progress:", in_flight.release.version, text, "")
    if deployment.status != Deployment.Status.SUCCEEDED or current is None:
        return None
    target = queries.previous_good(environment) if current == deployment else deployment.release.version
    return rollback_advice(environment, target) if target != current.release.version else None


def rollback_advice(environment: Environment, version: str | None) -> Advice | None:
    """Returns how to roll back to `version` while nothing is in flight; None without a version."""
    return Advice("Roll back to", version, "", rollback_command(environment.name, version)) if version else None


def abort_advice(environment: Environment, in_flight: Deployment, current: Deployment | None) -> Advice:
    """Returns how to stop `in_flight` and stay on `current`.

    A rollback beyond `current` is not offered: nobody wants it then, and both commands refuse it while the deployment
    holds the lock.
    """
    version = in_flight.release.version
    if in_flight.kind == Deployment.Kind.ROLLBACK:
        return Advice("Rollback in progress to", version, "Wait for it to finish.", "")
    if in_flight.status == Deployment.Status.PENDING:
        return Advice("Not started yet:", version, "To stop it, cancel its pipeline run.", "")
    if current is None:
        text = (
            "This is the first deployment here, so there is no release to stay on. To stop it, press Ctrl+C in its "
            "terminal, or cancel its pipeline run."
        )
        return Advice("Deploying", version, text, "")
    text = "First stop the deployment: press Ctrl+C in its terminal, or cancel its pipeline run. Then run:"
    target = current.release.version
    return Advice("Abort and stay on", target, text, rollback_command(environment.name, target))


def progress(deployment: Deployment | None, now: datetime) -> Progress | None:
    """Returns the progress of a running deployment; None for any other."""
    if not deployment or not deployment.started or deployment.is_finished:
        return None
    typical = Deployment.objects.typical_duration(deployment.environment, deployment.strategy)
    return Progress(max(now - deployment.started, timedelta()), typical)


def rollback_command(environment: str, version: str) -> str:
    """Returns the command that rolls back `environment` to `version`, as an operator types it.

    On Kubernetes it is the script, which needs only kubectl and works while everything else is down.
    """
    config = config_of(environment)
    if config.target == "kubernetes":
        context = f" --context {shlex.quote(config.context)}" if config.context else ""
        return f"scripts/rollback.sh {shlex.quote(version)} {config.namespace}{context}"
    return f"./run rollback {shlex.quote(version)}"


def compare_url(deployment: Deployment) -> str:
    """Returns settings.COMPARE_URL for the changes since the previous release; empty if there are none to compare."""
    previous = deployment.previous.release if deployment.previous else None
    if not settings.COMPARE_URL or previous is None or previous.commit == deployment.release.commit:
        return ""
    return str(settings.COMPARE_URL).replace("{old}", previous.commit).replace("{new}", deployment.release.commit)
