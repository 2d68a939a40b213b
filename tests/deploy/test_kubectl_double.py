"""The doubles of kubectl answer as the real one does, to what manage.py deploy and scripts/rollback.sh say to it."""

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import gotemplate, kubectl_program
from tests.support.cluster import APP, Cluster
from tests.support.kubectl import EVENTS, Kubectl
from tests.support.servers import PATIENCE, ROOT
from tests.support.tools import needs

NAMESPACE = "backstagetest1-staging"
REPO = "registry.example/team/app"
LEASE = f"lease {APP}-deploy"
MIGRATE = f"job {APP}-migrate-3"


def job() -> dict[str, Any]:
    containers = [{"name": APP, "image": f"{REPO}:3"}]
    spec = {"template": {"metadata": {"labels": {"app": f"{APP}-migrate"}}, "spec": {"containers": containers}}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": f"{APP}-migrate-3"}, "spec": spec}


def lease(holder: str, **meta: str) -> dict[str, Any]:
    meta = {"name": f"{APP}-deploy"} | meta
    spec = {"holderIdentity": holder}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}


FREE = json.dumps(
    [
        {"op": "test", "path": "/spec/holderIdentity", "value": "me"},
        {"op": "replace", "path": "/spec/holderIdentity", "value": ""},
    ]
)
TEMPLATE = {"metadata": {"labels": {"app": APP}}, "spec": {"containers": [{"name": APP, "image": f"{REPO}:5"}]}}
REPLACED = json.dumps({"spec": {"template": {"$patch": "replace", **TEMPLATE}}})
GREEN = json.dumps({"spec": {"selector": {"colour": "green"}}})
RIGHTS = {
    "apiVersion": "authorization.k8s.io/v1",
    "kind": "SelfSubjectRulesReview",
    "spec": {"namespace": NAMESPACE},
}
NOTES = json.dumps({"metadata": {"annotations": {"gone": None, "note": "a"}}})
IMAGE = json.dumps({"spec": {"template": {"spec": {"containers": [{"name": APP, "image": f"{REPO}:4"}]}}}})
CAUSE = json.dumps({"metadata": {"annotations": {"kubernetes.io/change-cause": "rollback"}}} | json.loads(REPLACED))
PACE = json.dumps({"metadata": {"annotations": {"pace": "5 1 0"}}, "spec": {"minReadySeconds": 0}})
GRANTED = (
    '{{range .status.resourceRules}}{{range .verbs}}{{.}}{{end}} {{range .apiGroups}}{{or . "core"}}{{end}}{{end}}'
)
TASK_IMAGE = "{{range .spec.jobTemplate.spec.template.spec.containers}}{{.image}}{{end}}"
KEYS = "go-template={{range $key, $value := .data}}{{$key}} {{end}}"
STATES = "{{range .items}}{{range .status.containerStatuses}}{{with .state.running}}runs{{end}}{{end}}{{end}}"
KIND_AND_NAME = "{{range .items}}{{.kind}} {{.metadata.name}} {{end}}"
READ = "--output json --ignore-not-found --request-timeout=10s"
CREATE, REPLACE = "create --validate=false --filename -", "replace --validate=false --filename -"
WARNINGS = "get events --field-selector involvedObject.name={pod},type=Warning --output"
# What is said, a last word that holds spaces, and what is given.
SAID: list[tuple[str, str, dict[str, Any] | None]] = [
    ("get deployments --output name", "", None),
    ("get deployments,replicasets,services,pods --output json", "", None),
    ("get horizontalpodautoscalers,resourcequotas --output json", "", None),
    (f"get configmap/none secret/{APP}-migrate --output name --ignore-not-found", "", None),
    ("create --validate=false --filename - --output json", "", RIGHTS),
    (f"get deployments,replicasets,services,pods {READ}", "", None),
    (f"get jobs {READ}", "", None),
    (f"get {MIGRATE} {READ}", "", None),
    (f"get {MIGRATE} --output json", "", None),
    (CREATE, "", job()),
    (CREATE, "", job()),
    (f"get {MIGRATE} {READ}", "", None),
    (f"logs {MIGRATE.replace(' ', '/')} --tail 1", "", None),
    (f"logs job/{APP}-none --tail 1", "", None),
    (f"logs {MIGRATE.replace(' ', '/')} --container {APP} --tail -1", "", None),
    (f"get secret {APP}-migrate --output", KEYS, None),
    (f"get secret {APP}-none --output", KEYS, None),
    (f"get cronjob {APP}-tidy {READ}", "", None),
    (f"get cronjob {APP}-tidy -o", "jsonpath={.spec.jobTemplate}", None),
    ("delete job tidy --ignore-not-found --cascade=foreground --wait=false", "", None),
    (f"get pods -l job-name={APP}-migrate-3 -o", f"go-template={STATES}", None),
    (f"get job {APP}-none --ignore-not-found -o name", "", None),
    (CREATE, "", lease("me")),
    (f"get {LEASE} {READ}", "", None),
    (REPLACE, "", lease("me")),
    (REPLACE, "", lease("you", resourceVersion="1")),
    (f"patch {LEASE} --type json --patch", FREE, None),
    (f"patch {LEASE} --type json --patch", FREE, None),
    (f"patch deployment {APP} --type strategic --patch", NOTES, None),
    (f"patch service {APP} --type merge --patch", GREEN, None),
    (f"patch service {APP}-preview --type merge --patch", GREEN, None),
    (f"annotate deployment/{APP} --overwrite {APP}/before=2 note=b", "", None),
    (f"annotate deployment/{APP} --overwrite other=b note-", "", None),
    (f"annotate deployment/{APP}-none --overwrite note=b", "", None),
    (f"annotate pods --selector app={APP} --overwrite note=b", "", None),
    (f"annotate pods --selector app={APP} --overwrite note-", "", None),
    (f"annotate pods --selector app={APP}-none --overwrite note-", "", None),
    (f"set image cronjobs --selector app={APP}-tasks {APP}={REPO}:3", "", None),
    ("logs {pod} --container " + APP + " --tail 20 --previous", "", None),
    ("logs {pod} --container " + APP + " --tail 20 --previous=false", "", None),
    (f"logs {{pod}} -c {APP} --previous=true --tail=400", "", None),
    (f"logs {{pod}} -c {APP} --previous=false --tail=400", "", None),
    (WARNINGS, EVENTS, None),
    (f"scale deployment/{APP} --replicas=0", "", None),
    (f"scale deployment {APP} --replicas=0", "", None),
    (f"patch deployment {APP} --type strategic --patch", IMAGE, None),
    (f"patch deployment {APP} --type strategic --patch", REPLACED, None),
    (f"get deployment {APP} {READ}", "", None),
    # As scripts/rollback.sh says it
    ("create --validate=false -f - -o", f"go-template={GRANTED}", RIGHTS),
    ("get deployments,services,horizontalpodautoscalers -o", f"go-template={KIND_AND_NAME}", None),
    ("get replicaset {set} -o", "jsonpath={.spec.template}", None),
    (f"get service {APP}-preview --ignore-not-found -o name", "", None),
    (f"get service {APP} --ignore-not-found -o name", "", None),
    (f"get {LEASE} --ignore-not-found -o", "go-template={{.spec.holderIdentity}}", None),
    ("create --validate=false -f -", "", lease("ann")),
    (f"patch {LEASE} --type=json -p", FREE, None),
    (f"patch deployment {APP} --type=strategic -p", CAUSE, None),
    (f"patch deployment {APP} --type=merge -p", PACE, None),
    (f"patch deployment {APP} --dry-run=server --type=merge -p", json.dumps({"spec": {"replicas": 9}}), None),
    (f"get deployment {APP} -o", "go-template={{.spec.replicas}}", None),
    ("annotate replicaset {set} --overwrite note- other=b", "", None),
    (f"annotate replicaset {APP}-none --overwrite note=b", "", None),
    (f"annotate deployment {APP} note-", "", None),
    (f"annotate pods -l app={APP} --overwrite note=c", "", None),
    (f"set image cronjobs -l app={APP}-tasks {APP}={REPO}:5", "", None),
    (f"get cronjob {APP}-tidy -o", f"go-template={TASK_IMAGE}", None),
    (f"delete {MIGRATE} --cascade=foreground --wait=true --ignore-not-found", "", None),
    (f"delete {MIGRATE} --ignore-not-found --wait=false", "", None),
    (f"delete {LEASE} --ignore-not-found", "", None),
]
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:]+Z|\d{9,}\.\d+|[0-9a-f]{10}-\d+")  # times, and names of pods


def answers(quick: bool) -> list[tuple[str, int, str, str]]:
    with Cluster(NAMESPACE) as cluster:
        cluster.service()
        cluster.becomes |= {f"{REPO}:2": "crash", f"migrate {REPO}:3": "hang"}
        cluster.deploy(APP, f"{REPO}:2", replicas=1)
        task = cluster.add("cronjobs", f"{APP}-tidy")
        task["metadata"]["labels"] = {"app": f"{APP}-tasks"}
        task["spec"] = {
            "jobTemplate": {"spec": {"template": {"spec": {"containers": [{"name": APP, "image": "a:1"}]}}}}
        }
        (pod,), (current,) = cluster.all("pods"), cluster.all("replicasets")
        names = {"pod": pod["metadata"]["name"], "set": current["metadata"]["name"]}
        run: Callable[..., Any] = Kubectl(cluster, lambda *_: (0, "")) if quick else subprocess.run
        found = []
        for said, last, given in SAID:
            words = ["kubectl", "--namespace", NAMESPACE, *said.format(**names).split()]
            done = run(
                words + [last] * bool(last),
                input=json.dumps(given) if given else "",
                env=os.environ | {"KUBECONFIG": cluster.kubeconfig},
                capture_output=True,
                text=True,
            )
            out, err = done.stdout.strip(), (done.stderr.strip().splitlines() or [""])[-1]
            if out.startswith("{"):
                out = json.dumps(json.loads(out), sort_keys=True)
            found.append((f"{said} {last}", done.returncode, *(MOMENT.sub("*", each) for each in (out, err))))
        return found


NO_KUBECTL = needs("kubectl")


@NO_KUBECTL
def test_the_quick_kubectl_answers_as_the_real_one() -> None:
    for quick, real in zip(answers(True), answers(False), strict=True):
        assert quick == real


# What the checks before a rollback look at.
CONTAINER = {
    "envFrom": [{"configMapRef": {"name": "a"}}, {"secretRef": {"name": "b", "optional": True}}],
    "env": [{"name": "A", "value": "a"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "c", "key": "d"}}}],
    "resources": {"requests": {"memory": "64Mi", "cpu": "100m"}, "limits": {"memory": "128Mi"}},
}
POD = {
    "serviceAccountName": "app",
    "volumes": [
        {"name": "a", "configMap": {"name": "a"}},
        {"name": "b", "projected": {"sources": [{"secret": {"name": "e"}}]}},
        {"name": "c", "persistentVolumeClaim": {"claimName": "media"}},
    ],
}


def fill(cluster: Cluster) -> None:
    """Adds what the Deployment's pods name, a quota, and an autoscaler."""
    for kind, name in (("configmaps", "a"), ("secrets", "c"), ("secrets", "e"), ("serviceaccounts", "app")):
        cluster.add(kind, name)
    cluster.add("persistentvolumeclaims", "media")
    cluster.add("resourcequotas", "all")["status"] = {
        "hard": {"pods": "100", "requests.cpu": "90", "limits.memory": "64Gi"},
        "used": {"pods": "2", "requests.cpu": "200m", "limits.memory": "256Mi"},
    }
    target = {"kind": "Deployment", "name": APP, "apiVersion": "apps/v1"}
    cluster.add("horizontalpodautoscalers", APP)["spec"] = {"scaleTargetRef": target, "maxReplicas": 9}


@NO_KUBECTL
def test_what_rollback_reads_is_what_the_real_kubectl_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a rollback that fails, in one that succeeds, in one between colours, and in a list."""
    kubectl, quickly = shutil.which("kubectl"), kubectl_program.answer
    compared: list[tuple[list[str], str, str, set[str | None]]] = []
    kubectl_program.install(tmp_path)

    def both(cluster: Cluster, said: list[str], given: str) -> str | None:
        before = quickly(cluster, said, given)
        again = sum(each[0] == said for each in compared)
        if before is None or again > 1 or not {"get", "config"} & set(said):
            return before
        env = os.environ | {"KUBECONFIG": cluster.kubeconfig}
        real = subprocess.run([str(kubectl), *said], env=env, capture_output=True, text=True)
        # Between the two questions the cluster may have moved on.
        compared.append((said, real.stdout, real.stderr, {before, quickly(cluster, said, given)}))
        return before

    monkeypatch.setattr(kubectl_program, "answer", both)
    path = f"{tmp_path}:{os.environ['PATH']}"
    for colour in ("", "blue"):
        with Cluster() as cluster:
            cluster.service(colour)
            fill(cluster)
            cluster.becomes[f"{REPO}:0"] = "crash"
            for name in (f"{APP}-green", f"{APP}-blue") if colour else (APP, APP, APP):
                number = len(cluster.all("replicasets"))
                notes = {"cause": f'"{number}"\t\x7f\u00a0é', "good": str(number)}
                found = cluster.deploy(name, f"{REPO}:{number}", replicas=1, **notes)
                found["spec"]["template"]["spec"] |= copy.deepcopy(POD)
                found["spec"]["template"]["spec"]["containers"][0] |= copy.deepcopy(CONTAINER)
            calls = [["--list"], ["--previous", "--yes"], ["0", "--yes", "--timeout", "5"]]
            for words in calls:
                env = os.environ | {"KUBECONFIG": cluster.kubeconfig, "PATH": path, "LEDGER_URL": ""}
                subprocess.run(
                    [ROOT / "scripts" / "rollback.sh", *words], env=env, capture_output=True, timeout=PATIENCE
                )
    assert len(compared) > 40 and any("resourcequotas" in " ".join(said) for said, *_ in compared)
    for said, out, err, quick in compared:
        assert out in quick and not err, said


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("{{range .list}}{{.}},{{else}}none{{end}}{{range .none}}{{else}} none{{end}}", "a,b, none"),
        ('{{- $x := .map.key -}}  {{with .map}}{{$x}}{{.key}}{{$.one}}{{end}} {{- " end" }}', "vv1 end"),
        ('{{if and (eq .map.key "v") (not .none)}}yes{{else}}no{{end}} {{(index .list 1)}}', "yes b"),
        ('{{.none}} {{print (index .map "none")}} {{or .none .one}} {{.none.of.it}}', "<no value> <nil> 1 <no value>"),
        (
            '{{define "a"}}{{.key}}{{end}}{{template "a" .map}}{{range $k, $v := .map}} {{$k}}={{$v}}{{end}}'
            "{{if .none}}a{{else if .one}} b{{else}}c{{end}}",
            "v key=v b",
        ),
        ('{{printf "%q" .text}}{{"\\x1f"}}', '"\\"\\n\\x00\\u00a0é"\x1f'),
    ],
)
def test_a_go_template_is_rendered_as_documented(template: str, shown: str) -> None:
    data = {"list": ["a", "b"], "map": {"key": "v"}, "one": 1, "text": '"\n\0\u00a0é'}
    assert gotemplate.render(template, data) == shown


@pytest.mark.parametrize(
    "template", ["{{template}}", "{{block}}", "{{len .list}}", "{{.list}}", "{{if .a}}", "{{eq .none .one}}"]
)
def test_a_go_template_that_is_not_known_is_not_guessed(template: str) -> None:
    with pytest.raises(gotemplate.Unsupported):
        gotemplate.render(template, {"list": ["a"], "one": 1, "a": True})
