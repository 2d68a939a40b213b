"""What the board shows of each environment, and of a deployment on its way."""

import shlex
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import prefetch_related_objects

from ledger import queries
from ledger.environments import environment_configs
from ledger.models import IN_FLIGHT, Deployment, Environment
from statuspage.readings import Reading, readings

OVERDUE = 2  # times the median: what takes longer is overdue


@dataclass(frozen=True)
class Progress:
    """How far a deployment is, judged by how long such a one usually takes there (`typical`; None if nobody knows)."""

    elapsed: timedelta
    typical: timedelta | None

    @property
    def percent(self) -> int | None:
        """Of the typical duration; at most 99, as it has not ended. None if nothing is known."""
        return min(99, int(100 * self.elapsed / self.typical)) if self.typical else None

    @property
    def overdue(self) -> bool:
        """Whether it takes far longer than usual; half of all take longer than the median, which says nothing."""
        return bool(self.typical and self.elapsed > OVERDUE * self.typical)


@dataclass(frozen=True)
class Advice:
    """How to get out of a release: `title` and `version` say what, `text` what to do or why nothing can be done now,
    and `command` is what to type; empty where there is none.
    """

    title: str
    version: str
    text: str
    command: str


@dataclass(frozen=True)
class Card:
    """One environment as the board shows it."""

    environment: Environment
    reading: Reading
    progress: Progress | None
    advice: Advice | None

    @property
    def drifted(self) -> bool:
        """Whether the environment says that it runs another version than the ledger has; "dev" is what no build has."""
        current = self.environment.current
        return current is not None and self.reading.version not in ("", "dev", current.release.version)


def cards(now: datetime, *, commands: bool) -> list[Card]:
    """The board, in order; with the commands to go back, if `commands`.

    The number of queries depends on how many environments there are, and on nothing else. Raises django.db.Error.
    """
    rows = queries.board()
    shown = [each for row in rows for each in (row.in_flight, row.failed) if each]
    prefetch_related_objects(shown, "steps")
    heard = readings()
    found = []
    for row in rows:
        advice = None
        if commands and row.in_flight:
            advice = abort(row, row.in_flight, row.current)
        elif commands and row.current:
            advice = rollback(row, queries.previous_good(row))
        found.append(Card(row, heard[row.name], progress(row.in_flight, now), advice))
    return found


def advice(deployment: Deployment, current: Deployment | None) -> Advice | None:
    """What fits on the page of `deployment`, while `current` is what runs in its environment. None if nothing does."""
    environment = deployment.environment
    here = Deployment.objects.filter(environment=environment, status__in=IN_FLIGHT)
    if flying := here.select_related("release").first():
        if flying == deployment:
            return abort(environment, flying, current)
        text = f"Deployment {flying.pk} to {environment} is in progress. Wait for it to finish, or abort it."
        return Advice("In progress:", flying.release.version, text, "")
    if deployment.status != Deployment.Status.SUCCEEDED or current is None:
        return None
    back = queries.previous_good(environment) if current == deployment else deployment.release.version
    return rollback(environment, back) if back != current.release.version else None


def rollback(environment: Environment, version: str | None) -> Advice | None:
    """How to go back to `version` while nothing is in flight; None without one."""
    return Advice("Roll back to", version, "", way(environment.name, version)) if version else None


def abort(environment: Environment, flying: Deployment, current: Deployment | None) -> Advice:
    """What fits while `flying` is in flight over `current`. Going back further than to `current` is what nobody wants
    then, and both commands refuse it while the deployment holds the lock.
    """
    if flying.kind == Deployment.Kind.ROLLBACK:
        return Advice("Rollback in progress to", flying.release.version, "Wait for it to finish.", "")
    if flying.status == Deployment.Status.PENDING:
        return Advice("Not started yet:", flying.release.version, "To stop it, cancel its pipeline run.", "")
    if current is None:
        text = "Nothing ran here before, so there is no version to stay on. To stop it, press Ctrl+C where it runs, or "
        return Advice("Deploying", flying.release.version, f"{text}cancel its pipeline run.", "")
    version = current.release.version
    text = "Stop the deployment first: press Ctrl+C where it runs, or cancel its pipeline run. Then:"
    return Advice("Abort and stay on", version, text, way(environment.name, version))


def progress(deployment: Deployment | None, now: datetime) -> Progress | None:
    """None unless it runs."""
    if not deployment or not deployment.started or deployment.is_finished:
        return None
    typical = Deployment.objects.typical_duration(deployment.environment, deployment.strategy)
    return Progress(max(now - deployment.started, timedelta()), typical)


def way(environment: str, version: str) -> str:
    """The command that takes `environment` back to `version`, as an operator types it.

    For Kubernetes the script, which needs nothing but kubectl and works when everything else is down.
    """
    place = environment_configs()[environment]
    if place.target == "kubernetes":
        context = f" --context {shlex.quote(place.context)}" if place.context else ""
        return f"scripts/rollback.sh {shlex.quote(version)} {place.namespace}{context}"
    return f"python manage.py rollback {shlex.quote(version)} -e {environment}"


def comparison(deployment: Deployment) -> str:
    """Where to read what changed since the release before: settings.COMPARE_URL, filled in. Empty if there is none."""
    before = deployment.previous.release if deployment.previous else None
    if not settings.COMPARE_URL or before is None or before.commit == deployment.release.commit:
        return ""
    return str(settings.COMPARE_URL).replace("{old}", before.commit).replace("{new}", deployment.release.commit)
