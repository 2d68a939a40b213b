"""The rules of the ledger: how deployments come, go on and end, and what may go where. The API, the commands and the
pages all ask here; nothing else writes these tables.

The database holds the weightiest rules once more by itself (ledger.models, migrations/0002_guards.py). Here they are
asked first, so that whoever breaks one learns which, and what to do.

Every function that writes takes `at`, the time at which it happens: now, unless a history is loaded. `token` is the
name of the API token that asked; empty for a command.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Field, Model
from django.utils import timezone

from ledger import metrics, versions
from ledger.models import FINISHED, IN_FLIGHT, Deployment, Environment, Release, Step
from ledger.queries import live, succeeded

MAX_STEPS = 200
CLOCKS_DIFFER = timedelta(minutes=5)  # by which a build machine's clock may be ahead of ours


class RuleViolation(Exception):
    """The ledger's state does not allow it. `code` is a stable name of the rule; the text says what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Invalid(ValueError):
    """What was given makes no sense, whatever the ledger's state. `field` names what is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def validate_text(kind: type[Model], **values: str) -> None:
    """Raises Invalid if the model `kind` has no room for one of `values`, or a character of it is not allowed."""
    for name, value in values.items():
        field = kind._meta.get_field(name)
        assert isinstance(field, Field)
        try:
            field.run_validators(value)
        except ValidationError as error:
            raise Invalid(name, error.messages[0]) from None


# Releases


def register(
    version: str,
    commit: str,
    built_at: datetime,
    message: str = "",
    image: str = "",
    *,
    token: str = "",
    at: datetime | None = None,
) -> tuple[Release, bool]:
    """The release of that version, and whether it is new. Registering the same one again changes nothing.

    Raises Invalid, and RuleViolation (release-differs) if the version is that of another build.
    """
    commit = commit.lower()
    if not re.fullmatch(r"[0-9a-f]{7,64}", commit):
        raise Invalid("commit", "Expected 7 to 64 hex digits, as git prints them.")
    try:
        versions.validate(version)
    except ValueError as error:
        raise Invalid("version", str(error)) from None
    validate_text(Release, version=version, message=message, image=image)
    if built_at > (at or timezone.now()) + CLOCKS_DIFFER:
        raise Invalid("built_at", "It lies in the future: look at the build machine's clock and time zone.")
    given = {"commit": commit, "built_at": built_at, "message": message, "image": image}
    who = {"token": token, "registered": at or timezone.now()}
    release, new = Release.objects.get_or_create(version=version, defaults=given | who)
    for name, value in given.items():
        if getattr(release, name) != value:
            raise RuleViolation(
                "release-differs",
                f"Release {version} is already registered with another {name.replace('_', ' ')}"
                f"{registration(release)}. "
                "A release never changes: give the new build a version of its own. If the registration is wrong and "
                "was never deployed, an operator can withdraw it: manage.py withdraw_release "
                f"{version}",
            )
    return release, new


def registration(release: Release) -> str:
    """Who registered `release`, and when, as the end of a sentence."""
    who = f" by the token {release.token}" if release.token else " by a command"
    return f"{who} at {release.registered:%Y-%m-%d %H:%M}Z" if release.registered else ""


def withdraw(version: str) -> Release:
    """Removes a release that was never deployed, such as one registered by mistake, and returns what it was.

    Raises Release.DoesNotExist, and RuleViolation (release-used) once a deployment refers to it: history stays.
    """
    with refused_by_the_database(), transaction.atomic():
        release = Release.objects.select_for_update().get(version=version)
        used = Deployment.objects.filter(release=release).select_related("environment").order_by("created").first()
        if used:
            raise RuleViolation(
                "release-used",
                f"Release {version} was deployed (deployment {used.pk}, to {used.environment}) and stays in the "
                "history. Give the other build a version of its own.",
            )
        Release.objects.filter(pk=release.pk).delete()
        return release


# Deployments


def create(
    environment: str,
    release: str,
    strategy: str,
    actor: str,
    *,
    kind: str = Deployment.Kind.DEPLOY,
    hotfix: bool = False,
    reason: str = "",
    run_url: str = "",
    token: str = "",
    at: datetime | None = None,
) -> Deployment:
    """A pending deployment. From now on the environment takes no other until this one has ended.

    Raises Environment.DoesNotExist, Release.DoesNotExist, Invalid, and RuleViolation: environment-busy, not-promotable,
    never-live, already-live.
    """
    if hotfix and not reason.strip():
        raise Invalid("reason", "A hotfix needs a reason: say what cannot wait.")
    if hotfix and kind == Deployment.Kind.ROLLBACK:
        raise Invalid("hotfix", "A rollback cannot be a hotfix; choose one.")
    validate_text(Deployment, reason=reason.strip(), actor=actor)
    with refused_by_the_database(), transaction.atomic():
        # Whoever comes second waits here for whoever came first, and then sees what the first one wrote.
        place = Environment.objects.select_for_update(of=("self",)).get(name=environment)
        wanted = Release.objects.get(version=release)
        busy = Deployment.objects.filter(environment=place, status__in=IN_FLIGHT).select_related("release").first()
        if busy:
            raise RuleViolation(
                "environment-busy",
                f"Deployment {busy.pk} of {busy.release} to {environment} is {busy.status}. Wait for its end, or "
                "report it as failed if its pipeline is gone.",
            )
        previous = live(place)
        validate(place, wanted, kind, hotfix, previous)
        return Deployment.objects.create(
            environment=place,
            release=wanted,
            kind=kind,
            strategy=strategy,
            hotfix=hotfix,
            reason=reason.strip(),
            actor=actor,
            token=token,
            previous=previous,
            created=at or timezone.now(),
            run_url=run_url,
        )


def validate(place: Environment, release: Release, kind: str, hotfix: bool, previous: Deployment | None) -> None:
    """Raises RuleViolation if `release` may not go to `place` in this way."""
    if kind == Deployment.Kind.ROLLBACK:
        if previous and previous.release_id == release.pk:
            raise RuleViolation("already-live", f"Release {release} is already live in {place}; nothing to roll back.")
        if not succeeded(release, place.pk):
            raise RuleViolation(
                "never-live",
                f"Release {release} was never live in {place}. Ask for its rollback targets, and take one.",
            )
    elif place.promotes_from_id and not hotfix and not succeeded(release, place.promotes_from_id):
        raise RuleViolation(
            "not-promotable",
            f"Release {release} has not succeeded in {place.promotes_from}. Deploy it there first, or make it a hotfix "
            "and say why.",
        )


def start(key: int, *, at: datetime | None = None) -> Deployment:
    """The deployment, running. Raises Deployment.DoesNotExist and RuleViolation (wrong-state)."""
    with refused_by_the_database(), transaction.atomic():
        deployment = locked(key)
        if deployment.status != Deployment.Status.PENDING:
            raise RuleViolation(
                "wrong-state", f"Deployment {key} is {label(deployment)}: only a pending one can be started."
            )
        deployment.status = Deployment.Status.RUNNING
        deployment.started = at or timezone.now()
        deployment.save(update_fields=["status", "started"])
        return deployment


def step(key: int, name: str, outcome: str, *, token: str = "", at: datetime | None = None) -> tuple[Step, bool]:
    """The step of that name with its outcome, and whether it is new. One that had no beginning begins and ends at once.

    Raises Deployment.DoesNotExist, Invalid, and RuleViolation (wrong-state, too-many-steps).
    """
    validate_text(Step, name=name)
    now = at or timezone.now()
    ended = None if outcome == Step.Outcome.RUNNING else now
    with refused_by_the_database(), transaction.atomic():
        deployment = locked(key)
        if deployment.status != Deployment.Status.RUNNING:
            raise RuleViolation(
                "wrong-state", f"Deployment {key} is {label(deployment)}: only a running one has steps."
            )
        steps = list(deployment.steps.order_by("position"))
        for one in steps:
            if one.name == name:
                if one.outcome != Step.Outcome.RUNNING:
                    if one.outcome == outcome:
                        return one, False
                    raise RuleViolation(
                        "wrong-state", f"Step {name} has ended: it {one.outcome}. Give a repetition a new name."
                    )
                one.outcome, one.finished, one.token = outcome, ended, token
                one.save(update_fields=["outcome", "finished", "token"])
                return one, False
        if len(steps) >= MAX_STEPS:
            raise RuleViolation("too-many-steps", f"A deployment has {MAX_STEPS} steps at most.")
        position = steps[-1].position + 1 if steps else 1
        given = {"name": name, "outcome": outcome, "started": now, "finished": ended, "token": token}
        return deployment.steps.create(position=position, **given), True


def finish(
    key: int, result: str, *, failed_requests: int | None = None, token: str = "", at: datetime | None = None
) -> Deployment:
    """The deployment, ended for good. Steps that still run end with it: as it did, or failed.

    `failed_requests` is how many of the probe traffic failed; None if there was none.

    A pending one can only fail. Raises Deployment.DoesNotExist, RuleViolation (wrong-state), and Invalid.
    """
    if result not in FINISHED:
        raise Invalid("result", f"Expected one of {', '.join(FINISHED)}.")
    now = at or timezone.now()
    with refused_by_the_database(), transaction.atomic():
        deployment = locked(key)
        if deployment.is_finished:
            raise RuleViolation(
                "wrong-state", f"Deployment {key} has {label(deployment)} already, and that does not change."
            )
        if deployment.status == Deployment.Status.PENDING and result != Deployment.Status.FAILED:
            raise RuleViolation(
                "wrong-state", f"Deployment {key} is pending: start it first, or report that it failed."
            )
        won = result == Deployment.Status.SUCCEEDED
        first = won and not succeeded(deployment.release, deployment.environment_id)
        deployment.steps.filter(outcome=Step.Outcome.RUNNING).update(
            outcome=Step.Outcome.SUCCEEDED if won else Step.Outcome.FAILED, finished=now, token=token
        )
        deployment.status, deployment.finished, deployment.failed_requests = result, now, failed_requests
        deployment.finished_token = token
        deployment.save(update_fields=["status", "finished", "failed_requests", "finished_token"])
        if at is None:
            transaction.on_commit(lambda: metrics.count(deployment, first))
        return deployment


def locked(key: int) -> Deployment:
    """The deployment, which nobody else changes before the transaction has ended."""
    found = Deployment.objects.select_related("environment", "release", "previous__release")
    return found.select_for_update(of=("self",)).get(pk=key)


def label(deployment: Deployment) -> str:
    return str(Deployment.Status(deployment.status).label)


@contextmanager
def refused_by_the_database() -> Iterator[None]:
    """Turns a constraint's refusal into RuleViolation: the backstop of the rules above, should two writers pass."""
    try:
        yield
    except IntegrityError as error:
        name = next((name for name in BY_CONSTRAINT if name in str(error)), "")
        code, message = BY_CONSTRAINT.get(name, ("conflict", "Somebody else has just changed the same. Look again."))
        raise RuleViolation(code, message) from error


# By what the database's message holds. SQLite names a unique index by its columns.
BUSY = ("environment-busy", "Another deployment to this environment is pending or running.")
BY_CONSTRAINT = {
    "ledger_one_in_flight": BUSY,
    "UNIQUE constraint failed: ledger_deployment.environment_id": BUSY,
    "ledger_promotion": (
        "not-promotable",
        "The release has not succeeded where it must before, and this is no hotfix.",
    ),
    "ledger_rollback": ("never-live", "The release was never live in this environment."),
    "ledger_append_only": ("wrong-state", "What has finished does not change."),
    "ledger_release_used": ("release-used", "The release was deployed and stays in the history."),
    "ledger_order": ("wrong-state", "A deployment goes from pending to running to its end."),
}
