"""The cluster's objects as kubectl prints them in JSON: what they say, and the Jobs that the deployer creates.

docs/kubernetes.md lists their names. Nothing here talks to the cluster.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

from deploy.errors import StepFailed

APP = "backstagetest1"
TRIAL = f"{APP}-trial"  # the Job with the one pod that a rolling release is tested in
COLOURS = ("blue", "green")

# Annotations of a Deployment; scripts/rollback.sh reads and writes the same.
BEFORE = f"{APP}/before"  # while a run is unfinished: the version and the hash of the revision that it replaces
BREAK = f"{APP}/schema-break"
LIVE = f"{APP}/live-since"  # when the revision last became live: RFC 3339, UTC
PACE = f"{APP}/pace"  # minReadySeconds, maxSurge and maxUnavailable, which rollback.sh restores once it is done
CAUSE = "kubernetes.io/change-cause"
# Annotations of a ReplicaSet, which is a revision: a pod template, so an image and its settings. Each names the hash
# that it is about, as the Deployment's controller and `kubectl rollout undo` copy annotations to other revisions.
VERIFIED, WITHDRAWN = f"{APP}/verified-good", f"{APP}/withdrawn"
REVISION = "deployment.kubernetes.io/revision"
HASH = "pod-template-hash"

# Annotation of a pod: since when it closes each connection with its next answer. The pod reads it as a file.
# https://kubernetes.io/docs/concepts/workloads/pods/downward-api/
CLOSE = f"{APP}/close-connections"

# Who applies the overlays: `./run manifests | kubectl apply --server-side` by kubectl's own name, and the deployer by
# the same. By another name, each later change of a schedule, say, would be refused as a conflict with the deployer's.
# https://kubernetes.io/docs/reference/using-api/server-side-apply/#managers
FIELD_MANAGER = "kubectl"

MIGRATE_SECRET = f"{APP}-migrate"  # its database-url is that of the tables' owner
COMMANDS = f"{APP}-bluegreen"  # the Job that runs manage.py bluegreen; the CronJobs' names begin with it
OWN_DATABASE = "DATABASE_COLOUR"  # the variable that names the database that was prepared for a release
# The keys of both databases' URLs, in the app's Secret and in MIGRATE_SECRET, by the variable.
DATABASE_KEYS = {"DATABASE_URL_BLUE": "database-url-blue", "DATABASE_URL_GREEN": "database-url-green"}
MIGRATE_CAUSE = "migrate for "  # how the cause of a migrate Job that the deployer made begins
MIGRATION_TIMEOUT = 1800  # seconds that a migrate Job may run
MIGRATION_KEPT = 7 * 86_400  # seconds that a finished one stays, with its log
TRIAL_KEPT = 300  # seconds that a finished trial stays
NAME_LENGTH = 63  # characters of a DNS label (RFC 1123)
GONE = "unable to retrieve container logs"  # printed instead of the log once the kubelet has removed the container

# The reasons for which a waiting container will not start by itself; scripts/rollback.sh has the same list.
# https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#container-states
FATAL_WAITING_REASONS = {
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
}

Object = dict[str, Any]


class Snapshot:
    """The Deployments, Services and pods of a namespace at one moment."""

    def __init__(self, namespace: str, items: Sequence[Object]) -> None:
        self.namespace, self.items = namespace, items
        self.no_service = (
            f"Service {APP} with a selector not found in namespace {namespace}. Apply the manifests first."
        )

    def find(self, kind: str, name: str) -> Object:
        """The object; empty if there is none."""
        return next((one for one in self.items if (one["kind"], one["metadata"]["name"]) == (kind, name)), {})

    def deployment(self, name: str) -> Object:
        """The Deployment. Raises StepFailed if there is none."""
        found = self.find("Deployment", name)
        if not found:
            raise StepFailed(f"Deployment {name} not found in namespace {self.namespace}.")
        return found

    def replicaset(self, name: str) -> Object:
        """The ReplicaSet of the Deployment's pod template; empty until its controller has created it. Raises
        StepFailed if the Deployment does not exist.
        """
        found = self.deployment(name)
        if found.get("status", {}).get("observedGeneration", 0) < found["metadata"]["generation"]:
            return {}
        number = annotations(found).get(REVISION)
        owned = (one for one in self.items if one["kind"] == "ReplicaSet" and owner(one) == name)
        return next((one for one in owned if annotations(one).get(REVISION) == number), {})

    def selector(self) -> dict[str, str]:
        """The labels of the pods that the active Service sends traffic to. Raises StepFailed without such a Service."""
        found = self.find("Service", APP).get("spec", {}).get("selector")
        if not found:
            raise StepFailed(self.no_service)
        return dict(found)

    def colour(self) -> str:
        """The colour that has the traffic. Raises StepFailed."""
        return self.selector().get("colour", "blue")

    def pods(self, labels: dict[str, str]) -> list[Object]:
        """The pods with these labels, without those that are being deleted."""
        pods = [one for one in self.items if one["kind"] == "Pod" and not one["metadata"].get("deletionTimestamp")]
        return [pod for pod in pods if labels.items() <= pod["metadata"].get("labels", {}).items()]

    def live_pods(self) -> list[Object]:
        """The ready pods that have the traffic. Raises StepFailed."""
        return [pod for pod in self.pods(self.selector()) if ready(pod)]


# What objects say


def annotations(found: Object) -> dict[str, str]:
    """The object's annotations."""
    return dict(found["metadata"].get("annotations", {}))


def owner(found: Object) -> str:
    """The name of the object that controls this one; empty if there is none."""
    owners = found["metadata"].get("ownerReferences", [])
    return next((str(one["name"]) for one in owners if one.get("controller")), "")


def hash_of(found: Object) -> str:
    """The hash of the pod template of a ReplicaSet or pod; empty for any other object."""
    return str(found.get("metadata", {}).get("labels", {}).get(HASH, ""))


def verified(replicaset: Object) -> bool:
    """Whether the revision was verified good."""
    return bool(replicaset) and annotations(replicaset).get(VERIFIED) == mark_of(replicaset)


def mark_of(replicaset: Object) -> str:
    """How a mark names the revision: its version and its hash."""
    return f"{tag(image_of(template(replicaset)))} {hash_of(replicaset)}"


def released(pods: Object, image: str, name: str) -> Object:
    """The pod template `pods` with this image of the app, and the colour of the Deployment `name` where it has one."""
    colour = name.removeprefix(APP).removeprefix("-")
    text = json.dumps(pods)
    found: Object = json.loads(re.sub(r'"colour": "[a-z]*"', f'"colour": "{colour}"', text) if colour else text)
    next(each for each in found["spec"]["containers"] if each["name"] == APP)["image"] = image
    return found


def with_image(cron_job: Object, image: str) -> Object:
    """The CronJob with this image of the app."""
    found = deepcopy(cron_job)
    job = found["spec"]["jobTemplate"]["spec"]
    job["template"] = released(job["template"], image, APP)
    return found


def template(deployment: Object) -> Object:
    """The spec of the pods that a Deployment or Job makes."""
    spec: Object = deployment["spec"]["template"]["spec"]
    return spec


def image_of(pod_spec: Object) -> str:
    """The image of the app's container in a pod's spec; empty if there is none."""
    return next((str(each["image"]) for each in pod_spec["containers"] if each["name"] == APP), "")


def untagged(image: str) -> str:
    """The repository of an image, without its tag and digest."""
    repository, _, tail = image.partition("@")[0].rpartition(":")
    return repository if repository and "/" not in tail else image.partition("@")[0]


def tag(image: str) -> str:
    """The tag of an image, which is the version; empty if it has none."""
    return image.partition("@")[0].removeprefix(untagged(image)).removeprefix(":")


def condition(found: Object, kind: str) -> str:
    """The reason of a condition that is true, or its kind without one; empty if it is not true."""
    for each in found.get("status", {}).get("conditions", []):
        if each["type"] == kind and each["status"] == "True":
            return str(each.get("reason") or kind)
    return ""


def ready(pod: Object) -> bool:
    """Whether the pod is ready.

    https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-conditions
    """
    return bool(condition(pod, "Ready"))


def running(pod: Object) -> bool:
    """Whether the pod's own container has started, and not ended."""
    return any(
        each["name"] == APP and "running" in each.get("state", {})
        for each in pod.get("status", {}).get("containerStatuses", [])
    )


def complete(deployment: Object) -> bool:
    """Whether a rollout has ended, by the same test as `kubectl rollout status`.

    https://kubernetes.io/docs/concepts/workloads/controllers/deployment/#complete-deployment
    """
    wanted, status = deployment["spec"].get("replicas", 1), deployment.get("status", {})
    return bool(
        status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
        and status.get("updatedReplicas", 0) >= wanted
        and status.get("replicas", 0) <= status.get("updatedReplicas", 0)
        and status.get("availableReplicas", 0) >= status.get("updatedReplicas", 0)
    )


def usual_pace(deployment: Object) -> Object:
    """What rollback.sh would have restored of a Deployment's spec, had it not been killed; empty if it was not."""
    found = re.fullmatch(r"(\d+) (\d+%?) (\d+%?)", annotations(deployment).get(PACE, ""))
    rolling = deployment["spec"].get("strategy", {}).get("rollingUpdate", {})
    if not found or deployment["spec"].get("minReadySeconds") or rolling.get("maxSurge") != "100%":
        return {}
    surge, unavailable = (each if each.endswith("%") else int(each) for each in found.groups()[1:])
    limits = {"maxSurge": surge, "maxUnavailable": unavailable}
    return {"minReadySeconds": int(found[1]), "strategy": {"rollingUpdate": limits}}


def interrupted(deployment: Object) -> bool:
    """Whether an interrupted run started what the Deployment has, and did not get to verify it."""
    return BEFORE in annotations(deployment)


def failure_reason(pods: Sequence[Object], *, one_shot: bool = False) -> str:
    """Why one of these pods will never be ready; empty if all of them still may.

    `one_shot` pods are not restarted, so a container that has ended is a failure as well.
    https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#container-states
    """
    for pod in pods:
        name, status = pod["metadata"]["name"], pod.get("status", {})
        for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
            state = container.get("state", {})
            waiting, terminated = state.get("waiting", {}), state.get("terminated")
            if waiting.get("reason") in FATAL_WAITING_REASONS:
                return f"pod {name}: {waiting['reason']} {first_line(waiting.get('message', ''))}".strip()
            if one_shot and terminated and (terminated.get("exitCode") or container["name"] == APP):
                return f"pod {name} {exited(terminated)}"
            last = container.get("lastState", {}).get("terminated")
            if container.get("restartCount") and last:
                return f"pod {name} is in a crash loop: {exited(last)}; restarts: {container['restartCount']}"
    return ""


def exit_code(pods: Sequence[Object]) -> int | None:
    """The exit code of the pods' own container; None if it has not ended."""
    for pod in pods:
        for each in pod.get("status", {}).get("containerStatuses", []):
            if each["name"] == APP and (ended := each.get("state", {}).get("terminated")):
                return int(ended["exitCode"])
    return None


def exited(terminated: Object) -> str:
    """How a container ended, as a clause."""
    return f"exited with code {terminated.get('exitCode')} ({terminated.get('reason', 'unknown')})"


def first_line(text: str) -> str:
    """The first line of a text; empty if it has none."""
    return (text.strip().splitlines() or [""])[0]


def now() -> str:
    """The time in the form in which scripts/rollback.sh writes it: RFC 3339, UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def other(colour: str) -> str:
    """The other colour."""
    return "green" if colour == "blue" else "blue"


# A database per colour


def variables(pod: Object) -> list[Object]:
    """The environment of the app's container in a pod's spec."""
    return next((each.get("env", []) for each in pod["containers"] if each["name"] == APP), [])


def has_both_databases(pod: Object) -> bool:
    """Whether a pod's spec names the databases of both colours."""
    return DATABASE_KEYS.keys() <= {each["name"] for each in variables(pod)}


def own_database(pod: Object) -> str:
    """The colour of the database that was prepared for the release in a pod's spec; empty if it has none of its own."""
    return next((str(each.get("value", "")) for each in variables(pod) if each["name"] == OWN_DATABASE), "")


def with_own_database(found: Object, colour: str) -> Object:
    """A pod template that names this colour's database as the release's own; none if `colour` is empty."""
    found = deepcopy(found)
    container = next(each for each in found["spec"]["containers"] if each["name"] == APP)
    told = [{"name": OWN_DATABASE, "value": colour}] if colour else []
    env = container.get("env", [])
    at = next((number for number, each in enumerate(env) if each["name"] == OWN_DATABASE), len(env))
    if told or at < len(env):
        container["env"] = [*env[:at], *told, *env[at + 1 :]]
    return found


def command_job(cronjob: Object, image: str, words: Sequence[str]) -> Object:
    """A Job with the pod of one of the CronJobs in components/two-databases, which runs manage.py of this image with
    these words. For manage.py bluegreen it prints JSON.
    """
    template = cronjob["spec"]["jobTemplate"]
    spec: Object = deepcopy(template["spec"])
    container = next(each for each in spec["template"]["spec"]["containers"] if each["name"] == APP)
    program = container["command"][: container["command"].index("manage.py") + 1]
    more = ["--json"] if words[0] == "bluegreen" else []
    container |= {"image": image, "command": [*program, *words, *more]}
    labels = template.get("metadata", {}).get("labels", {})
    meta = {"name": COMMANDS, "labels": labels, "annotations": {CAUSE: " ".join(words)}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}


# Jobs


def migrate_job_name(version: str) -> str:
    """The name of the version's migrate Job: a DNS label, as it becomes part of its pod's host name.

    1.4.0 becomes ...-1-4-0. The name for any other form, as 1-4-0 could lead to the same, ends in a hash.
    https://kubernetes.io/docs/concepts/workloads/controllers/job/#writing-a-job-spec
    """
    name = f"{APP}-migrate-{re.sub('[^a-z0-9]+', '-', version.lower()).strip('-')}"
    if re.fullmatch(r"[a-z0-9]+(\.[a-z0-9]+)*", version) and len(name) <= NAME_LENGTH:
        return name
    digest = hashlib.sha256(version.encode()).hexdigest()[:8]
    return f"{name[: NAME_LENGTH - 9].rstrip('-')}-{digest}"


def migrate_job(deployment: Object, version: str, image: str, unsafe: bool) -> Object:
    """A Job that runs `manage.py migrate_release` in the Deployment's own pod with the new image.

    Settings, volumes and rights are the Deployment's. Only the database URL differs: it is that of the tables' owner,
    which the app's own role is not. `unsafe` skips the check of the unapplied migrations.
    """
    pod = one_shot_pod(deployment, image)
    container = next(each for each in pod["containers"] if each["name"] == APP)
    for key in ("livenessProbe", "readinessProbe", "startupProbe", "ports", "args"):
        container.pop(key, None)
    container["command"] = ["python", "manage.py", "migrate_release", *(["--unsafe"] if unsafe else [])]
    keys = DATABASE_KEYS if has_both_databases(pod) else {"DATABASE_URL": "database-url"}
    owner = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": MIGRATE_SECRET, "key": key}}}
        for name, key in keys.items()
    ]
    replaced = (*keys, OWN_DATABASE, "DATABASE_URL", "DATABASE_URL_FILE", "DB_PASSWORD", "DB_PASSWORD_FILE")
    container["env"] = [each for each in container.get("env", []) if each["name"] not in replaced] + owner
    pod["containers"] = [container]
    # Migrations do not touch uploads, and the volume of those may be mountable on one node only.
    claims = {each["name"] for each in pod.get("volumes", []) if "persistentVolumeClaim" in each}
    pod["volumes"] = [each for each in pod.get("volumes", []) if each["name"] not in claims]
    container["volumeMounts"] = [each for each in container.get("volumeMounts", []) if each["name"] not in claims]
    pod.pop("affinity", None)
    return job(
        migrate_job_name(version), "migrate", f"{MIGRATE_CAUSE}{version}", MIGRATION_TIMEOUT, MIGRATION_KEPT, pod
    )


def trial_job(deployment: Object, version: str, image: str, timeout: float) -> Object:
    """A Job with one pod like those to come. It ends after `timeout` and ten minutes in seconds if nobody ends it."""
    return job(TRIAL, "trial", f"trial of {version}", round(timeout) + 600, TRIAL_KEPT, one_shot_pod(deployment, image))


def one_shot_pod(deployment: Object, image: str) -> Object:
    """The spec of the Deployment's own pod for a Job, with the new image. It has no traffic to be drained of."""
    pod: Object = deepcopy(template(deployment))
    container = next(each for each in pod["containers"] if each["name"] == APP)
    container["image"] = image
    container.pop("lifecycle", None)
    for key in ("topologySpreadConstraints", "terminationGracePeriodSeconds", "readinessGates"):
        pod.pop(key, None)
    return pod | {"restartPolicy": "Never"}


def job(name: str, part: str, cause: str, deadline: int, kept: int, pod: Object) -> Object:
    """A Job that runs once, for at most `deadline` seconds, and is deleted `kept` seconds after its end. Its labels
    match no Service, so its pod gets no traffic.

    https://kubernetes.io/docs/concepts/workloads/controllers/job/
    """
    labels = {"app": f"{APP}-{part}", "app.kubernetes.io/component": part}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels, "annotations": {CAUSE: cause}},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": deadline,
            "ttlSecondsAfterFinished": kept,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
