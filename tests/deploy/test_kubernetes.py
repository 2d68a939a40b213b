"""manage.py deploy and rollback on a cluster: the real commands and rollback.sh, with as much of a cluster as they meet
(tests/support/cluster.py) and pods that answer as the app does. Some have the real kubectl, and with --full all.
"""

import copy
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone
from pytest_django import Settings

from audit.operators import holder
from deploy import locks, probe_traffic, rollout, shell, watch
from deploy.management import base
from deploy.targets.kubernetes import blue_green, objects, overlays
from deploy.targets.kubernetes.blue_green import BlueGreen
from deploy.targets.kubernetes.cluster import Kubernetes
from deploy.targets.kubernetes.objects import CLOSE, annotations
from deploy.targets.kubernetes.rolling import RollingUpdate
from deploy.targets.probe import PROGRAM
from ledger import approvals, rules
from ledger.environments import environment_configs
from ledger.models import Deployment, Lock
from tests.support.approving import approved
from tests.support import kubectl_program
from tests.support.cluster import APP, Cluster, Refusal, image_of, is_ready, matches
from tests.support.kubectl import Kubectl
from tests.support.ledgers import begun, deployed
from tests.support.pairs import Pair
from tests.support.people import member
from tests.support.servers import ROOT, free_port
from tests.support.tools import needs
from tests.support.web import Page, serving

REPO = "registry.example/team/app"
NAMESPACE = "backstagetest1-staging"
GOOD, BEFORE, BREAK = f"{APP}/verified-good", f"{APP}/before", f"{APP}/schema-break"
LEASE = f"{APP}-deploy"
TRIAL = objects.TRIAL
TARGETS = {"rolling": RollingUpdate, "blue-green": BlueGreen}
ALL = ["promotion check", "lock", "migrate", "start", "smoke test", "switch", "watch", "mark good"]
DIGEST = "sha256:" + "ab" * 32

pytestmark = [
    pytest.mark.slow,
    pytest.mark.django_db,
    needs("kubectl"),
]


class Apps:
    """What the pods answer. A request with a pod's name as its Host is for that pod, as kubectl exec asks it; any other
    comes by the Ingress and gets one that has the traffic, by turns. `does` is by version: "good" unless told, "broken"
    (its home page and signing out answer 500), "failing" (by its metrics it answers 500 all the time, which nobody sees
    here), "liar" (says that it were another version).
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.does: dict[str, str] = {}
        self.scrapes = self.turn = 0
        self.lost = 0  # requests by the Ingress that nobody was there for
        self.down = False  # whether the Ingress answers 502 to everybody
        self.sticky = False  # whether a kept connection stays on the release that it led to first, as conntrack has it

    def answer(self, host: str, path: str) -> tuple[int, str]:
        return self.reply(host, path)[:2]

    def reply(self, host: str, path: str) -> tuple[int, str, str, str]:
        """The status, the body, and the version and revision that answer; empty if nobody does."""
        with self.cluster.lock:
            self.cluster.reconcile()
            if pod := self.cluster.objects.get(("pods", host)):
                found = [pod]
            else:
                selector = self.cluster.objects["services", APP]["spec"]["selector"]
                found = [each for each in self.cluster.all("pods") if is_ready(each) and matches(each, selector)]
                if not found:
                    self.lost += 1
                    return 503, "", "", ""
                if self.down:
                    return 502, "", "", ""
        self.turn += 1
        pod = found[self.turn % len(found)]
        version = image_of(pod).partition("@")[0].rpartition(":")[2]
        does = self.does.get(f"{version} new" if "-config-new" in str(pod) else version, "good")
        return *self.page(version, path, does), version, objects.hash_of(pod)

    def page(self, version: str, path: str, does: str) -> tuple[int, str]:
        if does == "broken" and path in (probe_traffic.READ, probe_traffic.SEND):
            return 500, ""
        if path == "/health/":
            return 200, json.dumps({"status": "healthy", "version": "9.9" if does == "liar" else version})
        if path == "/metrics":
            self.scrapes += 1
            return 200, self.metrics("500" if does == "failing" else "200")
        return 200, '<form><input name="csrfmiddlewaretoken" value="abc"></form><link href="/static/app.0a1b.css">'

    def metrics(self, status: str) -> str:
        count = 50 * self.scrapes
        return (
            f'# TYPE http_requests_total counter\nhttp_requests_total{{method="GET",status="{status}"}} {count}\n'
            "# TYPE http_request_duration_seconds histogram\n"
            f'http_request_duration_seconds_bucket{{le="0.1"}} {count}\n'
            f'http_request_duration_seconds_bucket{{le="+Inf"}} {count}\n'
            '# TYPE app_info gauge\napp_info{version="1",commit="unknown"} 1\n'
        )


@pytest.fixture
def real_kubectl() -> None:
    """The real kubectl, also without --full."""


def install_real_kubectl(folder: Path) -> None:
    """Puts a kubectl into a folder that is to come first in PATH. What the real one would run in a pod runs here, and
    asks the pods' server: this cluster does not speak the protocol of kubectl exec.
    """
    wrapper = folder / "kubectl"
    wrapper.write_text(f"""#!/bin/sh
case " $* " in *" exec "*) ;; *) exec {shutil.which("kubectl")} "$@" ;; esac
while [ "$1" != exec ]; do shift; done
pod=$3 words="$2 $4 $5 $6 $7 $8 $9"
[ "$words" = "--stdin --container {APP} -- python - 8000" ] || exit 99
shift 9
[ "$1" = 127.0.0.1 ] || exit 98
shift
exec {sys.executable} -IS - "$PODS_PORT" "$pod" "$@"
""")
    wrapper.chmod(0o755)


@pytest.fixture
def apps(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings, full: bool
) -> Iterator[Callable[[Cluster], Apps]]:
    """Puts pods into a cluster, and the two into the place of staging and production."""
    servers = ExitStack()

    def begin(cluster: Cluster) -> Apps:
        found = Apps(cluster)

        class Pod(Page):
            protocol_version = "HTTP/1.1"
            first = ("", "")  # the version and revision that the connection led to first

            def do_GET(self) -> None:
                code, text, *source = found.reply(self.headers["Host"].partition(":")[0], self.path)
                self.first = self.first if any(self.first) else (source[0], source[1])
                self.send_response(302 if self.command == "POST" and code == 200 else code)
                version, revision = self.first if found.sticky else source
                self.send_header(probe_traffic.RELEASE, version)
                self.send_header(probe_traffic.REVISION, revision)
                if self.path == probe_traffic.FORM:
                    self.send_header("Set-Cookie", "csrftoken=abc; Path=/")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

        port = servers.enter_context(serving(Pod))
        if full or "real_kubectl" in request.fixturenames:
            install_real_kubectl(tmp_path)
            monkeypatch.setenv("PODS_PORT", str(port))
        else:
            monkeypatch.setattr(subprocess, "run", Kubectl(cluster, found.answer))
            kubectl_program.install(tmp_path)  # for rollback.sh
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig)
        file = tmp_path / "environments.toml"
        section = f'url = "http://127.0.0.1:{port}"\ntarget = "kubernetes"\nnamespace = "{NAMESPACE}"\n'
        file.write_text(f'[staging]\n{section}[production]\npromotes_from = "staging"\n{section}')
        settings.ENVIRONMENTS_FILE = str(file)
        settings.LEDGER_URL = ""
        monkeypatch.setattr(base, "UNRECORDED", tmp_path / "unrecorded")
        for module, name, value in (
            (Kubernetes, "poll_interval", 0.05),
            (watch, "INTERVAL", 0.05),
            (probe_traffic, "RATE", 50),
            (rollout, "ALONE", 0.2),
            (watch, "FEWEST_ANSWERS", 2),
        ):
            monkeypatch.setattr(module, name, value)
        return found

    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    with servers:
        yield begin
    for each, handler in handlers.items():
        signal.signal(each, handler)


@pytest.fixture
def rolling(apps: Callable[[Cluster], Apps]) -> Iterator[Apps]:
    """1 and 2 were verified good, and 2 runs."""
    with Cluster(NAMESPACE) as cluster:
        cluster.service()
        for version in ("1", "2"):
            cluster.deploy(APP, f"{REPO}:{version}", replicas=2, cause=f"deploy {version}", good=version)
        yield apps(cluster)


@pytest.fixture
def colours(apps: Callable[[Cluster], Apps]) -> Iterator[Apps]:
    """Blue serves 2; green is empty."""
    with Cluster(NAMESPACE) as cluster:
        cluster.service("blue")
        cluster.add("services", f"{APP}-preview")["spec"] = {"selector": {"colour": "green"}, "ports": []}
        cluster.deploy(f"{APP}-green", f"{REPO}:1", replicas=0, cause="deploy 1", good="1")
        cluster.deploy(f"{APP}-blue", f"{REPO}:2", replicas=2, cause="deploy 2", good="2")
        yield apps(cluster)


Events = list[dict[str, Any]]


def command(*words: str) -> tuple[int, Events, str]:
    """The exit code, the events that it printed, and all that it said."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        call_command(*words, "--json", stdout=out, stderr=err)
    except SystemExit as end:
        code = int(end.code or 0)
    said = out.getvalue() + err.getvalue()
    return code, [json.loads(line) for line in out.getvalue().splitlines()], said


def deploy(version: str, *words: str, strategy: str = "rolling") -> tuple[int, Events, str]:
    given = ("--watch", "0.3") if "--watch" not in words else ()
    more = ("--strategy", strategy, "--commit", "abcdef0", *given, *words)
    return command("deploy", version, "-e", "staging", *more)


def steps(events: Events) -> dict[str, str]:
    return {each["name"]: each["outcome"] for each in events if each["event"] == "step"}


def result(events: Events) -> dict[str, Any]:
    return next(each for each in events if each["event"] == "result")


def row() -> Deployment:
    return Deployment.objects.newest_first()[0]


def lease(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.objects.get(("leases", LEASE), {"spec": {}})
    return found


def held(cluster: Cluster, who: str, age: float = 0, **notes: str) -> None:
    """Somebody has the lock, and renewed it `age` seconds ago."""
    at = (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%S.000000Z")
    found = cluster.add("leases", LEASE)
    found["metadata"]["annotations"] = {f"{APP}/{key.replace('_', '-')}": value for key, value in notes.items()}
    found["spec"] = {"holderIdentity": who, "leaseDurationSeconds": 60, "acquireTime": at, "renewTime": at}


def jobs(cluster: Cluster) -> dict[str, str]:
    """Their images by their names."""
    return {each["metadata"]["name"]: image_of(each) for each in cluster.all("jobs")}


def when(cluster: Cluster, method: str, path: str, act: Callable[[], None]) -> None:
    """Once, before the cluster answers such a request."""
    left = [act]

    def look(seen: str, where: str) -> None:
        if left and seen == method and where.endswith(path):
            left.pop()()

    cluster.hooks.append(look)


# Good releases


@pytest.mark.usefixtures("real_kubectl")
def test_a_good_release_replaces_the_pods_one_after_the_other(rolling: Apps) -> None:
    cluster = rolling.cluster
    during: set[str] = set()
    cluster.hooks.append(lambda *_: during.update([cluster.image()] if TRIAL in jobs(cluster) else []))
    code, events, said = deploy("3")
    assert code == 0, said
    assert list(steps(events)) == ALL and set(steps(events).values()) == {"succeeded"}
    assert during == {f"{REPO}:2"}, "it is tried before any pod that has traffic is replaced"
    assert cluster.serving() == {f"{REPO}:3"} and rolling.lost == 0
    notes = cluster.objects["deployments", APP]["metadata"]["annotations"]
    assert notes["kubernetes.io/change-cause"] == "deploy 3" and BEFORE not in notes, "the run is over"
    for version in ("2", "3"):
        meta = cluster.sets()[f"{REPO}:{version}"]["metadata"]
        assert meta["annotations"][GOOD] == f"{version} {meta['labels']['pod-template-hash']}", "its own mark"
    assert jobs(cluster) == {f"{APP}-migrate-3": f"{REPO}:3"}
    job = cluster.objects["jobs", f"{APP}-migrate-3"]
    assert job["spec"]["backoffLimit"] == 0 and job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    notes = {each["name"]: each["note"] for each in events if each.get("outcome") == "succeeded"}
    assert notes["migrate"] == "2 migrations applied" and "version 3" in notes["smoke test"]
    assert lease(cluster)["spec"]["holderIdentity"] == "", "the lock is given back"
    assert (row().status, row().failed_requests, row().strategy) == ("succeeded", 0, "rolling")
    assert [each.name for each in row().steps.order_by("pk")] == ALL[2:], "lock and rule are of the run"
    assert events[-1]["probe_requests"] > 5 and events[-1]["failed_requests"] == 0
    code, events, said = deploy("3")
    assert code == 0 and events[-1]["result"] == "unchanged", said


@pytest.mark.usefixtures("real_kubectl")
def test_a_good_release_gets_the_traffic_in_the_other_colour(colours: Apps) -> None:
    cluster = colours.cluster
    active: list[str] = []
    cluster.hooks.append(lambda *_: active.extend(cluster.serving() - set(active)))
    code, events, said = deploy("3", strategy="blue-green")
    assert code == 0, said
    assert list(steps(events)) == ALL and set(steps(events).values()) == {"succeeded"}
    assert active == [f"{REPO}:2", f"{REPO}:3"] and cluster.serving() == {f"{REPO}:3"}
    assert cluster.objects["services", APP]["spec"]["selector"]["colour"] == "green"
    assert cluster.objects["services", f"{APP}-preview"]["spec"]["selector"]["colour"] == "blue"
    assert cluster.image(f"{APP}-blue") == f"{REPO}:2", "the rollback target stays running"
    assert cluster.objects["deployments", f"{APP}-blue"]["spec"]["replicas"] == 2
    assert cluster.current(f"{APP}-green")["metadata"]["annotations"][GOOD].startswith("3 ")
    assert (row().status, row().failed_requests) == ("succeeded", 0) and colours.lost == 0
    told = next(each for each in events if each["event"] == "answers")
    assert told["version"] == "3" and min(told["answers"]["3"].values()) > 0 and "3 alone answers" in said
    closing = {pod["metadata"]["labels"]["colour"] for pod in cluster.all("pods") if CLOSE in annotations(pod)}
    assert closing == {"blue"}, "clients that keep their connections go, too"
    deployed("staging", "2", at=timezone.now() - timedelta(days=1))  # as the ledger would have it
    code, events, said = command("rollback", "-e", "staging", "--strategy", "blue-green", "--reason", "Tried")
    assert code == 0, said
    assert cluster.serving() == {f"{REPO}:2"} and "2 alone answers" in said
    closing = {pod["metadata"]["labels"]["colour"] for pod in cluster.all("pods") if CLOSE in annotations(pod)}
    assert closing == {"green"}
    assert (row().kind, row().status, row().release.version, row().reason) == ("rollback", "succeeded", "2", "Tried")


def test_a_release_that_visitors_do_not_get_is_not_called_good(colours: Apps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "MOVING", 0.5)
    colours.sticky = True
    code, events, said = deploy("3", strategy="blue-green")
    assert code == 6 and steps(events)["watch"] == "failed" and "mark good" not in steps(events), said
    assert "3 is not alone in answering the probe traffic after" in said
    assert "3 is live, but not marked as good: " in events[-1]["why"] and "came from 2 (" in events[-1]["why"]
    assert colours.cluster.serving() == {f"{REPO}:3"}, "nothing speaks against it either"
    assert GOOD not in colours.cluster.current(f"{APP}-green")["metadata"]["annotations"]
    assert row().status == "failed" and events[-1]["answers"]["2"]["kept"] > 0
    colours.sticky = False
    code, events, said = deploy("3", strategy="blue-green")
    assert code == 0 and "green has the traffic" in said, said
    assert colours.cluster.current(f"{APP}-green")["metadata"]["annotations"][GOOD].startswith("3 ")


def test_without_the_right_to_mark_pods_the_traffic_moves_all_the_same(colours: Apps) -> None:
    def denied(method: str, path: str) -> None:
        if method == "PATCH" and "/pods/" in path:
            raise Refusal(403, "Forbidden", "pods is forbidden")

    colours.cluster.hooks.append(denied)
    code, events, said = deploy("3", strategy="blue-green")
    assert code == 0 and colours.cluster.serving() == {f"{REPO}:3"}, said
    assert "clients that keep their connections may stay on blue: " in said and "forbidden" in said


def test_a_switch_that_fails_half_way_leaves_the_live_pods_their_connections(colours: Apps) -> None:
    def denied() -> None:
        raise Refusal(403, "Forbidden", "services is forbidden")

    when(colours.cluster, "PATCH", f"/services/{APP}", denied)
    code, _, said = deploy("3", strategy="blue-green")
    assert code == 5 and colours.cluster.serving() == {f"{REPO}:2"}, said
    assert not any(CLOSE in annotations(pod) for pod in colours.cluster.all("pods"))


@pytest.mark.parametrize("strategy", ["rolling", "blue-green"])
def test_a_rollback_returns_to_what_was_live_last(request: pytest.FixtureRequest, strategy: str) -> None:
    """1, 2, 1 again and 3, all of them good: back to 1, though 2 came after it."""
    apps: Apps = request.getfixturevalue("rolling" if strategy == "rolling" else "colours")
    for version in ("1", "3"):
        code, _, said = deploy(version, strategy=strategy)
        assert code == 0, said
    code, _, said = command("rollback", "-e", "staging", "--strategy", strategy, "--reason", "500s | 2 is fine\nback")
    assert code == 0 and apps.cluster.serving() == {f"{REPO}:1"}, said
    assert (row().kind, row().release.version, row().reason) == ("rollback", "1", "500s | 2 is fine back")


def test_no_text_of_the_history_is_taken_for_the_rollback_target(rolling: Apps) -> None:
    notes = rolling.cluster.objects["deployments", APP]["metadata"]["annotations"]
    notes["kubernetes.io/change-cause"] = "deploy 2\nRollback target: 2 (x) Rollback target: 9 ("
    code, _, said = command("rollback", "-e", "staging", "--dry-run")
    assert code == 0 and "Rolling back to version: 1" in said, said


def test_each_version_has_a_job_of_its_own_by_a_dns_label() -> None:
    versions = ["1.4.0", "1-4-0", "1.4-0", "A_b.-c", "a-b-c", "1..2", "_x", "X", "x", "x-." * 21, "a" * 63, "a" * 64]
    names = {objects.migrate_job_name(version) for version in versions}
    assert len(names) == len(versions)
    for name in names:
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name), name
    assert objects.migrate_job_name("1.4.0") == f"{APP}-migrate-1-4-0"


def test_the_very_image_is_taken_by_its_digest(rolling: Apps) -> None:
    image = f"other.example/app:3@{DIGEST}"
    code, _, said = deploy("3", "--image", f"other.example/app@{DIGEST}")
    assert code == 0, said
    assert rolling.cluster.image() == image and jobs(rolling.cluster) == {f"{APP}-migrate-3": image}
    assert row().release.image == image
    assert command("rollback", "-e", "staging")[0] == 0
    assert rolling.cluster.image() == f"{REPO}:2"


def test_a_dry_run_changes_nothing(colours: Apps) -> None:
    code, events, said = deploy("3", "--dry-run", strategy="blue-green")
    assert code == 0, said
    assert f"{REPO}:3" in said and "colour=green" in said
    assert colours.cluster.writes == [] and not Deployment.objects.exists()
    code, events, said = command("rollback", "1", "-e", "staging", "--strategy", "blue-green", "--dry-run")
    assert code == 0 and "would run" in said, said
    assert colours.cluster.serving() == {f"{REPO}:2"}
    assert colours.cluster.image(f"{APP}-green") == f"{REPO}:1" and not lease(colours.cluster)["spec"]


def test_people_see_a_line_a_step(rolling: Apps) -> None:
    out = io.StringIO()
    call_command("deploy", "3", "-e", "staging", "--commit", "abcdef0", "--watch", "0.1", stdout=out)
    lines = out.getvalue().splitlines()
    assert [line[2:18].strip() for line in lines if line[:2] in ("+ ", "- ")] == ALL
    assert lines[-1].startswith("3: succeeded; 0 of ") and "\x1b" not in out.getvalue()


# Bad ones


@pytest.mark.parametrize(
    ("strategy", "kind", "step", "told"),
    [
        ("rolling", "crash", "start", "exited with code 3"),
        ("rolling", "pull", "start", "ImagePullBackOff"),
        ("rolling", "unready", "start", "is not ready"),
        ("rolling", "quota", "start", "is not ready"),
        ("rolling", "broken", "smoke test", "answered 500"),
        ("rolling", "liar", "smoke test", "Reports version 9.9, expected 3"),
        ("rolling", "failing", "watch", "were 5xx errors"),
        ("blue-green", "crash", "start", "CrashLoopBackOff"),
        ("blue-green", "pull", "start", "ImagePullBackOff"),
        ("blue-green", "liar", "smoke test", "Reports version 9.9, expected 3"),
        ("blue-green", "failing", "watch", "were 5xx errors"),
    ],
)
def test_a_bad_release_is_left_once_with_the_old_one_serving(
    request: pytest.FixtureRequest, strategy: str, kind: str, step: str, told: str
) -> None:
    apps: Apps = request.getfixturevalue("rolling" if strategy == "rolling" else "colours")
    cluster = apps.cluster
    cluster.becomes[f"{REPO}:3"] = kind if step == "start" else "good"
    apps.does["3"] = kind
    always: list[bool] = []
    cluster.hooks.append(lambda *_: always.append(bool(cluster.serving())))
    words = ("--timeout", "1") if kind in ("unready", "quota") else ("--watch", "20") if step == "watch" else ()
    code, events, said = deploy("3", *words, strategy=strategy)
    assert code == 5, said
    assert steps(events)[step] == "failed" and steps(events)["roll back"] == "succeeded"
    assert told in events[-1]["why"] and events[-1]["why"].endswith("2 is live.")
    assert sum(each.get("name") == "roll back" and each["outcome"] == "running" for each in events) == 1
    assert cluster.serving() == {f"{REPO}:2"} and all(always) and apps.lost == 0
    if kind == "crash":
        assert "no module named nothing" in said, "its own last words"
    assert (row().release.version, row().status) == ("3", "rolled_back" if step == "watch" else "failed")
    assert events[-1]["failed_requests"] == 0 and TRIAL not in jobs(cluster)
    assert lease(cluster)["spec"]["holderIdentity"] == ""
    if strategy == "blue-green":
        assert cluster.objects["deployments", f"{APP}-green"]["spec"]["replicas"] == 0, "the bad one is stopped"
        assert GOOD not in cluster.current(f"{APP}-green")["metadata"]["annotations"]
    else:
        assert cluster.image() == f"{REPO}:2"
        changed = [path for _, path, _ in cluster.writes if path.endswith(f"/deployments/{APP}")]
        assert bool(changed) == (step == "watch"), "what has no traffic is left alone"


@pytest.mark.parametrize(("kind", "told"), [("crash", "CrashLoopBackOff"), ("broken", "probe requests in the last")])
def test_a_release_that_is_bad_under_traffic_only_is_rolled_back_half_way(rolling: Apps, kind: str, told: str) -> None:
    cluster = rolling.cluster

    def spoiled() -> None:
        cluster.seconds = 3
        cluster.becomes[f"{REPO}:3"] = "crash" if kind == "crash" else "good"
        rolling.does["3"] = kind

    when(cluster, "PATCH", f"/deployments/{APP}", spoiled)
    code, events, said = deploy("3")
    assert code == 5, said
    assert steps(events)["switch"] == "failed" and told in events[-1]["why"]
    assert cluster.serving() == {f"{REPO}:2"} and cluster.image() == f"{REPO}:2" and rolling.lost == 0
    assert row().status == "rolled_back" and (events[-1]["failed_requests"] > 0) == (kind == "broken")


def test_where_nobody_serves_a_release_is_not_tried_first(rolling: Apps) -> None:
    rolling.cluster.becomes[f"{REPO}:2"] = "unready"
    code, events, said = deploy("3")
    assert code == 0, said
    assert rolling.cluster.serving() == {f"{REPO}:3"} and steps(events)["switch"] == "skipped"
    assert not any(TRIAL in body for _, _, body in rolling.cluster.writes)


def test_migrations_that_fail_leave_everything_as_it_was(rolling: Apps) -> None:
    rolling.cluster.becomes[f"migrate {REPO}:3"] = "fail"
    code, events, said = deploy("3")
    assert code == 5, said
    assert steps(events)["migrate"] == "failed" and "start" not in steps(events)
    why = r"The migrations failed: \S+Error: column is gone\. job/\S+-3: pod \S+ exited with code 1 \(Error\)\."
    assert re.match(why, events[-1]["why"]), events[-1]["why"]
    assert rolling.cluster.serving() == {f"{REPO}:2"} and rolling.cluster.image() == f"{REPO}:2"
    assert row().status == "failed"
    rolling.cluster.becomes[f"migrate {REPO}:3"] = "good"  # by a database that has room again
    assert deploy("3")[0] == 0, "the Job that failed is not in the way"


def test_a_rollback_that_fails_needs_a_person(rolling: Apps) -> None:
    cluster = rolling.cluster
    rolling.does["3"] = "failing"

    def spoiled() -> None:
        cluster.becomes[f"{REPO}:2"] = "crash"

    when(cluster, "PATCH", f"/deployments/{APP}", spoiled)
    code, events, said = deploy("3", "--watch", "20")
    assert code == 6, said
    assert "The rollback failed as well" in events[-1]["why"] and row().status == "failed"
    assert lease(cluster)["spec"]["holderIdentity"] == ""


# What is given up


def test_a_migration_that_is_given_up_does_not_run_later(rolling: Apps) -> None:
    """The kubelet pulls again until it can, so a Job that nobody waits for would migrate without lock or deployment."""
    cluster = rolling.cluster
    cluster.becomes[f"migrate {REPO}:3"] = "pull"
    code, events, said = deploy("3")
    assert code == 5 and "ImagePullBackOff" in events[-1]["why"], said
    assert jobs(cluster) == {} and {image_of(pod) for pod in cluster.all("pods")} == {f"{REPO}:2"}
    cluster.becomes[f"migrate {REPO}:3"] = "good"  # it has been pushed
    assert deploy("3")[0] == 0


@pytest.mark.parametrize("version", ["3", "4"])
def test_a_migration_that_a_killed_run_left_is_not_judged_by_its_old_pod(
    rolling: Apps, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    cluster = rolling.cluster
    cluster.becomes[f"migrate {REPO}:3"] = "pull"
    with monkeypatch.context() as patch:
        patch.setattr(Kubernetes, "give_up", lambda *_: None)
        assert deploy("3")[0] == 5
    assert jobs(cluster) == {objects.migrate_job_name("3"): f"{REPO}:3"}
    cluster.becomes[f"migrate {REPO}:3"] = "good"
    cluster.seconds = 600  # until the kubelet tries again
    when(cluster, "DELETE", f"/jobs/{objects.migrate_job_name('3')}", lambda: setattr(cluster, "seconds", 0.2))
    code, _, said = deploy(version)
    assert code == 0, said
    assert jobs(cluster) == {objects.migrate_job_name(version): f"{REPO}:{version}"}


# An API server that does not answer


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "PAUSE", 0.05)


def away(cluster: Cluster, seconds: float) -> Callable[[], None]:
    """Its API server is down for so long."""
    return lambda: setattr(cluster, "back", time.monotonic() + seconds)


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/jobs"),
        ("PATCH", f"/deployments/{APP}"),
        ("DELETE", f"/jobs/{TRIAL}"),
    ],
)
def test_a_good_release_is_not_condemned_while_the_api_server_does_not_answer(
    rolling: Apps, method: str, path: str
) -> None:
    cluster = rolling.cluster
    when(cluster, method, path, away(cluster, 1))
    code, events, said = deploy("3")
    assert code == 0, said
    assert cluster.serving() == {f"{REPO}:3"} and rolling.lost == 0
    assert sum(method == "POST" and "/jobs" in path for method, path, _ in cluster.writes) == 2, "nothing is done twice"


@pytest.mark.usefixtures("quick_retries")
def test_what_visitors_see_counts_while_the_api_server_does_not_answer(rolling: Apps) -> None:
    cluster = rolling.cluster

    def gone() -> None:
        rolling.does["3"] = "broken"
        away(cluster, 4)()

    when(cluster, "PATCH", f"/deployments/{APP}", gone)
    code, events, said = deploy("3")
    assert code == 5 and "probe requests in the last" in events[-1]["why"], said
    assert cluster.serving() == {f"{REPO}:2"}


@pytest.mark.usefixtures("quick_retries")
def test_an_api_server_that_stays_down_is_no_reason_to_roll_back(
    rolling: Apps, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = rolling.cluster
    when(cluster, "PATCH", f"/deployments/{APP}", away(cluster, 2))
    with monkeypatch.context() as patch:
        patch.setattr("deploy.targets.kubernetes.cluster.PATIENCE", 0.5)
        code, events, said = deploy("3")
    assert code == 6 and "has not answered for" in events[-1]["why"], said
    assert "Nothing was rolled back. Run the same command to resume" in events[-1]["why"]
    cluster.back = 0.0
    assert cluster.image() == f"{REPO}:3" and "roll back" not in steps(events)
    held(cluster, "ann@laptop", age=locks.SECONDS + 1)
    code, events, said = deploy("3")
    assert code == 0, said


# The lock


def test_a_lock_that_another_holds_is_reported_and_waited_for(rolling: Apps) -> None:
    cluster = rolling.cluster
    held(cluster, "bob@laptop", purpose="deploy of 4 to staging")
    code, _, said = deploy("3")
    assert code == 3, said
    for word in (
        "bob@laptop",
        "has held the lock since",
        "deploy of 4 to staging",
        "--wait",
        "lock release -e staging",
    ):
        assert word in said
    assert cluster.writes == [] and not Deployment.objects.exists()
    freed = threading.Timer(0.5, lambda: lease(cluster)["spec"].update(holderIdentity=""))
    freed.start()
    code, events, said = deploy("3", "--wait", "20")
    freed.join()
    assert code == 0, said


def test_a_lock_whose_holder_died_is_taken_over(rolling: Apps) -> None:
    held(rolling.cluster, "bob@laptop", age=locks.SECONDS + 1, purpose="deploy of 4")
    code, events, said = deploy("3")
    assert code == 0, said
    assert "bob@laptop" in said and "its process has died" in said


def test_a_lock_by_hand_never_expires(rolling: Apps) -> None:
    code, _, said = command("lock", "acquire", "-e", "staging", "--reason", "The database is being moved")
    assert code == 0, said
    held_by_hand = Lock.objects.get()
    assert (held_by_hand.environment.name, held_by_hand.reason) == ("staging", "The database is being moved")
    assert held_by_hand.holder.startswith(holder())
    found = lease(rolling.cluster)["spec"]
    found["renewTime"] = found["acquireTime"] = "2020-01-01T00:00:00.000000Z"
    code, _, said = deploy("3")
    assert code == 3 and "The database is being moved" in said and "Release it with" in said
    code, _, said = command("lock", "release", "-e", "staging")
    assert code == 0 and "The database is being moved" in said and not Lock.objects.exists()
    assert deploy("3")[0] == 0


def test_a_lock_is_held_and_released_without_the_ledger(rolling: Apps, settings: Settings) -> None:
    settings.LEDGER_URL = f"http://127.0.0.1:{free_port()}"
    code, _, said = command("lock", "acquire", "-e", "staging", "--reason", "Move")
    assert code == 0 and "The ledger does not know of this, so alerts may be wrong: http" in said
    assert command("lock", "status", "-e", "staging")[0] == 3
    code, _, said = command("lock", "release", "-e", "staging")
    assert code == 0 and "alerts may be wrong" in said


def test_the_lock_shows_who_holds_it_and_may_be_broken(rolling: Apps) -> None:
    cluster = rolling.cluster
    words = ("-e", "staging")
    assert command("lock", "status", *words)[0] == 0
    for wrong in (("acquire",), ("status", "--reason", "Move"), ("release", "--reason", "Move")):
        code, _, said = command("lock", *wrong, *words)
        assert code == 2 and "--reason" in said
    held(cluster, "bob@laptop", purpose="deploy of 4")
    code, (event,), _ = command("lock", "status", *words)
    assert code == 3 and event.items() >= {"locked": True, "holder": "bob@laptop", "reason": "deploy of 4"}.items()
    code, _, said = command("lock", "acquire", *words, "--reason", "Move")
    assert code == 3 and "bob@laptop has held the lock since" in said
    code, (event,), _ = command("lock", "release", *words)
    assert code == 0 and event.items() >= {"environment": "staging", "locked": False, "holder": None}.items()
    assert not lease(cluster)["spec"] and command("lock", "release", *words)[0] == 0
    out = io.StringIO()
    call_command("lock", "acquire", *words, "--reason", "Move", stdout=out)
    assert out.getvalue() == "Locked staging: Move. Release with: manage.py lock release -e staging\n"
    held(cluster, "bob@laptop", age=locks.SECONDS + 1)
    assert command("lock", "status", *words)[0] == 0, "it has expired"


def test_whose_lock_is_broken_touches_nothing_more(rolling: Apps, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = rolling.cluster
    monkeypatch.setattr(locks, "RENEWED", 0.05)
    when(cluster, "GET", f"/jobs/{APP}-migrate-3", lambda: held(cluster, "bob@laptop", purpose="another"))
    cluster.seconds = 1
    code, events, said = deploy("3")
    assert code == 6, said
    assert "Somebody broke the lock" in events[-1]["why"] and "Live: 2" in events[-1]["why"]
    assert cluster.image() == f"{REPO}:2" and "start" not in steps(events)
    assert lease(cluster)["spec"]["holderIdentity"] == "bob@laptop", "theirs is left alone"


@pytest.mark.usefixtures("real_kubectl")
def test_of_two_that_come_at_once_one_gets_the_lock(rolling: Apps) -> None:
    held(rolling.cluster, "", purpose="over")
    when(rolling.cluster, "PUT", f"/leases/{LEASE}", lambda: held(rolling.cluster, "bob@laptop"))
    code, _, said = deploy("3")
    assert code == 3 and "Someone else has just taken the lock" in said


# Interruptions


@pytest.mark.parametrize(
    ("strategy", "step", "serves"),
    [
        ("rolling", "start", "2"),
        ("rolling", "switch", "2"),
        ("rolling", "switch", "3"),
        ("rolling", "mark_good", "3"),
        ("blue-green", "migrate", "2"),
        ("blue-green", "switch", "3"),
        ("blue-green", "mark_good", "3"),
    ],
)
def test_an_interrupted_run_is_resumed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, strategy: str, step: str, serves: str
) -> None:
    apps: Apps = request.getfixturevalue("rolling" if strategy == "rolling" else "colours")
    target = TARGETS[strategy]
    act = getattr(target, step)

    def interrupted(self: Kubernetes, *words: Any) -> str:
        if step in ("switch", "start") and serves == "3":
            act(self, *words)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(target, step, interrupted)
        code, events, said = deploy("3", strategy=strategy)
    assert code == 6, said
    assert f"Live: {serves}." in said and "Run the same command to resume" in said
    assert lease(apps.cluster)["spec"]["holderIdentity"] == "" and row().status == "running"
    code, events, said = deploy("3", strategy=strategy)
    assert code == 0, said
    assert f"Resuming deployment {row().pk} (completed: " in said
    assert apps.cluster.serving() == {f"{REPO}:3"} and apps.lost == 0
    assert Deployment.objects.count() == 1 and row().status == "succeeded"
    assert len(jobs(apps.cluster)) == 1, "migrated once"


def test_another_release_clears_up_what_was_interrupted(colours: Apps, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BlueGreen, "switch", interrupted)
        assert deploy("3", strategy="blue-green")[0] == 6
    code, _, said = deploy("4", strategy="blue-green")
    assert code == 0 and "of 3 was interrupted; it is now recorded as failed" in said, said
    assert [each.status for each in Deployment.objects.newest_first()] == ["succeeded", "failed"]
    assert colours.cluster.serving() == {f"{REPO}:4"} and colours.lost == 0
    assert command("rollback", "-e", "staging", "--strategy", "blue-green")[0] == 0
    assert colours.cluster.serving() == {f"{REPO}:2"}, "not what was interrupted"


def test_another_release_is_tried_where_one_was_interrupted(rolling: Apps, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RollingUpdate, "switch", interrupted)
        assert deploy("3")[0] == 6
    assert jobs(rolling.cluster)[TRIAL] == f"{REPO}:3"
    found = rolling.cluster.objects["deployments", APP]
    usual = copy.deepcopy(found["spec"])
    found["spec"] |= {"minReadySeconds": 0, "strategy": {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": 0}}}
    found["metadata"]["annotations"][objects.PACE] = "5 1 0"  # as by a rollback.sh that was killed
    code, _, said = deploy("4")
    assert code == 0 and "version 4" in said, said
    assert rolling.cluster.serving() == {f"{REPO}:4"} and TRIAL not in jobs(rolling.cluster)
    assert found["spec"]["minReadySeconds"] == usual["minReadySeconds"]
    assert found["spec"]["strategy"]["rollingUpdate"] == usual["strategy"]["rollingUpdate"]
    assert objects.PACE not in found["metadata"]["annotations"]


# What is refused, and what is marked


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("deploy", "latest", "-e", "staging"), 2, "is not a valid version"),
        (("deploy", "3;reboot", "-e", "staging"), 2, "is not a valid version"),
        (("deploy", "3", "-e", "staging", "--strategy", "blue-green"), 4, "no Deployment backstagetest1-blue"),
        (("deploy", "3", "-e", "staging", "--unsafe-migrations"), 2, "requires a reason"),
        (("deploy", "3", "-e", "production", "--commit", "abcdef0", "--dry-run"), 4, "3 has not succeeded in staging"),
        (("lock", "acquire", "-e", "staging"), 2, "requires a reason"),
        (("lock", "status", "-e", "staging", "--reason", "Why"), 2, "Unexpected argument"),
        (("deploy", "3+1", "-e", "staging", "--dry-run"), 2, "is not a valid version"),
        (("deploy", "3", "-e", "production", "--commit", "abcdef0"), 4, "3 has not succeeded in staging"),
        (
            ("rollback", "2", "-e", "staging"),
            4,
            "2 is already live in deployment/backstagetest1, and no other settings",
        ),
        (("rollback", "9", "-e", "staging"), 4, "9 is not in the history"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_touched(
    rolling: Apps, words: tuple[str, ...], code: int, told: str
) -> None:
    found, _, said = command(*words)
    assert (found, told in said) == (code, True), said
    changed = [path for _, path, _ in rolling.cluster.writes if "/leases" not in path]
    assert changed == [] and not Deployment.objects.filter(status="running").exists()


def test_a_dry_run_refuses_what_a_real_run_would(rolling: Apps) -> None:
    held(rolling.cluster, "bob@laptop", purpose="deploy of 4")
    code, _, said = deploy("3", "--dry-run")
    assert code == 3 and "bob@laptop has held the lock since" in said and "deploy of 4" in said
    held(rolling.cluster, "")
    left = begun("staging", "4")
    code, _, said = deploy("3", "--dry-run")
    assert code == 4 and f"Deployment {left.pk} of 4 to staging is running" in said, said
    rules.finish(left.pk, "failed")
    code, _, said = deploy("3", "--dry-run")
    assert code == 0 and "recorded in the database" in said and rolling.cluster.writes == [], said


def test_production_takes_what_succeeded_in_staging_or_a_hotfix(rolling: Apps) -> None:
    deployed("staging", "3")
    words = ("-e", "production", "--strategy", "rolling", "--commit", "abcdef0", "--watch", "0.1")
    code, _, said = command("deploy", "3", *words)
    assert code == 4 and "is waiting for approval (0 of 1)" in said and rolling.cluster.writes == [], said
    waits = approved(row())
    code, _, said = command("deploy", "3", *words)
    assert code == 0 and row() == waits and row().environment.name == "production", said
    hotfix = (*words, "--hotfix", "--reason", "Nobody can sign in")
    code, _, said = command("deploy", "4", *hotfix, "--wait-approval", "1s")
    assert code == 4 and row().status == "waiting", said
    approvals.decide(row().pk, member("approver"), "rejected", "", "wait for me")
    assert command("deploy", "4", *hotfix)[0] == 4 and row().status == "waiting", "it is requested anew"
    code, _, said = command("deploy", "4", *words, "--break-glass", "--reason", "Nobody can sign in")
    assert code == 4 and "--break-glass requires the token of an approver" in said, said
    approved(row())
    code, _, said = command("deploy", "4", *hotfix)
    assert code == 0 and (row().hotfix, row().reason) == (True, "Nobody can sign in"), said


@pytest.mark.usefixtures("real_kubectl")
def test_an_unreachable_cluster_is_reported(rolling: Apps) -> None:
    rolling.cluster.server.shutdown()
    rolling.cluster.server.server_close()
    code, _, said = deploy("3")
    assert code == 4 and "The cluster is unreachable" in said


def test_a_release_whose_rollout_the_cluster_refuses_is_rolled_back(rolling: Apps) -> None:
    def denied() -> None:
        raise Refusal(403, "Forbidden", "admission webhook denied the request")

    when(rolling.cluster, "PATCH", f"/deployments/{APP}", denied)
    code, _, said = deploy("3")
    assert "admission webhook denied the request" in said
    assert code == 5 and rolling.cluster.serving() == {f"{REPO}:2"}


def test_unsafe_migrations_block_a_rollback_unless_forced(rolling: Apps) -> None:
    code, _, said = deploy("3", "--unsafe-migrations", "--reason", "The column must go")
    assert code == 0, said
    job = rolling.cluster.objects["jobs", f"{APP}-migrate-3"]
    assert job["spec"]["template"]["spec"]["containers"][0]["command"][-2:] == ["migrate_release", "--unsafe"]
    assert rolling.cluster.objects["deployments", APP]["metadata"]["annotations"][BREAK] == "3"
    code, _, said = command("rollback", "2", "-e", "staging")
    assert code == 4 and "migrations of 3, which 2 cannot run on" in said
    assert rolling.cluster.serving() == {f"{REPO}:3"}


# Settings


def settings_of(cluster: Cluster, name: str = APP) -> str:
    (container,) = cluster.objects["deployments", name]["spec"]["template"]["spec"]["containers"]
    return str(container["envFrom"][0]["configMapRef"]["name"]).rpartition("-")[2]


def test_what_kubectl_has_applied_is_verified_and_marked(rolling: Apps) -> None:
    cluster = rolling.cluster
    cluster.deploy(APP, f"{REPO}:2", replicas=2, settings="new")
    words = ("verify", "-e", "staging", "--watch", "0.3")
    rolling.does["2 new"] = "broken"
    code, events, said = command(*words)
    assert code == 6 and "/ answered 500" in said and "still live, and not marked" in said, said
    assert "failed_requests" in result(events) and GOOD not in cluster.current()["metadata"]["annotations"]
    rolling.does["2 new"], rolling.down = "good", True
    code, events, said = command("verify", "-e", "staging", "--watch", "60")
    assert code == 6 and "probe requests in the last 10 s failed" in result(events)["why"], said
    assert result(events)["failed_requests"] >= watch.FEWEST_ERRORS
    assert GOOD not in cluster.current()["metadata"]["annotations"], "the pods are well, and nobody reaches them"
    rolling.down = False
    code, events, said = command(*words)
    assert code == 0 and list(steps(events)) == ["lock", "smoke test", "watch", "mark good"], said
    notes, labels = (cluster.current()["metadata"][key] for key in ("annotations", "labels"))
    assert notes[GOOD] == f"2 {labels['pod-template-hash']}" and not Deployment.objects.exists()
    code, events, said = command(*words)
    assert code == 0 and events[-1]["result"] == "unchanged" and lease(cluster)["spec"]["holderIdentity"] == "", said
    deployed("staging", "2", at=timezone.now() - timedelta(days=1))
    for number, named in enumerate(((), ("2",)), 1):
        cluster.deploy(APP, f"{REPO}:2", replicas=2, settings="new")
        code, _, said = command("rollback", *named, "-e", "staging")
        assert code == 0 and "envFrom" not in str(
            cluster.current()
        ), f"the version stays, with earlier settings: {said}"
        revision = objects.hash_of(cluster.current())
        assert (row().kind, row().release.version, row().status) == ("rollback", "2", "succeeded")
        assert row().revision == revision and Deployment.objects.filter(kind="rollback").count() == number


def test_pods_of_an_older_revision_with_the_same_image_are_not_the_releases(rolling: Apps) -> None:
    cluster = rolling.cluster
    cluster.seconds = 10_000  # its rollouts begin an hour ago
    cluster.deploy(APP, f"{REPO}:2", replicas=2, settings="new")
    target = RollingUpdate(environment_configs()["staging"], "2", ROOT)
    snapshot = target.snapshot()
    assert len(snapshot.pods({"app": APP})) == 3, "two that serve, and one of the new settings"
    (pod,) = target.new_pods(snapshot)
    assert objects.hash_of(pod) == objects.hash_of(cluster.current())


OVERLAY = """
apiVersion: v1
kind: ConfigMap
metadata: {name: backstagetest1-config-new}
---
apiVersion: v1
kind: Service
metadata: {name: backstagetest1}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME}
spec:
  template:
    metadata: {labels: LABELS}
    spec:
      containers:
        - name: backstagetest1
          image: backstagetest1:0.1.0
          envFrom: [{configMapRef: {name: backstagetest1-config-new}}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: backstagetest1-clearsessions, labels: {app: backstagetest1-tasks}}
spec:
  jobTemplate:
    spec:
      template:
        spec:
          containers:
            - name: backstagetest1
              image: backstagetest1:0.1.0
              envFrom: [{configMapRef: {name: backstagetest1-config-new}}]
"""


def with_overlay(cluster: Cluster, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The overlay above for the Deployment of that name."""
    labels = cluster.objects["deployments", name]["metadata"]["labels"]
    overlay = OVERLAY.replace("NAME", name).replace("LABELS", json.dumps(labels))
    program = folder / "manifests.py"
    program.write_text(f"print({overlay!r})")
    monkeypatch.setattr(overlays, "MANIFESTS", program)


@pytest.mark.usefixtures("real_kubectl")
@pytest.mark.parametrize(
    ("strategy", "does"), [("rolling", "good"), ("blue-green", "broken"), ("blue-green", "sticky")]
)
def test_new_settings_are_shipped_like_a_release(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, strategy: str, does: str
) -> None:
    apps: Apps = request.getfixturevalue("rolling" if strategy == "rolling" else "colours")
    cluster, name = apps.cluster, APP if strategy == "rolling" else f"{APP}-green"
    with_overlay(cluster, name, tmp_path, monkeypatch)
    deployed("staging", "2", at=timezone.now() - timedelta(days=1))
    apps.does["2 new"], apps.sticky = does, does == "sticky"
    monkeypatch.setattr(rollout, "MOVING", 0.5)
    live = set(image_of(pod) for pod in cluster.all("pods"))
    task = cluster.add("cronjobs", f"{APP}-clearsessions")
    spec = {"containers": [{"name": APP, "image": f"{REPO}:1"}]}
    task["metadata"]["labels"] = {"app": f"{APP}-tasks"}
    task["spec"] = {"jobTemplate": {"spec": {"template": {"spec": spec}}}}
    words = ("deploy", "--config", "-e", "staging", "--strategy", strategy, "--watch", "0.3")
    code, events, said = command(*words)
    assert code == {"good": 0, "broken": 5, "sticky": 6}[does], said
    assert steps(events)["migrate"] == "skipped" and live == {f"{REPO}:2"} == cluster.serving()
    assert ("configmaps", f"{APP}-config-new") in cluster.objects and apps.lost == 0
    assert (row().release.version, row().kind, row().reason) == ("2", "deploy", "New settings")
    if does == "good":
        assert settings_of(cluster, name) == "new" and GOOD in cluster.current(name)["metadata"]["annotations"]
        (task,) = cluster.all("cronjobs")
        (scheduled,) = task["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        assert scheduled["image"] == f"{REPO}:2" and "config-new" in str(scheduled)
        verbs = [verb for verb, path, _ in cluster.writes if "config" in path or "cronjobs" in path]
        assert verbs == ["PATCH"] * 2, "applied by the API server, of the ConfigMap and the task"
        (told,) = [each for each in events if each["event"] == "answers"]
        assert told["revision"] == objects.hash_of(cluster.current(name))
        assert "2 alone answers" in said and "is called, too" not in said, "revisions tell the two apart"
    elif does == "sticky":
        assert "2 is live, but not marked as good" in events[-1]["why"]
        assert f"came from 2 ({objects.hash_of(cluster.current(f'{APP}-blue'))})" in events[-1]["why"]
    else:
        assert cluster.objects["services", APP]["spec"]["selector"]["colour"] == "blue"
        assert row().status == "failed" and GOOD not in cluster.current(name)["metadata"]["annotations"]


def test_new_settings_of_a_version_that_is_unknown_are_refused(rolling: Apps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "ready", lambda pod: False)
    code, events, _ = command("deploy", "--config", "-e", "staging")
    assert code == 4 and "no pod of staging is ready" in events[-1]["why"]
    assert "manage.py deploy VERSION -e staging --config" in events[-1]["why"] and not rolling.cluster.writes


@pytest.mark.parametrize(("public", "asked"), [("example.com", "example.com"), ("", "typo.example.com")])
def test_pages_are_requested_with_the_public_host(public: str, asked: str) -> None:
    """Without one, with what the instance allows."""
    hosts = []

    class Noted(Page):
        def do_GET(self) -> None:
            hosts.append(self.headers["Host"])
            self.send_response(200)
            self.end_headers()

    with serving(Noted) as port:
        env = os.environ | {"ALLOWED_HOSTS": "typo.example.com"}
        words = (sys.executable, "-", str(port), public, "/")
        subprocess.run(words, input=PROGRAM, env=env, text=True, check=True, timeout=60)
    assert hosts == [asked]


# A database per colour

PER_COLOUR = ("--database", "per-colour")
OWN_STEPS = [*ALL[:2], "prepare database", *ALL[3:5], "switch database", *ALL[5:]]


@pytest.fixture
def pair(apps: Callable[[Cluster], Apps], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Apps, Pair]]:
    """Blue serves 2, with two databases; green has 1, which served before."""
    monkeypatch.setattr(blue_green, "DRAIN", 0.1)
    with Cluster(NAMESPACE) as cluster:
        found = Pair(cluster)
        cluster.service("blue")
        cluster.deploy(f"{APP}-green", f"{REPO}:1", replicas=2, cause="deploy 1", good="1")
        cluster.deploy(f"{APP}-blue", f"{REPO}:2", replicas=2, cause="deploy 2", good="2")
        yield apps(cluster), found


def per_colour(version: str, *words: str) -> tuple[int, Events, str]:
    return deploy(version, *PER_COLOUR, *words, strategy="blue-green")


def own(cluster: Cluster, colour: str) -> str:
    """The database that the pods of a Deployment are told is their own."""
    return objects.own_database(cluster.objects["deployments", f"{APP}-{colour}"]["spec"]["template"]["spec"])


@pytest.mark.usefixtures("real_kubectl")
def test_a_release_gets_a_database_of_its_own_and_the_writes_before_the_traffic(pair: tuple[Apps, Pair]) -> None:
    apps, databases = pair
    cluster = apps.cluster
    seen: list[tuple[str, set[str], int]] = []
    when = cluster.commands

    def noted(image: str, words: list[str]) -> tuple[int, str] | None:
        idle = cluster.objects["deployments", f"{APP}-green"]["spec"]["replicas"]
        seen.append((words[1].strip("-"), cluster.serving(), idle))
        return when(image, words)

    cluster.commands = noted
    code, events, said = per_colour("3")
    assert code == 0, said
    assert list(steps(events)) == OWN_STEPS and set(steps(events).values()) == {"succeeded"}
    assert databases.done == ["check", "prepare", "switch"] and databases.writable == "green"
    own_code = dict.fromkeys(("check", "prepare", "switch"), f"{REPO}:3")
    assert databases.images == own_code | {"status": f"{REPO}:2"}, "what has the traffic is known to run"
    during = {name: (serving, idle) for name, serving, idle in seen}
    assert during["prepare"] == ({f"{REPO}:2"}, 0), "nobody uses the database that is made anew"
    assert during["switch"] == ({f"{REPO}:2"}, 2), "the writes first"
    assert cluster.serving() == {f"{REPO}:3"} and apps.lost == 0
    assert (own(cluster, "green"), own(cluster, "blue")) == ("green", "")
    assert (row().status, row().strategy, row().failed_requests) == ("succeeded", "blue-green", 0)
    images = [image_of(each["spec"]["jobTemplate"]) for each in cluster.all("cronjobs")]
    assert set(images) == {f"{REPO}:3"}, "what a person makes a Job from has the live image"
    code, events, said = per_colour("3")
    assert code == 0 and events[-1]["result"] == "unchanged", said


def test_a_release_that_proves_bad_loses_the_traffic_and_then_the_writes(pair: tuple[Apps, Pair]) -> None:
    apps, databases = pair
    cluster, act = apps.cluster, apps.cluster.commands
    served: list[set[str]] = []

    def noted(image: str, words: list[str]) -> tuple[int, str] | None:
        served.extend([cluster.serving()] if "rollback" in words else [])
        return act(image, words)

    cluster.commands = noted
    apps.does["3"] = "failing"
    code, events, said = per_colour("3", "--watch", "10")
    assert code == 5 and "blue takes the writes" in said, said
    assert databases.writable == "blue" and databases.done[-2:] == ["switch", "rollback"]
    assert served == [{f"{REPO}:2"}] and cluster.serving() == {f"{REPO}:2"} and apps.lost == 0


def test_what_prepare_refuses_ends_the_run_before_the_release_has_started(pair: tuple[Apps, Pair]) -> None:
    apps, databases = pair
    databases.codes["prepare"] = 4
    code, events, said = per_colour("3")
    assert code == 5 and steps(events)["prepare database"] == "failed", said
    assert "A rollback would lose rows" in said and databases.writable == "blue"
    assert apps.cluster.serving() == {f"{REPO}:2"} and apps.lost == 0
    assert apps.cluster.image(f"{APP}-green") == f"{REPO}:1", "never started"


def test_an_interrupted_run_is_resumed_and_its_command_ended_first(
    pair: tuple[Apps, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    apps, databases = pair
    cluster = apps.cluster
    databases.hangs = "prepare"
    job, deleted = f"{APP}-bluegreen", []
    cluster.hooks.append(lambda method, path: deleted.append(path) if method == "DELETE" else None)
    looked = Kubernetes.pods_of

    def interrupt(self: Kubernetes, name: str) -> list[Any]:
        pods = looked(self, name)
        if any("prepare" in str(each["spec"]) and objects.running(each) for each in pods):
            raise KeyboardInterrupt
        return pods

    with monkeypatch.context() as patch:
        patch.setattr(Kubernetes, "pods_of", interrupt)
        code, _, said = per_colour("3")
    assert code == 6 and "Run the same command to resume" in said, said
    assert ("jobs", job) not in cluster.objects and deleted, "it is ended, and undoes what it has begun"
    # As after a kill, the Job of another run is still there.
    databases.leave("prepare")
    databases.hangs = ""
    deleted.clear()
    code, _, said = per_colour("3")
    assert code == 0 and "Resuming deployment" in said, said
    assert deleted and databases.done == ["check", "check", "prepare", "switch"]


@pytest.mark.parametrize("why", ["ImagePullBackOff", "Apply components/two-databases"])
def test_a_command_that_cannot_run_fails_the_step(pair: tuple[Apps, Pair], why: str) -> None:
    apps, databases = pair
    if why == "ImagePullBackOff":
        apps.cluster.becomes[f"migrate {REPO}:3"] = "pull"
    else:
        del apps.cluster.objects["cronjobs", f"{APP}-bluegreen-prepare"]
    code, events, said = per_colour("3")
    assert code == 5 and steps(events)["prepare database"] == "failed", said
    assert why in said and "prepare" not in databases.done and apps.lost == 0
    assert jobs(apps.cluster) == {f"{APP}-bluegreen": f"{REPO}:2"}, "the other would go on once it can be pulled"


def test_a_release_without_a_database_of_its_own_is_refused_while_the_two_are_linked(pair: tuple[Apps, Pair]) -> None:
    apps, databases = pair
    code, _, said = deploy("3", strategy="blue-green")
    assert code == 0 and databases.done == [], said
    assert own(apps.cluster, "green") == ""
    databases.target, databases.release = "green", "3"
    code, events, said = deploy("4", strategy="blue-green")
    assert code == 4 and "Deploy with --database per-colour" in events[-1]["why"], said
    assert f"create job finalize --from=cronjob/{APP}-bluegreen-finalize" in events[-1]["why"]
    assert apps.cluster.serving() == {f"{REPO}:3"}


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("key", f"The Secrets lack database-url-green in {APP}-migrate"),
        ("right", "Missing rights in namespace backstagetest1-staging: get pods/log"),
        ("component", "has one database: it lacks cronjob/backstagetest1-bluegreen-status"),
    ],
)
def test_what_two_databases_need_is_checked_before_anything(pair: tuple[Apps, Pair], lacks: str, said: str) -> None:
    cluster = pair[0].cluster
    if lacks == "key":
        del cluster.objects["secrets", f"{APP}-migrate"]["data"]["database-url-green"]
    elif lacks == "right":
        cluster.rules = [
            {"verbs": ["*"], "apiGroups": ["apps", "batch"], "resources": ["*"]},
            {"verbs": ["*"], "apiGroups": [""], "resources": ["services", "pods", "pods/exec"]},
        ]
    else:
        del cluster.objects["cronjobs", f"{APP}-bluegreen-status"]
    code, events, _ = per_colour("3")
    assert code == 4 and said in events[-1]["why"]
    assert not [path for _, path, _ in cluster.writes if "leases" not in path]


def test_a_database_per_colour_requires_two_colours(rolling: Apps) -> None:
    code, events, _ = deploy("3", *PER_COLOUR)
    assert code == 2 and "requires the strategy blue-green, not rolling" in events[-1]["why"]
    assert not rolling.cluster.writes


def test_a_dry_run_with_two_databases_names_their_steps(pair: tuple[Apps, Pair]) -> None:
    code, events, said = per_colour("3", "--dry-run")
    assert code == 0 and "manage.py bluegreen switch in job/backstagetest1-bluegreen" in said, said
    assert pair[1].done == [] and not jobs(pair[0].cluster)


@pytest.mark.usefixtures("real_kubectl")
def test_new_settings_leave_the_databases_as_they_are(
    pair: tuple[Apps, Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apps, databases = pair
    cluster = apps.cluster
    assert per_colour("3")[0] == 0
    databases.done.clear()
    with_overlay(cluster, f"{APP}-blue", tmp_path, monkeypatch)
    words = ("deploy", "--config", "-e", "staging", "--strategy", "blue-green", "--watch", "0.3", *PER_COLOUR)
    code, events, said = command(*words)
    assert code == 0 and steps(events)["migrate"] == "skipped", said
    assert databases.done == [] and databases.writable == "green"
    assert (settings_of(cluster, f"{APP}-blue"), own(cluster, "blue")) == ("new", "green")
