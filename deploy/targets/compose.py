"""Docker Compose on this machine: two colours behind one nginx, which finds the app by the name current.sock.

docs/stack.md explains how the traffic moves.
"""

import json
import math
import os
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deploy.errors import DeployRefused, InvalidUsage, StepFailed
from deploy.locks import FileLock
from deploy.shell import PATIENCE, READ, Patience, begin, call, last_line, telling_lines
from deploy.targets.base import Databases, Progress
from deploy.targets.probe import PROGRAM, Answer, answers
from deploy.targets.two_databases import Event, TwoDatabases, event, shown
from ledger import steps, versions
from ledger.environments import EnvironmentConfig
from ledger.models import DIGEST

DRAIN = 8  # seconds until nginx has no connection left to what had the name before: 7, by nginx.conf
MIGRATION_TIMEOUT = 900  # seconds
BLUEGREEN_TIMEOUT = 6 * 3600  # seconds, for a large database to be copied
REMEMBERED = 50  # verified versions
# What docker says if the engine did not answer, or went away meanwhile.
UNANSWERED = re.compile(r"Cannot connect to the Docker daemon|failed to connect to the docker API|error during connect")


def service(colour: str) -> str:
    """The Compose service of a colour, or of web, which is the stack without colours."""
    return "web" if colour == "web" else f"web_{colour}"


class Compose:
    """One release on its way to the stack in `folder`, where var/verified.json has the verified versions."""

    rollback_script = None  # the steps of a deployment do
    databases: Databases | None = None
    poll_interval = 0.5  # seconds between two looks at a container that starts

    def __init__(self, config: EnvironmentConfig, version: str, folder: Path) -> None:
        self.config, self.version, self.folder = config, version, folder
        self.image = config.tagged(version)
        self.colour = ""  # the release's, once start() has chosen it
        self.live_container = ""
        self.onto_web = False  # replace both colours by the service web, which docker compose up has started
        self.moved = -math.inf  # when the traffic moved, by the monotonic clock
        var = folder / "var"
        self.lock = FileLock(var / "deploy.lock", config.name)
        self.verified_file = var / "verified.json"
        self.patience = Patience("Docker", unanswered)

    def be_patient(self, tell: Progress) -> None:
        """As Target.be_patient(): the engine may be restarted, under containers that go on (live-restore)."""
        self.patience.seconds, self.patience.tell = PATIENCE, tell

    # What is there

    def validate(self) -> None:
        """Raises InvalidUsage for an invalid version, and DeployRefused without a running stack or the image."""
        if self.version:
            try:
                versions.validate(self.version)
            except ValueError as error:
                raise InvalidUsage(str(error)) from None
        if not (self.folder / "docker-compose.yml").is_file():
            raise DeployRefused(f"docker-compose.yml not found in {self.folder}. Run this on the machine of the stack.")
        missing = {name for name in ("nginx", "db") if not self.running_id(name)}
        if missing:
            raise DeployRefused(
                f"The stack is not running (no container of {', '.join(sorted(missing))}). Start it with ./run up."
            )
        if self.version and not self.image_id():
            words = ("image", "ls", "--format", "{{.Tag}}", self.config.image)
            there = call(("docker", *words), timeout=30).stdout.split()
            raise DeployRefused(
                f"Image {self.image} not found on this machine, which has: {', '.join(there[:20]) or 'none'}."
            )

    def preflight(self) -> None:
        """Raises DeployRefused if the databases are linked, and the release would not get its own: migrations of the
        one that takes the writes would end the link. validate() looks at all else that a stack needs.
        """
        if not self.databases and self.has_two_databases():
            found = StackDatabases(self).status(lambda text: None)
            if found["target"]:
                raise DeployRefused(
                    "The two databases are linked, and a migration of one would end that. Deploy with --database "
                    "per-colour, or end it first: docker compose run --rm bluegreen "
                    "python manage.py bluegreen finalize --yes"
                )

    def has_two_databases(self) -> bool:
        """Whether the second database runs, and what is live knows of it. Raises StepFailed."""
        told = self.container(self.pointer("current")).get("Config", {}).get("Env", [])
        return bool(self.running_id("db_green")) and any(line.startswith("DATABASE_URL_GREEN_FILE=/") for line in told)

    def use_two_databases(self) -> None:
        """Has the release get, or leave, a database of its own. Raises DeployRefused if the stack has only one."""
        if not self.has_two_databases():
            raise DeployRefused(
                "The stack has one database. Set COMPOSE_PROFILES=two-databases and DATABASE_PER_COLOUR=true in .env, "
                "then ./run up (docs/blue-green.md)."
            )
        self.databases = StackDatabases(self)

    def live_version(self) -> str:
        """The version of the container that has the traffic; empty if there is none. Raises StepFailed."""
        return self.version_of(self.pointer("current"))

    def live_revision(self) -> str:
        """The colour that has the traffic, or web. Raises StepFailed."""
        return self.pointer("current")

    def already_live(self) -> bool:
        """Whether this very image has the traffic, and its version was verified good. Raises StepFailed."""
        if self.onto_web and self.pointer("current") != "web":
            return False
        current = self.container(self.pointer("current"))
        return bool(current) and current["Image"] == self.image_id() and self.version in self.verified()

    def url(self) -> str:
        """The url of environments.toml, else the port of nginx on this machine; empty if it publishes none."""
        return self.config.url or self.published("nginx", 8080)

    def published(self, service: str, port: int) -> str:
        """Where a service's port is reached from this machine; empty if it is not published, or does not run."""
        found = self.try_compose("port", service, str(port), timeout=30).stdout.strip().rpartition(":")[2]
        return f"http://localhost:{found}" if found else ""

    def plan(self) -> Sequence[tuple[str, str]]:
        """(step, what it would do) for --dry-run. Raises StepFailed."""
        idle = self.idle()
        first = (
            steps.MIGRATE,
            f"docker compose run prepare and migrate with {self.image}, unapplied migrations checked",
        )
        more = []
        if self.databases:
            first = (
                steps.PREPARE_DATABASE,
                f"manage.py bluegreen prepare in {self.image}, unapplied migrations checked",
            )
            more = [(steps.SWITCH_DATABASE, "manage.py bluegreen switch; for a rollback, manage.py bluegreen rollback")]
        return (
            first,
            (steps.START, f"docker compose up {service(idle)} with {self.image}"),
            (steps.SMOKE_TEST, f"health, version, sign-in page, an asset and metrics of {service(idle)}"),
            *more,
            (steps.SWITCH, f"current.sock from {service(self.pointer('current'))} to {service(idle)}"),
        )

    def idle(self) -> str:
        """The colour that a release would start in."""
        if self.onto_web:
            return "web"
        return "green" if self.pointer("current") == "blue" else "blue"

    def pointer(self, name: str) -> str:
        """The colour, or web, that current or previous stands for."""
        done = self.exec("nginx", "readlink", f"/run/web/{name}.sock", timeout=30)
        return done.stdout.strip().removesuffix(".sock") or "web"

    def container(self, colour: str) -> dict[str, Any]:
        """docker inspect of its container; empty if there is none."""
        key = self.running_id(service(colour), "--all")
        return self.inspect(key) if key else {}

    @cached_property
    def project(self) -> str:
        """Its name, by which docker itself finds the containers: that takes a tenth of what docker compose does."""
        done = self.try_compose("config", "--format", "json", timeout=30)
        if done.returncode:
            raise DeployRefused(f"docker compose does not work here: {last_line(done.stderr)}")
        return str(json.loads(done.stdout)["name"])

    def running_id(self, name: str, *words: str) -> str:
        """Of the service's container; empty if there is none. With --all also of one that does not run."""
        labels = (f"project={self.project}", f"service={name}", "oneoff=False")
        filters = [word for each in labels for word in ("--filter", f"label=com.docker.compose.{each}")]
        done = self.docker("ps", "--quiet", "--no-trunc", *words, *filters)
        if done.returncode:
            raise StepFailed(f"docker ps failed: {last_line(done.stderr)}")
        return (done.stdout.split() or [""])[0]

    def inspect(self, key: str) -> dict[str, Any]:
        """`docker inspect` of a container or image; empty if there is none."""
        done = self.docker("inspect", key)
        found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
        return found[0] if found else {}

    def image_id(self) -> str:
        """The ID of the release's image; empty if it is not on this machine."""
        return call(("docker", "image", "inspect", "--format", "{{.Id}}", self.image), timeout=30).stdout.strip()

    def origin(self) -> tuple[str, str]:
        """The commit and the time (ISO 8601) by the image's OCI labels; the time is that of the image without them.

        https://github.com/opencontainers/image-spec/blob/main/annotations.md
        """
        image = self.inspect(self.image)
        labels = image.get("Config", {}).get("Labels") or {}
        commit = labels.get("org.opencontainers.image.revision", "")
        created = labels.get("org.opencontainers.image.created", "") or image.get("Created", "")[:19] + "+00:00"
        return (commit, created) if re.fullmatch(r"[0-9a-f]{7,64}", commit) else ("", created)

    def digest(self) -> str:
        """The image's id, a digest of its configuration, as the image may be on this machine only."""
        found = str(self.inspect(self.image).get("Id", ""))
        return found if re.fullmatch(DIGEST, found) else ""

    def version_of(self, colour: str) -> str:
        """What the image of its container says of itself; empty if there is none. Its tag may be any name."""
        told: list[str] = self.container(colour).get("Config", {}).get("Env", [])
        return dict(line.partition("=")[::2] for line in told).get("APP_VERSION", "")

    def verified(self) -> list[str]:
        """The versions verified good here, the most recently verified last."""
        try:
            return [str(version) for version in json.loads(self.verified_file.read_text())]
        except (OSError, ValueError, TypeError):
            return []

    def remember(self, versions: list[str]) -> None:
        """Writes the verified versions, whole or not at all; the oldest of more than REMEMBERED are dropped."""
        self.verified_file.parent.mkdir(parents=True, exist_ok=True)
        new = self.verified_file.with_suffix(".new")
        new.write_text(json.dumps(versions[-REMEMBERED:]) + "\n")
        os.replace(new, self.verified_file)

    def previous_good(self) -> str:
        """The version verified good before the live one; empty if there is none. Raises StepFailed."""
        verified, running = self.verified(), self.live_version()
        earlier = verified[: verified.index(running)] if running in verified else verified
        return earlier[-1] if earlier else ""

    def choose_revision(self) -> str:
        """There is but one: settings are the stack's, not a release's."""
        return ""

    # What is done

    def migrate(self, unsafe: bool, tell: Progress) -> str:
        """Collects the static files and runs `manage.py migrate_release` in the release's own image, for
        MIGRATION_TIMEOUT seconds at most. What an interrupted run has left of that is removed first.

        Returns the last line that it printed. Raises StepFailed, and whatever `tell` raises; the containers are removed
        then.
        """
        self.remove_one_offs()
        words = ("python", "manage.py", "migrate_release", *(["--unsafe"] if unsafe else []))
        try:
            self.run_once("prepare", "Collecting static files", 180, tell)
            return last_line(self.run_once("migrate", "Migrating", MIGRATION_TIMEOUT, tell, *words))
        except BaseException:
            self.remove_one_offs()
            raise

    def run_once(self, name: str, why: str, timeout: int, tell: Progress, *words: str) -> str:
        """What the service's program prints, or another one in its container: for `timeout` seconds at most, also if
        this process is killed. Raises StepFailed, which begins with `why`, and whatever `tell` raises.
        """
        bounded = ("timeout", "--kill-after=10", str(timeout), *words) if words else ()
        run = ("run", "--rm", "--no-deps", "-T", name, *bounded)
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(self.compose, *run, IMAGE=self.image, why=why, timeout=timeout + 30)
            try:
                while not wait([done], self.poll_interval).done:
                    tell(name)
            except BaseException:
                self.remove_one_offs()  # or the pool would wait for it
                raise
            return done.result()

    def remove_one_offs(self) -> None:
        """Removes the containers of `docker compose run` for the migrations, running or not. Raises StepFailed."""
        for name in ("prepare", "migrate"):
            if found := self.one_offs(name):
                self.docker("rm", "--force", *found, timeout=60)

    def one_offs(self, name: str) -> list[str]:
        """The IDs of the service's containers of `docker compose run`, running or not. Raises StepFailed."""
        labels = (f"project={self.project}", f"service={name}", "oneoff=True")
        filters = [word for each in labels for word in ("--filter", f"label=com.docker.compose.{each}")]
        return self.docker("ps", "--quiet", "--no-trunc", "--all", *filters).stdout.split()

    def manage(self, words: tuple[str, ...], tell: Progress) -> tuple[int, list[Event]]:
        """Runs manage.py in the release's own image, where both databases are in reach. Returns its exit code and its
        events. What an interrupted run has left of that is ended first, and it leaves nothing half-done.

        A program of its own that a signal to this process does not reach: a switch that has begun comes to its end.
        Raises StepFailed, and whatever `tell` raises; it is ended then.
        """
        self.end_bluegreen()
        events: list[Event] = []
        done = ("timeout", "--kill-after=60", str(BLUEGREEN_TIMEOUT), "python", "manage.py", *words)
        json_ = ("--json",) if words[0] == "bluegreen" else ()
        program = self.composed("run", "--rm", "--no-deps", "-T", "bluegreen", *done, *json_)
        with begin(program, cwd=self.folder, env={**os.environ, "IMAGE": self.image}) as process:
            assert process.stdout
            lines = process.stdout
            reader = threading.Thread(target=lambda: events.extend(event(line) for line in lines if line.strip()))
            reader.start()
            try:
                while process.poll() is None:
                    tell(next(filter(None, map(shown, reversed(events))), words[1] if words[1:] else words[0]))
                    time.sleep(self.poll_interval)
            except BaseException:
                self.end_bluegreen()
                raise
            finally:
                reader.join()
        return process.returncode, events

    def end_bluegreen(self) -> None:
        """Ends what still runs of manage(), which undoes what it has begun. Raises StepFailed."""
        if found := self.one_offs("bluegreen"):
            self.docker("stop", "--time", "60", *found, timeout=90)
            self.docker("rm", "--force", *found, timeout=60)

    def make_room(self) -> None:
        """Stops the releases that have no traffic: the database that they have used is about to be made anew."""
        current = self.pointer("current")
        for colour in ("web", "blue", "green"):
            if colour != current and self.running_id(service(colour), "--all"):
                self.retire(service(colour))

    def drain(self, tell: Progress) -> None:
        """Waits until nginx sends nothing any more to what the traffic has left. Raises what `tell` raises."""
        while (left := self.moved + DRAIN - time.monotonic()) > 0:
            tell(f"{left:.0f} s left for requests in flight")
            time.sleep(min(1.0, left))

    def start(self, timeout: float, tell: Progress) -> str:
        """Starts the release in the idle colour and waits until its health check passes, `timeout` seconds at most.

        What an interrupted run has started is used as it is. Returns a note. Raises StepFailed.
        """
        current, wanted = self.pointer("current"), self.image_id()
        if self.onto_web:
            self.colour, web = "web", self.container("web")
            if web.get("Image") != wanted or self.state(web) != "ready":
                raise StepFailed(f"The service web does not run {self.image}, or is not ready. Start it with ./run up.")
            return "web is already running"
        if current != "web" and self.version not in self.verified() and self.container(current).get("Image") == wanted:
            self.colour = current
            return f"{service(current)} already has the traffic"
        self.colour = "green" if current == "blue" else "blue"
        name, there = service(self.colour), self.container(self.colour)
        if there and there["Image"] == wanted and self.state(there) == "ready":
            return f"{name} is already running"
        if there:
            tell(f"stopping {name}, which has an older release")
            self.retire(name)
        variables: dict[str, Any] = {}
        if self.has_two_databases():
            own = self.databases.colour if isinstance(self.databases, StackDatabases) else ""
            variables = {"DATABASE_PER_COLOUR": "true", "DATABASE_COLOUR": own}
        self.compose("up", "--detach", "--no-build", "--no-deps", name, why=name, **variables)
        began, key = time.monotonic(), self.container(self.colour)["Id"]
        while True:
            state, waited = self.state(self.inspect(key)), time.monotonic() - began
            if state == "ready":
                return f"{name} is ready {waited:.1f} s after its start"
            if state != "starting":
                raise StepFailed(f"{name} did not become ready: {state} ({waited:.1f} s after its start).", self.logs())
            if waited > timeout:
                raise StepFailed(f"{name} is not ready {waited:.0f} s after its start.", self.logs())
            tell(f"{name} is starting")
            time.sleep(self.poll_interval)

    def state(self, container: dict[str, Any]) -> str:
        """The container's state: starting, ready, or what is wrong with it."""
        if not container:
            return "its container is gone"
        state = container["State"]
        if container["RestartCount"] or state["Status"] in ("restarting", "exited", "dead"):
            code = f"exited with code {state['ExitCode']}; " if not state["Running"] else ""
            return f"crash loop: {code}restarts: {container['RestartCount']}"
        health = state.get("Health", {}).get("Status", "")
        if health == "unhealthy":
            return "health check failing"
        return "ready" if state["Status"] == "running" and health == "healthy" else "starting"

    def adopt(self) -> None:
        """Takes the colour with the traffic for the release's."""
        self.colour = self.pointer("current")

    def new_instances(self) -> list[str]:
        """The service of the release's colour, once start() has chosen it."""
        return [service(self.colour)] if self.colour else []

    def live_instances(self) -> list[str]:
        """The service that has the traffic."""
        return [service(self.pointer("current"))]

    def other_instances(self) -> list[str]:
        """The service that has the traffic, or had it before the release, if it runs. Raises StepFailed."""
        names = [colour for colour in (self.pointer("current"), self.pointer("previous")) if colour != self.colour]
        return [service(colour) for colour in names[:1] if self.running_id(service(colour))]

    def ask(self, instance: str, paths: Sequence[str]) -> list[Answer]:
        """Sends a GET for each path over the colour's socket. Raises StepFailed if that itself is not possible."""
        colour = instance.removeprefix("web_")
        host = urlsplit(self.config.url).hostname or ""
        words = ("python", "-", f"/run/web/{colour}.sock", host, *paths)
        return answers(self.exec(instance, *words, given=PROGRAM, timeout=5 * len(paths) + 20))

    def failure_reason(self) -> str:
        """Why the release's container is not well; empty if it is. Raises StepFailed."""
        state = self.state(self.container(self.colour))
        return "" if state in ("ready", "starting") else f"{service(self.colour)}: {state}"

    def logs(self) -> str:
        """The last 20 telling lines of the release's log."""
        words = ("docker", "logs", "--tail", str(READ), self.running_id(service(self.colour), "--all"))
        done = call(words, timeout=30)
        return telling_lines(done.stdout + done.stderr)

    def switch(self, timeout: float, tell: Progress) -> str:
        """Gives the release's colour the traffic. What was live counts as verified from now on. Returns a note.

        Raises StepFailed.
        """
        was = self.pointer("current")
        if was == self.colour:
            return f"{service(was)} already has the traffic"
        if version := self.version_of(was):
            if version not in self.verified():
                self.remember([*self.verified(), version])  # it was live until now: the rollback target
        self.point(self.colour)
        self.moved = time.monotonic()
        return f"from {service(was)} to {service(self.colour)}"

    def roll_back(self, reason: str, tell: Progress) -> str:
        """Gives the traffic back to the previous colour if the release has it, and waits for requests in flight.

        Returns the version that is live then. Raises StepFailed.
        """
        bad, good = self.colour, self.pointer("previous")
        if self.pointer("current") == bad:
            if good == bad or not self.container(good).get("State", {}).get("Running"):
                raise StepFailed(f"Nothing to roll back to: {service(good)} is not running. Start it with ./run up.")
            self.point(good)
            self.moved = time.monotonic()
            for left in range(DRAIN, 0, -1):  # requests that it was given before get their answers
                tell(f"{service(good)} has the traffic; {left} s left for requests in flight")
                time.sleep(1)
        return self.version_of(self.pointer("current"))

    def cleanup(self) -> None:
        """Stops the release's container, unless it has the traffic. Raises StepFailed."""
        if self.colour and self.pointer("current") != self.colour:
            self.retire(service(self.colour))

    def mark_good(self) -> str:
        """Adds the version to the verified ones, and stops what is older than the rollback target. Returns a note.

        Waits until nginx sends nothing to the previous colour. Raises StepFailed.
        """
        self.remember([*(one for one in self.verified() if one != self.version), self.version])
        previous = self.pointer("previous")
        self.drain(lambda text: None)  # until then it still gets a request now and then
        if self.onto_web:
            for colour in ("blue", "green"):
                self.retire(service(colour))
            return "web is the only one running"
        if "web" not in (self.colour, previous):
            self.retire("web")  # older than the rollback target
        return f"{service(previous)} ({self.version_of(previous)}) stays running"

    def mark_bad(self, version: str) -> None:
        """Removes the version from the verified ones."""
        self.remember([one for one in self.verified() if one != version])

    # Its parts

    def point(self, colour: str) -> None:
        """Gives the colour the name current.sock, by rename(2): a crash leaves one of the two with the traffic.

        The one that is left is marked before that, so that it closes nginx's connections as it answers, and no crash
        can leave clients on them. Raises StepFailed.
        """
        script = (
            'cd /run/web; rm -f "$2.close"; '
            '[ "$1" = "$2" ] || { ln -sfn "$1.sock" .previous; mv -fT .previous previous.sock; echo >"$1.close"; }; '
            'ln -sfn "$2.sock" .next; mv -fT .next current.sock'
        )
        words = ("sh", "-euc", script, "-", self.pointer("current"), colour)
        done = self.exec(service(colour), *words, timeout=30)
        if done.returncode:
            raise StepFailed(f"Switching failed: {last_line(done.stderr)}")

    def retire(self, name: str) -> None:
        """Stops and removes the service's container, once its requests in flight have ended."""
        self.try_compose("--profile", "*", "rm", "--stop", "--force", name, timeout=90)

    def exec(self, name: str, *words: str, timeout: float, given: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a program in the service's container, for `timeout` seconds at most. Raises StepFailed."""
        key = self.running_id(name) or name  # whose absence docker then says
        return self.docker("exec", "--interactive", key, *words, timeout=timeout, given=given)

    def execute(self, *words: str, timeout: float, given: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a program in the container of the live app, with `given` as its input. Raises StepFailed."""
        for name in (self.live_container, ""):
            self.live_container = name or self.running_id(service(self.pointer("current")))
            done = call(("docker", "exec", "--interactive", self.live_container, *words), timeout=timeout, given=given)
            if "No such container" not in done.stderr and "is not running" not in done.stderr:
                break
        return done

    def docker(self, *words: str, timeout: float = 30, given: str = "") -> subprocess.CompletedProcess[str]:
        """How docker ended, once the engine answered; it must be harmless to run it twice. Raises StepFailed."""
        return self.patience.read(lambda: call(("docker", *words), timeout=timeout, given=given))

    def compose(self, *words: str, why: str, timeout: float = 180, **variables: str) -> str:
        """What `docker compose` prints; `variables` are for its file. Raises StepFailed, which begins with `why`."""
        done = self.try_compose(*words, timeout=timeout, **variables)
        if done.returncode:
            said = (done.stdout + done.stderr).strip()
            raise StepFailed(f"{why} failed: {last_line(said)}", "\n".join(said.splitlines()[-20:]))
        return done.stdout

    def try_compose(self, *words: str, timeout: float, **variables: str) -> subprocess.CompletedProcess[str]:
        """How `docker compose` ended, which is the caller's to judge. Raises StepFailed."""
        env = {"BLUE_IMAGE": self.image, "GREEN_IMAGE": self.image, **variables}
        return call(self.composed(*words), timeout=timeout, cwd=self.folder, env=env)

    @staticmethod
    def composed(*words: str) -> tuple[str, ...]:
        """The command line of docker compose, with the colours."""
        return ("docker", "compose", "--progress", "quiet", "--profile", "colours", *words)


class StackDatabases(TwoDatabases):
    """The stack's two databases, which containers of the release's image reach."""

    def __init__(self, stack: Compose) -> None:
        super().__init__(stack.manage, stack.version)
        self.stack = stack

    def make_room(self, tell: Progress) -> None:
        """Stops who may still use the idle database; brings the static files, and pg_dump for the copy."""
        self.stack.make_room()
        self.stack.run_once("prepare", "Collecting static files", 180, tell)
        self.stack.run_once("pg_client", "Lending pg_dump", 180, tell)

    def switch_back(self, release: str, tell: Progress) -> str:
        """As Databases.switch_back(), once the release that is left has answered its requests."""
        self.stack.drain(tell)
        return super().switch_back(release, tell)


def unanswered(done: subprocess.CompletedProcess[str]) -> str:
    """Why the engine gave no answer; empty if it did."""
    return last_line(done.stderr) if done.returncode and UNANSWERED.search(done.stderr) else ""
