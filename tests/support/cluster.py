"""As much of a Kubernetes cluster as deploying meets, for a real kubectl to talk to: Deployments with their ReplicaSets
and pods, Services, Leases, Jobs, events, logs and the way to a Service through the API server.

    with Cluster() as cluster:
        cluster.deploy("backstagetest1", "registry.example/app:1")
        cluster.becomes["registry.example/app:2"] = "crash"
        subprocess.run(["kubectl", ...], env=os.environ | {"KUBECONFIG": cluster.kubeconfig})

Its controllers do what the real ones are documented to do, in less time: a rollout takes one pod after the other
(maxSurge 1, maxUnavailable 0) or all at once (maxSurge 100%), a revision that comes again is the old ReplicaSet with a
new number, and a Deployment's annotations are copied onto its current ReplicaSet.
https://kubernetes.io/docs/concepts/workloads/controllers/deployment/
"""

import copy
import hashlib
import json
import re
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support import kubectl_program

APP = "backstagetest1"
REVISION = "deployment.kubernetes.io/revision"
NOT_COPIED = {REVISION, "kubectl.kubernetes.io/last-applied-configuration"}
KINDS = {
    "deployments": ("apps/v1", "Deployment"),
    "replicasets": ("apps/v1", "ReplicaSet"),
    "leases": ("coordination.k8s.io/v1", "Lease"),
    "jobs": ("batch/v1", "Job"),
    "cronjobs": ("batch/v1", "CronJob"),
    "pods": ("v1", "Pod"),
    "services": ("v1", "Service"),
    "ingresses": ("networking.k8s.io/v1", "Ingress"),
    "events": ("v1", "Event"),
    "configmaps": ("v1", "ConfigMap"),
    "secrets": ("v1", "Secret"),
    "serviceaccounts": ("v1", "ServiceAccount"),
    "persistentvolumeclaims": ("v1", "PersistentVolumeClaim"),
    "resourcequotas": ("v1", "ResourceQuota"),
    "horizontalpodautoscalers": ("autoscaling/v2", "HorizontalPodAutoscaler"),
}
RULES, AUTHORIZATION = "selfsubjectrulesreviews", "authorization.k8s.io/v1"
MIGRATED = {
    "good": "Applying ledger.0006... OK\n2 migrations applied\n",
    "fail": "django.db.utils.ProgrammingError: column is gone\n",
    "hang": "",
    "pull": "",
}
Object = dict[str, Any]


class Refusal(Exception):
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class Cluster:
    """`becomes` says what an image does: "good" (unless told), "crash" (ends at once), "pull" (cannot be pulled),
    "unready" (runs, and is never ready), "sick" (is ready, and /health/ and /health/ready/ answer 503), "degraded" (the
    latter is well), "quota" (no pod of it is made). "migrate IMAGE" is what a Job of it does: "good", "fail", "pull" or
    "hang". `seconds` is what a pod takes to get ready. `lag`: so many answers
    through the Service still come from an old pod. `closed`: who asks for a Service through the API server is refused.
    `writes` are all requests that changed something: method, path and body. `rules` is what the user may do, as far as
    a SelfSubjectRulesReview says; `forbidden` are the kinds that are refused in fact.
    """

    def __init__(self, namespace: str = "default") -> None:
        self.namespace = namespace
        self.objects: dict[tuple[str, str], Object] = {}
        self.becomes: dict[str, str] = {}
        self.seconds = 0.2
        self.closed = False
        self.lag = 0
        self.forbidden: set[str] = set()
        self.rules: list[Object] = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
        self.back = 0.0  # when its API server answers again, by the monotonic clock
        self.writes: list[tuple[str, str, str]] = []
        self.hooks: list[Callable[[str, str], None]] = []
        self.lock = threading.RLock()
        self.env: list[Object] = []  # of the pods of the Deployments that are made from now on
        # Of the Jobs of manage.py bluegreen: image and words to exit code and log; None while it runs.
        self.commands: Callable[[str, list[str]], tuple[int, str] | None] = lambda image, words: (0, "")
        self.logs: dict[str, str] = {}  # of those, by the names of their pods
        self.version = 100
        self.folder = tempfile.TemporaryDirectory(prefix="cluster-")
        self.add("secrets", f"{APP}-migrate")

    def __enter__(self) -> "Cluster":
        handler = type("Handler", (Handler,), {"cluster": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        path = Path(self.folder.name) / "config"
        path.write_text(json.dumps(self.config()))
        self.kubeconfig = str(path)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        self.folder.cleanup()

    def down(self) -> bool:
        """Whether the API server is down. The pods are not, and the controllers pause."""
        return time.monotonic() < self.back

    def config(self) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.server.server_port}"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {}}],
        }

    # What a test sets up and looks at

    def deploy(
        self, name: str, image: str, *, replicas: int = 3, settings: str = "", good: str = "", **notes: str
    ) -> Object:
        """A rollout of `image`, done at once; `notes` are annotations. `settings` names its ConfigMap, and `good` is
        the version that the revision is marked as.
        """
        annotations = {{"cause": "kubernetes.io/change-cause"}.get(key, key): value for key, value in notes.items()}
        with self.lock:
            found = self.objects.get(("deployments", name))
            if found is None:
                labels = {"app": APP} | ({"colour": name.rpartition("-")[2]} if name != APP else {})
                found = self.add("deployments", name)
                found["metadata"] |= {"generation": 1, "annotations": {}, "labels": labels}
                found["spec"] = {
                    "selector": {"matchLabels": labels},
                    "minReadySeconds": 5,
                    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                    "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": APP, "image": ""}]}},
                }
            found["spec"]["replicas"] = replicas
            container = found["spec"]["template"]["spec"]["containers"][0]
            container["image"] = image
            if self.env:
                container["env"] = copy.deepcopy(self.env)
            if settings:
                self.add("configmaps", f"{APP}-config-{settings}")
                container["envFrom"] = [{"configMapRef": {"name": f"{APP}-config-{settings}"}}]
            found["metadata"]["annotations"] |= annotations
            found["metadata"]["generation"] += 1
            for step in range(4 * replicas + 2):
                self.reconcile(at=time.time() - 3600 + 10 * step)
            if good:
                self.mark(name, good)
            return found

    def current(self, name: str = APP) -> Object:
        """The ReplicaSet of a Deployment's template."""
        revision = self.objects["deployments", name]["metadata"]["annotations"][REVISION]
        return next(each for each in self.owned(name) if each["metadata"]["annotations"][REVISION] == revision)

    def mark(self, name: str, version: str) -> None:
        """Marks the current revision of a Deployment as verified good."""
        meta = self.current(name)["metadata"]
        meta["annotations"][f"{APP}/verified-good"] = f"{version} {meta['labels']['pod-template-hash']}"

    def service(self, colour: str = "") -> Object:
        found = self.add("services", APP)
        found["spec"] = {
            "selector": {"app": APP} | ({"colour": colour} if colour else {}),
            "ports": [{"port": 80, "targetPort": 8000}],
        }
        return found

    def add(self, kind: str, name: str) -> Object:
        version, singular = KINDS[kind]
        found: Object = {"apiVersion": version, "kind": singular, "metadata": {"name": name}}
        return self.store(kind, found)

    def store(self, kind: str, found: Object) -> Object:
        meta = found["metadata"]
        meta.setdefault("namespace", self.namespace)
        meta.setdefault("uid", f"{kind}-{meta['name']}")
        meta.setdefault("creationTimestamp", stamp(time.time()))
        self.touch(found)
        self.objects[kind, meta["name"]] = found
        return found

    def touch(self, found: Object) -> None:
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)

    def all(self, kind: str) -> list[Object]:
        return [found for (each, _), found in sorted(self.objects.items()) if each == kind]

    def image(self, name: str = APP) -> str:
        return image_of(self.objects["deployments", name])

    def sets(self, name: str = APP) -> dict[str, Object]:
        """A Deployment's ReplicaSets by their image."""
        return {image_of(each): each for each in self.all("replicasets") if owner(each) == name}

    def serving(self) -> set[str]:
        """The images of the pods that the Service gives requests to."""
        selector = self.objects["services", APP]["spec"]["selector"]
        return {image_of(pod) for pod in self.all("pods") if is_ready(pod) and matches(pod, selector)}

    # The controllers

    def reconcile(self, at: float | None = None) -> None:
        at = time.time() if at is None else at
        for found in self.all("deployments"):
            self.roll(found, at)
        for found in self.all("jobs"):
            self.work(found, at)

    def work(self, job: Object, at: float) -> None:
        """A Job whose only pod is tried once: https://kubernetes.io/docs/concepts/workloads/controllers/job/"""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        pod = self.objects.get(("pods", f"{name}-x7k2p"))
        if pod is None:
            if is_trial(job) and self.becomes.get(image_of(job)) == "quota":
                return
            labels = {"batch.kubernetes.io/controller-uid": uid, "job-name": name}
            job["spec"]["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
            job["spec"]["template"].setdefault("metadata", {}).setdefault("labels", {}).update(labels)
            pod = self.add("pods", f"{name}-x7k2p")
            pod["metadata"] |= {"labels": job["spec"]["template"]["metadata"]["labels"]}
            pod["metadata"]["ownerReferences"] = [{"kind": "Job", "name": name, "controller": True}]
            pod |= {"spec": copy.deepcopy(job["spec"]["template"]["spec"]), "born": at}
        if is_trial(job):
            return self.try_out(job, pod, at)
        if "status" not in pod:
            status: Object = {"name": APP, "image": image_of(job), "restartCount": 0, "state": {"running": {}}}
            pod["status"] = {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "False"}],
                "containerStatuses": [status],
            }
        does = self.becomes.get(f"migrate {image_of(job)}", "good")
        if at - pod["born"] < self.seconds or job.get("status") or does == "hang":
            return
        if does == "pull":
            waiting = {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{image_of(job)}"'}
            pod["status"]["containerStatuses"][0]["state"] = {"waiting": waiting}
            return
        if is_command(job):
            return self.carry_out(job, pod)
        first, last, why = ("FailureTarget", "Failed", "BackoffLimitExceeded")
        ended = {"exitCode": 0 if does == "good" else 1, "reason": "Completed" if does == "good" else "Error"}
        pod["status"]["containerStatuses"][0]["state"] = {"terminated": ended}
        if does == "good":
            first, last, why = "SuccessCriteriaMet", "Complete", "CompletionsReached"
        conditions = [{"type": each, "status": "True", "reason": why} for each in (first, last)]
        job["status"] = {"succeeded" if does == "good" else "failed": 1, "conditions": conditions}

    def carry_out(self, job: Object, pod: Object) -> None:
        """A Job of manage.py bluegreen, which fails at most once."""
        words = job["spec"]["template"]["spec"]["containers"][0]["command"]
        if done := self.commands(image_of(job), words[words.index("manage.py") + 1 :]):
            code, self.logs[pod["metadata"]["name"]] = done
            pod["status"]["containerStatuses"][0]["state"] = {"terminated": {"exitCode": code}}
            kind = "Failed" if code else "Complete"
            job["status"] = {"conditions": [{"type": kind, "status": "True"}]}

    def try_out(self, job: Object, pod: Object, at: float) -> None:
        """A Job whose pod serves until somebody deletes it; by restartPolicy Never one that ends stays so."""
        self.live(pod, at)
        (status,) = pod["status"]["containerStatuses"]
        if status["restartCount"]:
            status |= {"restartCount": 0, "state": status.pop("lastState")}
            why = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
            job["status"] = {"failed": 1, "conditions": [why]}

    def roll(self, found: Object, at: float) -> None:
        name, spec, meta = found["metadata"]["name"], found["spec"], found["metadata"]
        key = hashlib.sha256(json.dumps(spec["template"], sort_keys=True).encode()).hexdigest()[:10]
        sets = [each for each in self.all("replicasets") if owner(each) == name]
        newest = max((int(each["metadata"]["annotations"][REVISION]) for each in sets), default=0)
        current = self.objects.get(("replicasets", f"{name}-{key}"))
        if current is None:
            current = self.add("replicasets", f"{name}-{key}")
            labels = spec["selector"]["matchLabels"] | {"pod-template-hash": key}
            current["metadata"] |= {
                "labels": labels,
                "annotations": {},
                "ownerReferences": [{"kind": "Deployment", "name": name, "controller": True}],
            }
            current["spec"] = {"template": copy.deepcopy(spec["template"])}
            current["spec"]["template"]["metadata"]["labels"] = dict(labels)
            # As if each had come an hour after the one before.
            current["metadata"]["creationTimestamp"] = stamp(time.time() - 3600 * (9 - len(self.all("replicasets"))))
        notes = current["metadata"]["annotations"]
        if notes.get(REVISION) != str(newest) or not newest:
            notes[REVISION] = str(newest + 1)
        meta["annotations"][REVISION] = notes[REVISION]
        notes |= {key: value for key, value in meta["annotations"].items() if key not in NOT_COPIED}
        self.scale(found, current, at)

    def scale(self, found: Object, current: Object, at: float) -> None:
        name, wanted = found["metadata"]["name"], found["spec"]["replicas"]
        pods = [
            pod for pod in self.all("pods") if owner(pod) in {each["metadata"]["name"] for each in self.owned(name)}
        ]
        new = [pod for pod in pods if owner(pod) == current["metadata"]["name"]]
        old = [pod for pod in pods if pod not in new]
        for pod in new:
            self.live(pod, at)
        ready = [pod for pod in new if is_ready(pod)]
        while len(ready) > wanted:
            del self.objects["pods", ready.pop()["metadata"]["name"]]
        short = self.becomes.get(image_of(current)) == "quota"
        together = found["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == "100%"
        for number in range(len(new), wanted if together else min(wanted, len(ready) + 1)):
            if not short:
                self.pod(current, at, number)
        for pod in sorted(old, key=is_ready)[: max(0, len(old) + len(ready) - wanted)]:
            del self.objects["pods", pod["metadata"]["name"]]
            old.remove(pod)
        available = len(ready) + sum(map(is_ready, old))
        found["status"] = {
            "observedGeneration": found["metadata"]["generation"],
            "replicas": len(new) + len(old),
            "updatedReplicas": len(new),
            "availableReplicas": available,
            "conditions": [{"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated"}],
        }
        if short:
            quota = {"reason": "FailedCreate", "message": "pods are forbidden: exceeded quota"}
            found["status"]["conditions"].append({"type": "ReplicaFailure", "status": "True"} | quota)

    def owners(self) -> set[str]:
        return {each["metadata"]["name"] for each in self.all("replicasets")}

    def owned(self, name: str) -> list[Object]:
        return [each for each in self.all("replicasets") if owner(each) == name]

    def pod(self, replicaset: Object, at: float, number: int) -> None:
        self.version += 1
        pod = self.add("pods", f"{replicaset['metadata']['name']}-{self.version}")
        pod["metadata"]["labels"] = replicaset["metadata"]["labels"]
        pod["metadata"]["ownerReferences"] = [
            {"kind": "ReplicaSet", "name": replicaset["metadata"]["name"], "controller": True}
        ]
        pod["spec"] = copy.deepcopy(replicaset["spec"]["template"]["spec"])
        pod["born"] = at
        self.live(pod, at)

    def live(self, pod: Object, at: float) -> None:
        image, passed = image_of(pod), at - pod["born"]
        does = self.becomes.get(image, "good")
        state: Object = {"running": {}} if passed >= 0 else {}
        status: Object = {"name": APP, "image": image, "restartCount": 0, "state": state}
        ready = does in ("good", "sick", "degraded") and passed >= self.seconds
        if does == "crash" and passed >= self.seconds:
            status |= {
                "restartCount": 2,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": 'back-off 20s restarting\n"failed"'}},
                "lastState": {"terminated": {"exitCode": 3, "reason": "Error"}},
            }
        if does == "pull" and passed >= self.seconds:
            status["state"] = {
                "waiting": {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{image}"'}
            }
        pod["status"] = {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [status],
            # As where a service mesh, say, has put one in.
            "initContainerStatuses": [
                {"name": "first", "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
            ],
        }

    # The API

    def answer(self, method: str, path: str, query: dict[str, str], kind: str, body: bytes) -> tuple[int, Any]:
        with self.lock:
            for hook in self.hooks:
                hook(method, path)
            self.reconcile()
            if found := discovery(path):
                return 200, found
            if path == f"/api/v1/namespaces/{self.namespace}":  # kubectl looks for it when an object is not found
                return 200, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
            if "/proxy/" in path:
                return self.proxy(path)
            if path.endswith(f"/{RULES}"):
                return 201, json.loads(body) | {"status": {"resourceRules": self.rules, "incomplete": False}}
            match = re.fullmatch(r"/(?:api/v1|apis/[^/]+/v[12])/namespaces/([^/]+)/(\w+)(?:/([^/]+))?(?:/(\w+))?", path)
            if not match or match[2] not in KINDS:
                raise Refusal(404, "NotFound", "the server could not find the requested resource")
            namespace, resource, name, part = match.groups()
            if resource in self.forbidden:
                raise self.denied(method.lower(), resource)
            if part == "log":
                return 200, self.log(name, query)
            if part == "exec":
                raise self.denied("create", "pods/exec")
            if part == "scale":
                return self.scaled(method, name, kind, body)
            if method == "GET":
                return 200, self.read(namespace, resource, name, query)
            if "dryRun" not in query:
                self.writes.append((method, path, body.decode()))
            before = copy.deepcopy(self.objects)
            try:
                done = self.write(method, resource, name, kind, body)
            except Exception:
                self.objects = before
                raise
            if "dryRun" in query:
                self.objects = before
            return (201 if method == "POST" else 200), done

    def denied(self, verb: str, resource: str) -> Refusal:
        group = KINDS[resource.partition("/")[0]][0].rpartition("/")[0]
        text = f'{resource} is forbidden: User "test" cannot {verb} resource "{resource}" in API group "{group}"'
        return Refusal(403, "Forbidden", f'{text} in the namespace "{self.namespace}"')

    def missing(self, resource: str, name: str) -> Refusal:
        group = KINDS[resource][0].rpartition("/")[0]
        return Refusal(404, "NotFound", f'{resource}{f".{group}" if group else ""} "{name}" not found')

    def read(self, namespace: str, resource: str, name: str | None, query: dict[str, str]) -> Object:
        here = self.all(resource) if namespace == self.namespace else []
        if name:
            for found in here:
                if found["metadata"]["name"] == name:
                    return found
            raise self.missing(resource, name)
        wanted = dict(pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if pair)
        fields = dict(pair.split("=", 1) for pair in query.get("fieldSelector", "").split(",") if pair)
        items = [found for found in here if matches(found, wanted)]
        if resource == "events":
            items = self.events(fields.get("involvedObject.name", ""))
        version, kind = KINDS[resource]
        return {"apiVersion": version, "kind": f"{kind}List", "metadata": {"resourceVersion": "1"}, "items": items}

    def events(self, name: str) -> list[Object]:
        pod = self.objects.get(("pods", name))
        if pod is None or self.becomes.get(image_of(pod), "good") in ("good", "sick", "degraded"):
            return []
        reason, message = {
            "crash": ("BackOff", "Back-off restarting failed container"),
            "pull": ("Failed", "Error: ImagePullBackOff"),
            "unready": ("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503"),
        }[self.becomes[image_of(pod)]]
        meta = {"name": f"{name}.1", "namespace": self.namespace}
        return [
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": meta,
                "type": "Warning",
                "reason": reason,
                "message": message,
            }
        ]

    def log(self, name: str | None, query: dict[str, str]) -> str:
        pod = self.objects.get(("pods", name or ""))
        if pod is None:
            raise self.missing("pods", name or "")
        if is_command(pod):
            return self.logs.get(pod["metadata"]["name"], "")
        if owner(pod) not in self.owners() and not is_trial(pod):
            return MIGRATED[self.becomes.get(f"migrate {image_of(pod)}", "good")]
        does = self.becomes.get(image_of(pod), "good")
        if query.get("previous") == "true" and (does != "crash" or is_trial(pod)):
            raise Refusal(400, "BadRequest", f'previous terminated container "{APP}" in pod "{name}" not found')
        if query.get("previous") == "true":  # a kubelet keeps one that has ended, which may be the next one by now
            return "unable to retrieve container logs for containerd://2f1d9c0c0a"
        return "Traceback: no module named nothing\n" if does == "crash" else "listening on 8000\n"

    def scaled(self, method: str, name: str | None, kind: str, body: bytes) -> tuple[int, Object]:
        found = self.objects["deployments", str(name)]
        if method in ("PUT", "PATCH"):
            self.writes.append((method, f"{name}/scale", body.decode()))
            found["spec"]["replicas"] = json.loads(body)["spec"]["replicas"]
            found["metadata"]["generation"] += 1
            self.touch(found)
            self.reconcile()
        meta = {key: found["metadata"][key] for key in ("name", "namespace", "resourceVersion")}
        spec = {"replicas": found["spec"]["replicas"]}
        return 200, {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": meta, "spec": spec, "status": spec}

    def write(self, method: str, resource: str, name: str | None, kind: str, body: bytes) -> Object:
        key = (resource, name or "")
        if method == "POST":
            sent = json.loads(body)
            key = (resource, sent["metadata"]["name"])
            if key in self.objects:
                raise Refusal(409, "AlreadyExists", f'{resource} "{key[1]}" already exists')
            return self.store(resource, sent)
        found = self.objects.get(key)
        if found is None and "apply-patch" in kind:
            return self.store(resource, json.loads(body))
        if found is None:
            raise self.missing(*key)
        if method == "DELETE":
            for pod in self.all("pods") if resource == "jobs" else ():
                if owner(pod) == name:
                    del self.objects["pods", pod["metadata"]["name"]]
            return self.objects.pop(key)
        if method == "PUT":
            sent = json.loads(body)
            version = sent["metadata"].get("resourceVersion")
            if version and version != found["metadata"]["resourceVersion"]:
                raise Refusal(
                    409,
                    "Conflict",
                    f'Operation cannot be fulfilled on {resource} "{name}": the object has been modified',
                )
            return self.store(resource, found | sent)
        before = copy.deepcopy(found.get("spec"))
        if "json-patch" in kind:
            json_patch(found, json.loads(body))
        else:
            merge(found, json.loads(body))
        if found.get("spec") != before and "generation" in found["metadata"]:
            found["metadata"]["generation"] += 1
        self.touch(found)
        self.reconcile()
        return found

    def proxy(self, path: str) -> tuple[int, Any]:
        if self.closed:
            raise self.denied("get", "services/proxy")
        images = sorted(self.serving())
        if not images:
            raise Refusal(503, "ServiceUnavailable", f'no endpoints available for service "http:{APP}:80"')
        does = self.becomes.get(images[0], "good")
        well = does == "good" or (does == "degraded" and path.endswith("/ready/"))
        if self.lag:
            self.lag -= 1
            return 200, {"status": "healthy", "version": "old"}
        body = {"status": "healthy" if well else "unhealthy", "version": images[0].rpartition(":")[2]}
        return (200 if well else 503), body


class Handler(BaseHTTPRequestHandler):
    cluster: Cluster
    protocol_version = "HTTP/1.1"

    def respond(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        try:
            if self.cluster.down():
                raise Refusal(503, "ServiceUnavailable", "the server is currently unable to handle the request")
            code, found = self.cluster.answer(
                self.command, unquote(parts.path), query, self.headers.get("Content-Type", ""), body
            )
        except Refusal as refusal:
            code = refusal.code
            found = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
            found |= {"message": str(refusal), "reason": refusal.reason, "code": code}
        text = found.encode() if isinstance(found, str) else json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(found, str) else "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_KUBECTL(self) -> None:
        """What scripts/rollback.sh says: a number of words, the words and what is given, each ended by a NUL."""
        count, said = int(self.word()), []
        for _ in range(count):
            said.append(self.word())
        given = self.word()
        found = None if self.cluster.down() else kubectl_program.answer(self.cluster, said, given)
        self.wfile.write(b"unknown\n" if found is None else b"known\n" + found.encode())

    def word(self) -> str:
        letters = bytearray()
        while (letter := self.rfile.read(1)) not in (b"\0", b""):
            letters += letter
        return letters.decode()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = respond

    def log_message(self, *_: object) -> None:
        """Nothing: the test's output is the program's."""


def is_trial(found: Object) -> bool:
    """Whether it is the Job, or its pod, that tries a release without traffic."""
    return bool(found["metadata"].get("labels", {}).get("app") == f"{APP}-trial")


def is_command(found: Object) -> bool:
    """Whether it is the Job of manage.py bluegreen, or its pod."""
    return bool(found["metadata"].get("labels", {}).get("app") == f"{APP}-bluegreen")


def discovery(path: str) -> Object | None:
    groups = sorted({version for version, _ in KINDS.values() if "/" in version} | {AUTHORIZATION})
    if path == "/version":
        return {"major": "1", "minor": "32", "gitVersion": "v1.32.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        listed = [{"groupVersion": each, "version": each.rpartition("/")[2]} for each in groups]
        return {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [
                {"name": each["groupVersion"].partition("/")[0], "versions": [each], "preferredVersion": each}
                for each in listed
            ],
        }
    version = path.removeprefix("/api/").removeprefix("/apis/")
    if path not in (f"/api/{version}", f"/apis/{version}") or version not in {"v1", *groups}:
        return None
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    resources = [
        {"name": name, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": verbs}
        for name, (group, kind) in KINDS.items()
        if group == version
    ]
    if version == AUTHORIZATION:
        resources.append({"name": RULES, "kind": "SelfSubjectRulesReview", "namespaced": False, "verbs": ["create"]})
    if version == "apps/v1":
        scale = {"group": "autoscaling", "version": "v1", "kind": "Scale", "verbs": ["get", "patch", "update"]}
        resources.append({"name": "deployments/scale", "singularName": "", "namespaced": True} | scale)
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


def merge(found: Object, patch: Object) -> None:
    """A merge patch (RFC 7396), and of the strategic one: containers are merged by their name, and $patch replaces."""
    if patch.get("$patch") == "replace":
        found.clear()
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            found.pop(key, None)
        elif isinstance(value, dict):
            merge(found.setdefault(key, {}), value)
        elif key == "containers" and key in found:
            for each in value:
                merge(next(one for one in found[key] if one["name"] == each["name"]), each)
        else:
            found[key] = value


def json_patch(found: Object, operations: list[Object]) -> None:
    """RFC 6902, as far as test and replace go."""
    for each in operations:
        *way, last = each["path"].strip("/").split("/")
        place = found
        for step in way:
            place = place[step]
        if each["op"] == "test":
            if place.get(last) != each["value"]:
                raise Refusal(422, "Invalid", "the server rejected our request due to an error in our request")
        else:
            place[last] = each["value"]


def stamp(at: float) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(at))).strftime("%Y-%m-%dT%H:%M:%SZ")


def matches(found: Object, wanted: dict[str, str]) -> bool:
    labels: dict[str, str] = found["metadata"].get("labels", {})
    return wanted.items() <= labels.items()


def owner(found: Object) -> str:
    return next((str(each["name"]) for each in found["metadata"].get("ownerReferences", [])), "")


def image_of(found: Object) -> str:
    """Of the app's container, in a pod or in what makes pods."""
    pod = found["spec"].get("template", found)["spec"]
    return next((str(each["image"]) for each in pod["containers"] if each["name"] == APP), "")


def is_ready(pod: Object) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"]["conditions"])
