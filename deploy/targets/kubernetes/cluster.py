"""The app in one namespace of a Kubernetes cluster, by kubectl: what both strategies have in common.

kubectl brings the credentials, contexts and proxies that an operator has anyway. Rolling back is scripts/rollback.sh,
the same that a person would run. docs/kubernetes.md lists the names of the objects.
"""

import json
import re
import subprocess
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from deploy.errors import DeployRefused, InvalidUsage, NoAnswer, StepFailed
from deploy.kubectl import Done, Kubectl, error_of
from deploy.locks import LeaseLock
from deploy.shell import PATIENCE, READ, call, last_line, telling_lines
from deploy.targets.base import Databases, Progress
from deploy.targets.kubernetes import overlays, preflight
from deploy.targets.kubernetes.objects import (
    APP,
    BEFORE,
    BREAK,
    CAUSE,
    COMMANDS,
    FIELD_MANAGER,
    GONE,
    LIVE,
    MIGRATE_CAUSE,
    MIGRATION_TIMEOUT,
    PACE,
    REVISION,
    VERIFIED,
    WITHDRAWN,
    Object,
    Snapshot,
    annotations,
    complete,
    condition,
    failure_reason,
    hash_of,
    image_of,
    mark_of,
    migrate_job,
    migrate_job_name,
    owner,
    ready,
    released,
    running,
    tag,
    template,
    untagged,
    usual_pace,
    verified,
    with_image,
)
from deploy.targets.probe import PROGRAM, Answer, answers
from ledger import steps, versions
from ledger.environments import EnvironmentConfig
from settings.text import clean


class Kubernetes(ABC):
    """One release on its way to the namespace of `config`. `folder` has scripts/rollback.sh."""

    deployments: ClassVar[frozenset[str]]  # the names of those that the strategy needs
    strategy: ClassVar[str]
    poll_interval = 1.0  # seconds between two looks at what is being waited for
    revision = ""  # the one to roll back to, by the hash of its pod template; empty for the version's best
    databases: Databases | None = None
    settings: overlays.Settings | None = None  # new ones that the release gets; else it has those of the live release

    def __init__(self, config: EnvironmentConfig, version: str, folder: Path) -> None:
        self.config, self.version, self.folder = config, version, folder
        self.kube = Kubectl(config.context, config.namespace)
        self.lock = LeaseLock(f"{APP}-deploy", self.kube, config.name)

    # What differs by strategy

    @abstractmethod
    def active(self, snapshot: Snapshot) -> str:
        """The name of the Deployment that has the traffic."""

    @abstractmethod
    def incoming(self, snapshot: Snapshot) -> str:
        """The name of the Deployment that has, or will get, the release."""

    @abstractmethod
    def start(self, timeout: float, tell: Progress) -> str:
        """As Target.start()."""

    @abstractmethod
    def switch(self, timeout: float, tell: Progress) -> str:
        """As Target.switch()."""

    @abstractmethod
    def cleanup(self) -> None:
        """As Target.cleanup()."""

    @abstractmethod
    def planned(self) -> tuple[str, str]:
        """What start() and switch() would do, for --dry-run."""

    def rolled_out(self, snapshot: Snapshot) -> bool:
        """Whether the release has replaced all that had the traffic, as far as its Deployment is about that."""
        return True

    # What is there

    def validate(self) -> None:
        """Raises InvalidUsage for an invalid version, and DeployRefused if the cluster is unreachable or lacks the
        Deployments that the strategy needs.
        """
        if self.version:
            try:
                versions.validate(self.version)
            except ValueError as error:
                raise InvalidUsage(str(error)) from None
        done = self.try_kubectl("get", "deployments", "--output", "name")
        if done.returncode:
            raise DeployRefused(
                f"The cluster is unreachable (context {self.config.context or 'as kubectl has it'}): {error_of(done)}"
            )
        there = {line.partition("/")[2] for line in done.stdout.split()}
        if missing := self.deployments - there:
            raise DeployRefused(
                f"Namespace {self.config.namespace} has no Deployment {' and '.join(sorted(missing))}, "
                f"which {self.strategy} needs; it has {', '.join(sorted(there)) or 'none'}. "
                "Check the context and the namespace in environments.toml, or create what is missing with "
                f"kubectl apply -k k8s/overlays/{self.config.name}."
            )

    def preflight(self) -> None:
        """As Target.preflight()."""
        snapshot = self.snapshot()
        there = snapshot.find("Service", APP)
        active, incoming = (self.active(snapshot), self.incoming(snapshot)) if there else ("", "")
        facts = preflight.Facts(
            snapshot=snapshot,
            active=active,
            incoming=incoming,
            version=self.version,
            limits=self.limits(),
            rules=self.rules(),
            missing=self.missing(snapshot.find("Deployment", incoming)),
            kubectl=self.as_typed,
            two_databases=bool(self.databases),
        )
        if why := preflight.problem(facts):
            raise DeployRefused(why)

    @property
    def as_typed(self) -> str:
        """kubectl for the namespace, as a person types it."""
        context = ("--context", self.config.context) if self.config.context else ()
        return " ".join(("kubectl", *context, "--namespace", self.config.namespace))

    def limits(self) -> list[Object]:
        """The autoscalers and quotas; none of those that may not be read."""
        done = self.try_kubectl("get", "horizontalpodautoscalers,resourcequotas", "--output", "json")
        return list(json.loads(done.stdout)["items"]) if done.stdout.strip() else []

    def rules(self) -> list[Object] | None:
        """What the user may do in the namespace; None if the cluster cannot list all of it.

        https://kubernetes.io/docs/reference/kubernetes-api/authorization-resources/self-subject-rules-review-v1/
        """
        spec = {"namespace": self.config.namespace}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": spec}
        words = ("create", "--validate=false", "--filename", "-", "--output", "json")
        done = self.try_kubectl(*words, given=json.dumps(review))
        status: Object = {} if done.returncode else json.loads(done.stdout)["status"]
        return None if status.get("incomplete", True) else list(status["resourceRules"])

    def missing(self, deployment: Object) -> list[str]:
        """What the Deployment's pods, or the migrate Job's, name and the namespace lacks, as far as it may be read."""
        if not deployment:
            return []
        names = preflight.named(template(deployment))
        done = self.try_kubectl("get", *names, "--output", "name", "--ignore-not-found")
        found, unknown = done.stdout.split(), re.findall(r'cannot get resource "(\w+)s"', done.stderr)
        if done.returncode and not unknown:
            return []
        return [name for name in names if name not in found and name.partition("/")[0] not in unknown]

    def use_two_databases(self) -> None:
        """Has the release get a database of its own. Raises InvalidUsage if the strategy knows of none, DeployRefused
        if there is but one, and StepFailed.
        """
        raise InvalidUsage(
            f"--database per-colour requires the strategy blue-green, not {self.strategy}: the release before keeps "
            "its own database until the traffic has moved. Set it in environments.toml, or pass --strategy blue-green."
        )

    def live_version(self) -> str:
        """The version that has the traffic; empty if there is none. Raises StepFailed."""
        return self.version_in(self.snapshot())

    def live_revision(self) -> str:
        """The hash of the pod template of most ready pods with traffic; empty if there are none. Raises StepFailed."""
        return self.revision_in(self.snapshot()).partition(" ")[2]

    def version_in(self, snapshot: Snapshot) -> str:
        """The version of most ready pods with traffic. A Deployment's own image may not have arrived there."""
        return self.revision_in(snapshot).partition(" ")[0]

    def revision_in(self, snapshot: Snapshot) -> str:
        """The version and the hash of most ready pods with traffic; empty if there are none."""
        counts = Counter(f"{tag(image_of(pod['spec']))} {hash_of(pod)}" for pod in snapshot.live_pods())
        others = {one: count for one, count in counts.items() if one.partition(" ")[0] != self.version}
        if others and not self.rolled_out(snapshot):
            counts = Counter(others)
        return max(counts, key=lambda one: counts[one], default="")

    def already_live(self) -> bool:
        """Whether the release has the traffic and was verified good. Raises StepFailed."""
        snapshot = self.snapshot()
        if self.version_in(snapshot) != self.version:
            return False
        name = self.active(snapshot)
        if self.settings and not self.has_release(snapshot, name):
            return False
        return complete(snapshot.deployment(name)) and verified(snapshot.replicaset(name))

    def adopt(self) -> None:
        """Does nothing: the one Deployment has both the release and the traffic."""

    def previous_good(self) -> str:
        """The version that `rollback.sh --previous` would choose; empty if there is none. Raises DeployRefused."""
        return self.target_in(self.listed())[0]

    def listed(self) -> str:
        """What rollback.sh --list prints. Raises DeployRefused."""
        done = self.script("--list")
        if done.returncode:
            raise DeployRefused(last_line(done.stderr or done.stdout))
        return done.stdout

    def target_in(self, listed: str) -> tuple[str, str]:
        """The version and the revision that rollback.sh --list names as the rollback target; empty if it names none."""
        found = re.search(
            r"^Rollback target: (\S+), revision (\S+) \(", listed, re.MULTILINE
        )  # no row begins like this
        return (found[1], found[2]) if found else ("", "")

    def choose_revision(self) -> str:
        """As Target.choose_revision(): the pod template's hash of the rollback target, or else of the newest revision
        that was verified good, or else of the newest; of the live version, only of one that was verified good. Empty
        if there is none: rollback.sh then says so. Raises DeployRefused and StepFailed.
        """
        listed = self.listed()
        version, name = self.target_in(listed)
        if version != self.version:
            rows = re.findall(
                r"^(\S+) +(\S+) +\S+ +\d+[smhd] +(running|verified good|withdrawn|not verified)", listed, re.M
            )
            mine = [(row, state) for row, tag, state in rows if tag == self.version]
            good = [row for row, state in mine if state == "verified good"]
            others = [row for row, _ in mine if all(state != "running" for _, state in mine)]
            name = next(iter([*good, *others]), "")
        self.revision = self.hash_named(name) if name else ""
        return self.revision

    def hash_named(self, name: str) -> str:
        """The pod template's hash of a revision, by its name in rollback.sh --list; empty if it is gone."""
        colour, _, number = name.rpartition("-")
        wanted = f"{APP}-{colour}" if colour else APP
        for one in self.snapshot().items:
            if one["kind"] == "ReplicaSet" and owner(one) == wanted and annotations(one).get(REVISION) == number:
                return hash_of(one)
        return ""

    def digest(self) -> str:
        """As the pipeline has passed it: the cluster is not asked for what a tag means now."""
        return self.config.digest

    def origin(self) -> tuple[str, str]:
        """Unknown: kubectl does not show an image's labels."""
        return "", ""

    def url(self) -> str:
        """Where people reach the environment, by environments.toml; empty if it does not say."""
        return self.config.url

    def plan(self) -> Sequence[tuple[str, str]]:
        """(step, what it would do) for --dry-run. Raises StepFailed."""
        start, switch = self.planned()
        first = (steps.MIGRATE, f"job/{migrate_job_name(self.version)} with {self.image}, unapplied migrations checked")
        more = []
        if self.databases:
            what = f"job/{COMMANDS} with {self.image}"
            first = (steps.PREPARE_DATABASE, f"manage.py bluegreen prepare in {what}, unapplied migrations checked")
            more = [(steps.SWITCH_DATABASE, f"manage.py bluegreen switch in {what}")]
        return (
            first,
            (steps.START, start),
            (steps.SMOKE_TEST, "health, version, sign-in page, an asset and metrics of every new pod"),
            *more,
            (steps.SWITCH, switch),
        )

    def be_patient(self, tell: Progress) -> None:
        """As Target.be_patient()."""
        self.kube.patience.seconds, self.kube.patience.tell = PATIENCE, tell

    def get(self, kind: str, name: str) -> Object:
        """The object; empty if there is none. Raises StepFailed if the cluster refuses, and NoAnswer."""
        return self.kube.get(kind, name)

    def snapshot(self) -> Snapshot:
        """All that a step looks at, in one call, as kubectl takes 0.1 s to start. Raises StepFailed if the cluster
        refuses, and NoAnswer.
        """
        found = self.kube.get("deployments,replicasets,services,pods")
        return Snapshot(self.config.namespace, found.get("items", []))

    def new_pods(self, snapshot: Snapshot) -> list[Object]:
        """The release's own pods: those of its Deployment's revision, as an older one may have the same image."""
        name = self.incoming(snapshot)
        wanted = hash_of(snapshot.replicaset(name))
        pods = snapshot.pods(snapshot.deployment(name)["spec"]["selector"]["matchLabels"])
        return [pod for pod in pods if wanted and hash_of(pod) == wanted]

    def has_release(self, snapshot: Snapshot, name: str) -> bool:
        """Whether the Deployment has the release's pod template. Raises StepFailed."""
        return bool(snapshot.deployment(name)["spec"]["template"] == self.desired(snapshot, name))

    def desired(self, snapshot: Snapshot, name: str) -> Object:
        """The pod template that the Deployment gets for the release: with the new settings, or else with those of the
        live release, which another colour may not have. Raises StepFailed.
        """
        live = snapshot.deployment(self.active(snapshot))["spec"]["template"]
        return released(self.settings.template if self.settings else live, self.image, name)

    def live_image(self) -> str:
        """The image of what has the traffic. Raises StepFailed."""
        snapshot = self.snapshot()
        return image_of(template(snapshot.deployment(self.active(snapshot))))

    @cached_property
    def image(self) -> str:
        """The release's image: the very same if its version is live. Where environments.toml names no registry, it is
        that of the live release: without one the nodes would pull from their default registry.
        """
        config = self.config
        live = self.live_image()
        if "/" not in config.image:
            config = replace(config, image=untagged(live))
        if tag(live) == self.version and untagged(live) == config.image and not config.digest:
            return live
        return config.tagged(self.version)

    # What is done

    def migrate(self, unsafe: bool, tell: Progress) -> str:
        """Runs `manage.py migrate_release` in a Job of the release's image, once per version and image.

        A Job of this version that an interrupted run has left is waited for, or counts if it has completed. One that
        failed, or whose pod cannot start, is replaced: what its pod says may be out of date. Unfinished ones of other
        versions are removed, as nobody waits for them any more. `unsafe` skips the check of the unapplied migrations
        and leaves a mark that rollback.sh heeds. Returns the last line of the Job's log. Raises StepFailed if the Job
        fails or takes longer than MIGRATION_TIMEOUT seconds, and whatever `tell` raises; the Job is removed then.
        https://kubernetes.io/docs/concepts/workloads/controllers/job/
        """
        name = migrate_job_name(self.version)
        self.remove_abandoned(name)
        found = self.get("job", name)
        if found and (
            condition(found, "Failed") or image_of(template(found)) != self.image or self.why_not_started(found)
        ):
            self.remove_job(name)
            found = {}
        if found and condition(found, "Complete"):
            return f"job/{name} has completed already"
        if not found:
            snapshot = self.snapshot()
            self.create(migrate_job(snapshot.deployment(self.active(snapshot)), self.version, self.image, unsafe))
        try:
            self.wait_for_migration(name, tell)
        except NoAnswer:
            raise
        except StepFailed:
            self.give_up(name)
            raise
        except KeyboardInterrupt:
            if not any(map(running, self.pods_of(name))):  # one that runs is left to end, and to be resumed
                self.give_up(name)
            raise
        if unsafe:
            active = self.active(self.snapshot())
            self.kubectl("annotate", f"deployment/{active}", "--overwrite", f"{BREAK}={self.version}")
        return last_line(self.try_kubectl("logs", f"job/{name}", "--tail", "1").stdout)

    def wait_for_migration(self, name: str, tell: Progress) -> None:
        """Returns once the Job has completed. Raises StepFailed if it fails, never will complete, or takes too long,
        and whatever `tell` raises.
        """
        deadline = self.kube.patience.clock() + MIGRATION_TIMEOUT
        while not condition(found := self.get("job", name), "Complete"):
            failed = condition(found, "Failed")  # only says that the Job gave up, so its pod comes first
            why = failure_reason(self.pods_of(name), one_shot=bool(failed)) or failed
            if why or self.kube.patience.clock() > deadline:
                logs = self.try_kubectl("logs", f"job/{name}", "--tail", "20").stdout.strip()
                said = f"{last_line(logs).removesuffix('.')}. " if logs and failed else ""
                why = why or f"not done after {MIGRATION_TIMEOUT} s"
                raise StepFailed(f"The migrations failed: {said}job/{name}: {why}.", logs)
            tell(f"job/{name}")
            time.sleep(self.poll_interval)

    def why_not_started(self, found: Object) -> str:
        """Why the pod of a Job will not start; empty if it may, or has. Raises StepFailed and NoAnswer."""
        return (
            "" if found.get("status", {}).get("conditions") else failure_reason(self.pods_of(found["metadata"]["name"]))
        )

    def pods_of(self, name: str) -> list[Object]:
        """The pods of the Job of that name. Raises StepFailed and NoAnswer."""
        return self.snapshot().pods({"job-name": name})

    def remove_abandoned(self, but: str) -> None:
        """Removes the deployer's unfinished migrate Jobs, except that of the name `but`. Raises StepFailed."""
        for found in self.kube.get("jobs").get("items", []):
            name, made_here = found["metadata"]["name"], annotations(found).get(CAUSE, "").startswith(MIGRATE_CAUSE)
            if made_here and name != but and not found.get("status", {}).get("conditions"):
                self.remove_job(name)

    def give_up(self, name: str) -> None:
        """Removes a Job that this run no longer waits for, unless it has ended: its pod would go on by itself, without
        the lock, once its image can be pulled. Raises StepFailed if it may still be there, and NoAnswer.
        """
        if (found := self.get("job", name)) and not found.get("status", {}).get("conditions"):
            self.remove_job(name)

    def remove_job(self, name: str) -> None:
        """Deletes a Job and waits until it and its pods are gone. Raises StepFailed and NoAnswer."""
        self.kubectl("delete", "job", name, "--cascade=foreground", "--wait=true", "--ignore-not-found", timeout=90)

    def roll_out(
        self, name: str, timeout: float, tell: Progress, *, replicas: int | None = None, live_since: str | None = None
    ) -> str:
        """Gives Deployment `name` the release's pod template and waits until its rollout has ended; an interrupted one
        goes on.

        `replicas` is the number of pods, as it is if None; `live_since` the new mark of when it became live. `timeout`
        is the seconds that each further pod gets to become ready. Returns a note. Raises StepFailed.
        """
        snapshot = self.snapshot()
        found = snapshot.deployment(name)
        if pace := usual_pace(found):
            patch = json.dumps({"metadata": {"annotations": {PACE: None}}, "spec": pace})
            self.kubectl("patch", "deployment", name, "--type", "merge", "--patch", patch)
        if not self.has_release(snapshot, name) or not found["spec"].get("replicas", 1):
            # In one write: the Deployment's controller copies its annotations to the ReplicaSet of the template.
            notes = {
                CAUSE: f"deploy {self.version}{' with new settings' if self.settings else ''}",
                BEFORE: self.revision_in(snapshot),
                LIVE: live_since,
            }
            spec: Object = {"template": {"$patch": "replace", **self.desired(snapshot, name)}}
            if replicas is not None:
                spec["replicas"] = replicas
            patch = json.dumps({"metadata": {"annotations": notes}, "spec": spec})
            self.kubectl("patch", "deployment", name, "--type", "strategic", "--patch", patch)
        return self.wait_for_rollout(name, timeout, tell)

    def wait_for_rollout(self, name: str, timeout: float, tell: Progress) -> str:
        """Returns a note once the rollout has ended. Raises StepFailed if a pod will never be ready, or no further pod
        became ready for `timeout` seconds.
        """
        clock = self.kube.patience.clock  # without the API server no pod becomes ready, by nobody's fault
        began = moved = clock()
        most = 0
        while True:
            snapshot, at = self.snapshot(), clock()
            found, pods = snapshot.deployment(name), self.new_pods(snapshot)
            waited, count = at - began, sum(map(ready, pods))
            if why := failure_reason(pods):
                raise StepFailed(
                    f"deployment/{name} did not become ready: {why} ({waited:.1f} s after its start).", self.logs()
                )
            if complete(found):
                return f"deployment/{name}: {len(pods)} pods ready {waited:.1f} s after the start"
            if count > most:
                most, moved = count, at
            if at - moved > timeout:
                raise StepFailed(f"deployment/{name} is not ready {waited:.0f} s after its start.", self.logs())
            tell(f"{count} of {found['spec'].get('replicas', 1)} new pods ready")
            time.sleep(self.poll_interval)

    def new_instances(self) -> list[str]:
        """The names of the release's own pods that are ready. Raises StepFailed."""
        return [pod["metadata"]["name"] for pod in self.new_pods(self.snapshot()) if ready(pod)]

    def live_instances(self) -> list[str]:
        """The names of the ready pods with traffic. Raises StepFailed."""
        return [pod["metadata"]["name"] for pod in self.snapshot().live_pods()]

    def other_instances(self) -> list[str]:
        """The names of the app's ready pods that have another image than the release. Raises StepFailed."""
        pods = [pod for pod in self.snapshot().pods({"app": APP}) if ready(pod)]
        return [pod["metadata"]["name"] for pod in pods if image_of(pod["spec"]) != self.image]

    def ask(self, instance: str, paths: Sequence[str]) -> list[Answer]:
        """Sends a GET for each path from inside the pod. Raises StepFailed if that itself is not possible."""
        host = urlsplit(self.config.url).hostname or ""
        words = ("exec", "--stdin", instance, "--container", APP, "--", "python", "-", "8000", host, *paths)
        return answers(self.kube.read(*words, given=PROGRAM, timeout=5 * len(paths) + 30))

    def failure_reason(self) -> str:
        """Why the release's pods are not, or no longer, well; empty if they are. Raises StepFailed."""
        return failure_reason(self.new_pods(self.snapshot()))

    def logs(self) -> str:
        """The last 20 telling lines of the log of one of the release's pods, and the warnings about it.

        Takes a pod that is not ready if there is one. Empty if no pod was made, or if the cluster cannot be asked at
        once: whoever wants to see them has a failure to tell of.
        """
        done = self.try_kubectl("get", "deployments,replicasets,services,pods", "--output", "json")
        if done.returncode:
            return ""
        pods = sorted(self.new_pods(Snapshot(self.config.namespace, json.loads(done.stdout)["items"])), key=ready)
        return self.logs_of(pods[0]["metadata"]["name"]) if pods else ""

    def logs_of(self, name: str) -> str:
        """The last 20 telling lines of the pod's log, and the warnings about the object of that name.

        In a crash loop the log of one container goes while that of the next one comes, so both are asked for twice.
        """
        words, found = ("logs", name, "--container", APP, "--tail", str(READ)), ""
        for which in ("--previous", "--previous=false") * 2:
            said = self.try_kubectl(*words, which).stdout.strip()
            if said.startswith(GONE):
                time.sleep(self.poll_interval / 2)
            elif said:
                found = said
                break
        events = self.try_kubectl(
            "get", "events", "--field-selector", f"involvedObject.name={name},type=Warning", "--output",
            "jsonpath={range .items[*]}{.reason}: {.message}{'\\n'}{end}",
        ).stdout  # fmt: skip
        return f"{telling_lines(found)}\n{events}".strip()

    def roll_back(self, reason: str, tell: Progress) -> str:
        """Has rollback.sh return to what was live before, if the release got as far as the Deployment. Returns the
        version that is live then. Raises StepFailed.
        """
        snapshot = self.snapshot()
        name = self.incoming(snapshot)
        if not self.has_release(snapshot, name):
            return self.version_in(snapshot)
        before, _, revision = annotations(snapshot.deployment(name)).get(BEFORE, "").partition(" ")
        # Without a note of what was live before, the settings of the live version were changed by somebody else.
        to = f"--to-revision={revision}" if revision else "--previous"
        tell(f"scripts/rollback.sh {to}")
        done = self.script(to, "--yes", "--reason", clean(reason, 500), checked="yes")
        if done.returncode:
            text = (done.stdout + done.stderr).strip()
            details = "\n".join(text.splitlines()[-20:])
            raise StepFailed(f"rollback.sh exited with code {done.returncode}: {last_line(text)}", details)
        return before or self.live_version()

    def rollback_script(self, reason: str, timeout: float, dry_run: bool) -> tuple[int, str]:
        """Has rollback.sh return to the release; its pods get `timeout` seconds. Returns the exit code and the output.
        Raises StepFailed if the script cannot run.
        """
        words = ["--yes", "--timeout", f"{max(1, timeout):.0f}"]
        words += ["--reason", reason] if reason else []
        to = f"--to-revision={self.revision}" if self.revision else self.version
        done = self.script(to, *words, *(["--dry-run"] if dry_run else []))
        return done.returncode, (done.stdout + done.stderr).strip()

    def script(self, *words: str, checked: str = "") -> subprocess.CompletedProcess[str]:
        """Runs scripts/rollback.sh under this run's lock. It records nothing: whoever calls it does. Where preflight()
        has made its checks, `checked` spares the time for most of them.
        """
        context = ("--context", self.config.context) if self.config.context else ()
        command = (
            str(self.folder / "scripts" / "rollback.sh"),
            *words[:1],
            self.config.namespace,
            *context,
            *words[1:],
        )
        env = {"LEDGER_URL": "", "LEDGER_TOKEN": "", "LEDGER_TOKEN_FILE": "", "DEPLOY_LOCK_HOLDER": self.lock.identity}
        return call(command, timeout=1800, env=env | {"DEPLOY_CHECKED": checked})

    def mark_good(self) -> str:
        """Marks the release's revision as verified, and gives the CronJobs its image: the schema is only promised to
        work for one release back. Returns a note. Raises StepFailed.
        """
        snapshot = self.snapshot()
        name = self.incoming(snapshot)
        found = snapshot.replicaset(name)
        if not found:
            raise StepFailed(f"deployment/{name} has no ReplicaSet to mark.")
        words = ("--overwrite", f"{VERIFIED}={mark_of(found)}", f"{WITHDRAWN}-")
        self.kubectl("annotate", f"replicaset/{found['metadata']['name']}", *words)
        self.kubectl("annotate", f"deployment/{name}", f"{BEFORE}-")
        if self.settings:
            self.apply([with_image(task, self.image) for task in self.settings.tasks])
        tasks = self.try_kubectl("set", "image", "cronjobs", "--selector", f"app={APP}-tasks", f"{APP}={self.image}")
        note = f"; the CronJobs keep their image: {error_of(tasks)}" if tasks.returncode else ""
        return f"deployment/{name}, revision {hash_of(found)} marked as verified{note}"

    def mark_bad(self, version: str) -> None:
        """Does nothing: rollback.sh removes the mark itself."""

    # New settings

    def use_settings(self) -> None:
        """Has the release get the settings of k8s/overlays, as `./run manifests` prints them. Changes nothing.

        Raises DeployRefused if the overlay or the cluster does not take them, and StepFailed.
        """
        snapshot = self.snapshot()
        name = self.incoming(snapshot)
        found = overlays.load(self.config, self.kube, name)
        patch = json.dumps({"spec": {"template": {"$patch": "replace", **released(found.template, self.image, name)}}})
        words = ("--type", "strategic", "--patch", patch, "--dry-run=server", "--output", "json")
        done = self.kube.read("patch", "deployment", name, *words)
        if done.returncode:
            raise DeployRefused(f"The cluster refuses the settings: {error_of(done)}")
        # As the API server stores it, with its defaults, so that it can be compared.
        self.settings = replace(found, template=json.loads(done.stdout)["spec"]["template"])

    def apply_settings(self) -> None:
        """Creates the ConfigMaps of the new settings. Those of earlier revisions stay. Raises StepFailed."""
        if self.settings:
            self.apply(self.settings.config_maps)

    def apply(self, objects: Sequence[Object]) -> None:
        """Applies the objects, whoever has changed them since. Raises StepFailed."""
        if objects:
            given = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
            words = ("--server-side", "--force-conflicts", f"--field-manager={FIELD_MANAGER}", "--validate=false")
            self.kubectl("apply", *words, "--filename", "-", given=given)

    # kubectl

    def create(self, found: Object) -> None:
        """Creates an object. Raises StepFailed."""
        self.kubectl("create", "--validate=false", "--filename", "-", given=json.dumps(found))

    def kubectl(self, *words: str, given: str = "", timeout: float = 30) -> str:
        """What kubectl prints, with `given` as its input, about something that it changes, once it is known to have
        arrived. Raises StepFailed if it fails or takes over `timeout` s, NoAnswer and LockLost.
        """
        return self.kube.write(*words, held=self.lock.held, given=given, timeout=timeout)

    def try_kubectl(self, *words: str, given: str = "", timeout: float = 30) -> Done:
        """How kubectl ended, which is the caller's to judge. Raises StepFailed if it is not found or times out."""
        return self.kube.run(*words, given=given, timeout=timeout)
