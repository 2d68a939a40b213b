"""A Kubernetes cluster, by kubectl: docs/kubernetes.md has the names of the objects.

rolling      a Job tries one pod without traffic; then those of the one Deployment are replaced one after the other
blue-green   two Deployments, and a Service whose selector says which of them has the traffic

kubectl carries the credentials, contexts and proxies that an operator has anyway. Going back is scripts/rollback.sh,
the same that a person would run.
"""

import json
import re
import subprocess
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deploy.locks import LeaseLock
from deploy.targets.base import ASK, Answer, Failed, Misused, Refused, Tell, answers, call, last_line
from ledger import versions
from ledger.environments import EnvironmentConfig
from settings.text import clean

APP = "backstagetest1"
TRIAL = f"{APP}-trial"
COLOURS = ("blue", "green")
VERIFIED, BEFORE, BREAK = f"{APP}/verified-good", f"{APP}/before", f"{APP}/schema-break"
LIVE = f"{APP}/live-since"  # when the revision became current for the last time, by RFC 3339 in UTC
CAUSE = "kubernetes.io/change-cause"
POLL = 1.0  # seconds between two looks
MIGRATE = f"{APP}-migrate"  # the Secret with the database URL of the tables' owner
MIGRATION = 1800  # seconds that a migrate Job gets
GONE = "unable to retrieve container logs"  # printed as if it were the log, when the kubelet has removed the container
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


class Kubernetes:
    """The app in the namespace of `place`."""

    name = "kubernetes"

    def __init__(self, place: EnvironmentConfig, version: str, strategy: str, folder: Path) -> None:
        self.place, self.version, self.strategy, self.folder = place, version, strategy, folder
        clear = f"manage.py deploy --unlock -e {place.name}"
        self.lock = LeaseLock(f"{APP}-deploy", self.try_kubectl, clear)
        self.colour = ""
        self.trial = False  # whether the release is a pod that is tried without traffic

    # What is there

    def refuse_unfit(self) -> None:
        if self.version:
            try:
                versions.validate(self.version)
            except ValueError as error:
                raise Misused(str(error)) from None
        done = self.try_kubectl("get", "deployments", "--output", "name")
        if done.returncode:
            raise Refused(
                f"The cluster is unreachable (context {self.place.context or 'as kubectl has it'}): {said(done)}"
            )
        there = {line.partition("/")[2] for line in done.stdout.split()}
        wanted = {APP} if self.strategy == "rolling" else {f"{APP}-{colour}" for colour in COLOURS}
        if missing := wanted - there:
            raise Refused(
                f"Namespace {self.place.namespace} has no Deployment {' and '.join(sorted(missing))}, "
                f"which {self.strategy} needs; it has {', '.join(sorted(there)) or 'none'}. "
                "Check the context and the namespace in environments.toml, or create what is missing with "
                f"kubectl apply -k k8s/overlays/{self.place.name}."
            )

    def running(self) -> str:
        return self.runs(self.look())

    def runs(self, seen: "Seen") -> str:
        """By the pods that are ready: what a Deployment asks for may not be there."""
        counts: dict[str, int] = {}
        for pod in seen.pods(seen.selector()):
            if ready(pod):
                version = tag(image_of(pod["spec"]))
                counts[version] = counts.get(version, 0) + 1
        others = {version: count for version, count in counts.items() if version != self.version}
        if self.strategy == "rolling" and others and not complete(seen.deployment(APP)):
            counts = others  # it is on its way, and has not arrived
        return max(counts, key=lambda version: counts[version], default="")

    def settled(self) -> bool:
        seen = self.look()
        if self.runs(seen) != self.version:
            return False
        found = seen.deployment(self.active(seen))
        return complete(found) and found["metadata"].get("annotations", {}).get(VERIFIED) == self.version

    def way_back(self) -> str:
        """What rollback.sh --previous would roll back to: it reads it from the ReplicaSets."""
        done = self.script("--list")
        if done.returncode:
            raise Refused(last_line(done.stderr or done.stdout))
        found = re.search(r"^Rollback target: (\S+) \(", done.stdout, re.MULTILINE)  # no row begins like this
        return found[1] if found else ""

    def origin(self) -> tuple[str, str]:
        return "", ""

    def url(self) -> str:
        return self.place.url

    def plan(self) -> Sequence[tuple[str, str]]:
        image = self.image
        if self.strategy == "rolling":
            up, switch = f"one pod of {image}, without traffic", f"deployment/{APP} to {image}, one pod after the other"
        else:
            idle = other(self.look().colour())
            up, switch = f"deployment/{APP}-{idle} to {image}", f"the selector of service/{APP} to colour={idle}"
        return (
            ("migrations", f"job/{self.job_name()} with {image}, unapplied migrations checked"),
            ("bring up", up),
            ("smoke test", "health, version, sign-in page, an asset and metrics of every new pod"),
            ("switch", switch),
        )

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """The object; empty if there is none. Raises Failed if the cluster cannot be asked."""
        done = self.try_kubectl("get", kind, name, "--output", "json", "--ignore-not-found")
        if done.returncode:
            raise Failed(f"{kind} {name} cannot be read: {said(done)}")
        return dict(json.loads(done.stdout)) if done.stdout.strip() else {}

    def look(self) -> "Seen":
        """One call: each takes kubectl a tenth of a second to start. Raises Failed if the cluster cannot be asked."""
        done = self.try_kubectl("get", "deployments,services,pods", "--output", "json")
        if done.returncode:
            raise Failed(f"The cluster does not answer: {said(done)}")
        return Seen(self.place.namespace, json.loads(done.stdout)["items"])

    def active(self, seen: "Seen") -> str:
        return APP if self.strategy == "rolling" else f"{APP}-{seen.colour()}"

    def bringing(self, seen: "Seen") -> str:
        """The Deployment that has, or gets, the release."""
        return APP if self.strategy == "rolling" else f"{APP}-{self.colour or other(seen.colour())}"

    def new_pods(self, seen: "Seen") -> list[dict[str, Any]]:
        """The release's own pods."""
        if self.trial:
            return seen.pods({"job-name": TRIAL})
        found = seen.deployment(self.bringing(seen))
        image = image_of(found["spec"]["template"]["spec"])
        return [pod for pod in seen.pods(found["spec"]["selector"]["matchLabels"]) if image_of(pod["spec"]) == image]

    @cached_property
    def image(self) -> str:
        """With the registry of environments.toml, else that of what runs: without one kubectl would take another's."""
        place = self.place
        if "/" not in place.image:
            seen = self.look()
            runs = image_of(seen.deployment(self.active(seen))["spec"]["template"]["spec"])
            place = replace(place, image=untagged(runs))
        return place.tagged(self.version)

    # What is done

    def job_name(self) -> str:
        """A name that the cluster takes (RFC 1123): a dot stands between letters or digits only."""
        part = re.sub(r"[^a-z0-9]*[^a-z0-9.][^a-z0-9]*|\.\.+", "-", self.version.lower())
        return f"{APP}-migrate-{part}"[:63].strip("-.")

    def migrate(self, unsafe: bool, tell: Tell) -> str:
        name, image = self.job_name(), self.image
        found = self.get("job", name)
        if found and (condition(found, "Failed") or image_of(found["spec"]["template"]["spec"]) != image):
            self.kubectl("delete", "job", name, "--wait=true", timeout=90)  # a Job that failed does nothing any more
            found = {}
        if found and condition(found, "Complete"):
            return f"job/{name} has done it already"
        if not found:
            self.kubectl(
                "create", "--validate=false", "--filename", "-", given=json.dumps(self.job(name, image, unsafe))
            )
        began = time.monotonic()
        while True:
            found = self.get("job", name)
            if condition(found, "Complete"):
                if unsafe:
                    name = self.active(self.look())
                    self.kubectl("annotate", f"deployment/{name}", "--overwrite", f"{BREAK}={self.version}")
                return last_line(self.try_kubectl("logs", f"job/{self.job_name()}", "--tail", "1").stdout)
            why = condition(found, "Failed") or self.hopeless(self.look().pods({"job-name": name}))
            if why or time.monotonic() - began > MIGRATION:
                logs = self.try_kubectl("logs", f"job/{name}", "--tail", "20").stdout.strip()
                raise Failed(f"The migrations failed: {why or f'not done after {MIGRATION} s'} (job/{name}).", logs)
            tell(f"job/{name}")
            time.sleep(POLL)

    def job(self, name: str, image: str, unsafe: bool) -> dict[str, Any]:
        """A Job from the Deployment's own pod: the same settings, volumes and rights, with the new image. Its database
        URL is that of the tables' owner, which the app's own role is not.
        """
        pod = self.pod(image)
        container = next(each for each in pod["containers"] if each["name"] == APP)
        for key in ("livenessProbe", "readinessProbe", "startupProbe", "ports", "args"):
            container.pop(key, None)
        container["command"] = ["python", "manage.py", "migrate_release", *(["--unsafe"] if unsafe else [])]
        owner = {"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": MIGRATE, "key": "database-url"}}}
        others = ("DATABASE_URL", "DATABASE_URL_FILE", "DB_PASSWORD", "DB_PASSWORD_FILE")
        container["env"] = [each for each in container.get("env", []) if each["name"] not in others] + [owner]
        pod["containers"] = [container]
        # Uploads are no matter of migrations, and their volume may be mountable on one node alone.
        claims = {each["name"] for each in pod.get("volumes", []) if "persistentVolumeClaim" in each}
        pod["volumes"] = [each for each in pod.get("volumes", []) if each["name"] not in claims]
        container["volumeMounts"] = [each for each in container.get("volumeMounts", []) if each["name"] not in claims]
        pod.pop("affinity", None)
        return job(name, "migrate", f"migrate for {self.version}", MIGRATION, 7 * 86_400, pod)

    def pod(self, image: str) -> dict[str, Any]:
        """The spec of the Deployment's own pod with the new image, for a Job. It has no traffic to be drained of."""
        seen = self.look()
        pod: dict[str, Any] = deepcopy(seen.deployment(self.active(seen))["spec"]["template"]["spec"])
        container = next(each for each in pod["containers"] if each["name"] == APP)
        container["image"] = image
        container.pop("lifecycle", None)
        for key in ("topologySpreadConstraints", "terminationGracePeriodSeconds", "readinessGates"):
            pod.pop(key, None)
        return pod | {"restartPolicy": "Never"}

    def start(self, timeout: float, tell: Tell) -> str:
        seen = self.look()
        if self.strategy == "rolling":
            # Without anybody who serves there is no traffic to keep from it.
            serving = any(map(ready, seen.pods(seen.selector())))
            if serving and image_of(seen.deployment(APP)["spec"]["template"]["spec"]) != self.image:
                return self.try_out(timeout, tell)
        else:
            active = seen.colour()
            here = seen.deployment(f"{APP}-{active}")
            if image_of(here["spec"]["template"]["spec"]) == self.image and was_before(here):
                self.colour = active
                return f"service/{APP} gives {active} the traffic already"
            self.colour = other(active)
            self.preview(self.colour)
        return self.roll_out(timeout, tell)

    def try_out(self, timeout: float, tell: Tell) -> str:
        """One pod like those to come, by a Job, which ends by itself if nobody does: no Service gives it traffic."""
        image = self.image
        found = self.get("job", TRIAL)
        if found and (
            found.get("status", {}).get("conditions") or image_of(found["spec"]["template"]["spec"]) != image
        ):
            self.kubectl("delete", "job", TRIAL, "--cascade=foreground", "--wait=true", timeout=90)
            found = {}
        if not found:
            spec = job(TRIAL, "trial", f"trial of {self.version}", round(timeout) + 600, 300, self.pod(image))
            self.kubectl("create", "--validate=false", "--filename", "-", given=json.dumps(spec))
        self.trial, began = True, time.monotonic()
        while True:
            pods, waited = self.new_pods(self.look()), time.monotonic() - began
            if why := self.hopeless(pods):
                raise Failed(
                    f"{self.version} did not become ready: {why} ({waited:.1f} s after its start).", self.logs()
                )
            if any(map(ready, pods)):
                return f"a pod without traffic is ready {waited:.1f} s after its start"
            if waited > timeout:
                raise Failed(f"{self.version} is not ready {waited:.0f} s after its start.", self.logs())
            tell("a pod without traffic starts")
            time.sleep(POLL)

    def end_trial(self) -> None:
        if self.trial:
            self.try_kubectl("delete", "job", TRIAL, "--ignore-not-found", "--wait=false")
            self.trial = False

    def roll_out(self, timeout: float, tell: Tell) -> str:
        """Has the Deployment run the image, and waits. `timeout` is what the next pod has to get ready."""
        seen = self.look()
        name = self.bringing(seen)
        found = seen.deployment(name)
        again = image_of(found["spec"]["template"]["spec"]) == self.image
        if not again or not found["spec"].get("replicas", 1):
            # In one write: the Deployment's controller copies its annotations to the ReplicaSet of the image.
            notes = {CAUSE: f"deploy {self.version}", BEFORE: self.runs(seen), VERIFIED: None, LIVE: None}
            spec: dict[str, Any] = {"template": {"spec": {"containers": [{"name": APP, "image": self.image}]}}}
            if self.strategy == "blue-green":
                spec["replicas"] = seen.deployment(self.active(seen))["spec"].get("replicas", 1)
            else:
                notes[LIVE] = now()  # a colour becomes live when the traffic moves
            patch = json.dumps({"metadata": {"annotations": notes}, "spec": spec})
            self.kubectl("patch", "deployment", name, "--type", "strategic", "--patch", patch)
        began = moved = time.monotonic()
        most = 0
        while True:
            seen, at = self.look(), time.monotonic()
            found, pods = seen.deployment(name), self.new_pods(seen)
            waited, count = at - began, sum(map(ready, pods))
            if why := self.hopeless(pods):
                raise Failed(
                    f"deployment/{name} did not become ready: {why} ({waited:.1f} s after its start).", self.logs()
                )
            if complete(found):
                return f"deployment/{name}: {len(pods)} pods are ready {waited:.1f} s after their start"
            if count > most:
                most, moved = count, at
            if at - moved > timeout:
                raise Failed(f"deployment/{name} is not ready {waited:.0f} s after its start.", self.logs())
            tell(f"{count} of {found['spec'].get('replicas', 1)} new pods are ready")
            time.sleep(POLL)

    def hopeless(self, pods: list[dict[str, Any]]) -> str:
        """Why these pods will not get ready; empty if they may."""
        for pod in pods:
            name = pod["metadata"]["name"]
            status = pod.get("status", {})
            for each in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
                waiting = each.get("state", {}).get("waiting", {})
                if waiting.get("reason") in FATAL_WAITING_REASONS:
                    return f"pod {name}: {waiting['reason']} {first_line(waiting.get('message', ''))}".strip()
                over = each.get("state", {}).get("terminated")
                if over and self.trial and (over.get("exitCode") or each["name"] == APP):
                    return f"pod {name} ended with exit code {over.get('exitCode')} ({over.get('reason', 'unknown')})"
                ended = each.get("lastState", {}).get("terminated")
                if each.get("restartCount") and ended:
                    return (
                        f"pod {name} ended with exit code {ended.get('exitCode')} ({ended.get('reason', 'unknown')}), "
                        f"{each['restartCount']} times so far: a crash loop"
                    )
        return ""

    def instances(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.new_pods(self.look()) if ready(pod)]

    def serving(self) -> list[str]:
        seen = self.look()
        return [pod["metadata"]["name"] for pod in seen.pods(seen.selector()) if ready(pod)]

    def ask(self, instance: str, paths: Sequence[str]) -> list[Answer]:
        host = urlsplit(self.place.url).hostname or "localhost"
        words = ("exec", "--stdin", instance, "--container", APP, "--", "python", "-", "8000", host, *paths)
        return answers(self.try_kubectl(*words, given=ASK, timeout=5 * len(paths) + 30))

    def trouble(self) -> str:
        seen = self.look()
        pods = self.new_pods(seen)
        return self.hopeless(pods) or ("" if any(map(ready, pods)) else f"no pod of {self.bringing(seen)} is ready")

    def logs(self) -> str:
        pods = sorted(self.new_pods(self.look()), key=ready)
        if not pods and not self.trial:
            return ""
        name = pods[0]["metadata"]["name"] if pods else TRIAL
        words, found = ("logs", name, "--container", APP, "--tail", "20"), ""
        for which in ("--previous", "--previous=false") * 2:  # in a crash loop one goes while the other comes
            said = self.try_kubectl(*words, which).stdout.strip()
            if said.startswith(GONE):
                time.sleep(POLL / 2)
            elif said:
                found = said
                break
        events = self.try_kubectl(
            "get", "events", "--field-selector", f"involvedObject.name={name},type=Warning", "--output",
            "jsonpath={range .items[*]}{.reason}: {.message}{'\\n'}{end}",
        ).stdout  # fmt: skip
        return f"{found}\n{events}".strip()

    def switch(self, timeout: float, tell: Tell) -> str:
        if self.strategy == "rolling":
            if not self.trial:
                return ""  # they came one after the other when it was brought up
            self.end_trial()
            return self.roll_out(timeout, tell)
        was = self.look().colour()
        if was == self.colour:
            return f"service/{APP} gives {was} the traffic already"
        self.kubectl("annotate", f"deployment/{APP}-{self.colour}", "--overwrite", f"{LIVE}={now()}")
        patch = json.dumps({"spec": {"selector": {"colour": self.colour}}})
        self.kubectl("patch", "service", APP, "--type", "merge", "--patch", patch)
        self.preview(was)
        return f"service/{APP} from {was} to {self.colour}"

    def preview(self, colour: str) -> None:
        """The preview Service, where there is one, shows the colour that has no traffic."""
        patch = json.dumps({"spec": {"selector": {"colour": colour}}})
        self.try_kubectl("patch", "service", f"{APP}-preview", "--type", "merge", "--patch", patch)

    def back(self, reason: str, tell: Tell) -> str:
        seen = self.look()
        if self.strategy == "blue-green" and seen.colour() != self.colour:
            return self.runs(seen)  # it never had the traffic
        found = seen.deployment(self.bringing(seen))
        if image_of(found["spec"]["template"]["spec"]) != self.image:
            return self.runs(seen)  # it never came so far
        before: str = found["metadata"].get("annotations", {}).get(BEFORE, "")
        if not before:
            raise Failed("The previous version is unknown. Choose one that scripts/rollback.sh --list shows.")
        tell(f"scripts/rollback.sh {before}")
        done = self.script(before, "--yes", "--reason", clean(reason, 500))
        if done.returncode:
            text = (done.stdout + done.stderr).strip()
            details = "\n".join(text.splitlines()[-20:])
            raise Failed(f"rollback.sh ended with {done.returncode}: {last_line(text)}", details)
        return before

    def rollback(self, reason: str, timeout: float, dry_run: bool) -> tuple[int, str] | None:
        words = ["--yes", "--timeout", f"{max(1, timeout):.0f}"]
        words += ["--reason", reason] if reason else []
        done = self.script(self.version, *words, *(["--dry-run"] if dry_run else []))
        return done.returncode, (done.stdout + done.stderr).strip()

    def script(self, *words: str) -> subprocess.CompletedProcess[str]:
        """scripts/rollback.sh, under our lock, and with nothing to record: whoever calls it does."""
        context = ("--context", self.place.context) if self.place.context else ()
        command = (str(self.folder / "scripts" / "rollback.sh"), *words[:1], self.place.namespace, *context, *words[1:])
        env = {"LEDGER_URL": "", "LEDGER_TOKEN": "", "LEDGER_TOKEN_FILE": "", "DEPLOY_LOCK_HOLDER": self.lock.identity}
        return call(command, timeout=1800, env=env)

    def discard(self) -> None:
        self.end_trial()
        if self.strategy == "blue-green" and self.colour and self.look().colour() != self.colour:
            self.kubectl("scale", f"deployment/{APP}-{self.colour}", "--replicas=0")

    def keep(self) -> str:
        name = self.bringing(self.look())
        self.kubectl("annotate", f"deployment/{name}", "--overwrite", f"{VERIFIED}={self.version}")
        # What runs now and then goes along: the schema is only promised to the release before.
        tasks = self.try_kubectl("set", "image", "cronjobs", "--selector", f"app={APP}-tasks", f"{APP}={self.image}")
        note = f"; the CronJobs keep their image: {said(tasks)}" if tasks.returncode else ""
        return f"deployment/{name} is marked as good{note}"

    def withdraw(self, version: str) -> None:
        """rollback.sh takes the mark away itself."""

    # kubectl

    def kubectl(self, *words: str, given: str = "", timeout: float = 30) -> str:
        done = self.try_kubectl(*words, given=given, timeout=timeout)
        if done.returncode:
            raise Failed(f"kubectl {' '.join(words[:3])}: {said(done)}")
        return done.stdout

    def try_kubectl(self, *words: str, given: str = "", timeout: float = 30) -> subprocess.CompletedProcess[str]:
        context = ("--context", self.place.context) if self.place.context else ()
        return call(("kubectl", *context, "--namespace", self.place.namespace, *words), timeout=timeout, given=given)


class Seen:
    """The Deployments, Services and pods of a namespace, at one moment."""

    def __init__(self, namespace: str, items: Sequence[dict[str, Any]]) -> None:
        self.namespace, self.items = namespace, items

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return next((one for one in self.items if (one["kind"], one["metadata"]["name"]) == (kind, name)), {})

    def deployment(self, name: str) -> dict[str, Any]:
        """Raises Failed if there is none."""
        found = self.get("Deployment", name)
        if not found:
            raise Failed(f"Namespace {self.namespace} has no Deployment {name}.")
        return found

    def selector(self) -> dict[str, str]:
        """Which pods the active Service gives the traffic to. Raises Failed if that is not said."""
        found = self.get("Service", APP).get("spec", {}).get("selector")
        if not found:
            raise Failed(f"Namespace {self.namespace} has no Service {APP} with a selector.")
        return dict(found)

    def colour(self) -> str:
        """That has the traffic."""
        return self.selector().get("colour", "blue")

    def pods(self, labels: dict[str, str]) -> list[dict[str, Any]]:
        """Those with these labels that nobody has told to end."""
        pods = [one for one in self.items if one["kind"] == "Pod" and not one["metadata"].get("deletionTimestamp")]
        return [pod for pod in pods if labels.items() <= pod["metadata"].get("labels", {}).items()]


def now() -> str:
    """As scripts/rollback.sh writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def other(colour: str) -> str:
    return "green" if colour == "blue" else "blue"


def complete(found: dict[str, Any]) -> bool:
    """As `kubectl rollout status` has it: https://kubernetes.io/docs/concepts/workloads/controllers/deployment/"""
    wanted, status = found["spec"].get("replicas", 1), found.get("status", {})
    return bool(
        status.get("observedGeneration", 0) >= found["metadata"]["generation"]
        and status.get("updatedReplicas", 0) >= wanted
        and status.get("replicas", 0) <= status.get("updatedReplicas", 0)
        and status.get("availableReplicas", 0) >= status.get("updatedReplicas", 0)
    )


def was_before(deployment: dict[str, Any]) -> bool:
    """Whether an interrupted run brought it up and had no time to find it good."""
    notes = deployment["metadata"].get("annotations", {})
    return BEFORE in notes and notes.get(VERIFIED) != tag(image_of(deployment["spec"]["template"]["spec"]))


def job(name: str, part: str, cause: str, deadline: int, kept: int, pod: dict[str, Any]) -> dict[str, Any]:
    """A Job that is tried once, for `deadline` seconds, and `kept` for so many after. No Service selects its pod."""
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


def said(done: subprocess.CompletedProcess[str]) -> str:
    return last_line(done.stderr or done.stdout)


def first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]


def image_of(pod: dict[str, Any]) -> str:
    """Of the app's container in a pod's spec."""
    return next((str(each["image"]) for each in pod["containers"] if each["name"] == APP), "")


def untagged(image: str) -> str:
    repository, _, tail = image.partition("@")[0].rpartition(":")
    return repository if repository and "/" not in tail else image.partition("@")[0]


def tag(image: str) -> str:
    return image.partition("@")[0].removeprefix(untagged(image)).removeprefix(":")


def condition(found: dict[str, Any], kind: str) -> str:
    """Why the condition is true; empty if it is not."""
    for each in found.get("status", {}).get("conditions", []):
        if each["type"] == kind and each["status"] == "True":
            return str(each.get("reason") or kind)
    return ""


def ready(pod: dict[str, Any]) -> bool:
    return bool(condition(pod, "Ready"))
