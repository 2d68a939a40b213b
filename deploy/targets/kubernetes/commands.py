"""manage.py in a Job that reaches both databases as their owner: a database per colour.

components/two-databases has a CronJob for each command, which never runs by itself. A Job is made from the one that has
all that prepare needs, or from the one of status; only its image and its command are other ones.
"""

import time

from deploy.errors import NoAnswer, StepFailed
from deploy.targets.base import Progress
from deploy.targets.kubernetes.cluster import Kubernetes
from deploy.targets.kubernetes.objects import (
    APP,
    COMMANDS,
    Object,
    command_job,
    condition,
    exit_code,
    failure_reason,
    running,
)
from deploy.targets.two_databases import Event, event, shown

# What needs the release's own code. All else is done by what has the traffic, whose image is known to run.
OWN_CODE = (("bluegreen", "prepare"), ("bluegreen", "switch"), ("migrate_release", "--check"))
START = 300.0  # seconds that the Job's container may take to start: prepare needs the image of the servers
RECENT = 20  # lines of the log that are read for what is in progress


class Manage:
    """Runs manage.py in a Job, one at a time. https://kubernetes.io/docs/concepts/workloads/controllers/job/"""

    def __init__(self, cluster: Kubernetes) -> None:
        self.cluster = cluster

    def __call__(self, words: tuple[str, ...], tell: Progress) -> tuple[int, list[Event]]:
        """The exit code and the events of manage.py with these words. A Job that an interrupted run has left is ended
        first, and leaves nothing half-done.

        Raises StepFailed if it cannot run, and whatever `tell` raises: then it is ended, unless the API server does not
        answer (NoAnswer).
        """
        self.end()
        source = "prepare" if words[:2] == ("bluegreen", "prepare") else "status"
        found = self.cluster.get("cronjob", f"{COMMANDS}-{source}")
        if not found:
            raise StepFailed(f"cronjob/{COMMANDS}-{source} not found. Apply components/two-databases first.")
        image = self.cluster.image if words[:2] in OWN_CODE else self.cluster.live_image()
        self.cluster.create(command_job(found, image, words))
        try:
            code = self.wait(words, tell)
            return code, self.events("-1")
        except NoAnswer:
            raise
        except BaseException:
            self.end()
            raise

    def wait(self, words: tuple[str, ...], tell: Progress) -> int:
        """The exit code, once it has ended. Raises StepFailed if it cannot run or somebody has ended it."""
        clock = self.cluster.kube.patience.clock
        began, now = clock(), " ".join(words[:2])
        while True:
            pods = self.cluster.pods_of(COMMANDS)
            code = exit_code(pods)
            if code is not None:
                return code
            started = any(map(running, pods))
            if why := failure_reason(pods, one_shot=True) or self.why_gone(pods):
                said = self.cluster.try_kubectl(
                    "logs", f"job/{COMMANDS}", "--all-containers=true", "--tail", "20"
                ).stdout
                raise StepFailed(f"manage.py {' '.join(words[:2])} could not run: job/{COMMANDS}: {why}.", said.strip())
            if not started and clock() - began > START:
                raise StepFailed(
                    f"job/{COMMANDS} has not started within {START:.0f} s. Is there a node with room for it?"
                )
            if started:
                now = next(filter(None, map(shown, reversed(self.events(str(RECENT))))), now)
            tell(now if started else f"job/{COMMANDS} is starting")
            time.sleep(self.cluster.poll_interval)

    def why_gone(self, pods: list[Object]) -> str:
        """Why the Job has no pod that runs, if it gets none any more. Raises StepFailed and NoAnswer."""
        if pods:  # as one that was evicted
            status = pods[0].get("status", {})
            return str(status.get("reason", "its pod failed")) if status.get("phase") == "Failed" else ""
        found = self.cluster.get("job", COMMANDS)
        return condition(found, "Failed") if found else "somebody has deleted it"

    def events(self, lines: str) -> list[Event]:
        """The last lines of its log; with -1 all. Raises StepFailed and NoAnswer."""
        words = ("logs", f"job/{COMMANDS}", "--container", APP, "--tail", lines)
        done = self.cluster.kube.read(*words)
        if done.returncode and lines == "-1":
            raise StepFailed(f"Cannot read the log of job/{COMMANDS}: {done.stderr.strip()}")
        return [event(line) for line in done.stdout.splitlines() if line.strip()]

    def end(self) -> None:
        """Ends the Job, if there is one: the command returns the writes to where they were. Raises StepFailed."""
        if self.cluster.get("job", COMMANDS):
            self.cluster.remove_job(COMMANDS)
