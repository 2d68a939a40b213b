"""A double of kubectl for the cluster of tests/support/cluster.py, without a process for each call.

kubectl takes 50 ms of a processor to start, and a deployment calls it fifty times.

It knows the words that manage.py deploy and scripts/rollback.sh say to kubectl, and no others; a test compares its
answers with those of the real one.
"""

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from tests.support import gotemplate
from tests.support.cluster import AUTHORIZATION, KINDS, RULES, Cluster, Refusal, owner

FLAGS = {"--ignore-not-found", "--overwrite", "--stdin"}  # options without a value
SHORT = {"-c": "--container", "-f": "--filename", "-l": "--selector", "-o": "--output", "-p": "--patch"}
NO_MATTER = {
    "--all-containers",
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


Ask = Callable[[str, str], tuple[int, str]]


def nobody(pod: str, path: str) -> tuple[int, str]:
    """No pod answers."""
    raise Refusal(404, "NotFound", f'pods "{pod}" not found')


class Kubectl:
    """Takes the place of subprocess.run: answers what is said to kubectl, and runs every other program.

    `ask` stands for the program that `kubectl exec` runs in a pod: it gets the pod's name and a path, and returns the
    status and the body that the pod answers with.
    """

    def __init__(self, cluster: Cluster, ask: Ask) -> None:
        self.cluster, self.ask, self.run = cluster, ask, subprocess.run

    def __call__(self, words: Sequence[str], *rest: Any, **options: Any) -> "subprocess.CompletedProcess[str]":
        if words[0] != "kubectl":
            done: subprocess.CompletedProcess[str] = self.run(words, *rest, **options)
            return done
        call = Call(self.cluster, words[1:], options.get("input", ""), self.ask)
        try:
            if self.cluster.down():
                raise Refusal(0, "", UNREACHABLE)
            return subprocess.CompletedProcess(words, 0, call.said(), "")
        except Refusal as refusal:
            return subprocess.CompletedProcess(words, 1, "", call.error(refusal))


class Call:
    """One call: its words, taken apart."""

    def __init__(self, cluster: Cluster, words: Sequence[str], given: str, ask: Ask = nobody) -> None:
        self.cluster, self.given, self.ask = cluster, given, ask
        self.names: list[str] = []  # what is no option
        self.options: dict[str, str] = {}
        self.program: list[str] = []  # what follows --
        left = list(words)
        while left:
            word = left.pop(0)
            word = SHORT.get(word, word)
            if word == "--":
                self.program, left = left, []
            elif word.startswith("--"):
                name, equals, value = word.partition("=")
                self.options[name] = value if equals else "" if name in FLAGS | {"--previous"} else left.pop(0)
            else:
                self.names.append(word)
        for name in NO_MATTER:
            self.options.pop(name, None)
        self.namespace = self.options.pop("--namespace", "default")
        self.dry_run = "--dry-run" in self.options and self.options.pop("--dry-run") == "server"

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
        if self.dry_run and method != "GET":
            query["dryRun"] = "All"
        return self.cluster.answer(method, path, query, kind, body.encode())[1]

    def path(self, kind: str, name: str = "") -> str:
        plural = next((each for each in KINDS if kind in (each, singular(each))), "")
        if not plural:
            raise gotemplate.Unsupported(kind)
        version = KINDS[plural][0]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        return f"{root}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def get(self) -> str:
        if "--raw" in self.options:
            code, found = self.cluster.answer("GET", self.options.pop("--raw"), {}, "", b"")
            if code != 200:
                raise gotemplate.Unsupported(code)
            return found if isinstance(found, str) else json.dumps(found)
        kinds, *names = self.names
        form = self.options.pop("--output", "")
        if "/" in kinds:
            assert form == "name" and "--ignore-not-found" in self.options
            return "".join(f"{each}\n" for each in self.names if self.there(*each.split("/")))
        query = {}
        for option, name in (("--field-selector", "fieldSelector"), ("--selector", "labelSelector")):
            if option in self.options:
                query[name] = self.options.pop(option)
        try:
            found = [self.request("GET", self.path(kind, *names), "", "", **query) for kind in kinds.split(",")]
        except Refusal as refusal:
            if refusal.code == 404 and "--ignore-not-found" in self.options:
                return ""
            raise
        items = found if names else [item for each in found for item in each["items"]]
        if form == "name":
            return "".join(f"{self.kind(each['kind'].lower())}/{each['metadata']['name']}\n" for each in items)
        if not items and "--ignore-not-found" in self.options:
            return ""
        if form == EVENTS:
            return "".join(f"{each['reason']}: {each['message']}\n" for each in items)
        listed = {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items}
        return self.printed(found[0] if names else listed, form)

    def printed(self, found: Any, form: str) -> str:
        """As --output has it. Raises Unsupported."""
        if not form and "items" in found:
            return table(found["items"])
        form, _, template = form.partition("=")
        if form == "json":
            return json.dumps(found)
        if form == "jsonpath" and (part := re.fullmatch(r"\{\.spec\.(template|jobTemplate)\}", template)):
            text = json.dumps(found["spec"][part[1]], separators=(",", ":"), sort_keys=True, ensure_ascii=False)
            if not set("<>&\u2028\u2029") & set(text):  # which Go writes otherwise
                return text
        if form == "go-template" and found.get("items", True):
            return gotemplate.render(template, found)
        raise gotemplate.Unsupported(form)

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
            assert self.options.pop("--filename") == "-"
            found = self.request("POST", f"/apis/{AUTHORIZATION}/{RULES}", self.given)
            return self.printed(found, self.options.pop("--output"))
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
        if not named and "--selector" not in self.options:
            named = [self.names.pop(0)]
        notes = {name: value if sign else None for name, sign, value in (note.partition("=") for note in self.names)}
        patch = json.dumps({"metadata": {"annotations": {name.removesuffix("-"): notes[name] for name in notes}}})
        if not named:
            found = self.request("GET", self.path(kind), labelSelector=self.options.pop("--selector"))
            named = [each["metadata"]["name"] for each in found["items"]]
            kind = singular(kind)
        for name in named:
            self.request("PATCH", self.path(kind, name), patch, PATCHES["merge"])
        return "".join(self.line(kind, name, "annotated") for name in named)

    def scale(self) -> str:
        kind, name = self.names[0].split("/") if "/" in self.names[0] else self.names
        body = json.dumps({"spec": {"replicas": int(self.options.pop("--replicas"))}})
        self.request("PATCH", f"{self.path(kind, name)}/scale", body, PATCHES["merge"])
        return self.line(kind, name, "scaled")

    def set(self) -> str:
        """An image, of all those of a kind that have some labels."""
        what, kind, image = self.names
        container, image = image.split("=", 1)
        found = self.request("GET", self.path(kind), labelSelector=self.options.pop("--selector"))
        names = [each["metadata"]["name"] for each in found["items"]]
        assert what == "image" and kind == "cronjobs"
        template = {"spec": {"containers": [{"name": container, "image": image}]}}
        patch = json.dumps({"spec": {"jobTemplate": {"spec": {"template": template}}}})
        for name in names:
            self.request("PATCH", self.path(kind, name), patch, PATCHES["strategic"])
        return "".join(self.line("cronjob", name, "image updated") for name in names)

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
            status, body = self.ask(pod, path)
            answers.append({"path": path, "status": status, "seconds": 0.001, "body": body, "error": ""})
        return "".join(f"{json.dumps(each)}\n" for each in answers)

    def kind(self, kind: str) -> str:
        """With its group."""
        version = next(KINDS[each][0] for each in KINDS if singular(each) == kind)
        return f"{kind}.{version.rpartition('/')[0]}".rstrip(".")

    def line(self, kind: str, name: str, done: str) -> str:
        return f"{self.kind(kind)}/{name} {done}\n"


def singular(kind: str) -> str:
    """The kind's name for one of them."""
    return kind.removesuffix("es") if kind.endswith("sses") else kind.removesuffix("s")


def table(items: list[Any]) -> str:
    """The names and the ages of what has come a moment ago."""
    rows = [("NAME", "AGE")]
    for each in items:
        born = datetime.fromisoformat(each["metadata"]["creationTimestamp"])
        age = int((datetime.now(UTC) - born).total_seconds())
        if age >= 120:  # minutes and seconds from then on
            raise gotemplate.Unsupported(age)
        rows.append((each["metadata"]["name"], f"{age}s"))
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:{width}}   {age}\n" for name, age in rows)
