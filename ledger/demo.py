"""A mock history for development: 90 days of a small team's deployments, written through ledger.rules.

Its people are the demo accounts, and its pipeline is named as a demo. Dates are relative to today.
"""

import hashlib
import random
from collections.abc import Callable
from datetime import datetime, timedelta

from django.contrib.auth import get_user_model
from django.db import transaction
from django.utils import timezone

from ledger import queries, rules, steps
from ledger.environments import config_of, names, production_names
from ledger.models import Approval, Deployment, Environment, Step

DAYS = 90
PEOPLE = ("demo@example.com", "demo-admin@example.com")
PIPELINE = "demo-pipeline"
CHANGES = (
    "Show the display name in the header",
    "Answer 304 for avatars that have not changed",
    "Add the language to the profile",
    "Update Django",
    "Make the sign-up form shorter",
    "Fix the order of the member list",
    "Log slow queries",
    "Paginate the member list",
    "Update the base image",
    "Cache the home page for anonymous visitors",
    "Speed up password hashing in tests",
    "Add a search to the member list",
    "Remove an index that nothing used",
)
URGENT = "Fix sign-in after a password reset"
# The releases that do not simply go live, by number: where or how each fails, or that it is rolled back later.
# A number is a stage before production, from its end.
FATES: dict[int, str | int] = {4: -2, 7: "failed", 11: "rolled_back", 13: "withdrawn", 15: -1, 16: "failed"}
REGISTRY = "registry.example.com"
# The durations of the steps that simulate() runs, in seconds.
SECONDS = {steps.SMOKE_TEST: 40, steps.SWITCH: 6, steps.WATCH: 60, steps.MARK_GOOD: 3}


def load(profile: str) -> str | None:
    """Writes the history if `profile` is mock and the ledger is empty. Returns a message, or None if it did not."""
    if profile != "mock" or Deployment.objects.exists():
        return None
    with transaction.atomic():
        History(timezone.now(), random.Random(4)).write()
    return f"A history of {Deployment.objects.count()} deployments. manage.py deployments lists them."


def simulate(wait: Callable[[timedelta], bool]) -> int:
    """Runs the mock deployments in progress to their end, as slowly as real ones. Returns how many have finished.

    `wait` sleeps for that long, and returns False to stop. Steps that are overdue finish in the past, without a wait.
    """
    mock = Deployment.objects.filter(
        status=Deployment.Status.RUNNING, actor__in=PEOPLE, release__image__startswith=f"{REGISTRY}/"
    )
    ended = 0
    for deployment in mock:
        step = deployment.steps.filter(outcome=Step.Outcome.RUNNING).first()
        if step is None or step.name not in SECONDS:
            continue
        at, names = step.started, list(SECONDS)
        for name in names[names.index(step.name) :]:
            rules.step(deployment.pk, name, "running", at=at)
            at += timedelta(seconds=SECONDS[name])
            if at > timezone.now() and not wait(at - timezone.now()):
                return ended
            rules.step(deployment.pk, name, "succeeded", at=at)
        rules.finish(deployment.pk, "succeeded", failed_requests=0, at=at)
        ended += 1
    return ended


def approve(deployment: Deployment, at: datetime) -> None:
    """Approves a mock deployment, as those demo accounts did who have not asked for it."""
    others = [email for email in PEOPLE if email != deployment.actor]
    for email in others[: deployment.environment.approvals]:
        user, _ = get_user_model().objects.get_or_create(email=email)  # demo_data has made them before
        Approval.objects.create(
            deployment=deployment, approver=user, name=user.email, verdict=Approval.Verdict.APPROVED, time=at
        )


class History:
    """Writes the releases and their deployments, one after the other."""

    def __init__(self, now: datetime, chance: random.Random) -> None:
        self.now = now
        self.chance = chance
        self.production = production_names()[0]
        every = names()
        before = every[: every.index(self.production)]
        self.local = before[0] if len(before) > 2 else ""  # where people try things out
        self.stages = before[1:] if self.local else before  # on the way to production
        self.after = every[len(before) + 1 :]

    def write(self) -> None:
        count, at = 18, self.now - timedelta(days=DAYS)
        for number in range(count):
            at = self.now - timedelta(days=DAYS * (1 - number / (count - 0.2)), hours=self.chance.uniform(0, 9))
            fate = FATES.get(number, "")
            self.travel(self.release(f"1.{number}.0", CHANGES[number % len(CHANGES)], at), at, fate)
            if number == 12:
                self.hotfix("1.12.1", at + timedelta(hours=20))
        last = self.release(f"1.{count}.0", "Draw deployments as a timeline", self.now - timedelta(minutes=50))
        at, times = self.now - timedelta(minutes=25) - self.soak(self.production), []
        for stage in reversed(self.stages):
            times.append((stage, at))
            at -= timedelta(minutes=17) + self.soak(stage)
        for stage, at in reversed(times):
            self.deploy(last, stage, at)
        key, at, begun = self.begin(
            last, self.production, self.now - timedelta(seconds=95), strategy="blue-green", actor=PEOPLE[0]
        )
        for name in begun[:2]:
            rules.step(key, name, "running", at=at)
            at += timedelta(seconds=self.chance.uniform(15, 40))
            rules.step(key, name, "succeeded", at=at)
        rules.step(key, begun[2], "running", at=at)

    def release(self, version: str, message: str, at: datetime) -> str:
        commit = hashlib.sha1(version.encode(), usedforsecurity=False).hexdigest()
        image = f"{REGISTRY}/backstagetest1:{commit}"
        rules.register(version, commit, at, message, image, at=at)
        return version

    def soak(self, environment: str) -> timedelta:
        """Returns how long a release must have been live before it is promoted to `environment`."""
        return config_of(environment).soak

    def travel(self, version: str, at: datetime, fate: str | int) -> None:
        """Takes a release through the stages, after approval to production, and from there to what comes after it."""
        if self.local and self.chance.random() < 0.3:
            at = self.deploy(version, self.local, at + timedelta(minutes=5), actor=self.chance.choice(PEOPLE))
        for number, stage in enumerate(self.stages, -len(self.stages)):
            pause = timedelta(minutes=8 if number == -len(self.stages) else 3) + self.soak(stage)
            at = self.deploy(version, stage, at + pause, "failed" if number == fate else "succeeded")
            if number == fate:
                return
        at += self.soak(self.production)
        at += timedelta(hours=self.chance.uniform(1, 20))
        strategy = "blue-green" if self.chance.random() < 0.6 else "rolling"
        person = self.chance.choice(PEOPLE)
        result = fate if fate in ("failed", "rolled_back") else "succeeded"
        at = self.deploy(version, self.production, at, str(result), strategy=strategy, actor=person)
        if result == "succeeded" and fate != "withdrawn":
            for place in self.after:
                at = self.deploy(version, place, at + timedelta(minutes=20) + self.soak(place), actor=person)
        if fate == "withdrawn":
            target = queries.rollback_targets(Environment.objects.get(name=self.production))[0].release.version
            self.deploy(
                target,
                self.production,
                at + timedelta(minutes=37),
                strategy=strategy,
                actor=person,
                kind="rollback",
                reason="Members could not change their picture",
            )

    def hotfix(self, version: str, at: datetime) -> None:
        self.release(version, URGENT, at)
        actor, reason = PEOPLE[1], "Nobody who had reset a password could sign in"
        if self.local:
            at = self.deploy(version, self.local, at + timedelta(minutes=6), actor=actor)
        self.deploy(version, self.production, at + timedelta(minutes=4), actor=actor, hotfix=True, reason=reason)

    def begin(
        self,
        version: str,
        environment: str,
        at: datetime,
        *,
        strategy: str = "rolling",
        actor: str = PIPELINE,
        kind: str = "deploy",
        hotfix: bool = False,
        reason: str = "",
    ) -> tuple[int, datetime, tuple[str, ...]]:
        """Starts a deployment and its first step. Returns its key, the step's start and all steps' names."""
        row = rules.create(
            environment, version, strategy, actor, kind=kind, hotfix=hotfix, reason=reason, run_url="", at=at
        )
        at += timedelta(seconds=self.chance.uniform(1, 6))
        if row.status == Deployment.Status.WAITING:
            approve(row, at)
        rules.start(row.pk, at=at)
        begun = steps.DEPLOY if kind == "deploy" else steps.ROLLBACK
        rules.step(row.pk, begun[0], "running", at=at)
        return row.pk, at, begun

    def deploy(
        self,
        version: str,
        environment: str,
        at: datetime,
        result: str = "succeeded",
        *,
        strategy: str = "rolling",
        actor: str = PIPELINE,
        kind: str = "deploy",
        hotfix: bool = False,
        reason: str = "",
    ) -> datetime:
        """Writes a whole deployment, and returns when it finished.

        `failed` fails in the smoke test, `rolled_back` in the watch.
        """
        key, at, begun = self.begin(
            version, environment, at, strategy=strategy, actor=actor, kind=kind, hotfix=hotfix, reason=reason
        )
        fails = {"failed": steps.SMOKE_TEST, "rolled_back": steps.WATCH}.get(result)
        for name in begun:
            rules.step(key, name, "running", at=at)
            at += timedelta(seconds=self.chance.uniform(8, 90))
            if name == fails:
                rules.step(key, name, "failed", at=at)
                break
            rules.step(key, name, "succeeded", at=at)
        if fails:
            rules.step(key, steps.ROLL_BACK, "running", at=at)
            at += timedelta(seconds=self.chance.uniform(10, 40))
            rules.step(key, steps.ROLL_BACK, "succeeded", at=at)
        rules.finish(key, result, at=at)
        return at
