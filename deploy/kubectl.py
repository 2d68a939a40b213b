"""kubectl in one namespace: what it asks of the API server, and how it bears one that does not answer.

An API server is unreachable now and then: it is restarted, its etcd elects a leader, a network is cut. That says
nothing about a release, so reads are repeated, and a write whose answer was lost is read back before it is repeated. A
refusal (Forbidden, NotFound) is an answer, and final.
"""

import json
import re
import subprocess
from collections.abc import Callable
from typing import Any

from deploy.errors import LockLost, NoAnswer, StepFailed, TimedOut
from deploy.shell import Patience, call, last_line

READ_TIMEOUT = "10s"  # for one answer; without it kubectl waits for ever for packets that are dropped

# What kubectl says if the API server, or behind it etcd or a kubelet, did not answer, or broke off its answer. A
# reason in parentheses is the API server's own. scripts/rollback.sh has the same list.
# https://kubernetes.io/docs/reference/using-api/api-concepts/
NO_CONNECTION = "connection to the server .* was refused|Unable to connect to the |connection re(fused|set)"
NO_ANSWER = r"\((ServiceUnavailable|(Server)?Timeout|TooManyRequests)\)|etcdserver: |currently unable to handle"
CUT_OFF = "unexpected EOF|client connection lost|close 1006|error dialing backend|deadline exceeded|i/o timeout"
UNANSWERED = re.compile("|".join((NO_CONNECTION, NO_ANSWER, CUT_OFF)))
# What shows that it did answer, or never will: the program that `kubectl exec` ran has failed, say.
FINAL = "x509|getting credentials|command terminated with exit code"

Object = dict[str, Any]
Done = subprocess.CompletedProcess[str]


class Kubectl:
    """kubectl for `namespace`, with the `context` of its configuration; empty for the current one."""

    def __init__(self, context: str, namespace: str) -> None:
        self.context, self.namespace = context, namespace
        self.patience = Patience("The API server", unanswered)

    def run(self, *words: str, given: str = "", timeout: float = 30) -> Done:
        """Runs it once, with `given` as its input. How it ended is the caller's to judge.

        Raises StepFailed if it is not found, and TimedOut after `timeout` seconds.
        """
        context = ("--context", self.context) if self.context else ()
        return call(("kubectl", *context, "--namespace", self.namespace, *words), timeout=timeout, given=given)

    def read(self, *words: str, given: str = "", timeout: float = 30) -> Done:
        """Runs what changes nothing, as often as need be until it is answered. A refusal is an answer.

        Raises NoAnswer if the patience ends before, StepFailed, and whatever the patience's `tell` raises.
        """
        return self.patience.read(lambda: self.run(*words, given=given, timeout=timeout))

    def get(self, *words: str) -> Object:
        """The object or the list that `kubectl get` prints; empty if there is none. Raises StepFailed and NoAnswer."""
        words = ("get", *words, "--output", "json", "--ignore-not-found", f"--request-timeout={READ_TIMEOUT}")

        def attempt() -> Done:
            try:
                return self.run(*words)
            except TimedOut as error:
                return Done(words, 1, "", f"Unable to connect to the server: {error}")

        done = self.patience.read(attempt)
        if done.returncode:
            raise StepFailed(f"Cannot read {' '.join(words[1:-4])}: {error_of(done)}")
        return dict(json.loads(done.stdout)) if done.stdout.strip() else {}

    def write(self, *words: str, held: Callable[[], bool], given: str = "", timeout: float = 30) -> str:
        """Runs what changes something and returns what it prints. If no answer comes, looks whether it has arrived, and
        else repeats it, as long as the lock is `held`. Raises StepFailed, NoAnswer and LockLost.
        """
        until = self.patience.clock() + self.patience.seconds
        while True:
            try:
                done = self.run(*words, given=given, timeout=timeout)
                lost = unanswered(done)
            except TimedOut as error:
                if words[0] == "delete":  # it waits until the object is gone
                    raise
                lost = str(error)
            if not lost:
                if done.returncode:
                    raise StepFailed(f"kubectl {' '.join(words[:3])}: {error_of(done)}")
                return done.stdout
            if not self.patience.seconds or self.patience.clock() > until:
                raise NoAnswer(f"kubectl {' '.join(words[:3])}: the API server did not answer: {lost}.")
            if self.arrived(words, given):
                return ""
            if not held():
                raise LockLost("The API server did not answer for too long, and somebody took over the lock.")
            self.patience.pause()

    def arrived(self, words: tuple[str, ...], given: str) -> bool:
        """Whether the object is as this write makes it. Not so of others than patches, annotations, numbers of pods and
        new objects: to repeat those does no harm. Raises StepFailed and NoAnswer.
        """
        if words[0] == "patch":
            return includes(self.get(*words[1:3]), json.loads(words[-1]))
        if words[0] == "create":
            sent = json.loads(given)
            return bool(self.get(sent["kind"].lower(), sent["metadata"]["name"]))
        if words[0] == "annotate":
            notes = dict(word.split("=", 1) for word in words[2:] if "=" in word)
            return includes(self.get(*words[1].split("/")), {"metadata": {"annotations": notes}})
        if words[0] == "scale":
            return includes(self.get(*words[1].split("/")), {"spec": {"replicas": int(words[-1].split("=")[1])}})
        return False


def unanswered(done: Done) -> str:
    """Why nothing, or not all, of an answer came; empty if one did."""
    if not done.returncode or re.search(FINAL, done.stderr) or not UNANSWERED.search(done.stderr):
        return ""
    return last_line(done.stderr)


def includes(found: Any, patch: Any) -> bool:
    """Whether an object is as this merge patch makes it, whose "$patch" tells how. The members of a list are found by
    their names.
    """
    if isinstance(patch, dict):
        there = found if isinstance(found, dict) else {}
        return all(
            (there.get(key) is None) if value is None else includes(there.get(key), value)
            for key, value in patch.items()
            if key != "$patch"
        )
    if isinstance(patch, list):
        return all(any(includes(one, each) for one in found or ()) for each in patch)
    return bool(found == patch)


def error_of(done: Done) -> str:
    """Why a program failed: the last line that it printed."""
    return last_line(done.stderr or done.stdout)
