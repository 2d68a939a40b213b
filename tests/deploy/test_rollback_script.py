"""scripts/rollback.sh, run by the real bash against the double of a cluster in tests/support/cluster.py.

Two rollbacks have the real kubectl, and with --full all; tests/deploy/test_kubectl_double.py compares the two.
"""

import copy
import itertools
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pytest_django.live_server_helper import LiveServer

from ledger.models import Deployment
from settings.text import clean
from tests.support import kubectl_program
from tests.support.cluster import APP, Cluster, Refusal
from tests.support.ledgers import deployed, release, token
from tests.support.pairs import Pair
from tests.support.servers import PATIENCE, ROOT, eventually
from tests.support.tools import needs

SCRIPT = ROOT / "scripts" / "rollback.sh"
REPO = "registry.example/team/app"
GOOD, GONE, LIVE, PACE = f"{APP}/verified-good", f"{APP}/withdrawn", f"{APP}/live-since", f"{APP}/pace"
FULL_SPEED = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "100%", "maxUnavailable": 0}}

pytestmark = [
    pytest.mark.slow,
    needs("kubectl"),
]


@pytest.fixture(autouse=True)
def quick_programs(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    full: bool,
) -> None:
    """The script pauses for a second before it looks again, while the pods here need a fraction of that. And what it
    says to kubectl starts no process of kubectl's, unless the test is marked so.
    """
    folder = tmp_path_factory.mktemp("programs")
    if not full and "real_kubectl" not in request.fixturenames:
        kubectl_program.install(folder)
    program = folder / "sleep"
    program.write_text(f"#!/bin/sh\nexec {shutil.which('sleep')} 0.25\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.fixture
def real_kubectl() -> None:
    """The script finds the real kubectl, also without --full."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Versions 1 and 2 were verified good; 3 runs, and was not."""
    with Cluster() as found:
        found.service()
        for version in ("1", "2", "3"):
            good = {"good": version} if version != "3" else {}
            found.deploy(APP, f"{REPO}:{version}", replicas=2, cause=f"deploy {version}", **good)
        yield found


@pytest.fixture
def colours() -> Iterator[Cluster]:
    """Blue serves 2; green has 1, which served before."""
    with Cluster() as found:
        found.service("blue")
        found.deploy(f"{APP}-green", f"{REPO}:1", replicas=2, cause="deploy 1", good="1")
        found.deploy(f"{APP}-blue", f"{REPO}:2", replicas=2, cause="deploy 2", good="2")
        yield found


def environment(cluster: Cluster, **env: str) -> dict[str, str]:
    return os.environ | {"KUBECONFIG": cluster.kubeconfig, "USER": "ann", "LEDGER_URL": ""} | env


def rollback(cluster: Cluster, *words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Without a terminal; both streams in stdout."""
    return subprocess.run(
        [SCRIPT, *words],
        env=environment(cluster, **env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )


def refused(cluster: Cluster, code: int, said: str, *words: str, **env: str) -> None:
    """It ends with `code`, says so, and has changed nothing."""
    before = len(cluster.writes)
    done = rollback(cluster, *words, **env)
    assert done.returncode == code, done.stdout
    assert re.search(said, done.stdout), done.stdout
    assert "Nothing was changed." in done.stdout or code == 2
    assert cluster.writes[before:] == []


def lease(cluster: Cluster, who: str, age: float = 0, **notes: str) -> None:
    found = cluster.add("leases", "backstagetest1-deploy")
    at = (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%S.000000Z")
    found["metadata"]["annotations"] = {f"{APP}/{key.replace('_', '-')}": value for key, value in notes.items()}
    found["spec"] = {"holderIdentity": who, "leaseDurationSeconds": 60, "acquireTime": at, "renewTime": at}


def speed(cluster: Cluster) -> Any:
    spec = cluster.objects["deployments", APP]["spec"]
    return spec["minReadySeconds"], spec["strategy"]["rollingUpdate"]


def left_at_full_speed(cluster: Cluster) -> None:
    """As by a rollback that was killed."""
    found = cluster.objects["deployments", APP]
    found["spec"] |= {"minReadySeconds": 0, "strategy": FULL_SPEED}
    found["metadata"]["annotations"][PACE] = "5 1 0"


def held(cluster: Cluster) -> str:
    found = cluster.objects.get(("leases", "backstagetest1-deploy"), {"spec": {}})
    return str(found["spec"].get("holderIdentity", ""))


def scheduled(cluster: Cluster, image: str, **more: Any) -> list[dict[str, Any]]:
    """A scheduled task. Returns its containers."""
    task = cluster.add("cronjobs", f"{APP}-clearsessions")
    task["metadata"]["labels"] = {"app": f"{APP}-tasks"}
    containers: list[dict[str, Any]] = [{"name": APP, "image": image} | more]
    task["spec"] = {"jobTemplate": {"spec": {"template": {"spec": {"containers": containers}}}}}
    return containers


@pytest.mark.usefixtures("real_kubectl")
def test_it_brings_back_a_version_and_says_what_it_does(cluster: Cluster) -> None:
    (task,) = scheduled(cluster, f"{REPO}:3")
    before = copy.deepcopy(speed(cluster))
    done = rollback(cluster, "2", "--reason", 'it\'s "bad",\n"image":"x"')
    assert done.returncode == 0, done.stdout
    hurried = [json.loads(body)["spec"] for _, _, body in cluster.writes if PACE in body]
    assert [each["minReadySeconds"] for each in hurried] == [0, 5], "all pods start at once"
    assert [each["strategy"]["rollingUpdate"]["maxSurge"] for each in hurried] == ["100%", 1]
    assert speed(cluster) == before and PACE not in cluster.objects["deployments", APP]["metadata"]["annotations"]
    assert task["image"] == f"{REPO}:2", "the scheduled tasks follow"
    lines = done.stdout.splitlines()
    assert lines[0] == "Rolling back to version: 2" and lines[-1] == "Rollback completed successfully"
    assert "context test" in lines[1] and "now 3" in lines[1]
    assert 'service/backstagetest1 answers /health/: {"status": "healthy", "version": "2"}' in done.stdout
    assert cluster.image() == f"{REPO}:2" and cluster.serving() == {f"{REPO}:2"}
    notes = cluster.sets()[f"{REPO}:2"]["metadata"]["annotations"]
    assert notes["kubernetes.io/change-cause"] == 'rollback to 2: it\'s "bad", "image":"x"'
    assert notes[GOOD].startswith("2 ")
    assert GONE in cluster.sets()[f"{REPO}:3"]["metadata"]["annotations"]
    assert held(cluster) == "" and ("leases", "backstagetest1-deploy") in cluster.objects


def test_previous_never_leads_to_what_was_at_fault(cluster: Cluster) -> None:
    cluster.mark(APP, "3")  # verified good, and bad an hour later
    assert rollback(cluster, "--previous", "--reason", "500s").returncode == 0
    assert cluster.image() == f"{REPO}:2"
    assert rollback(cluster, "default", "--previous", "--reason=500s | too").returncode == 0
    assert cluster.image() == f"{REPO}:1"
    refused(cluster, 4, r"No revision other than the running one \(1\) was verified good in default", "--previous")
    said = rollback(cluster, "--list").stdout
    assert re.search(r"\n3 +3 .*withdrawn .*\n +left \d+s ago: 500s\n", said), said
    assert rollback(cluster, "3").returncode == 0, "who names it gets it"


def test_what_was_left_without_a_fault_stays_a_rollback_target(cluster: Cluster) -> None:
    """Four in a row: each one further back, then to where it began, and from there once more."""
    cluster.mark(APP, "3")
    went = []
    for words in (["--reason", "Drill", "--keep"], [], [], []):
        done = rollback(cluster, "--previous", *words)
        assert done.returncode == 0, done.stdout
        went.append(cluster.image())
    assert went == [f"{REPO}:{version}" for version in "2131"]
    said = rollback(cluster, "--list").stdout
    assert said.count("verified good") == 2 and said.count("running, good") == 1, said


def test_a_mark_that_was_copied_from_another_revision_does_not_count(cluster: Cluster) -> None:
    """`kubectl rollout undo` and the controller copy annotations to revisions that they say nothing of."""
    left = cluster.sets()[f"{REPO}:1"]["metadata"]["labels"]["pod-template-hash"]
    cluster.objects["deployments", APP]["metadata"]["annotations"][GONE] = f"{left} 2026-11-28T10:00:00Z 500s"
    cluster.deploy(APP, f"{REPO}:4", replicas=2, good="4")
    cluster.deploy(APP, f"{REPO}:5", replicas=2)
    assert GONE in cluster.sets()[f"{REPO}:4"]["metadata"]["annotations"]
    said = rollback(cluster, "--list").stdout
    assert "Rollback target: 4, " in said, said


def test_a_rollback_that_is_undone_tells_nothing_of_the_release_that_it_led_to(cluster: Cluster) -> None:
    cluster.mark(APP, "3")
    assert rollback(cluster, "2").returncode == rollback(cluster, "3").returncode == 0
    assert "Rollback target: 2, " in rollback(cluster, "--list").stdout


def test_a_version_that_was_never_verified_is_not_suggested(cluster: Cluster) -> None:
    cluster.deploy(APP, f"{REPO}:4", replicas=2, good="4")
    done = rollback(cluster, "--list")
    assert done.returncode == 0 and "Rollback target: 2, revision 2 (rollback.sh --previous default)" in done.stdout
    rows = [line.split()[:2] + [line[49:63].strip()] for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert rows == [
        ["4", "4", "running, good"],
        ["3", "3", "not verified"],
        ["2", "2", "verified good"],
        ["1", "1", "verified good"],
    ]
    done = rollback(cluster, "3")
    assert done.returncode == 0 and "Warning: 3 has not been verified good in default" in done.stdout


# Settings


@pytest.fixture
def settings() -> Iterator[Cluster]:
    """Version 2 was verified with the settings "old" and runs with "typo"; version 1 ran before it."""
    with Cluster() as found:
        found.service()
        found.deploy(APP, f"{REPO}:1", replicas=2, settings="first", good="1", cause="deploy 1")
        found.deploy(APP, f"{REPO}:2", replicas=2, settings="old", good="2", cause="deploy 2")
        old = found.current()["metadata"]["annotations"][GOOD]
        found.objects["deployments", APP]["metadata"]["annotations"][GOOD] = old  # as kubectl rollout undo leaves it
        found.deploy(APP, f"{REPO}:2", replicas=2, settings="typo")
        yield found


def settings_of(cluster: Cluster, name: str = APP) -> str:
    (container,) = cluster.objects["deployments", name]["spec"]["template"]["spec"]["containers"]
    return str(container["envFrom"][0]["configMapRef"]["name"]).rpartition("-")[2]


@pytest.mark.parametrize("words", [("2",), ("--previous",), ("--to-revision", "2")])
def test_settings_are_rolled_back_with_the_pod_template(settings: Cluster, words: tuple[str, ...]) -> None:
    said = rollback(settings, "--list").stdout
    assert re.search(r"\n3 +2 +typo +\S+ +running +settings only, before: old\n", said), said
    old = settings.objects["replicasets", settings.current()["metadata"]["name"]]
    sources = [{"configMapRef": {"name": f"{APP}-config-typo"}}, {"secretRef": {"name": "mail"}}]
    (task,) = scheduled(settings, f"{REPO}:2", envFrom=sources)
    done = rollback(settings, *words)
    assert done.returncode == 0, done.stdout
    assert "The version stays: only its settings differ (old, now typo)." in done.stdout
    assert "Secrets have no history: it gets those of today." in done.stdout
    assert "Warning" not in done.stdout, done.stdout
    assert [each for source in task["envFrom"] for each in source.values()] == [
        {"name": f"{APP}-config-old"},
        {"name": "mail"},
    ], "the scheduled tasks follow, and keep what is theirs"
    assert settings_of(settings) == "old" and len(settings.all("replicasets")) == 3, "its own ReplicaSet came back"
    assert "running, good" in rollback(settings, "--list").stdout
    assert old["metadata"]["annotations"][GONE].startswith(old["metadata"]["labels"]["pod-template-hash"])


def test_a_revision_without_its_settings_is_refused(settings: Cluster) -> None:
    del settings.objects["configmaps", f"{APP}-config-old"]
    refused(settings, 4, rf"lacks configmap/{APP}-config-old, which revision 2 \(2\) names. Create it first", "2")


def test_settings_that_break_the_target_are_not_kept(settings: Cluster) -> None:
    """The pods of the release that is left have the same image, and are not taken for the target's."""
    settings.seconds = 600  # the pods that serve are older
    done = rollback(settings, "2", "--timeout", "4")
    assert done.returncode == 5 and "2 is still serving" in done.stdout, done.stdout
    assert settings_of(settings) == "typo"
    assert "Rollback target: 1, " in rollback(settings, "--list").stdout


def test_settings_of_the_colour_with_the_traffic_are_rolled_back_in_the_other_one(colours: Cluster) -> None:
    colours.deploy(f"{APP}-blue", f"{REPO}:2", replicas=2, settings="old", good="2")
    colours.deploy(f"{APP}-blue", f"{REPO}:2", replicas=2, settings="typo")
    done = rollback(colours, "--previous", "--reason", "400s")
    assert done.returncode == 0, done.stdout
    assert settings_of(colours, f"{APP}-green") == "old" and settings_of(colours, f"{APP}-blue") == "typo"
    assert all(pod["metadata"]["labels"]["colour"] == "green" for pod in colours.all("pods") if "green" in str(pod))
    said = rollback(colours, "--list").stdout
    assert re.search(r"\ngreen-2 +2 +old .*running, good", said), said
    said = rollback(colours, "--previous", "--dry-run").stdout
    assert "revision blue-1, " in said, "not blue-2, which it is a copy of"


@pytest.mark.parametrize(("status", "code"), [(400, 5), (200, 0)])
def test_a_page_is_asked_for_with_the_public_host(settings: Cluster, status: int, code: int) -> None:
    ingress = settings.add("ingresses", APP)
    ingress["spec"] = {"rules": [{"host": "example.com"}, {"host": "www.example.com"}]}
    says = f"page example.com {status}\npage www.example.com 400"
    done = rollback(settings, "2", PATH=f"{kubectl_whose_exec(settings, says, 0)}:{os.environ['PATH']}")
    assert done.returncode == code, done.stdout
    assert ("pages fail with the public host (example.com: 400, www.example.com: 400)" in done.stdout) == (code == 5)
    assert settings_of(settings) == ("old" if code == 0 else "typo")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Usage: rollback.sh <previous_version>"),
        (("2", "default", "more"), "Unexpected argument: more"),
        (("2", "--forse"), "Unknown option --forse"),
        (("", "default"), "Empty argument"),
        (("2", "--timeout"), "--timeout requires a value"),
        (("2", "--timeout", "soon"), "--timeout soon is not valid; expected seconds"),
        (("2; rm -rf /",), "is not a valid version; expected an image tag"),
        (("{a: b}",), "is not a valid version"),
        (("latest",), "'latest' is not a valid version, as it names no single build"),
        (("2", "Default;ls"), "is not a valid namespace"),
        (("2", "--context", "--all"), "is not a valid context"),
        (("2", "--image", "a b:2"), "is not a valid image"),
        (("2", "--image", f"{REPO}:3"), "is not version 2"),
        (("2", "--list", "more"), "take no version"),
        (("2", "--to-revision", "4;ls"), "is not valid; expected a revision as --list names it"),
        (("--previous", "--to-revision", "2"), "cannot be combined"),
    ],
)
def test_wrong_usage_says_what_is_right(cluster: Cluster, words: tuple[str, ...], said: str) -> None:
    refused(cluster, 2, said, *words)


def test_help_goes_to_standard_output() -> None:
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and "exit codes:\n  0    success\n" in done.stdout and not done.stderr


def test_what_cannot_be_done_is_refused_before_anything_is_touched(cluster: Cluster, tmp_path: Path) -> None:
    refused(
        cluster, 4, r"9 is not in the history of default, which has: 3 2 1. .*--image registry.example/team/app:9", "9"
    )
    refused(cluster, 4, "3 is already live in deployment/backstagetest1, and no other settings of it were", "3")
    refused(cluster, 4, "Revision 9 is not in the history of default", "--to-revision", "9")
    refused(cluster, 4, "Revision 3 is already live", "--to-revision", "3")
    refused(cluster, 4, "Deployment backstagetest1 not found in namespace elsewhere", "2", "elsewhere")
    refused(cluster, 4, "context .*does not exist", "2", "--context", "nowhere")
    cluster.objects["deployments", APP]["spec"]["paused"] = True
    refused(cluster, 4, "is paused. Resume it first: kubectl .* rollout resume", "2")
    for program in ("bash", "cat", "sed", "tr", "hostname", "id", "env"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    refused(cluster, 4, "kubectl not found", "2", PATH=str(tmp_path))


def test_an_unreachable_cluster_is_reported() -> None:
    with Cluster() as cluster:
        pass
    cluster.folder = type(cluster.folder)()
    path = Path(cluster.folder.name) / "config"
    path.write_text(json.dumps(cluster.config()))
    cluster.kubeconfig = str(path)
    refused(cluster, 4, "The cluster is unreachable", "2")
    cluster.folder.cleanup()


def test_an_api_server_that_goes_down_half_way_is_waited_for(cluster: Cluster) -> None:
    gone: list[str] = []

    def went(method: str, path: str) -> None:
        if not gone and method == "PATCH" and path.endswith(f"/deployments/{APP}"):
            gone.append(path)
            cluster.back = time.monotonic() + 2

    cluster.hooks.append(went)
    done = rollback(cluster, "2")
    assert done.returncode == 0, done.stdout
    assert gone, done.stdout
    assert "The API server does not answer: " in done.stdout and "; trying again, " in done.stdout
    assert gone and cluster.image() == f"{REPO}:2"


def test_a_cluster_that_never_answers_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, Cluster() as cluster:
        config = cluster.config()
        config["clusters"][0]["cluster"]["server"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        Path(cluster.kubeconfig).write_text(json.dumps(config))
        began = time.monotonic()
        refused(cluster, 4, "The cluster is unreachable", "2")
        assert time.monotonic() - began < 60, "a request has five seconds; kubectl alone would wait for ever"


def test_an_unexpected_failure_is_reported(colours: Cluster) -> None:
    def broken(method: str, path: str) -> None:
        if method == "GET" and path.endswith(f"/deployments/{APP}-green") and held(colours):
            raise Refusal(500, "InternalError", "etcdserver: leader changed")

    colours.hooks.append(broken)
    done = rollback(colours, "1")
    assert done.returncode == 4 and "leader changed" in done.stdout, done.stdout
    assert "Failed; see above. Nothing was changed." in done.stdout and held(colours) == ""
    assert colours.serving() == {f"{REPO}:2"}


def test_a_change_that_the_cluster_refuses_changes_nothing(colours: Cluster) -> None:
    def broken(method: str, path: str) -> None:
        if method == "PATCH" and path.endswith("/deployments/backstagetest1-green"):
            raise Refusal(403, "Forbidden", "admission webhook denied the request")

    colours.hooks.append(broken)
    done = rollback(colours, "2x", "--image", f"{REPO}:2x")
    assert done.returncode == 4 and "webhook denied" in done.stdout and "Nothing was changed." in done.stdout


def test_a_rollout_in_progress_is_not_interrupted_without_force(cluster: Cluster) -> None:
    cluster.seconds = 3600
    cluster.deploy(APP, f"{REPO}:4", replicas=2)
    cluster.objects["deployments", APP]["spec"]["replicas"] = 3
    refused(cluster, 4, "A rollout to 4 is in progress", "2")
    cluster.seconds = 0
    cluster.becomes[f"{REPO}:4"] = "unready"
    assert rollback(cluster, "2", "--force").returncode == 0
    assert cluster.serving() == {f"{REPO}:2"}


def test_a_stuck_rollout_is_what_it_is_for(cluster: Cluster) -> None:
    cluster.becomes[f"{REPO}:4"] = "crash"
    cluster.objects["deployments", APP]["spec"]["template"]["spec"]["containers"][0]["image"] = f"{REPO}:4"
    cluster.objects["deployments", APP]["metadata"]["generation"] += 1
    assert eventually(lambda: "CrashLoop" in str(cluster.answer("GET", "/api/v1/namespaces/default/pods", {}, "", b"")))
    left_at_full_speed(cluster)
    done = rollback(cluster, "3")
    assert done.returncode == 0, done.stdout
    assert cluster.serving() == {f"{REPO}:3"}
    assert speed(cluster) == (5, {"maxSurge": 1, "maxUnavailable": 0}), "what the killed one did not restore"


def test_migrations_that_the_target_cannot_run_on_block_the_rollback(cluster: Cluster) -> None:
    cluster.deploy(APP, f"{REPO}:4", replicas=2, **{f"{APP}/schema-break": "3"})
    refused(cluster, 4, "migrations of 3, which 2 cannot run on", "2")
    assert rollback(cluster, "3").returncode == 0
    done = rollback(cluster, "2", "--force")
    assert done.returncode == 0 and "does not undo migrations" in done.stdout


def test_what_history_has_forgotten_is_not_taken_to_fit_the_schema(cluster: Cluster) -> None:
    cluster.deploy(APP, f"{REPO}:4", replicas=2, **{f"{APP}/schema-break": "4"})
    cluster.deploy(APP, f"{REPO}:5", replicas=2)
    refused(cluster, 4, "migrations of 4, which 0 cannot run on unless", "0", "--image", f"{REPO}:0")
    done = rollback(cluster, "4")
    assert done.returncode == 0, done.stdout


def test_a_break_of_the_schema_counts_for_both_colours(colours: Cluster) -> None:
    colours.deploy(f"{APP}-blue", f"{REPO}:3", replicas=2, **{f"{APP}/schema-break": "3"})
    colours.service("green")
    colours.deploy(f"{APP}-green", f"{REPO}:4", replicas=2, good="4")
    refused(colours, 4, "migrations of 3, which 2 cannot run on", "2")
    done = rollback(colours, "3")
    assert done.returncode == 0, done.stdout


def test_a_deployment_without_pods_is_not_judged(cluster: Cluster) -> None:
    cluster.deploy(APP, f"{REPO}:3", replicas=0)
    refused(cluster, 4, "is scaled to 0, .* scale deployment/backstagetest1 --replicas=3", "2")


def test_a_cluster_with_one_colour_has_no_other_to_go_to(colours: Cluster) -> None:
    del colours.objects["deployments", f"{APP}-green"]
    refused(colours, 4, "No other colour to roll back to: deployment/backstagetest1-green", "1", "--image", f"{REPO}:1")


def test_production_is_not_touched_without_a_yes() -> None:
    with Cluster("backstagetest1-production") as cluster:
        cluster.service()
        cluster.deploy(APP, f"{REPO}:1", replicas=1, good="1")
        cluster.deploy(APP, f"{REPO}:2", replicas=1)
        refused(cluster, 4, "is a production namespace, .*pass --yes", "1", cluster.namespace)
        assert rollback(cluster, "1", cluster.namespace, "--yes").returncode == 0


OWN = """
[uat]
namespace = "app-uat"

[eu] # visitors
namespace = "app-europe"
context = "there"
production = true
[eu.watch]
max_error_rate = 0.01
"""


@pytest.mark.parametrize("file", [OWN, OWN.replace("production = true", "")])
def test_what_is_production_is_what_environments_toml_says(tmp_path: Path, file: str) -> None:
    (tmp_path / "environments.toml").write_text(file)
    env = {"ENVIRONMENTS_FILE": str(tmp_path / "environments.toml")}
    for namespace, code in (("app-europe", 4), ("app-uat", 0)):
        with Cluster(namespace) as cluster:
            cluster.service()
            cluster.deploy(APP, f"{REPO}:1", replicas=1, good="1")
            cluster.deploy(APP, f"{REPO}:2", replicas=1)
            done = rollback(cluster, "1", cluster.namespace, **env)
            assert done.returncode == code, done.stdout
            assert ("pass --yes" in done.stdout) == bool(code)


@pytest.mark.parametrize("notes", [{"purpose": "deploy of 4"}, {"purpose": "moving", "by_hand": "true"}])
def test_a_lock_that_somebody_holds_is_respected(cluster: Cluster, notes: dict[str, str]) -> None:
    lease(cluster, "bob@laptop", age=3600 if "by_hand" in notes else 5, **notes)
    refused(
        cluster,
        3,
        rf"bob@laptop has held the lock since .* for: {notes['purpose']}\.\n.*delete lease backstagetest1-deploy",
        "2",
    )
    assert held(cluster) == "bob@laptop"


def test_a_dry_run_meets_the_lock_too(cluster: Cluster) -> None:
    lease(cluster, "bob@laptop: deploy of 4", age=3600, by_hand="true")
    refused(cluster, 3, r"bob@laptop: deploy of 4 has held the lock since [^ ]+\.\n", "2", "--dry-run")


def test_a_lock_whose_holder_died_is_taken_over(cluster: Cluster) -> None:
    lease(cluster, "bob@laptop", age=90, purpose="deploy of 4")
    done = rollback(cluster, "2")
    assert done.returncode == 0 and "Taking over from bob@laptop, who held the lock since 20" in done.stdout
    assert held(cluster) == ""


def test_two_who_come_at_once_do_not_both_go_on(cluster: Cluster) -> None:
    def other(method: str, path: str) -> None:
        if method == "POST" and path.endswith("/leases") and not held(cluster):
            lease(cluster, "bob@laptop")

    cluster.hooks.append(other)
    done = rollback(cluster, "2")
    assert done.returncode == 3 and "just taken the lock" in done.stdout, done.stdout
    assert cluster.image() == f"{REPO}:3"


def test_the_deploy_command_rolls_back_under_its_own_lock(cluster: Cluster) -> None:
    lease(cluster, "ci@runner 7")
    done = rollback(cluster, "2", DEPLOY_LOCK_HOLDER="ci@runner 7")
    assert done.returncode == 0, done.stdout
    assert held(cluster) == "ci@runner 7"


def test_without_the_right_to_lock_it_warns_and_goes_on(cluster: Cluster) -> None:
    cluster.forbidden.add("leases")
    done = rollback(cluster, "2")
    assert done.returncode == 0 and "The lock cannot be read" in done.stdout


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("crash", ["CrashLoopBackOff", "BackOff: Back-off restarting", "| Traceback: no module named nothing"]),
        ("pull", ["ImagePullBackOff"]),
        ("quota", ["not ready after 4 s", "FailedCreate: pods are forbidden: exceeded quota"]),
        ("unready", ["not ready after 4 s", "Unhealthy: Readiness probe failed", "| listening on 8000"]),
        ("sick", ["/health/ready/"]),
    ],
)
def test_a_target_that_is_bad_itself_is_left_and_explained(cluster: Cluster, does: str, said: list[str]) -> None:
    cluster.becomes[f"{REPO}:2"] = does
    cluster.closed = does == "sick"
    seen: set[str] = set()
    cluster.hooks.append(lambda *_: seen.update(cluster.serving() or {"nobody"}))
    path = os.environ["PATH"]
    if does == "sick":
        path = f"{kubectl_whose_exec(cluster, 'unhealthy; database=unhealthy: timeout', 1)}:{path}"
    done = rollback(cluster, "2", "--timeout", "4", PATH=path)
    assert done.returncode == 5, done.stdout
    for text in said:
        assert text in done.stdout, done.stdout
    assert "3 is still serving. Next: rollback.sh --list default" in done.stdout
    assert cluster.serving() == {f"{REPO}:3"} and "nobody" not in seen
    assert held(cluster) == ""
    assert GONE not in cluster.sets()[f"{REPO}:3"]["metadata"]["annotations"]
    notes = cluster.sets()[f"{REPO}:2"]["metadata"]["annotations"]
    assert "failed: " in notes[GONE] and GOOD not in notes, "--previous would go to what has just failed"


def kubectl_whose_exec(cluster: Cluster, says: str, code: int) -> Path:
    """A folder with a kubectl that answers for a pod's program, and hands all else to the real one."""
    folder = Path(cluster.folder.name) / "bin"
    folder.mkdir()
    script = folder / "kubectl"
    answer = f'case " $* " in *" exec "*) echo "{says}"; exit {code};; esac'
    script.write_text(f'#!/bin/sh\n{answer}\nexec {shutil.which("kubectl")} "$@"\n')
    script.chmod(0o755)
    return folder


def test_when_nothing_serves_a_person_is_called(cluster: Cluster) -> None:
    cluster.becomes |= {f"{REPO}:2": "crash", f"{REPO}:3": "crash"}
    time.sleep(cluster.seconds)
    done = rollback(cluster, "2", "--timeout", "4")
    assert done.returncode == 6 and "Nothing is serving." in done.stdout, done.stdout


def test_when_the_service_cannot_be_asked_a_pod_is(cluster: Cluster) -> None:
    cluster.closed = True
    folder = kubectl_whose_exec(cluster, "healthy; database=healthy", 0)
    done = rollback(cluster, "2", PATH=f"{folder}:{os.environ['PATH']}")
    assert done.returncode == 0 and re.search(r"pod \S+ answers /health/: healthy; database", done.stdout), done.stdout
    done = rollback(cluster, "1")
    assert done.returncode == 0 and "/health/ could not be queried" in done.stdout, done.stdout


def test_the_version_is_asked_until_the_endpoints_have_followed(colours: Cluster) -> None:
    colours.lag = 2
    done = rollback(colours, "1")
    assert done.returncode == 0 and '"version": "1"' in done.stdout and "Warning" not in done.stdout, done.stdout


def test_an_image_that_is_not_what_its_tag_says_is_reported(cluster: Cluster) -> None:
    cluster.lag = 1000
    done = rollback(cluster, "2")
    assert done.returncode == 0 and "it reports version old, not 2" in done.stdout, done.stdout


def test_a_pod_that_is_ready_and_degraded_is_not_well(cluster: Cluster) -> None:
    """Readiness stays when the database goes."""
    cluster.becomes[f"{REPO}:2"] = "sick"
    cluster.closed = True
    said = r"{\"status\": \"degraded\", \"checks\": {\"database\": \"unhealthy: timeout\"}}"  # for a shell
    done = rollback(cluster, "2", PATH=f"{kubectl_whose_exec(cluster, said, 0)}:{os.environ['PATH']}")
    assert done.returncode == 5 and '"degraded"' in done.stdout, done.stdout


def test_a_cache_that_is_down_does_not_stop_a_rollback(cluster: Cluster) -> None:
    cluster.becomes[f"{REPO}:2"] = "degraded"
    done = rollback(cluster, "2")
    assert done.returncode == 0 and "answers /health/ready/" in done.stdout, done.stdout


def test_a_dry_run_prints_the_commands_and_changes_nothing(cluster: Cluster) -> None:
    done = rollback(cluster, "2", "--dry-run")
    assert done.returncode == 0, done.stdout
    assert "would run: kubectl --namespace=default patch deployment backstagetest1 --type=strategic" in done.stdout
    assert cluster.writes == [] and cluster.image() == f"{REPO}:3"


def test_a_version_that_history_has_forgotten_comes_by_its_image(cluster: Cluster) -> None:
    done = rollback(cluster, "0", "--image", f"{REPO}:0")
    assert done.returncode == 0 and cluster.image() == f"{REPO}:0"


def test_a_digest_stays_with_its_version(cluster: Cluster) -> None:
    digest = f"{REPO}:4@sha256:{'a' * 64}"
    cluster.deploy(APP, digest, replicas=1, good="4")
    cluster.deploy(APP, f"{REPO}:5", replicas=1)
    done = rollback(cluster, "--previous")
    assert done.returncode == 0 and cluster.image() == digest, done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_says_in_which_state_it_leaves_things(cluster: Cluster, number: signal.Signals) -> None:
    cluster.becomes[f"{REPO}:2"] = "unready"
    with subprocess.Popen(
        [SCRIPT, "2"], env=environment(cluster), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        assert any("replicas updated" in line for line in process.stdout)
        assert held(cluster).startswith("ann@")
        process.send_signal(number)
        said = process.stdout.read()
        assert process.wait(PATIENCE) == 130
    assert "is between 3 and 2; pods that are ready serve" in said and "rollback.sh 3 default --force" in said
    assert held(cluster) == "" and cluster.serving() == {f"{REPO}:3"}


def test_a_terminal_is_asked_with_the_last_good_version_preselected(cluster: Cluster) -> None:
    child, terminal = pty.fork()
    if not child:
        os.execve(SCRIPT, [str(SCRIPT)], environment(cluster, TERM="xterm"))
    shown = b""
    while b"Which version? [2]" not in shown:
        shown += os.read(terminal, 4096)
    os.write(terminal, b"\n")
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # the other end is closed
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, shown
    os.close(terminal)
    assert cluster.image() == f"{REPO}:2" and b"\x1b[32mRollback completed successfully" in shown


@pytest.mark.usefixtures("real_kubectl")
def test_colours_change_by_the_selector_alone(colours: Cluster) -> None:
    started = len(colours.writes)
    preview = colours.add("services", f"{APP}-preview")
    preview["spec"] = {"selector": {"app": APP, "colour": "green"}, "ports": []}
    done = rollback(colours, "--previous")
    assert done.returncode == 0, done.stdout
    assert preview["spec"]["selector"]["colour"] == "blue", "the colour without traffic"
    assert "Switching service/backstagetest1 from blue to green" in done.stdout
    notes = [
        (pod["metadata"]["labels"]["colour"], pod["metadata"].get("annotations", {})) for pod in colours.all("pods")
    ]
    closing = {colour for colour, each in notes if f"{APP}/close-connections" in each}
    assert closing == {"blue"} and "Not checked: that all clients have moved." in done.stdout
    assert colours.serving() == {f"{REPO}:1"}
    assert colours.image(f"{APP}-green") == f"{REPO}:1" and colours.image(f"{APP}-blue") == f"{REPO}:2"
    changed = [
        (path.rpartition("/")[2], json.loads(body))
        for method, path, body in colours.writes[started:]
        if "PATCH" == method
    ]
    assert [path for path, body in changed if "spec" in body] == [APP, f"{APP}-preview"], "no Deployment's pods change"
    assert changed[0][0] == f"{APP}-green" and list(changed[0][1]["metadata"]["annotations"]) == [LIVE]
    assert "Rollback target: 2, " in rollback(colours, "--list").stdout


@pytest.fixture
def pair() -> Iterator[tuple[Cluster, Pair]]:
    """Blue serves 2, whose own database takes the writes; green has 1, which was live before, with the other one."""
    with Cluster() as found:
        databases = Pair(found)
        databases.writable = databases.target = "blue"
        databases.release = "2"
        both = found.env
        found.service("blue")
        for colour, version in (("green", "1"), ("blue", "2")):
            found.env = [*both, {"name": "DATABASE_COLOUR", "value": colour}]
            found.deploy(f"{APP}-{colour}", f"{REPO}:{version}", replicas=2, cause=f"deploy {version}", good=version)
        yield found, databases


def own_database(cluster: Cluster, colour: str) -> str | None:
    container = cluster.objects["deployments", f"{APP}-{colour}"]["spec"]["template"]["spec"]["containers"][0]
    return next((each.get("value") for each in container["env"] if each["name"] == "DATABASE_COLOUR"), None)


@pytest.mark.usefixtures("real_kubectl")
def test_with_two_databases_the_writes_follow_the_traffic_back(pair: tuple[Cluster, Pair]) -> None:
    cluster, databases = pair
    served: list[set[str]] = []
    cluster.hooks.append(lambda method, path: served.append(cluster.serving()) if path.endswith("/jobs") else None)
    databases.hangs = "status"
    databases.leave("status")  # by a run that was killed
    done = rollback(cluster, "--previous", "--reason", "broken")
    assert done.returncode == 0, done.stdout
    assert "The writes return from the database of 2 once the traffic has; no row is lost." in done.stdout
    assert "| green takes the writes." in done.stdout and databases.writable == "green"
    assert (
        databases.done == ["rollback"] and databases.images["rollback"] == f"{REPO}:1"
    ), "as the CronJobs have it then"
    assert served[-1] == {f"{REPO}:1"} == cluster.serving(), "the traffic first"
    assert own_database(cluster, "green") == "green", "its pods ran, and are those"
    refused(cluster, 4, "2 was left by a rollback, and needs the writes in the blue database.*deploy 2", "2")


def test_a_release_that_comes_back_with_new_pods_reads_the_database_that_takes_the_writes(
    pair: tuple[Cluster, Pair],
) -> None:
    """The other one may have been prepared for a release that failed since."""
    cluster, databases = pair
    cluster.objects["deployments", f"{APP}-green"]["spec"]["replicas"] = 0
    cluster.reconcile()
    done = rollback(cluster, "--previous")
    assert done.returncode == 0, done.stdout
    assert own_database(cluster, "green") is None and cluster.serving() == {f"{REPO}:1"}
    assert databases.writable == "green" and "Rollback target: 2, " in rollback(cluster, "--list").stdout


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        (4, 0, "The writes stay in the database of 2, where 1 works as well. They were not moved; see above. To move"),
        (5, 0, "create job bluegreen-rollback --from=cronjob/backstagetest1-bluegreen-rollback"),
        (6, 6, "1 has the traffic, but the database may not take writes.*create job bluegreen-recover --from"),
    ],
)
def test_writes_that_do_not_move_back_are_told(
    pair: tuple[Cluster, Pair], code: int, exit_code: int, said: str
) -> None:
    cluster, databases = pair
    databases.codes["rollback"] = code
    done = rollback(cluster, "1")
    assert done.returncode == exit_code and re.search(said, done.stdout, re.S), done.stdout
    assert "would lose rows" in done.stdout and cluster.serving() == {f"{REPO}:1"}
    assert ("Rollback completed successfully" in done.stdout) == (not exit_code)


def test_a_job_that_cannot_start_leaves_the_writes_where_they_are(pair: tuple[Cluster, Pair]) -> None:
    cluster, databases = pair
    cluster.becomes[f"migrate {REPO}:1"] = "pull"
    done = rollback(cluster, "1")
    assert done.returncode == 0 and "job/backstagetest1-bluegreen: ImagePullBackOff" in done.stdout, done.stdout
    assert databases.writable == "blue" and not cluster.all("jobs"), "it would go on once its image can be pulled"


def test_writes_stay_where_they_are_if_only_settings_change_or_manage_py_moves_them(pair: tuple[Cluster, Pair]) -> None:
    cluster, databases = pair
    done = rollback(cluster, "1", "--yes", DEPLOY_CHECKED="yes")
    assert done.returncode == 0 and databases.done == [], done.stdout
    cluster.service("blue")
    cluster.deploy(f"{APP}-blue", f"{REPO}:2", replicas=2, settings="typo")
    done = rollback(cluster, "--to-revision", "blue-1")
    assert done.returncode == 0 and databases.done == [] and databases.writable == "blue", done.stdout


def test_a_dry_run_says_how_the_writes_would_move(pair: tuple[Cluster, Pair]) -> None:
    cluster, databases = pair
    done = rollback(cluster, "1", "--dry-run")
    assert done.returncode == 0 and "--from=cronjob/backstagetest1-bluegreen-rollback" in done.stdout, done.stdout
    assert databases.done == [] and not cluster.all("jobs")


def live_since(cluster: Cluster, colour: str, version: str, at: str) -> None:
    cluster.sets(f"{APP}-{colour}")[f"{REPO}:{version}"]["metadata"]["annotations"][LIVE] = at


def test_the_previous_version_is_what_was_live_last_and_not_what_is_newest(colours: Cluster) -> None:
    """1, 2, 1 again, which changes no Deployment, and 3; all of them good."""
    colours.service("blue")
    colours.deploy(f"{APP}-blue", f"{REPO}:3", replicas=2, good="3")
    for colour, version, hour in (("blue", "2", 10), ("green", "1", 11), ("blue", "3", 12)):
        live_since(colours, colour, version, f"2026-11-28T{hour}:00:00Z")
    done = rollback(colours, "--list")
    rows = [line.split()[:2] for line in done.stdout.splitlines() if re.match("(blue|green)-", line)]
    assert rows == [["blue-2", "3"], ["green-1", "1"], ["blue-1", "2"]]
    done = rollback(colours, "--previous")
    assert done.returncode == 0 and colours.serving() == {f"{REPO}:1"}, done.stdout
    noted = colours.sets(f"{APP}-green")[f"{REPO}:1"]["metadata"]["annotations"][LIVE]
    assert noted > "2026-11-28T12:00:00Z", "the next one looks back from here"


def test_a_time_that_is_none_is_not_believed(colours: Cluster) -> None:
    live_since(colours, "green", "1", "a[$(touch /tmp/never)]")
    done = rollback(colours, "--list")
    assert done.returncode == 0 and "Rollback target: 1, " in done.stdout, done.stdout
    assert not Path("/tmp/never").exists()


def test_what_was_live_after_a_break_of_the_schema_fits_it(colours: Cluster) -> None:
    colours.deploy(f"{APP}-blue", f"{REPO}:3", replicas=2, **{f"{APP}/schema-break": "2"})
    refused(colours, 4, "migrations of 2, which 1 cannot run on", "1")
    live_since(colours, "green", "1", "2099-01-01T00:00:00Z")
    done = rollback(colours, "1")
    assert done.returncode == 0, done.stdout


def test_a_colour_that_was_put_to_sleep_is_woken_before_it_gets_traffic(colours: Cluster) -> None:
    colours.deploy(f"{APP}-green", f"{REPO}:1", replicas=0, good="1")
    seen: set[str] = set()
    colours.hooks.append(lambda *_: seen.update(colours.serving() or {"nobody"}))
    done = rollback(colours, "1")
    assert done.returncode == 0, done.stdout
    assert seen == {f"{REPO}:1", f"{REPO}:2"} and colours.serving() == {f"{REPO}:1"}


@pytest.mark.parametrize("does", ["crash", "sick"])
def test_a_bad_colour_does_not_keep_the_traffic(colours: Cluster, does: str) -> None:
    colours.deploy(f"{APP}-green", f"{REPO}:1", replicas=0, good="1")
    colours.becomes[f"{REPO}:1"] = does
    path = os.environ["PATH"]
    if does == "sick":
        path = f"{kubectl_whose_exec(colours, 'unhealthy; database=unhealthy: refused', 1)}:{path}"
    done = rollback(colours, "1", PATH=path)
    assert done.returncode == 5, done.stdout
    assert ("2 kept all traffic" if does == "crash" else "The traffic is back on 2") in done.stdout
    assert colours.serving() == {f"{REPO}:2"}


@needs("curl")
@pytest.mark.django_db(transaction=True)
def test_the_rollback_is_recorded_and_never_waits_for_the_ledger(cluster: Cluster, live_server: LiveServer) -> None:
    for version in ("2", "3"):
        deployed("staging", version, at=datetime.now(UTC) - timedelta(hours=4 - int(version)))
    env = {"LEDGER_TOKEN": token("staging"), "LEDGER_ENVIRONMENT": "staging"}
    done = rollback(cluster, "2", "--reason", "bad", LEDGER_URL=live_server.url, **env)
    assert done.returncode == 0 and "Recorded in the ledger as deployment" in done.stdout, done.stdout
    last = Deployment.objects.newest_first()[0]
    assert (last.kind, last.status, last.release.version, last.reason) == ("rollback", "succeeded", "2", "bad")
    assert last.actor.startswith("ann@")
    done = rollback(cluster, "3", LEDGER_URL="http://127.0.0.1:1", **env)
    assert done.returncode == 0 and "This rollback is not in the ledger: curl: (7)" in done.stdout


@needs("curl")
@pytest.mark.django_db(transaction=True)
def test_other_settings_of_the_live_version_are_recorded_by_their_revision(
    settings: Cluster, live_server: LiveServer
) -> None:
    deployed("staging", "2", at=datetime.now(UTC) - timedelta(hours=1))
    env = {"LEDGER_TOKEN": token("staging"), "LEDGER_ENVIRONMENT": "staging", "LEDGER_URL": live_server.url}
    done = rollback(settings, "2", **env)
    assert done.returncode == 0 and "Recorded in the ledger as deployment" in done.stdout, done.stdout
    last = Deployment.objects.newest_first()[0]
    assert (last.kind, last.status, last.release.version) == ("rollback", "succeeded", "2")
    assert last.revision == settings.current()["metadata"]["labels"]["pod-template-hash"]


@needs("curl")
@pytest.mark.django_db(transaction=True)
def test_a_change_of_colours_is_recorded_as_one_whatever_its_reason_holds(
    colours: Cluster, live_server: LiveServer
) -> None:
    for version in ("1", "2"):
        deployed("staging", version, at=datetime.now(UTC) - timedelta(hours=4 - int(version)))
    env = {"LEDGER_TOKEN": token("staging") + "\r", "LEDGER_ENVIRONMENT": "staging", "LEDGER_URL": live_server.url}
    done = rollback(colours, "--previous", "--reason", f"500s | \x1b[31m\n\u202e{'ä' * 600}", **env)
    assert done.returncode == 0 and "Recorded in the ledger as deployment" in done.stdout, done.stdout
    last = Deployment.objects.newest_first()[0]
    assert (last.strategy, last.status, last.release.version) == ("blue-green", "succeeded", "1")
    assert last.reason.startswith("500s |  [31m ä") and last.reason.endswith("ä…") and len(last.reason) == 500
    assert "The reason was trimmed to one line of at most 500 characters: 500s" in done.stdout


@needs("curl")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"LEDGER_ENVIRONMENT": "moon"}, "HTTP 422: .*#/environment"),
        ({"LEDGER_TOKEN": "bst1_unknown"}, "HTTP 401: The token is unknown"),
        ({"LEDGER_TOKEN": ""}, "LEDGER_TOKEN is not set"),
        ({}, "HTTP 409: Release 2 was never live in staging"),
        ({"LEDGER_URL": "http://127.0.0.1.example.com"}, "LEDGER_URL is invalid: expected https://"),
        ({"LEDGER_URL": "http://example.com#@127.0.0.1"}, "LEDGER_URL is invalid: expected https://"),
    ],
)
def test_what_the_ledger_rejects_is_reported_and_stops_nothing(
    cluster: Cluster, live_server: LiveServer, env: dict[str, str], said: str
) -> None:
    release("2")
    given = {"LEDGER_TOKEN": token("staging"), "LEDGER_ENVIRONMENT": "staging", "LEDGER_URL": live_server.url} | env
    done = rollback(cluster, "2", **given)
    assert done.returncode == 0 and re.search(f"This rollback is not in the ledger: .*{said}", done.stdout), done.stdout
    assert "docs/operations.md says how to record it" in done.stdout and not Deployment.objects.exists()


MARKS = ["|", "\x1f", "\n", "\t", '"', "\\", "'", "\u2028", "\u202e", "%s", "{{.}}", "$(id)"]


def annotate(cluster: Cluster, text: str) -> None:
    for version in ("3", "2"):
        meta = cluster.sets()[f"{REPO}:{version}"]["metadata"]
        left = f"{meta['labels']['pod-template-hash']} 2026-11-28T10:00:00Z {text}"
        meta["annotations"] |= {"kubernetes.io/change-cause": text, GONE: left}
    cluster.sets()[f"{REPO}:1"]["metadata"]["annotations"][GONE] = text
    cluster.objects["deployments", APP]["metadata"]["annotations"]["kubernetes.io/change-cause"] = text


@pytest.mark.parametrize("mark", ["".join(MARKS), *(pytest.param(mark, marks=pytest.mark.full) for mark in MARKS)])
def test_no_text_shifts_what_is_read_back(cluster: Cluster, mark: str) -> None:
    """Any of them would shift it alone; with --full each is tried by itself."""
    text = f"500s{mark}{mark}2 is fine{mark}"
    annotate(cluster, text)
    done = rollback(cluster, "--list")
    rows = [line.split()[:2] for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert rows == [["3", "3"], ["2", "2"], ["1", "1"]] and "Rollback target: 1, " in done.stdout, done.stdout
    assert not {"\x1f", "\u202e"} & set(done.stdout)
    lease(cluster, f"bob{mark}@laptop", purpose=text)
    done = rollback(cluster, "1", "--dry-run", "--reason", text)
    assert done.returncode == 3 and "has held the lock since 20" in done.stdout and "2 is fine" in done.stdout
    assert rollback(cluster, "1", DEPLOY_LOCK_HOLDER="").returncode == 3
    del cluster.objects["leases", "backstagetest1-deploy"]
    done = rollback(cluster, "2", "--dry-run", "--reason", text)
    assert done.returncode == 0, done.stdout


def test_no_text_shifts_what_is_written(cluster: Cluster) -> None:
    text = f"500s{''.join(mark + mark for mark in MARKS)}2 is fine{''.join(MARKS)}"
    annotate(cluster, text)
    done = rollback(cluster, "2", "--reason", text)
    assert done.returncode == 0, done.stdout
    notes = cluster.sets()[f"{REPO}:2"]["metadata"]["annotations"]
    assert notes["kubernetes.io/change-cause"].split() == f"rollback to 2: {clean(text, 500)}".split()
    done = rollback(cluster, "1")
    assert done.returncode == 0 and cluster.image() == f"{REPO}:1", done.stdout


def test_a_reason_is_made_to_fit_as_everywhere() -> None:
    function = SCRIPT.read_text().partition("one_line() {")[2].partition("\n}\n")[0]
    letters = [
        "a",
        " ",
        "\t",
        "\x7f",
        "\x85",
        "\u2028",
        "\u202d",
        "\u2069",
        "\ufdd0",
        "\ufffe",
        "\U0001ffff",
        "ß",
        "日",
        "😀",
    ]
    texts = ["", "  plain ", *("".join(each) for each in itertools.product(letters, repeat=2)), "日" * 501, "x" * 500]
    script = f'export LC_ALL=C\none_line() {{{function}\n}}\nfor text; do one_line "$text" 500; printf "\\n"; done'
    done = subprocess.run(["bash", "-c", script, "-", *texts], capture_output=True, check=True, timeout=120)
    for text, found in zip(texts, done.stdout.decode().splitlines(), strict=True):
        assert found.split() == clean(text, 500).split() and clean(found, 500) == found, text
    for broken in (b"a\xff\xe4b", b"\xc3", b"\xed\xa0\x80a", b"\xf5\x80\x80\x80"):
        done = subprocess.run(["bash", "-c", script, "-", broken], capture_output=True, check=True, timeout=120)
        assert clean(done.stdout.decode(), 500) == done.stdout.decode().strip()


@pytest.mark.skipif(not os.environ.get("KUBECONFIG_E2E"), reason="KUBECONFIG_E2E names no cluster to try it on")
def test_a_real_cluster_goes_back() -> None:
    """With an image that serves nothing, so that it is the pods' readiness alone that decides."""
    env = os.environ | {"KUBECONFIG": os.environ["KUBECONFIG_E2E"], "LEDGER_URL": ""}
    place, image = f"rollback-{os.getpid()}", "registry.k8s.io/pause"

    def run(*words: str | Path, given: str = "", fine: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(words, env=env, input=given, capture_output=True, text=True, timeout=400)
        assert done.returncode in fine, done.stdout + done.stderr
        return done.stdout + done.stderr

    labels = {"app": APP}
    containers = [{"name": APP, "image": f"{image}:3.9"}]
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    template = {"metadata": {"labels": labels}, "spec": {"containers": containers}}
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "strategy": rolling, "template": template}
    ports = [{"port": 80, "targetPort": 8000}]
    items = [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": APP}, "spec": spec},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": APP},
            "spec": {"selector": labels, "ports": ports},
        },
    ]
    here = ("kubectl", "--namespace", place)
    run("kubectl", "create", "namespace", place)
    try:
        run(*here, "apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        run(*here, "rollout", "status", f"deployment/{APP}", "--timeout=180s")
        hashed = "jsonpath={.items[0].metadata.labels.pod-template-hash}"
        verified = run(*here, "get", "replicasets", "--output", hashed)
        run(*here, "annotate", f"replicaset/{APP}-{verified}", f"{GOOD}=3.9 {verified}")
        run(*here, "set", "image", f"deployment/{APP}", f"{APP}={image}:3.10")
        run(*here, "rollout", "status", f"deployment/{APP}", "--timeout=180s")
        assert "Rollback target: 3.9" in run(SCRIPT, "--list", place)
        assert "Nothing was changed." in run(SCRIPT, "3.11", place, fine=(4,))
        assert "patch deployment" in run(SCRIPT, "--previous", place, "--dry-run")
        said = run(SCRIPT, "--previous", place)
        assert "\nRollback completed successfully\n" in said, said
        running = ("get", f"deployment/{APP}", "--output", "jsonpath={.spec.template.spec.containers[0].image}")
        assert run(*here, *running) == f"{image}:3.9"
        never = ("never", "--image", f"{image}:never", "--timeout", "60")
        assert "3.9 is still serving" in run(SCRIPT, never[0], place, *never[1:], fine=(5,))
        assert run(*here, *running) == f"{image}:3.9"
    finally:
        run("kubectl", "delete", "namespace", place, "--wait=false")
