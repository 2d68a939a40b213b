"""A double of kubectl for the cluster of tests/support/cluster.py, without a process for each call.

kubectl takes 50 ms of a processor to start, and a deployment calls it fifty times.

It knows the words that manage.py deploy and rollback say to kubectl, and no others; a test compares its answers with
those of the real one. scripts/rollback.sh always has the real one.
"""

import json
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from tests.support.cluster import APP, AUTHORIZATION, KINDS, RULES, Cluster, Refusal, owner

FLAGS = {"--ignore-not-found", "--overwrite", "--stdin"}  # options without a value
NO_MATTER = {
    "--context",
    "--validate",
    "--wait",
    "--cascade",
    "--container",
    "--tail",
    "--request-timeout",
}  # what they ask for is so here
PATCHES = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}
UNREACHABLE = "The connection to the server 127.0.0.1:1 was refused - did you specify the right host or port?"
EVENTS = "jsonpath={range .items[*]}{.reason}: {.message}{'\\n'}{end}"


class Kubectl:
    """Takes the place of subprocess.run: answers what is said to kubectl, and runs every other program.

    `ask` stands for the program that `kubectl exec` runs in a pod: it gets the pod's name and a path, and returns the
    status and the body that the pod answers with.
    """

    def __init__(self, cluster: Cluster, ask: Callable[[str, str], tuple[int, str]]) -> None:
        self.cluster, self.ask, self.run = cluster, ask, subprocess.run

    def __call__(self, words: Sequence[str], *rest: Any, **options: Any) -> "subprocess.CompletedProcess[str]":
        if words[0] != "kubectl":
            done: subprocess.CompletedProcess[str] = self.run(words, *rest, **options)
            return done
        call = Call(self, words[1:], options.get("input", ""))
        try:
            if self.cluster.down():
                raise Refusal(0, "", UNREACHABLE)
            return subprocess.CompletedProcess(words, 0, call.said(), "")
        except Refusal as refusal:
            return subprocess.CompletedProcess(words, 1, "", call.error(refusal))


class Call:
    """One call: its words, taken apart."""

    def __init__(self, kubectl: Kubectl, words: Sequence[str], given: str) -> None:
        self.kubectl, self.cluster, self.given = kubectl, kubectl.cluster, given
        self.names: list[str] = []  # what is no option
        self.options: dict[str, str] = {}
        self.program: list[str] = []  # what follows --
        left = list(words)
        while left:
            word = left.pop(0)
            if word == "--":
                self.program, left = left, []
            elif word.startswith("--"):
                name, equals, value = word.partition("=")
                self.options[name] = value if equals else "" if name in FLAGS | {"--previous"} else left.pop(0)
            else:
                self.names.append(word)
        for name in NO_MATTER:
            self.options.pop(name, None)
        self.namespace = self.options.pop("--namespace")

    def said(self) -> str:
        """What is printed. Raises Refusal as the cluster does."""
        self.verb, *self.names = self.names
        said: str = getattr(self, self.verb)()
        unknown = self.options.keys() - FLAGS
        assert not unknown, f"{unknown} is new here: teach tests/support/kubectl.py, and compare it with the real one"
        return said

    def error(self, refusal: Refusal) -> str:
        if not refusal.code:
            return f"{refusal}\n"
        if refusal.code == 422:
            return f"The request is invalid: {refusal}\n"
        if "job/" in (self.names or [""])[0]:
            return f'error: error from server ({refusal.reason}): {refusal} in namespace "{self.namespace}"\n'
        doing = {"create": 'error when creating "STDIN": ', "replace": 'error when replacing "STDIN": '}
        return f"Error from server ({refusal.reason}): {doing.get(self.verb, '')}{refusal}\n"

    def request(self, method: str, path: str, body: str = "", kind: str = "", **query: str) -> Any:
        return self.cluster.answer(method, path, query, kind, body.encode())[1]

    def path(self, kind: str, name: str = "") -> str:
        plural = kind if kind in KINDS else f"{kind}s"
        version = KINDS[plural][0]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        return f"{root}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def get(self) -> str:
        kinds, *names = self.names
        form = self.options.pop("--output")
        if "/" in kinds:
            assert form == "name" and "--ignore-not-found" in self.options
            return "".join(f"{each}\n" for each in self.names if self.there(*each.split("/")))
        query = {"fieldSelector": self.options.pop("--field-selector")} if "--field-selector" in self.options else {}
        try:
            found = [self.request("GET", self.path(kind, *names), "", "", **query) for kind in kinds.split(",")]
        except Refusal as refusal:
            if refusal.code == 404 and "--ignore-not-found" in self.options:
                return ""
            raise
        if names:
            assert form == "json"
            return json.dumps(found[0])
        items = [item for each in found for item in each["items"]]
        if form == EVENTS:
            return "".join(f"{each['reason']}: {each['message']}\n" for each in items)
        if form == "name":
            return "".join(f"{self.kind(each['kind'].lower())}/{each['metadata']['name']}\n" for each in items)
        assert form == "json"
        if not items and "--ignore-not-found" in self.options:
            return ""
        return json.dumps({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})

    def there(self, kind: str, name: str) -> bool:
        try:
            return bool(self.request("GET", self.path(kind, name)))
        except Refusal as refusal:
            if refusal.code != 404:
                raise
            return False

    def sent(self) -> tuple[str, str]:
        """The kind and the name of the object that is given."""
        assert self.options.pop("--filename") == "-"
        found = json.loads(self.given)
        return found["kind"].lower(), found["metadata"]["name"]

    def create(self) -> str:
        if "SelfSubjectRulesReview" in self.given:
            assert self.options.pop("--filename") == "-" and self.options.pop("--output") == "json"
            return json.dumps(self.request("POST", f"/apis/{AUTHORIZATION}/{RULES}", self.given))
        kind, name = self.sent()
        self.request("POST", self.path(kind), self.given)
        return self.line(kind, name, "created")

    def replace(self) -> str:
        kind, name = self.sent()
        self.request("PUT", self.path(kind, name), self.given)
        return self.line(kind, name, "replaced")

    def delete(self) -> str:
        kind, name = self.names
        try:
            self.request("DELETE", self.path(kind, name))
        except Refusal as refusal:
            if refusal.code == 404 and "--ignore-not-found" in self.options:
                return ""
            raise
        return f'{self.kind(kind)} "{name}" deleted from {self.namespace} namespace\n'

    def patch(self) -> str:
        kind, name = self.names
        self.request("PATCH", self.path(kind, name), self.options.pop("--patch"), PATCHES[self.options.pop("--type")])
        return self.line(kind, name, "patched")

    def annotate(self) -> str:
        kind, *named = self.names.pop(0).split("/")
        notes = {name: value if sign else None for name, sign, value in (note.partition("=") for note in self.names)}
        patch = json.dumps({"metadata": {"annotations": {name.removesuffix("-"): notes[name] for name in notes}}})
        if not named:
            found = self.request("GET", self.path(kind), labelSelector=self.options.pop("--selector"))
            named = [each["metadata"]["name"] for each in found["items"]]
            kind = kind.removesuffix("s")
        for name in named:
            self.request("PATCH", self.path(kind, name), patch, PATCHES["merge"])
        return "".join(self.line(kind, name, "annotated") for name in named)

    def scale(self) -> str:
        kind, name = self.names[0].split("/")
        body = json.dumps({"spec": {"replicas": int(self.options.pop("--replicas"))}})
        self.request("PATCH", f"{self.path(kind, name)}/scale", body, PATCHES["merge"])
        return self.line(kind, name, "scaled")

    def set(self) -> str:
        """An image, of all those of a kind that have some labels."""
        what, kind, image = self.names
        assert what == "image"
        container, image = image.split("=", 1)
        found = self.request("GET", self.path(kind), labelSelector=self.options.pop("--selector"))
        assert not found["items"] and container == APP, "tests/support/cluster.py has none so far"
        return ""

    def logs(self) -> str:
        name = self.names[0]
        previous = self.options.pop("--previous", "false") != "false"
        if name.startswith("job/"):
            self.request("GET", self.path("job", name[4:]))
            name = next(each["metadata"]["name"] for each in self.cluster.all("pods") if owner(each) == name[4:])
        return str(self.request("GET", f"{self.path('pod', name)}/log", previous=str(previous).lower()))

    def exec(self) -> str:
        (pod,) = self.names
        assert self.program[:3] == ["python", "-", "8000"], self.program
        answers = []
        for path in self.program[4:]:
            status, body = self.kubectl.ask(pod, path)
            answers.append({"path": path, "status": status, "seconds": 0.001, "body": body, "error": ""})
        return "".join(f"{json.dumps(each)}\n" for each in answers)

    def kind(self, kind: str) -> str:
        """With its group."""
        return f"{kind}.{KINDS[f'{kind}s'][0].rpartition('/')[0]}".rstrip(".")

    def line(self, kind: str, name: str, done: str) -> str:
        return f"{self.kind(kind)}/{name} {done}\n"
