"""Blue-green: two Deployments, and a Service whose selector says which of them has the traffic."""

import json
import math
import time

from deploy.errors import DeployRefused, NoAnswer, StepFailed
from deploy.targets.base import Progress
from deploy.targets.kubernetes.cluster import Kubernetes
from deploy.targets.kubernetes.commands import Manage
from deploy.targets.kubernetes.objects import (
    APP,
    CLOSE,
    COLOURS,
    COMMANDS,
    DATABASE_KEYS,
    LIVE,
    MIGRATE_SECRET,
    Object,
    Snapshot,
    has_both_databases,
    image_of,
    interrupted,
    now,
    other,
    own_database,
    tag,
    template,
    with_own_database,
)
from deploy.targets.two_databases import TwoDatabases

DRAIN = (
    8  # seconds until the pods that have lost the traffic have answered what they were asked; rollback.sh has it too
)
GONE_WITHIN = 120.0  # seconds in which pods that are stopped have ended: longer than their grace period


class BlueGreen(Kubernetes):
    """The release starts in the idle colour, is tested there, and gets all the traffic at once.

    https://kubernetes.io/docs/concepts/services-networking/service/
    """

    strategy = "blue-green"
    deployments = frozenset(f"{APP}-{colour}" for colour in COLOURS)
    colour = ""  # the release's, once start() has chosen it
    moved = -math.inf  # when the traffic was taken from the release, by the monotonic clock

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
            before = super().roll_back(reason, tell)
            self.moved = time.monotonic()
            return before
        self.keep_connections(snapshot.colour())  # which a switch that failed half-way may have ended
        return self.version_in(snapshot)

    def cleanup(self) -> None:
        """Stops the release's pods, unless they have the traffic. Raises StepFailed."""
        if self.colour and self.snapshot().colour() != self.colour:
            self.kubectl("scale", f"deployment/{APP}-{self.colour}", "--replicas=0")

    # A database per colour

    def has_two_databases(self) -> bool:
        """Whether the overlay has components/two-databases, and what is live knows both. Raises StepFailed."""
        snapshot = self.snapshot()
        live = template(snapshot.deployment(self.active(snapshot)))
        return has_both_databases(live) and bool(self.get("cronjob", f"{COMMANDS}-status"))

    def use_two_databases(self) -> None:
        """As in the base class."""
        if not self.has_two_databases():
            raise DeployRefused(
                f"Namespace {self.config.namespace} has one database: it lacks cronjob/{COMMANDS}-status, or the live "
                f"pods lack {' and '.join(DATABASE_KEYS)}. Add components/two-databases to the overlay, and apply it "
                "(docs/kubernetes.md)."
            )
        self.databases = ClusterDatabases(self)

    def preflight(self) -> None:
        """As Target.preflight(). Refused is also a release without a database of its own while the two are linked:
        migrations of the one that takes the writes would end that. New settings alone migrate nothing.
        """
        super().preflight()
        if not self.has_two_databases():
            return
        if lacking := self.lacking_keys():
            raise DeployRefused(f"The Secrets lack {', '.join(lacking)}. k8s/secrets.example.yaml explains them.")
        settings_only = self.settings is not None and self.live_version() == self.version
        if self.databases or settings_only:
            return
        if ClusterDatabases(self).status(lambda text: None)["target"]:
            raise DeployRefused(
                "The two databases are linked, and a migration of one would end that. Deploy with --database "
                f"per-colour, or end it first: {self.as_typed} create job finalize --from=cronjob/{COMMANDS}-finalize"
            )

    def lacking_keys(self) -> list[str]:
        """The keys that the Secrets lack, as far as they may be read; the values are not asked for."""
        lacking = []
        for name in (f"{APP}-secrets", MIGRATE_SECRET):
            form = "go-template={{range $key, $value := .data}}{{$key}} {{end}}"
            done = self.try_kubectl("get", "secret", name, "--output", form)
            if not done.returncode:
                lacking += [f"{key} in {name}" for key in DATABASE_KEYS.values() if key not in done.stdout.split()]
        return lacking

    def desired(self, snapshot: Snapshot, name: str) -> Object:
        """As in the base class. The release is told which database was prepared for it; without one of its own it is
        told nothing. New settings leave that as it is. Raises StepFailed.
        """
        found = super().desired(snapshot, name)
        live = template(snapshot.deployment(self.active(snapshot)))
        own = own_database(live) if tag(image_of(live)) == self.version else ""
        if isinstance(self.databases, ClusterDatabases):
            own = self.databases.colour
        return with_own_database(found, own)

    def make_room(self, tell: Progress) -> None:
        """Stops the colour without traffic, and waits until its pods are gone: the database that they have used is
        about to be made anew. Raises StepFailed.
        """
        idle = other(self.snapshot().colour())
        if self.snapshot().deployment(f"{APP}-{idle}")["spec"].get("replicas", 1):
            self.kubectl("scale", f"deployment/{APP}-{idle}", "--replicas=0")
        labels, clock = {"app": APP, "colour": idle}.items(), self.kube.patience.clock
        until = clock() + GONE_WITHIN
        while left := [
            one
            for one in self.snapshot().items  # those that are being deleted as well
            if one["kind"] == "Pod" and labels <= one["metadata"].get("labels", {}).items()
        ]:
            if clock() > until:
                raise StepFailed(f"The pods of deployment/{APP}-{idle} have not ended within {GONE_WITHIN:.0f} s.")
            tell(f"{len(left)} pods of deployment/{APP}-{idle} are ending")
            time.sleep(self.poll_interval)

    def drain(self, tell: Progress) -> None:
        """Waits until the release, which has lost the traffic, has answered its requests. Raises what `tell` raises."""
        while (left := self.moved + DRAIN - time.monotonic()) > 0:
            tell(f"{left:.0f} s left for requests in flight")
            time.sleep(min(self.poll_interval, left))


class ClusterDatabases(TwoDatabases):
    """The two databases of a namespace, which Jobs reach."""

    def __init__(self, cluster: BlueGreen) -> None:
        super().__init__(Manage(cluster), cluster.version)
        self.cluster = cluster

    def make_room(self, tell: Progress) -> None:
        """Stops who may still use the idle database."""
        self.cluster.make_room(tell)

    def switch_back(self, release: str, tell: Progress) -> str:
        """As Databases.switch_back(), once the release that is left has answered its requests."""
        self.cluster.drain(tell)
        return super().switch_back(release, tell)
