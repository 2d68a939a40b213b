"""Two databases as manage.py bluegreen has them in the Jobs of a cluster's double (tests/support/cluster.py): who takes
the writes, and what the commands print. The real ones are tested in tests/deploy/databases and on a real cluster.
"""

import copy
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.cluster import Cluster

APP = "backstagetest1"
COMMANDS = ("prepare", "status", "switch", "rollback", "recover", "finalize")
REFUSED = "A rollback would lose rows: 3 MB of WAL. Wait until it has caught up."


class Pair:
    """For a cluster that has no Deployments yet. Blue takes the writes at first.

    `done` are the commands so far, without status; `images` those that they ran in last. `hangs` is the one that does
    not end, and `codes` has the exit codes of those that fail.
    """

    def __init__(self, cluster: "Cluster") -> None:
        self.writable, self.target, self.release = "blue", "", ""
        self.lossless = True
        self.done: list[str] = []
        self.images: dict[str, str] = {}
        self.hangs = ""
        self.codes: dict[str, int] = {}
        self.cluster = cluster
        cluster.commands = self
        for name in COMMANDS:
            found = cluster.add("cronjobs", f"{APP}-bluegreen-{name}")
            found["metadata"]["labels"] = {"app": f"{APP}-tasks"}
            command = ["timeout", "21600", "python", "manage.py", "bluegreen", name]
            pod = {"containers": [{"name": APP, "image": "a:1", "command": command}], "restartPolicy": "Never"}
            labels = {"app": f"{APP}-bluegreen"}
            template = {"metadata": {"labels": labels}, "spec": pod}
            found["spec"] = {"jobTemplate": {"metadata": {"labels": labels}, "spec": {"template": template}}}
        keys = [f"database-url-{colour}" for colour in ("blue", "green")]
        cluster.objects["secrets", f"{APP}-migrate"]["data"] = dict.fromkeys(keys, "eA==")
        cluster.env = [{"name": f"DATABASE_URL_{colour}"} for colour in ("BLUE", "GREEN")]

    def leave(self, name: str) -> None:
        """A Job of this command, which another run has not ended."""
        job = self.cluster.add("jobs", f"{APP}-bluegreen")
        template = self.cluster.objects["cronjobs", f"{APP}-bluegreen-{name}"]["spec"]["jobTemplate"]
        job["metadata"] |= template["metadata"]
        job["spec"] = copy.deepcopy(template["spec"])

    def __call__(self, image: str, words: list[str]) -> tuple[int, str] | None:
        """The exit code and the log of manage.py with these words; None while it runs."""
        name = words[1].strip("-")
        if self.hangs == name or (name == "prepare" and "--release" not in words):  # the latter as leave() has it
            return None
        self.images[name] = image
        if name != "status":
            self.done.append(name)
        events: list[dict[str, Any]] = [{"event": "progress", "name": name, "text": "at work"}]
        code = self.codes.get(name, 0)
        if code:
            events.append({"event": "result", "why": REFUSED, "exit_code": code})
        else:
            events.append(self.act(name, words))
        said = (
            [json.dumps(each) for each in events]
            if "--json" in words
            else [str(events[-1].get("text") or events[-1].get("why"))]
        )
        return code, "".join(f"{line}\n" for line in said)

    def act(self, name: str, words: list[str]) -> dict[str, Any]:
        target = self.target
        source = {"blue": "green", "green": "blue"}.get(target, "")
        if name == "prepare":
            self.target = target = "green" if self.writable == "blue" else "blue"
            self.release = words[words.index("--release") + 1]
        elif name == "finalize":
            self.target = self.release = ""
        elif name in ("switch", "rollback"):
            self.writable = target if name == "switch" else source
            text = f"{self.writable} takes the writes. A rollback would lose nothing."
            more = {"writable": self.writable, "held_seconds": 0.02, "lossless": True}
            return {"event": "result", "text": text, **more}
        elif name == "status":
            phases = {each: "active" if each == self.writable else "standby" for each in ("blue", "green")}
            return {
                "event": "status",
                "unreachable": [],
                "faults": [] if self.lossless else ["The slot is lost."],
                "lossless": self.lossless,
                "phases": phases if self.target else {},
                "writable": self.writable if self.target else None,
                "target": target or None,
                "source": source or None,
                "release": self.release or None,
                "ready": bool(self.target),
            }
        return {"event": "result", "text": f"{name}: done", "target": target}
