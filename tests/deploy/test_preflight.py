"""The checks before a release or a rollback begins: one table, for manage.py deploy and for scripts/rollback.sh."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import DeployRefused
from deploy.targets.kubernetes import preflight
from deploy.targets.kubernetes.blue_green import BlueGreen
from deploy.targets.kubernetes.rolling import RollingUpdate
from ledger.environments import environment_configs
from tests.deploy.test_rollback_source import constant
from tests.support import kubectl_program
from tests.support.cluster import APP, Cluster
from tests.support.kubectl import Kubectl
from tests.support.servers import PATIENCE, ROOT
from tests.support.tools import needs

REPO = "registry.example/team/app"
PLACE = environment_configs()["staging"]
kubectl_wanted = needs("kubectl")


@pytest.fixture(autouse=True)
def quick_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """What rollback.sh says to kubectl starts no process of kubectl's, but with --full."""
    if not full:
        kubectl_program.install(tmp_path)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """1 was good; 2 runs."""
    with Cluster(PLACE.namespace) as found:
        found.service()
        for version in ("1", "2"):
            found.deploy(APP, f"{REPO}:{version}", replicas=2, cause=f"deploy {version}", good=version)
        yield found


@dataclass
class Case:
    check: str
    spoil: Callable[[Cluster], Any]
    said: str


def deployment(cluster: Cluster) -> Any:
    return cluster.objects["deployments", APP]


def container(cluster: Cluster) -> Any:
    return deployment(cluster)["spec"]["template"]["spec"]["containers"][0]


def with_container(cluster: Cluster, **more: Any) -> None:
    """Has the pods of both versions made anew from a container with more in it."""
    container(cluster).update(more)
    for version in ("1", "2"):
        cluster.deploy(APP, f"{REPO}:{version}", replicas=2, good=version)


def with_quota(cluster: Cluster, what: str, hard: str, used: str) -> None:
    with_container(cluster, resources={"requests": {"cpu": "100m", "memory": "256Mi"}})
    cluster.add("resourcequotas", "most").update(spec={}, status={"hard": {what: hard}, "used": {what: used}})


def begin_another_rollout(cluster: Cluster) -> None:
    cluster.seconds = 3600
    cluster.deploy(APP, f"{REPO}:3", replicas=2)


CASES = [
    Case("service", lambda it: it.objects.pop(("services", APP)), "Service .* with a selector not found"),
    Case("deployment", lambda it: it.objects.pop(("deployments", APP)), f"Deployment {APP} not found in namespace"),
    Case("container", lambda it: container(it).update(name="web"), f"deployment/{APP} has no container named"),
    Case(
        "several",
        lambda it: it.deploy(f"{APP}-old", f"{REPO}:0"),
        rf"selects the pods of deployment/{APP}-old as well; expected those of deployment/{APP} alone\. Delete",
    ),
    Case(
        "paused",
        lambda it: deployment(it)["spec"].update(paused=True),
        rf"is paused\. Resume it first: kubectl .*--namespace[ =]{PLACE.namespace} rollout resume deployment/{APP}",
    ),
    Case("replicas", lambda it: it.deploy(APP, f"{REPO}:2", replicas=0), "is scaled to 0, .* Scale it up first"),
    Case("rollout", begin_another_rollout, r"A rollout to 3 is in progress .* \(\d of 2 updated.*\)\. Wait for it"),
    Case(
        "autoscaler",
        lambda it: it.add("horizontalpodautoscalers", "few").update(
            spec={"scaleTargetRef": {"name": APP}, "maxReplicas": 1}
        ),
        rf"horizontalpodautoscaler/few allows deployment/{APP} at most 1 pods; expected 2\. Raise",
    ),
    Case("quota", lambda it: with_quota(it, "pods", "2", "2"), "has no room for 1 more pod: pods is used up to 2 of 2"),
    Case("quota", lambda it: with_quota(it, "requests.cpu", "1", "950m"), "requests.cpu is used up to 950m of 1"),
    Case("quota", lambda it: with_quota(it, "memory", "1Gi", "800Mi"), "memory is used up to 800Mi of 1Gi"),
    Case(
        "rights",
        lambda it: it.rules.__setitem__(slice(None), [{"verbs": ["get"], "apiGroups": ["*"], "resources": ["*"]}]),
        "Missing rights in namespace .*: patch deployments.apps.* docs/deploying.md",
    ),
    Case(
        "references",
        lambda it: with_container(
            it,
            envFrom=[{"configMapRef": {"name": "gone"}}, {"secretRef": {"name": "may-be", "optional": True}}],
            env=[{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "lost", "key": "key"}}}],
        ),
        r"lacks configmap/gone, secret/lost, which (deployment/\S+ .*|revision \S+ \(1\)) names?\. Create it first",
    ),
]


def hide_what_may_be_missing(cluster: Cluster) -> None:
    cluster.forbidden |= {"resourcequotas", "secrets"}
    with_container(cluster, envFrom=[{"secretRef": {"name": "lost"}}])


FINE: list[Callable[[Cluster], Any]] = [
    lambda it: with_quota(it, "requests.cpu", "1", "900m"),
    lambda it: with_quota(it, "memory", "1e9", "1e9"),
    hide_what_may_be_missing,
]
each_case = pytest.mark.parametrize("case", CASES, ids=[f"{case.check}-{at}" for at, case in enumerate(CASES)])


def rolling(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> RollingUpdate:
    monkeypatch.setattr(subprocess, "run", Kubectl(cluster, lambda *_: (200, "")))
    return RollingUpdate(PLACE, "3", ROOT)


def rollback(cluster: Cluster, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [ROOT / "scripts" / "rollback.sh", "1", PLACE.namespace, *words],
        env=os.environ | {"KUBECONFIG": cluster.kubeconfig, "LEDGER_URL": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )


def test_both_tools_make_the_same_checks_and_each_is_tried() -> None:
    by_script = (constant("FIRST_CHECKS") + " " + constant("CHECKS")).split()
    assert set(preflight.CHECKS) == set(by_script) == {case.check for case in CASES}
    for name, rights in (("RIGHTS", preflight.RIGHTS), ("BLUE_GREEN_RIGHTS", preflight.BLUE_GREEN_RIGHTS)):
        assert constant(name).splitlines() == [" ".join(right) for right in rights]
    marking = [" ".join(right) for right in preflight.MORE_RIGHTS]
    assert set(constant("MARKING_RIGHTS").splitlines()) <= set(marking)


@each_case
def test_a_release_is_refused_before_it_begins(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    target = rolling(cluster, monkeypatch)
    target.preflight()
    case.spoil(cluster)
    with pytest.raises(DeployRefused, match=case.said):
        target.preflight()
    assert cluster.writes == []


@pytest.mark.slow
@kubectl_wanted
@each_case
def test_a_rollback_is_refused_before_it_begins(cluster: Cluster, case: Case) -> None:
    case.spoil(cluster)
    done = rollback(cluster)
    assert done.returncode == 4 and "Nothing was changed." in done.stdout, done.stdout
    assert re.search(case.said, done.stdout), done.stdout
    assert cluster.writes == []


@pytest.mark.slow
@kubectl_wanted
@pytest.mark.parametrize("change", FINE)
def test_what_is_well_or_may_not_be_read_is_in_nobodys_way(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, change: Callable[[Cluster], Any]
) -> None:
    change(cluster)
    done = rollback(cluster, "--dry-run")
    assert done.returncode == 0, done.stdout
    rolling(cluster, monkeypatch).preflight()


def test_a_rollout_that_this_command_began_is_resumed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_another_rollout(cluster)
    deployment(cluster)["metadata"]["annotations"] |= {
        "kubernetes.io/change-cause": "deploy 3",
        f"{APP}/before": "2",
        f"{APP}/verified-good": "2",
    }
    rolling(cluster, monkeypatch).preflight()


def test_a_colour_needs_room_for_all_its_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster(PLACE.namespace) as cluster:
        cluster.service("blue")
        cluster.deploy(f"{APP}-green", f"{REPO}:1", replicas=0, good="1")
        cluster.deploy(f"{APP}-blue", f"{REPO}:2", replicas=2, good="2")
        cluster.rules[0] = {"verbs": ["*"], "apiGroups": ["apps", "batch", ""], "resources": ["*"]}
        monkeypatch.setattr(subprocess, "run", Kubectl(cluster, lambda *_: (200, "")))
        target = BlueGreen(PLACE, "3", ROOT)
        target.preflight()
        most = cluster.add("resourcequotas", "most")
        most.update(spec={}, status={"hard": {"count/pods": "3"}, "used": {"count/pods": "2"}})
        with pytest.raises(DeployRefused, match="has no room for 2 more pods"):
            target.preflight()
        most["spec"] = {"scopes": ["BestEffort"]}
        cluster.rules[0]["apiGroups"].remove("")
        with pytest.raises(DeployRefused, match="create pods/exec, patch services, patch pods"):
            target.preflight()
