"""The rules of the ledger: releases are registered, deployments created, started and finished here, and nowhere else.

The database enforces the most important rules as well (ledger.models, migrations/0003_guards.py). They are checked here
first, so that the error says which rule was broken and what to do.

`at` is the time of the event: now, unless a history is loaded. `token` is the name of the API token that made the
request; empty for a command. `key` is a deployment's primary key.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Field, Model
from django.utils import timezone

import audit
from audit.actions import Action
from ledger import freezes, humanize, metrics, versions
from ledger.models import DIGEST, IN_FLIGHT, RESULTS, Deployment, Environment, Lock, Release, Step
from ledger.queries import Standing, is_current, live, standing, stays_of, succeeded

MAX_STEPS = 200
CLOCK_SKEW = timedelta(minutes=5)  # by which a build machine's clock may be ahead


class RuleViolation(Exception):
    """A request that the ledger's state does not allow. `code` is the rule's stable name; the text says what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Invalid(ValueError):
    """A value that is invalid whatever the ledger's state. `field` names the parameter."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def validate_text(kind: type[Model], **values: str) -> None:
    """Raises Invalid if one of `values` does not fit its field of the model `kind`."""
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
    """Registers a release. Returns it, and whether it is new: registering the same build again changes nothing.

    Raises Invalid, and RuleViolation (release-differs) if the version belongs to another build.
    """
    commit = commit.lower()
    if not re.fullmatch(r"[0-9a-f]{7,64}", commit):
        raise Invalid("commit", "Expected 7 to 64 hex digits, as git prints them.")
    try:
        versions.validate(version)
    except ValueError as error:
        raise Invalid("version", str(error)) from None
    validate_text(Release, version=version, message=message, image=image)
    if built_at > (at or timezone.now()) + CLOCK_SKEW:
        raise Invalid("built_at", "The build time is in the future. Check the build machine's clock and time zone.")
    given = {"commit": commit, "built_at": built_at, "message": message, "image": image}
    who = {"token": token, "registered": at or timezone.now()}
    release, new = Release.objects.get_or_create(version=version, defaults=given | who)
    for name, value in given.items():
        if getattr(release, name) != value:
            raise RuleViolation(
                "release-differs",
                f"Release {version} is already registered with a different {name.replace('_', ' ')}"
                f"{registration(release)}. Give the new build its own version. If the registration is wrong and the "
                f"release was never deployed, an operator can withdraw it: manage.py withdraw_release {version}",
            )
    return release, new


def registration(release: Release) -> str:
    """Returns who registered `release` and when, as the end of a sentence; empty if that was not recorded."""
    who = f" by the token {release.token}" if release.token else " by a command"
    return f"{who} at {release.registered:%Y-%m-%d %H:%M}Z" if release.registered else ""


def withdraw(version: str) -> Release:
    """Deletes a release that was never deployed, such as one registered by mistake, and returns it.

    Raises Release.DoesNotExist, and RuleViolation (release-used) if it was deployed.
    """
    with violations_in_the_database(), transaction.atomic():
        release = Release.objects.select_for_update().get(version=version)
        used = Deployment.objects.filter(release=release).select_related("environment").order_by("created").first()
        if used:
            raise RuleViolation(
                "release-used",
                f"Release {version} was deployed (deployment {used.pk}, to {used.environment}), so it stays in the "
                "history. Give the other build its own version.",
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
    break_glass: bool = False,
    reason: str = "",
    run_url: str = "",
    revision: str = "",
    digest: str = "",
    token: str = "",
    requester: int | None = None,
    at: datetime | None = None,
) -> Deployment:
    """Creates a pending deployment, and the environment accepts no other until it has finished. If the environment
    requires approvals, creates a waiting one, which stops no other; or returns the one that waits for the same already.

    `break_glass` is a hotfix without approval; whether the requester may do that is checked by the caller. `digest` is
    the image's. `requester` is the primary key of the account that this is a request of, which cannot approve it.

    `revision` is what a rollback returns to, beside the version: with it, the release may be the live one, as its
    settings may have been others.

    Raises Environment.DoesNotExist, Release.DoesNotExist, Invalid, and RuleViolation: environment-gone,
    environment-busy, frozen, not-promotable, never-live, already-live.
    """
    if hotfix and not reason.strip():
        raise Invalid("reason", "A hotfix requires a reason.")
    if break_glass and not hotfix:
        raise Invalid("break_glass", "Only a hotfix can go without approval.")
    if hotfix and kind == Deployment.Kind.ROLLBACK:
        raise Invalid("hotfix", "A rollback cannot be a hotfix; choose one.")
    if revision and kind != Deployment.Kind.ROLLBACK:
        raise Invalid("revision", "Only a rollback has a revision.")
    validate_text(
        Deployment, reason=reason.strip(), actor=actor, revision=revision, **{"digest": digest} if digest else {}
    )
    with violations_in_the_database(), transaction.atomic():
        # Concurrent requests queue for this row, and each sees what the one before it wrote.
        target = Environment.objects.select_for_update(of=("self",)).get(name=environment)
        wanted = Release.objects.get(version=release)
        if target.order is None:
            raise RuleViolation("environment-gone", f"{environment} is no longer in environments.toml.")
        registered = re.search(rf"@({DIGEST})\Z", wanted.image)
        if registered and digest and digest != registered[1]:
            raise RuleViolation("release-differs", f"Release {release} is registered with the image {registered[1]}.")
        digest = digest or (registered[1] if registered else "")
        waits = kind == Deployment.Kind.DEPLOY and target.approvals > 0 and not break_glass
        busy = Deployment.objects.filter(environment=target, status__in=IN_FLIGHT).select_related("release").first()
        if busy and not waits:
            raise RuleViolation(
                "environment-busy",
                f"Deployment {busy.pk} of {busy.release} to {environment} is {busy.status}. Wait for it to finish, "
                "or report it as failed if its pipeline is gone.",
            )
        if not waits:
            check_not_frozen(target, kind, break_glass)
        previous = live(target)
        validate(target, wanted, kind, hotfix, previous, revision, at)
        if waits:
            same = {"environment": target, "release": wanted, "digest": digest, "hotfix": hotfix, "previous": previous}
            for each in Deployment.objects.filter(status=Deployment.Status.WAITING, requester=requester, **same):
                return each
        else:
            Lock.objects.filter(environment=target).delete()  # whoever releases the lock may not reach the ledger
        created = Deployment.objects.create(
            status=Deployment.Status.WAITING if waits else Deployment.Status.PENDING,
            break_glass=break_glass,
            digest=digest,
            requester=requester,
            environment=target,
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
            revision=revision,
        )
        if break_glass or waits:
            audit.record(
                Action.GLASS_BROKEN if break_glass else Action.APPROVAL_REQUESTED,
                actor=actor,
                actor_id=requester,
                environment=environment,
                target=f"deployment {created.pk}, {release}",
                details={"digest": digest, "token": token, "reason": reason.strip()},
            )
        return created


def check_not_frozen(environment: Environment, kind: str, break_glass: bool) -> None:
    """Raises RuleViolation (frozen) unless such a deployment may begin in the environment now."""
    if kind == Deployment.Kind.ROLLBACK or break_glass:
        return
    freezes.extend(ahead=freezes.HORIZON / 2)
    if found := freezes.active(environment):
        raise RuleViolation("frozen", found.sentence(environment.name))


def report_lock(environment: str, holder: str, reason: str, since: datetime) -> None:
    """Records that the environment's lock is held by hand, until report_unlock() or the next deployment there.

    Raises Environment.DoesNotExist and Invalid.
    """
    validate_text(Lock, holder=holder, reason=reason)
    target = Environment.objects.get(name=environment)
    given = {"holder": holder, "reason": reason, "since": since}
    Lock.objects.update_or_create(environment=target, defaults=given)


def report_unlock(environment: str) -> None:
    """Records that nobody holds the environment's lock by hand."""
    Lock.objects.filter(environment__name=environment).delete()


def validate(
    environment: Environment,
    release: Release,
    kind: str,
    hotfix: bool,
    previous: Deployment | None,
    revision: str = "",
    at: datetime | None = None,
) -> None:
    """Raises RuleViolation if `release` may not be deployed to `environment`, or rolled back to there."""
    if kind == Deployment.Kind.ROLLBACK:
        if previous and previous.release_id == release.pk and not revision:
            raise RuleViolation(
                "already-live",
                f"Release {release} is already live in {environment}; nothing to roll back. If its settings were "
                "rolled back, name the revision.",
            )
        if not succeeded(release, environment.pk):
            raise RuleViolation(
                "never-live",
                f"Release {release} was never live in {environment}. Choose one of its rollback targets.",
            )
    elif not hotfix and not (found := promotion(environment, release.version, at)).allowed:
        raise RuleViolation("not-promotable", f"{found.text} Or create a hotfix with a reason.")


@dataclass(frozen=True)
class Promotion:
    """Whether a release may be deployed to an environment without a hotfix, and a sentence or two that say why."""

    allowed: bool
    text: str


def promotion(environment: Environment, version: str, at: datetime | None = None) -> Promotion:
    """Returns whether the release has been live for long enough where `environment` is promoted from."""
    before = [source.name for source in environment.promotes_from.all()]
    if not before:
        return Promotion(True, f"{environment} accepts every release")
    places, now = " or ".join(before), at or timezone.now()
    release = Release.objects.filter(version=version).first()
    found = stays_of(release, environment, now) if release else []
    if not found:
        return Promotion(False, f"Release {version} has not succeeded in {places}. Deploy it there first.")
    soak = timedelta(seconds=environment.soak)
    best = max(found, key=lambda each: each.duration)
    if best.duration >= soak:
        return Promotion(True, f"{version} has succeeded in {best.environment}")
    text = (
        f"Release {version} has been live in {best.environment} for {humanize.took(best.duration)}; {environment} "
        f"requires {humanize.took(soak)} without a break."
    )
    still = [each.since for each in found if each.since + each.duration >= now]
    todo = f"Wait until {min(still) + soak:%Y-%m-%d %H:%M:%S}Z." if still else "Deploy it there again."
    return Promotion(False, f"{text} {todo}")


def start(key: int, *, at: datetime | None = None) -> Deployment:
    """Starts a pending deployment, and returns it. Raises Deployment.DoesNotExist, and RuleViolation:
    wrong-state, frozen.
    """
    with violations_in_the_database(), transaction.atomic():
        deployment = locked(key)
        now = at or timezone.now()
        if deployment.status == Deployment.Status.WAITING:
            check_approved(deployment, now)
            Lock.objects.filter(environment=deployment.environment_id).delete()  # see create()
        elif deployment.status != Deployment.Status.PENDING:
            raise RuleViolation(
                "wrong-state", f"Deployment {key} is {label(deployment)}; only a pending deployment can be started."
            )
        check_not_frozen(deployment.environment, deployment.kind, deployment.break_glass)
        deployment.status = Deployment.Status.RUNNING
        deployment.started = now
        deployment.save(update_fields=["status", "started"])
        return deployment


def check_approved(deployment: Deployment, now: datetime) -> Standing:
    """Raises RuleViolation (not-approved) unless the waiting deployment may run."""
    found = standing(deployment, now)
    if not is_current(deployment):
        raise RuleViolation(
            "not-approved",
            f"Something else went live in {deployment.environment} since deployment {deployment.pk} was requested. "
            "Request it again.",
        )
    if not found.approved:
        raise RuleViolation(
            "not-approved",
            f"Deployment {deployment.pk} has {found.given} of {found.needed} approvals that are still valid.",
        )
    return found


def expire_waiting(deployment: Deployment, now: datetime) -> None:
    """Ends the deployments that wait for approval where `deployment` went live: they were requested for what was."""
    waiting = Deployment.objects.filter(environment=deployment.environment_id, status=Deployment.Status.WAITING)
    for each in waiting.exclude(pk=deployment.pk).select_for_update():
        each.status, each.finished = Deployment.Status.EXPIRED, max(now, each.created)
        each.save(update_fields=["status", "finished"])


def step(
    key: int, name: str, outcome: str, *, note: str = "", token: str = "", at: datetime | None = None
) -> tuple[Step, bool]:
    """Records a step's outcome (models.Step.Outcome). Returns the step, and whether it is new.

    A new name starts a step, which finishes at once unless its outcome is running; the same name again finishes it.
    `note` says what happened.

    Raises Deployment.DoesNotExist, Invalid, and RuleViolation (wrong-state, too-many-steps).
    """
    validate_text(Step, name=name, **({"note": note} if note else {}))
    now = at or timezone.now()
    ended = None if outcome == Step.Outcome.RUNNING else now
    with violations_in_the_database(), transaction.atomic():
        deployment = locked(key)
        if deployment.status != Deployment.Status.RUNNING:
            raise RuleViolation(
                "wrong-state",
                f"Deployment {key} is {label(deployment)}; steps can be reported only while it is running.",
            )
        steps = list(deployment.steps.order_by("position"))
        for one in steps:
            if one.name == name:
                if one.outcome != Step.Outcome.RUNNING:
                    if one.outcome == outcome:
                        return one, False
                    raise RuleViolation(
                        "wrong-state",
                        f"Step {name} has already finished ({one.outcome}). Report a repeat under another name.",
                    )
                one.outcome, one.finished, one.note, one.token = outcome, ended, note, token
                one.save(update_fields=["outcome", "finished", "note", "token"])
                return one, False
        if len(steps) >= MAX_STEPS:
            raise RuleViolation("too-many-steps", f"A deployment can have at most {MAX_STEPS} steps.")
        position = steps[-1].position + 1 if steps else 1
        given = {"name": name, "outcome": outcome, "started": now, "finished": ended, "note": note, "token": token}
        return deployment.steps.create(position=position, **given), True


def finish(
    key: int, result: str, *, failed_requests: int | None = None, token: str = "", at: datetime | None = None
) -> Deployment:
    """Finishes a deployment for good, and returns it. Steps that are still running succeed or fail with it.

    `result` is one of RESULTS; a pending deployment can only fail. `failed_requests` counts the probe traffic's
    failures; None without probe traffic. Raises Deployment.DoesNotExist, Invalid and RuleViolation (wrong-state).
    """
    if result not in RESULTS:
        raise Invalid("result", f"Expected one of {', '.join(RESULTS)}.")
    now = at or timezone.now()
    with violations_in_the_database(), transaction.atomic():
        deployment = locked(key)
        if deployment.is_finished:
            raise RuleViolation(
                "wrong-state", f"Deployment {key} has already {label(deployment)}; a finished deployment cannot change."
            )
        if deployment.status == Deployment.Status.WAITING:
            raise RuleViolation(
                "wrong-state", f"Deployment {key} is waiting for approval; approve or reject it on its page."
            )
        if deployment.status == Deployment.Status.PENDING and result != Deployment.Status.FAILED:
            raise RuleViolation("wrong-state", f"Deployment {key} is pending; start it first, or report it as failed.")
        won = result == Deployment.Status.SUCCEEDED
        first = won and not succeeded(deployment.release, deployment.environment_id)
        deployment.steps.filter(outcome=Step.Outcome.RUNNING).update(
            outcome=Step.Outcome.SUCCEEDED if won else Step.Outcome.FAILED, finished=now, token=token
        )
        deployment.status, deployment.finished, deployment.failed_requests = result, now, failed_requests
        deployment.finished_token = token
        deployment.save(update_fields=["status", "finished", "failed_requests", "finished_token"])
        if won:
            expire_waiting(deployment, now)
        if at is None:
            transaction.on_commit(lambda: metrics.count(deployment, first))
        return deployment


def locked(key: int) -> Deployment:
    """Returns the deployment, locked until the transaction ends. Raises Deployment.DoesNotExist."""
    found = Deployment.objects.select_related("environment", "release", "previous__release")
    return found.select_for_update(of=("self",)).get(pk=key)


def label(deployment: Deployment) -> str:
    return str(Deployment.Status(deployment.status).label)


@contextmanager
def violations_in_the_database() -> Iterator[None]:
    """Turns an IntegrityError into RuleViolation: the database's own checks are the backstop for concurrent writers."""
    try:
        yield
    except IntegrityError as error:
        name = next((name for name in BY_CONSTRAINT if name in str(error)), "")
        code, message = BY_CONSTRAINT.get(
            name, ("conflict", "Another request changed this at the same time. Try again.")
        )
        raise RuleViolation(code, message) from error


# By a part of the database's message. SQLite names a unique index by its columns.
BUSY = ("environment-busy", "Another deployment to this environment is pending or running.")
BY_CONSTRAINT = {
    "ledger_one_in_flight": BUSY,
    "UNIQUE constraint failed: ledger_deployment.environment_id": BUSY,
    "ledger_promotion": (
        "not-promotable",
        "The release has not been live for long enough where this environment is promoted from; this is not a hotfix.",
    ),
    "ledger_rollback": ("never-live", "The release was never live in this environment."),
    "ledger_append_only": ("wrong-state", "A finished deployment cannot change."),
    "ledger_release_used": ("release-used", "The release was deployed, so it stays in the history."),
    "ledger_approval": ("not-approved", "The deployment has not been approved."),
    "ledger_own_approval": ("own-request", "Nobody decides about what they have asked for."),
    "ledger_decision": ("wrong-state", "This deployment cannot be decided about any more."),
    "ledger_frozen": ("frozen", "The environment is frozen."),
    "ledger_freeze_lapsed": ("frozen", f"The environment is frozen: {freezes.LAPSED}."),
    "ledger_order": ("wrong-state", "A deployment goes from pending to running to finished."),
}
