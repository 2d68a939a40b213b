"""What has to be so before a release is begun. scripts/rollback.sh makes the checks of the same names.

Each finds what would otherwise be noticed half-way, when the database is migrated or visitors are affected.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from deploy.targets.kubernetes.objects import (
    APP,
    CAUSE,
    MIGRATE_SECRET,
    Object,
    Snapshot,
    annotations,
    condition,
    failure_reason,
    image_of,
    interrupted,
    tag,
    template,
)

# (verb, resource) that both tools need, and those that only a deployment needs or that rollback.sh can do without.
RIGHTS = (("patch", "deployments.apps"),)
BLUE_GREEN_RIGHTS = (("patch", "services"),)
MORE_RIGHTS = (
    ("patch", "replicasets.apps"),
    ("patch", "cronjobs.batch"),
    ("create", "jobs.batch"),
    ("delete", "jobs.batch"),
    ("create", "pods/exec"),
)
MORE_BLUE_GREEN_RIGHTS = (("patch", "deployments/scale.apps"), ("patch", "pods"))
TWO_DATABASES_RIGHTS = (("get", "pods/log"),)

# What a pod of a quota counts as, besides its containers' resources.
# https://kubernetes.io/docs/concepts/policy/resource-quotas/
ONE_POD = {"pods": "1", "count/pods": "1"}
THOUSANDTHS = {suffix: 1000**power for power, suffix in enumerate(("m", "", "k", "M", "G", "T"))}
THOUSANDTHS |= {f"{suffix}i": 1000 * 1024**power for power, suffix in enumerate("KMGT", 1)}


@dataclass(frozen=True)
class Facts:
    """What the checks look at."""

    snapshot: Snapshot
    active: str  # the Deployment that has the traffic
    incoming: str  # the Deployment that gets the release
    version: str
    limits: Sequence[Object]  # the autoscalers and quotas, as far as they may be read
    rules: Sequence[Object] | None  # what the user may do; None if that is unknown
    missing: Sequence[str]  # what the pods need, and the namespace lacks
    kubectl: str  # how a person types it
    two_databases: bool = False  # whether the release gets a database of its own

    @property
    def live(self) -> Object:
        """The Deployment with the traffic; empty if there is none."""
        return self.snapshot.find("Deployment", self.active)

    @property
    def next(self) -> Object:
        """The Deployment that gets the release; empty if there is none."""
        return self.snapshot.find("Deployment", self.incoming)


def problem(facts: Facts) -> str:
    """What is in the way of a release, what was expected and what to do; empty if nothing is."""
    return next(filter(None, (check(facts) for check in CHECKS.values())), "")


def service(facts: Facts) -> str:
    """The Service is missing, or selects nothing."""
    return "" if facts.snapshot.find("Service", APP).get("spec", {}).get("selector") else facts.snapshot.no_service


def deployment(facts: Facts) -> str:
    """A Deployment is missing."""
    found = ((facts.active, facts.live), (facts.incoming, facts.next))
    names = [name for name, there in found if not there]
    return f"Deployment {names[0]} not found in namespace {facts.snapshot.namespace}." if names else ""


def container(facts: Facts) -> str:
    """A Deployment has no container of the app."""
    for found in (facts.live, facts.next):
        if not image_of(template(found)):
            name = found["metadata"]["name"]
            return f"deployment/{name} has no container named {APP}. Apply the manifests first."
    return ""


def several(facts: Facts) -> str:
    """The Service selects pods of more than one Deployment, so a release would get part of the traffic only."""
    selector = facts.snapshot.selector().items()
    names = [
        found["metadata"]["name"]
        for found in facts.snapshot.items
        if found["kind"] == "Deployment"
        and selector <= found["spec"]["template"]["metadata"].get("labels", {}).items()
        and found["spec"].get("replicas", 1)
    ]
    others = " and ".join(f"deployment/{name}" for name in names if name != facts.active)
    if not others:
        return ""
    return (
        f"service/{APP} selects the pods of {others} as well; expected those of deployment/{facts.active} alone. "
        f"Delete the other, or scale it to 0."
    )


def paused(facts: Facts) -> str:
    """The Deployment takes no new template."""
    if not facts.next["spec"].get("paused"):
        return ""
    name = f"deployment/{facts.incoming}"
    return f"{name} is paused. Resume it first: {facts.kubectl} rollout resume {name}."


def replicas(facts: Facts) -> str:
    """The live Deployment is scaled to zero, so no pod could be verified."""
    if facts.live["spec"].get("replicas", 1):
        return ""
    name = f"deployment/{facts.active}"
    return (
        f"{name} is scaled to 0, so {facts.version} could not be verified. "
        f"Scale it up first: {facts.kubectl} scale {name} --replicas=3."
    )


def rollout(facts: Facts) -> str:
    """Somebody else's rollout is under way, and may still succeed."""
    found, status = facts.live, facts.live.get("status", {})
    count, updated = status.get("replicas", 0), status.get("updatedReplicas", 0)
    under_way = status.get("observedGeneration", 0) < found["metadata"]["generation"] or count > updated
    image = image_of(template(found))
    ours = annotations(found).get(CAUSE) == f"deploy {tag(image)}" and interrupted(found)
    if not under_way or ours or condition(found, "ReplicaFailure") or not condition(found, "Progressing"):
        return ""
    pods = facts.snapshot.pods(found["spec"]["selector"]["matchLabels"])
    if failure_reason([pod for pod in pods if image_of(pod["spec"]) == image]):
        return ""
    name = f"deployment/{facts.active}"
    return (
        f"A rollout to {tag(image)} is in progress in {name} ({updated} of {found['spec']['replicas']} updated). "
        f"Wait for it to finish: {facts.kubectl} rollout status {name}."
    )


def autoscaler(facts: Facts) -> str:
    """An autoscaler would take away pods that the release needs."""
    wanted = facts.live["spec"].get("replicas", 1)
    for found in facts.limits:
        spec = found["spec"]
        if found["kind"] != "HorizontalPodAutoscaler" or spec["scaleTargetRef"]["name"] != facts.incoming:
            continue
        if spec["maxReplicas"] < wanted:
            return (
                f"horizontalpodautoscaler/{found['metadata']['name']} allows deployment/{facts.incoming} at most "
                f"{spec['maxReplicas']} pods; expected {wanted}. Raise its maxReplicas first."
            )
    return ""


def quota(facts: Facts) -> str:
    """A quota leaves no room for the pods that are needed at once: one, or as many as the idle colour lacks."""
    count = 1
    if facts.active != facts.incoming:
        count = max(1, facts.live["spec"].get("replicas", 1) - facts.next["spec"].get("replicas", 1))
    needs = defaultdict(float, {name: thousandths(amount) for name, amount in ONE_POD.items()})
    for each in template(facts.next)["containers"]:
        for kind in ("requests", "limits"):
            for name, amount in each.get("resources", {}).get(kind, {}).items():
                needs[f"{kind}.{name}"] += thousandths(amount)
    for found in facts.limits:
        if found["kind"] != "ResourceQuota" or found["spec"].keys() & {"scopes", "scopeSelector"}:
            continue
        hard, used = (found.get("status", {}).get(each, {}) for each in ("hard", "used"))
        for name in hard:
            more = count * (needs[name] or needs[f"requests.{name}"])
            if name in used and more and thousandths(used[name]) + more > thousandths(hard[name]):
                return (
                    f"resourcequota/{found['metadata']['name']} has no room for {count} more "
                    f"{'pod' if count == 1 else 'pods'}: {name} is used up to {used[name]} of {hard[name]}. "
                    "Raise it, or make room, first."
                )
    return ""


def rights(facts: Facts) -> str:
    """The user may not do what a release needs."""
    needed = [*RIGHTS, *MORE_RIGHTS]
    if facts.active != facts.incoming:
        needed += [*BLUE_GREEN_RIGHTS, *MORE_BLUE_GREEN_RIGHTS]
    if facts.two_databases:
        needed += TWO_DATABASES_RIGHTS
    rules = facts.rules
    if rules is None:
        return ""
    lacking = [f"{verb} {what}" for verb, what in needed if not any(grants(rule, verb, what) for rule in rules)]
    if not lacking:
        return ""
    namespace = facts.snapshot.namespace
    needs = ", ".join(lacking)
    return f"Missing rights in namespace {namespace}: {needs}. Have them granted; docs/deploying.md lists all."


def references(facts: Facts) -> str:
    """The pods could not start for want of what they name."""
    if not facts.missing:
        return ""
    return (
        f"New pods could not start: namespace {facts.snapshot.namespace} lacks {', '.join(facts.missing)}, which "
        f"deployment/{facts.incoming} or its migrate Job names. Create it first."
    )


CHECKS: dict[str, Callable[[Facts], str]] = {
    check.__name__: check
    for check in (
        service,
        deployment,
        container,
        several,
        paused,
        replicas,
        rollout,
        autoscaler,
        quota,
        rights,
        references,
    )
}


def grants(rule: Object, verb: str, what: str) -> bool:
    """Whether a rule of a SelfSubjectRulesReview allows the verb for such a resource, as in "jobs.batch"; if only for
    some names, those of the app are assumed to be among them.

    https://kubernetes.io/docs/reference/access-authn-authz/authorization/#checking-api-access
    """
    resource, _, group = what.partition(".")
    names = {"*", resource, f"*/{resource.partition('/')[2]}"} if "/" in resource else {"*", resource}
    return bool(
        {"*", verb} & set(rule["verbs"])
        and {"*", group} & set(rule.get("apiGroups", []))
        and names & set(rule.get("resources", []))
    )


def named(pod: Object) -> list[str]:
    """What a pod cannot start without, as `kubectl get --output name` prints it: configmap/x, secret/y and the like."""
    return sorted({f"secret/{MIGRATE_SECRET}", *all_named(pod)})


def all_named(pod: Object) -> Iterator[str]:
    """Yields it."""
    if pod.get("serviceAccountName"):
        yield f"serviceaccount/{pod['serviceAccountName']}"
    for volume in pod.get("volumes", []):
        for source in (volume, *volume.get("projected", {}).get("sources", [])):
            yield from references_in(source, "configMap", "secret")
        if claim := volume.get("persistentVolumeClaim"):
            yield f"persistentvolumeclaim/{claim['claimName']}"
    for each in (*pod.get("initContainers", []), *pod["containers"]):
        for source in each.get("envFrom", []):
            yield from references_in(source, "configMapRef", "secretRef")
        for variable in each.get("env", []):
            yield from references_in(variable.get("valueFrom", {}), "configMapKeyRef", "secretKeyRef")


def references_in(source: Object, *keys: str) -> Iterator[str]:
    """Yields the names of the ConfigMap and the Secret under these keys, unless they are optional."""
    for kind, key in zip(("configmap", "secret"), keys, strict=True):
        if (found := source.get(key)) and not found.get("optional"):
            yield f"{kind}/{found.get('name') or found.get('secretName')}"


def thousandths(quantity: str) -> float:
    """The thousandths in a quantity such as 2, 100m or 256Mi, as the API server writes most of them; else NaN, which is
    never too much.

    https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
    """
    found = re.fullmatch(r"(\d+)([a-zA-Z]*)", quantity)
    return int(found[1]) * THOUSANDTHS[found[2]] if found and found[2] in THOUSANDTHS else math.nan
