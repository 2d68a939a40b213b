"""Blue-green: two Deployments, and a Service whose selector says which of them has the traffic."""

import json

from deploy.errors import NoAnswer, StepFailed
from deploy.targets.base import Progress
from deploy.targets.kubernetes.cluster import Kubernetes
from deploy.targets.kubernetes.objects import (
    APP,
    CLOSE,
    COLOURS,
    LIVE,
    Snapshot,
    interrupted,
    now,
    other,
)


class BlueGreen(Kubernetes):
    """The release starts in the idle colour, is tested there, and gets all the traffic at once.

    https://kubernetes.io/docs/concepts/services-networking/service/
    """

    strategy = "blue-green"
    deployments = frozenset(f"{APP}-{colour}" for colour in COLOURS)
    colour = ""  # the release's, once start() has chosen it

    def active(self, snapshot: Snapshot) -> str:
        """The Deployment of the colour that the Service selects. Raises StepFailed."""
        return f"{APP}-{snapshot.colour()}"

    def incoming(self, snapshot: Snapshot) -> str:
        """The Deployment of the release's colour: the idle one, unless start() has chosen. Raises StepFailed."""
        return f"{APP}-{self.colour or other(snapshot.colour())}"

    def planned(self) -> tuple[str, str]:
        """What start() and switch() would do. Raises StepFailed."""
        idle = other(self.snapshot().colour())
        return f"deployment/{APP}-{idle} to {self.image}", f"the selector of service/{APP} to colour={idle}"

    def start(self, timeout: float, tell: Progress) -> str:
        """Rolls the release out to the idle colour, with as many pods as the live one has, and waits for them. Each
        pod gets `timeout` seconds to become ready. Where an interrupted run has switched already, it stays in the live
        colour. Returns a note. Raises StepFailed.
        """
        self.apply_settings()
        snapshot = self.snapshot()
        active = snapshot.colour()
        live = snapshot.deployment(f"{APP}-{active}")
        if self.has_release(snapshot, f"{APP}-{active}") and interrupted(live):
            self.colour = active
            return f"{active} has the traffic of service/{APP} already"
        self.keep_connections(active)  # which a switch that was interrupted may have ended
        self.colour = other(active)
        self.preview(self.colour)
        return self.roll_out(f"{APP}-{self.colour}", timeout, tell, replicas=live["spec"].get("replicas", 1))

    def adopt(self) -> None:
        """Takes the colour with the traffic for the release's. Raises StepFailed."""
        self.colour = self.snapshot().colour()

    def switch(self, timeout: float, tell: Progress) -> str:
        """Points the Service at the release's colour, and has the other one close the connections that clients keep
        to it, which no selector moves. Returns a note. Raises StepFailed.

        The pods are marked before the selector moves, so that an interruption leaves no client on the wrong ones: until
        it moves, clients whose connections are closed come back to the same colour.
        """
        was = self.snapshot().colour()
        why = self.keep_connections(self.colour) or self.close_connections(other(self.colour))
        note = f"; clients that keep their connections may stay on {other(self.colour)}: {why}" if why else ""
        if was == self.colour:
            return f"{was} has the traffic of service/{APP} already{note}"
        self.kubectl("annotate", f"deployment/{APP}-{self.colour}", "--overwrite", f"{LIVE}={now()}")
        patch = json.dumps({"spec": {"selector": {"colour": self.colour}}})
        self.kubectl("patch", "service", APP, "--type", "merge", "--patch", patch)
        self.preview(was)
        return f"service/{APP} from {was} to {self.colour}{note}"

    def close_connections(self, colour: str) -> str:
        """Has each pod of the colour close every connection with its next answer. Returns why not; empty if it does."""
        return self.annotate_pods(colour, f"{CLOSE}={now()}")

    def keep_connections(self, colour: str) -> str:
        """Ends what close_connections() began. Returns why not; empty if it does."""
        return self.annotate_pods(colour, f"{CLOSE}-")

    def annotate_pods(self, colour: str, note: str) -> str:
        """Sets or removes an annotation of the colour's pods. Returns why it cannot: to move new connections alone is
        better than none, so no refusal ends the run. Raises NoAnswer and LockLost.
        """
        try:
            self.kubectl("annotate", "pods", "--selector", f"app={APP},colour={colour}", "--overwrite", note)
        except NoAnswer:
            raise
        except StepFailed as error:
            return str(error)
        return ""

    def preview(self, colour: str) -> None:
        """Points the preview Service, where there is one, at the colour without traffic."""
        patch = json.dumps({"spec": {"selector": {"colour": colour}}})
        self.try_kubectl("patch", "service", f"{APP}-preview", "--type", "merge", "--patch", patch)

    def roll_back(self, reason: str, tell: Progress) -> str:
        """Has rollback.sh return to the other colour, unless the release never got the traffic. Returns the version
        that is live then. Raises StepFailed.
        """
        snapshot = self.snapshot()
        if snapshot.colour() == self.colour:
            return super().roll_back(reason, tell)
        self.keep_connections(snapshot.colour())  # which a switch that failed half-way may have ended
        return self.version_in(snapshot)

    def cleanup(self) -> None:
        """Stops the release's pods, unless they have the traffic. Raises StepFailed."""
        if self.colour and self.snapshot().colour() != self.colour:
            self.kubectl("scale", f"deployment/{APP}-{self.colour}", "--replicas=0")
