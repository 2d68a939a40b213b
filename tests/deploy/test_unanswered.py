"""Requests to an API server that does not answer, without one."""

import json
import subprocess
import time
from typing import Any

import pytest

from deploy import kubectl, locks, shell
from deploy.errors import LockLost, NoAnswer, StepFailed
from deploy.kubectl import Kubectl, includes, unanswered
from deploy.locks import LeaseLock
from deploy.targets import compose

REFUSED = "The connection to the server 10.0.0.1:6443 was refused - did you specify the right host or port?"
Done = subprocess.CompletedProcess[str]


@pytest.mark.parametrize(
    ("said", "known"),
    [
        (REFUSED, False),
        ("Unable to connect to the server: net/http: TLS handshake timeout", False),
        ("Unable to connect to the server: dial tcp 10.0.0.1:6443: i/o timeout", False),
        ("E1128 memcache.go:265] couldn't get current server API group list\n" + REFUSED, False),
        ("Error from server (Timeout): the server was unable to return a response in the time allotted", False),
        ("Error from server: etcdserver: leader changed", False),
        ("error: unable to upgrade connection: error dialing backend: dial tcp 10.0.0.2:10250: i/o timeout", False),
        ('Error from server (NotFound): pods "a" not found', True),
        ('Error from server (Forbidden): pods is forbidden: User "x" cannot list resource "pods"', True),
        ("Unable to connect to the server: x509: certificate signed by unknown authority", True),
        ("The request is invalid: the server rejected our request due to an error in our request", True),
        ("ConnectionResetError: connection reset by peer\ncommand terminated with exit code 1", True),
    ],
)
def test_a_refusal_is_an_answer_and_an_unreachable_server_is_none(said: str, known: bool) -> None:
    assert bool(unanswered(Done([], 1, "", said))) is not known
    assert not unanswered(Done([], 0, "", said))


def test_docker_that_does_not_answer_is_distinguished_from_one_that_refuses() -> None:
    said = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
    assert compose.unanswered(Done([], 1, "", said))
    assert not compose.unanswered(Done([], 1, "", "Error response from daemon: No such container: web"))


def test_a_patch_has_arrived_once_the_object_is_as_it_says() -> None:
    found = {"spec": {"replicas": 2, "containers": [{"name": "other"}, {"name": "app", "image": "a:1"}]}}
    assert includes(found, {"spec": {"containers": [{"name": "app", "image": "a:1"}]}})
    assert includes(found, {"metadata": None})
    assert not includes(found, {"spec": {"containers": [{"name": "app", "image": "a:2"}]}})
    assert not includes(found, {"spec": {"replicas": None}})
    assert not includes({}, {"metadata": {"annotations": {"a": "b"}}})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> "Server":
    monkeypatch.setattr(shell, "PAUSE", 0.01)
    found = Server()
    monkeypatch.setattr(kubectl, "call", found.call)
    return found


class Server:
    """Answers kubectl's calls by turns: "lost" is one whose answer is lost, "away" one that does not arrive."""

    def __init__(self) -> None:
        self.turns: list[str] = []
        self.replicas = 3
        self.calls: list[str] = []

    def call(self, words: Any, **_: Any) -> Done:
        verb = words[3]
        self.calls.append(verb)
        turn = self.turns.pop(0) if self.turns else ""
        if turn == "away":
            return Done(words, 1, "", REFUSED)
        if turn == "denied":
            return Done(words, 1, "", "Error from server (Forbidden): deployments is forbidden")
        if verb == "patch" and words[4] == "deployment":
            self.replicas = json.loads(words[-1])["spec"]["replicas"]
        if turn == "lost":
            return Done(words, 1, "", "error: unexpected EOF")
        return Done(words, 0, json.dumps({"spec": {"replicas": self.replicas}}), "")


def patient(seconds: float = 10.0) -> Kubectl:
    found = Kubectl("", "here")
    found.patience.seconds = seconds
    return found


PATCH = ("patch", "deployment", "app", "--patch", json.dumps({"spec": {"replicas": 5}}))


@pytest.mark.parametrize(
    ("turns", "calls"),
    [
        (["lost"], ["patch", "get"]),
        (["lost", "away", "away"], ["patch", "get", "get", "get"]),
        (["away"], ["patch", "get", "patch"]),
        (["away", "", "lost", ""], ["patch", "get", "patch", "get"]),
    ],
)
def test_a_write_without_an_answer_is_read_back_before_it_is_repeated(
    server: Server, turns: list[str], calls: list[str]
) -> None:
    server.turns = turns
    patient().write(*PATCH, held=lambda: True)
    assert (server.replicas, server.calls) == (5, calls)


def test_a_write_is_not_repeated_once_the_lock_is_lost_and_a_refusal_is_final(server: Server) -> None:
    server.turns = ["away"]
    with pytest.raises(LockLost):
        patient().write(*PATCH, held=lambda: False)
    server.turns, server.calls = ["denied"], []
    with pytest.raises(StepFailed, match="deployments is forbidden"):
        patient().write(*PATCH, held=lambda: True)
    assert server.calls == ["patch"] and server.replicas == 3


def test_reads_are_repeated_for_a_while_and_the_reason_is_shown(server: Server) -> None:
    told: list[str] = []
    found = patient()
    found.patience.tell = told.append
    server.turns = ["away"] * 3
    assert found.get("deployment", "app")["spec"] == {"replicas": 3}
    assert told[0].startswith("the API server does not answer: The connection to the server")
    assert told[0].endswith("; trying again, 10 s left") and len(told) == 3
    assert found.patience.lost >= 0.03
    server.turns = ["away"] * 1000
    with pytest.raises(NoAnswer, match="The API server has not answered for 0 s|does not answer"):
        patient(0.05).get("deployment", "app")
    server.turns, server.calls = ["away"], []
    with pytest.raises(NoAnswer, match="The API server does not answer"):
        patient(0).get("deployment", "app")
    assert server.calls == ["get"], "before anything is changed it fails at once"


def test_a_lock_that_could_not_be_renewed_for_too_long_is_held_only_if_a_renewal_proves_it(server: Server) -> None:
    lock = LeaseLock("lock", patient(), "staging")
    assert not lock.held(), "never acquired"
    lock.renewed = time.monotonic() - locks.SECONDS - 1
    server.turns = ["away", "away"]
    assert lock.held() and server.calls == ["patch"] * 3
    lock.renewed, server.turns = time.monotonic() - locks.SECONDS - 1, ["denied"]
    assert not lock.held()
    lock.judge(Done([], 1, "", "Unable to connect to the server: net/http: request canceled"))
    assert lock.renewed, "that was no answer"
    lock.judge(Done([], 1, "", "The request is invalid: the server rejected our request"))
    assert not lock.renewed, "another run has it"
