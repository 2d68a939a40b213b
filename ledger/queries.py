"""What the ledger says: what runs where, what may be promoted, and what an environment can be rolled back to."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Exists, OuterRef, Q, QuerySet, Subquery
from django.utils import timezone

from ledger.models import IN_FLIGHT, Approval, Deployment, Environment, Release

RECENT = 200  # deployments or releases that promotable() and rollback_targets() look back at
UNDECIDED = 20  # deployments that the board shows for a decision
LATELY = 50  # deployments that previous_good() looks back at


def environment_names() -> list[str]:
    """Returns the names of the environments on the board, in order."""
    return list(Environment.objects.on_board().values_list("name", flat=True))


def board(environments: QuerySet[Environment] | None = None, *, recent: int = 5) -> list[Environment]:
    """Returns the environments (those of the file, unless given) in order, each with its `current` and `in_flight`
    deployment, with `failed` (the last that failed or was rolled back) and `recent` (its newest, as many as asked for);
    with those `waiting` for approval, and the `unreviewed` that went without.

    Five queries, however many deployments there are. Releases are joined; steps are not loaded, and cost one query
    more with `prefetch_related_objects`.
    """
    here = Deployment.objects.filter(environment=OuterRef("pk")).newest_first().values("pk")
    slots = {f"_recent_{n}": Subquery(here[n : n + 1]) for n in range(recent)}
    rows: list[Environment] = list(
        (Environment.objects.on_board() if environments is None else environments)
        .select_related("lock")
        .prefetch_related("promotes_from")
        .order_by("order")
        .annotate(
            _current=Subquery(here.filter(status=Deployment.Status.SUCCEEDED)[:1]),
            _in_flight=Subquery(here.filter(status__in=IN_FLIGHT)[:1]),
            # One status each, so that the planner reads the end of an index, and finds as fast that there is none.
            _failed=Subquery(here.filter(status=Deployment.Status.FAILED)[:1]),
            _rolled_back=Subquery(here.filter(status=Deployment.Status.ROLLED_BACK)[:1]),
            **slots,
        )
    )
    names = ("_current", "_in_flight", "_failed", "_rolled_back", *slots)
    wanted = {key for row in rows for name in names if (key := getattr(row, name)) is not None}
    found = Deployment.objects.select_related("release", "previous__release").in_bulk(wanted)
    for row in rows:
        row.current, row.in_flight = found.get(getattr(row, "_current")), found.get(getattr(row, "_in_flight"))
        failures = [found[key] for name in ("_failed", "_rolled_back") if (key := getattr(row, name)) in found]
        row.failed = max(failures, key=lambda each: (each.created, each.pk), default=None)
        row.recent = [found[key] for name in slots if (key := getattr(row, name)) in found]
        for deployment in (row.current, row.in_flight, row.failed, *row.recent):
            if deployment:
                deployment.environment = row
    add_undecided(rows)
    return rows


def add_undecided(rows: list[Environment]) -> None:
    """Gives each environment its deployments that somebody has to decide about, latest first."""
    by_key = {row.pk: row for row in rows}
    for row in rows:
        row.waiting, row.unreviewed = [], []
    here = Deployment.objects.filter(environment__in=by_key).select_related("release", "previous__release")
    for each in here.filter(status=Deployment.Status.WAITING).newest_first()[:UNDECIDED]:
        each.environment = by_key[each.environment_id]
        each.environment.waiting.append(each)
    for each in here.filter(unreviewed()).newest_first()[:UNDECIDED]:
        each.environment = by_key[each.environment_id]
        each.environment.unreviewed.append(each)


def unreviewed() -> Q:
    """Returns the condition for deployments that broke the glass and have not been reviewed yet."""
    reviews = Approval.objects.filter(deployment=OuterRef("pk"), verdict=Approval.Verdict.REVIEWED)
    return Q(~Exists(reviews), break_glass=True)


@dataclass(frozen=True)
class Standing:
    """How many approvals a waiting deployment has and needs, until when those are valid, and whose they are."""

    given: int
    needed: int
    ends: datetime | None
    names: tuple[str, ...]

    @property
    def approved(self) -> bool:
        """Whether it may run."""
        return self.given >= self.needed


def standing(deployment: Deployment, now: datetime) -> Standing:
    """Returns the standing of a waiting deployment. An approver counts once, by the last approval."""
    life = timedelta(seconds=deployment.environment.approval_seconds)
    valid: dict[int, Approval] = {}
    found = deployment.approvals.filter(verdict=Approval.Verdict.APPROVED, digest=deployment.digest)
    for each in found.exclude(approver=None).order_by("time", "pk"):
        if each.approver_id and each.approver_id != deployment.requester and each.time > now - life:
            valid[each.approver_id] = each
    latest = sorted(valid.values(), key=lambda each: each.time)
    needed = deployment.environment.approvals
    counted = latest[-needed:] if needed else []
    ends = min((each.time + life for each in counted), default=None)
    return Standing(len(latest), needed, ends, tuple(each.name for each in latest))


def is_current(deployment: Deployment) -> bool:
    """Tells whether what was live when it was requested is live still: nothing else went live there meanwhile."""
    now_live = live(deployment.environment)
    return (now_live and now_live.pk) == deployment.previous_id


def succeeded(release: Release, environment: int) -> bool:
    """Returns whether `release` was ever live in the environment with that primary key."""
    return Deployment.objects.filter(
        release=release, environment=environment, status=Deployment.Status.SUCCEEDED
    ).exists()


def live(environment: Environment) -> Deployment | None:
    """Returns the deployment that is live in `environment`: the last that succeeded; None if none has.

    An environment takes one deployment at a time, so releases became live in the order in which their deployments were
    created. The same holds for rollback_targets() and previous_good(): a release counts by its last
    deployment there, not by when it was built or first arrived.
    """
    found = Deployment.objects.filter(environment=environment, status=Deployment.Status.SUCCEEDED)
    return found.newest_first().select_related("release").first()


@dataclass(frozen=True)
class Stay:
    """A time for which a release was live in an environment without a break, up to now or until another was."""

    release: Release
    environment: Environment
    since: datetime
    duration: timedelta


def stays(environment: Environment, now: datetime, rows: Iterable[Deployment]) -> Iterator[Stay]:
    """Yields the stays in `environment`, latest first, by `rows`: what has succeeded there, newest first."""
    latest: Deployment | None = None  # of the release that the rows have come to
    end = now
    for row in rows:
        if latest and latest.release_id != row.release_id and latest.finished:
            end = min(end, latest.finished)
        latest = row
        if row.finished:
            yield Stay(row.release, environment, row.finished, max(end - row.finished, timedelta()))


def sources(environment: Environment, now: datetime) -> list[Stay]:
    """Returns the stays of releases where `environment` is promoted from, latest first: of each of those environments,
    the last RECENT deployments that succeeded.
    """
    found: list[Stay] = []
    for source in environment.promotes_from.all():
        lived = Deployment.objects.filter(environment=source, status=Deployment.Status.SUCCEEDED).newest_first()
        found += stays(source, now, lived.select_related("release")[:RECENT])
    return sorted(found, key=lambda each: each.since, reverse=True)


def stays_of(release: Release, environment: Environment, now: datetime) -> list[Stay]:
    """Returns the last LATELY stays of `release` where `environment` is promoted from."""
    found = []
    for source in environment.promotes_from.all():
        lived = Deployment.objects.filter(environment=source, status=Deployment.Status.SUCCEEDED)
        for since in lived.filter(release=release).newest_first().values_list("finished", flat=True)[:LATELY]:
            assert since
            others = lived.exclude(release=release).filter(finished__gt=since).order_by("created", "pk")
            end = min(now, others.values_list("finished", flat=True).first() or now)
            found.append(Stay(release, source, since, max(end - since, timedelta())))
    return found


@dataclass(frozen=True)
class Candidate:
    """A release that can be deployed to an environment, and since when it is live in one before, if required."""

    release: Release
    proven: datetime | None


def promotable(environment: Environment, limit: int = 20) -> list[Candidate]:
    """Returns the releases that can be deployed there without a hotfix and have not been live there, newest first.

    If the environment is promoted from others, they are among the last RECENT deployments that succeeded in each, and
    were live there for long enough; otherwise they are among the last RECENT releases built.
    """
    candidates: dict[int, Candidate] = {}
    if environment.promotes_from.exists():
        for each in sources(environment, timezone.now()):
            if each.duration >= timedelta(seconds=environment.soak):
                candidates.setdefault(each.release.pk, Candidate(each.release, each.since))
    else:
        newest = Release.objects.order_by("-built_at", "-pk")[:RECENT]
        candidates = {release.pk: Candidate(release, None) for release in newest}
    been = set(
        Deployment.objects.filter(
            environment=environment, status=Deployment.Status.SUCCEEDED, release__in=list(candidates)
        )
        .order_by()
        .values_list("release_id", flat=True)
    )
    return [candidate for key, candidate in candidates.items() if key not in been][:limit]


@dataclass(frozen=True)
class RollbackTarget:
    """A release that an environment can be rolled back to, and the last deployment of it there."""

    release: Release
    deployment: Deployment


def rollback_targets(environment: Environment, limit: int = 20) -> list[RollbackTarget]:
    """Returns the releases that were live before the current one, latest first, of the last RECENT to succeed."""
    found = Deployment.objects.filter(environment=environment, status=Deployment.Status.SUCCEEDED)
    targets: dict[int, RollbackTarget] = {}
    for each in found.newest_first().select_related("release")[:RECENT]:
        each.environment = environment
        targets.setdefault(each.release_id, RollbackTarget(each.release, each))
    return list(targets.values())[1 : limit + 1]  # the first is the current one


def previous_good(environment: Environment) -> str | None:
    """Returns the version to roll back to: the last one live before the current one that nobody has rolled back from.

    None if there is none among the last LATELY deployments that succeeded.
    """
    found = Deployment.objects.filter(environment=environment, status=Deployment.Status.SUCCEEDED).newest_first()
    current, abandoned = None, set()
    for version, kind, before in found.values_list("release__version", "kind", "previous__release__version")[:LATELY]:
        current = current or version
        if version != current and version not in abandoned:
            return str(version)
        if kind == Deployment.Kind.ROLLBACK:
            abandoned.add(before)
    return None
