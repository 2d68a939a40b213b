"""What the board shows of each environment, and of a deployment on its way."""

import shlex
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import prefetch_related_objects

from deploy import ledger
from deploy.environments import places
from deploy.models import Deployment, Environment
from deploy.watch import Reading, readings


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
    def late(self) -> bool:
        return bool(self.typical and self.elapsed > self.typical)


@dataclass(frozen=True)
class Card:
    """One environment as the board shows it. `back` is the version to go back to, and `command` how; or empty."""

    environment: Environment
    reading: Reading
    progress: Progress | None
    back: str
    command: str

    @property
    def drifted(self) -> bool:
        """Whether the environment says that it runs another version than the ledger has; "dev" is what no build has."""
        current = self.environment.current
        return current is not None and self.reading.version not in ("", "dev", current.release.version)


def cards(now: datetime, *, commands: bool) -> list[Card]:
    """The board, in order; with the commands to go back, if `commands`.

    The number of queries depends on how many environments there are, and on nothing else. Raises django.db.Error.
    """
    rows = Environment.objects.board()
    shown = [each for row in rows for each in (row.in_flight, row.failed) if each]
    prefetch_related_objects(shown, "steps")
    heard = readings()
    found = []
    for row in rows:
        back = ledger.way_back(row) if commands and row.current else None
        found.append(
            Card(row, heard[row.name], progress(row.in_flight, now), back or "", way(row.name, back) if back else "")
        )
    return found


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
    place = places()[environment]
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
