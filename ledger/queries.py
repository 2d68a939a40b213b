"""What the ledger says: what runs where, what may be promoted, and what an environment can be rolled back to."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import OuterRef, QuerySet, Subquery

from ledger.models import IN_FLIGHT, Deployment, Environment, Release

RECENT = 200  # how far promotable() and rollback_targets() look back, in deployments or releases
LATELY = 50  # how far previous_good() looks back, in deployments


def board(environments: QuerySet[Environment] | None = None, *, recent: int = 5) -> list[Environment]:
    """Returns the environments (all, unless given) in order, each with its `current` and `in_flight` deployment, with
    `failed` (the last that failed or was rolled back) and `recent` (its newest, as many as asked for).

    Two queries, however many deployments there are. Releases are joined; steps are not loaded, and cost one query more
    with `prefetch_related_objects`.
    """
    here = Deployment.objects.filter(environment=OuterRef("pk")).newest_first().values("pk")
    slots = {f"_recent_{n}": Subquery(here[n : n + 1]) for n in range(recent)}
    rows: list[Environment] = list(
        (Environment.objects.all() if environments is None else environments)
        .select_related("promotes_from")
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
    return rows


def succeeded(release: Release, environment: int) -> bool:
    """Whether `release` was ever live in the environment of that key."""
    return Deployment.objects.filter(
        release=release, environment=environment, status=Deployment.Status.SUCCEEDED
    ).exists()


def live(environment: Environment) -> Deployment | None:
    """What put there what runs in `environment` now: the last deployment that succeeded.

    An environment takes one deployment at a time, so the order in which they were created is the order in which their
    releases became live. The same holds for rollback_targets() and previous_good(): a release counts by its last
    deployment there, not by when it was built or first arrived.
    """
    found = Deployment.objects.filter(environment=environment, status=Deployment.Status.SUCCEEDED)
    return found.newest_first().select_related("release").first()


@dataclass(frozen=True)
class Candidate:
    """A release that may go to an environment, and when it succeeded where it came from (None: it need not have)."""

    release: Release
    proven: datetime | None


def promotable(environment: Environment, limit: int = 20) -> list[Candidate]:
    """Releases that may go there without being a hotfix and have not been live there yet, the newest first.

    Behind a gate: what has succeeded in the gate's environment, of its last RECENT deployments that did. Without one:
    any release of the last RECENT built.
    """
    if environment.promotes_from_id:
        found = Deployment.objects.filter(environment=environment.promotes_from_id, status=Deployment.Status.SUCCEEDED)
        candidates: dict[int, Candidate] = {}
        for each in found.newest_first().select_related("release")[:RECENT]:
            candidates.setdefault(each.release_id, Candidate(each.release, each.finished))
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
    """A release that an environment can go back to, and the last deployment that had put it there."""

    release: Release
    deployment: Deployment


def rollback_targets(environment: Environment, limit: int = 20) -> list[RollbackTarget]:
    """Releases that were live there before the one that is, the last first; of the last RECENT that succeeded."""
    found = Deployment.objects.filter(environment=environment, status=Deployment.Status.SUCCEEDED)
    targets: dict[int, RollbackTarget] = {}
    for each in found.newest_first().select_related("release")[:RECENT]:
        each.environment = environment
        targets.setdefault(each.release_id, RollbackTarget(each.release, each))
    return list(targets.values())[1 : limit + 1]  # the first is what runs


def previous_good(environment: Environment) -> str | None:
    """The version to go back to if what runs there proves bad: the last that was live before it and that nobody has
    rolled back from. None if there is none among the last LATELY that succeeded.
    """
    found = Deployment.objects.filter(environment=environment, status=Deployment.Status.SUCCEEDED).newest_first()
    current, left = None, set()
    for version, kind, before in found.values_list("release__version", "kind", "previous__release__version")[:LATELY]:
        current = current or version
        if version != current and version not in left:
            return str(version)
        if kind == Deployment.Kind.ROLLBACK:
            left.add(before)
    return None
