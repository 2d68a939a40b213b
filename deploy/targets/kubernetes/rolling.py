"""Rolling update: one pod is tested without traffic; then the pods of the one Deployment are replaced one by one."""

import time

from deploy.errors import StepFailed
from deploy.targets.base import Progress
from deploy.targets.kubernetes.cluster import Kubernetes
from deploy.targets.kubernetes.objects import (
    APP,
    TRIAL,
    Object,
    Snapshot,
    complete,
    failure_reason,
    image_of,
    now,
    ready,
    template,
    trial_job,
)


class RollingUpdate(Kubernetes):
    """A plain Deployment gives each new pod traffic as soon as it is ready, and most bad releases do become ready. So
    the release starts as a trial: a Job with one pod that no Service selects.
    """

    strategy = "rolling"
    deployments = frozenset({APP})
    trial = False  # whether the release is the trial's pod so far

    def active(self, snapshot: Snapshot) -> str:
        """The one Deployment."""
        return APP

    def incoming(self, snapshot: Snapshot) -> str:
        """The one Deployment."""
        return APP

    def rolled_out(self, snapshot: Snapshot) -> bool:
        """Whether the Deployment's rollout has ended: until then its pods are of two releases. Raises StepFailed."""
        return complete(snapshot.deployment(APP))

    def planned(self) -> tuple[str, str]:
        """What start() and switch() would do."""
        return f"one pod of {self.image}, without traffic", f"deployment/{APP} to {self.image}, pod by pod"

    def new_pods(self, snapshot: Snapshot) -> list[Object]:
        """The trial's pod while there is a trial, then the Deployment's pods with the release's image."""
        return snapshot.pods({"job-name": TRIAL}) if self.trial else super().new_pods(snapshot)

    def start(self, timeout: float, tell: Progress) -> str:
        """Starts one pod without traffic and waits until it is ready, `timeout` seconds at most.

        The trial is skipped if no release is live, or if an interrupted run has completed it (the Deployment already
        has the image). The rollout then follows at once. Returns a note. Raises StepFailed.
        """
        self.apply_settings()
        snapshot = self.snapshot()
        if snapshot.live_pods() and not self.has_release(snapshot, APP):
            return self.try_out(timeout, tell)
        return self.roll_out(APP, timeout, tell, live_since=now())

    def try_out(self, timeout: float, tell: Progress) -> str:
        """Starts the trial, or finds the one of an interrupted run. Returns a note. Raises StepFailed."""
        found = self.get("job", TRIAL)
        ended = bool(found.get("status", {}).get("conditions")) or bool(self.settings)
        if found and (ended or image_of(template(found)) != self.image or self.why_not_started(found)):
            self.remove_job(TRIAL)
            found = {}
        if not found:
            snapshot = self.snapshot()
            deployment = snapshot.deployment(APP)
            deployment["spec"]["template"] = self.desired(snapshot, APP)
            self.create(trial_job(deployment, self.version, self.image, timeout))
        self.trial, clock = True, self.kube.patience.clock
        began = clock()
        while True:
            pods, waited = self.new_pods(self.snapshot()), clock() - began
            if why := failure_reason(pods, one_shot=True):
                raise StepFailed(
                    f"{self.version} did not become ready: {why} ({waited:.1f} s after its start).", self.logs()
                )
            if any(map(ready, pods)):
                return f"a pod without traffic is ready {waited:.1f} s after its start"
            if waited > timeout:
                raise StepFailed(f"{self.version} is not ready {waited:.0f} s after its start.", self.logs())
            tell("a pod without traffic is starting")
            time.sleep(self.poll_interval)

    def switch(self, timeout: float, tell: Progress) -> str:
        """Replaces the live pods one by one; each gets `timeout` seconds to become ready. Returns a note; empty if
        start() has done so. Raises StepFailed, and whatever `tell` raises.
        """
        if not self.trial:
            return ""
        self.try_kubectl("delete", "job", TRIAL, "--ignore-not-found", "--wait=false")  # its pod has done its part
        self.trial = False
        return self.roll_out(APP, timeout, tell, live_since=now())

    def logs(self) -> str:
        """The release's last log lines, or the warnings about the trial if it never got a pod."""
        return super().logs() or (self.logs_of(TRIAL) if self.trial else "")

    def cleanup(self) -> None:
        """Removes the trial, if this run has one, and waits until its pod is gone. The Deployment's pods are
        rollback.sh's to replace. Raises StepFailed and NoAnswer.
        """
        if self.trial:
            self.remove_job(TRIAL)
            self.trial = False
