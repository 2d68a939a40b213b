"""Docker Compose on this machine: two colours behind one nginx, which finds the app by the name current.sock.

docs/stack.md tells how the traffic moves; ./run switch does the same by hand, and the two keep out of each other's way.
"""

import json
import math
import os
import re
import subprocess
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from deploy.errors import DeployRefused, InvalidUsage, StepFailed
from deploy.locks import FileLock
from deploy.shell import call, last_line
from deploy.targets.base import Progress
from deploy.targets.probe import PROGRAM, Answer, answers
from ledger import steps, versions
from ledger.environments import EnvironmentConfig

DRAIN = 8  # seconds until nginx has no connection left to what had the name before: 7, by nginx.conf
REMEMBERED = 50  # versions found good


def service(colour: str) -> str:
    return "web" if colour == "web" else f"web_{colour}"


class Compose:
    """The stack in `folder`. What was found good is remembered in var/verified.json there, the newest last."""

    rollback_script = None  # the steps of a deployment do
    poll_interval = 0.5  # seconds between two looks at a container that starts

    def __init__(self, config: EnvironmentConfig, version: str, folder: Path) -> None:
        self.config, self.version, self.folder = config, version, folder
        self.image = config.tagged(version)
        self.colour = ""
        self.moved = -math.inf  # when the traffic was, by the monotonic clock
        var = folder / "var"
        self.lock = FileLock(var / "deploy.lock", var / "switch.lock", config.name)
        self.verified_file = var / "verified.json"

    # What is there

    def validate(self) -> None:
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

    def live_version(self) -> str:
        return self.version_of(self.pointer("current"))

    def already_live(self) -> bool:
        current = self.container(self.pointer("current"))
        return bool(current) and current["Image"] == self.image_id() and self.version in self.verified()

    def url(self) -> str:
        if self.config.url:
            return self.config.url
        port = self.try_compose("port", "nginx", "8080", timeout=30).stdout.strip().rpartition(":")[2]
        return f"http://localhost:{port}" if port else ""

    def plan(self) -> Sequence[tuple[str, str]]:
        idle = self.idle()
        return (
            (steps.MIGRATE, f"docker compose run prepare and migrate with {self.image}, unapplied migrations checked"),
            (steps.START, f"docker compose up {service(idle)} with {self.image}"),
            (steps.SMOKE_TEST, f"health, version, sign-in page, an asset and metrics of {service(idle)}"),
            (steps.SWITCH, f"current.sock from {service(self.pointer('current'))} to {service(idle)}"),
        )

    def idle(self) -> str:
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
        done = call(("docker", "ps", "--quiet", "--no-trunc", *words, *filters), timeout=30)
        if done.returncode:
            raise StepFailed(f"docker ps failed: {last_line(done.stderr)}")
        return (done.stdout.split() or [""])[0]

    def inspect(self, key: str) -> dict[str, Any]:
        done = call(("docker", "inspect", key), timeout=30)
        found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
        return found[0] if found else {}

    def image_id(self) -> str:
        return call(("docker", "image", "inspect", "--format", "{{.Id}}", self.image), timeout=30).stdout.strip()

    def origin(self) -> tuple[str, str]:
        image = self.inspect(self.image)
        labels = image.get("Config", {}).get("Labels") or {}
        commit = labels.get("org.opencontainers.image.revision", "")
        created = labels.get("org.opencontainers.image.created", "") or image.get("Created", "")[:19] + "+00:00"
        return (commit, created) if re.fullmatch(r"[0-9a-f]{7,64}", commit) else ("", created)

    def version_of(self, colour: str) -> str:
        """The tag of its image if it is of our repository, else what the image says of itself."""
        config = self.container(colour).get("Config", {})
        repository, _, tag = str(config.get("Image", "")).rpartition(":")
        told = dict(line.partition("=")[::2] for line in config.get("Env", []))
        return tag if repository == self.config.image and tag != "latest" else told.get("APP_VERSION", "")

    def verified(self) -> list[str]:
        """The versions found good here, in the order in which they last were."""
        try:
            return [str(version) for version in json.loads(self.verified_file.read_text())]
        except (OSError, ValueError, TypeError):
            return []

    def note(self, versions: list[str]) -> None:
        self.verified_file.parent.mkdir(parents=True, exist_ok=True)
        new = self.verified_file.with_suffix(".new")
        new.write_text(json.dumps(versions[-REMEMBERED:]) + "\n")
        os.replace(new, self.verified_file)

    def previous_good(self) -> str:
        verified, running = self.verified(), self.live_version()
        earlier = verified[: verified.index(running)] if running in verified else verified
        return earlier[-1] if earlier else ""

    # What is done

    def migrate(self, unsafe: bool, tell: Progress) -> str:
        tell("static files")
        self.compose("run", "--rm", "--no-deps", "-T", "prepare", IMAGE=self.image, why="Collecting static files")
        tell("migrate")
        words = ("python", "manage.py", "migrate_release", *(["--unsafe"] if unsafe else []))
        said = self.compose(
            "run", "--rm", "--no-deps", "-T", "migrate", *words, IMAGE=self.image, why="Migrating", timeout=900
        )
        return last_line(said)

    def start(self, timeout: float, tell: Progress) -> str:
        current, wanted = self.pointer("current"), self.image_id()
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
        self.compose("up", "--detach", "--no-build", "--no-deps", name, why=name)
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
        """starting, ready, or what is wrong with it."""
        if not container:
            return "its container is gone"
        state = container["State"]
        if container["RestartCount"] or state["Status"] in ("restarting", "exited", "dead"):
            code = f"exited with code {state['ExitCode']}, " if not state["Running"] else ""
            return f"crash loop: {code}{container['RestartCount']} restarts so far"
        health = state.get("Health", {}).get("Status", "")
        if health == "unhealthy":
            return "health check failing"
        return "ready" if state["Status"] == "running" and health == "healthy" else "starting"

    def new_instances(self) -> list[str]:
        return [service(self.colour)] if self.colour else []

    def live_instances(self) -> list[str]:
        return [service(self.pointer("current"))]

    def ask(self, instance: str, paths: Sequence[str]) -> list[Answer]:
        colour = instance.removeprefix("web_")
        words = ("python", "-", f"/run/web/{colour}.sock", "localhost", *paths)
        return answers(self.exec(instance, *words, given=PROGRAM, timeout=5 * len(paths) + 20))

    def failure_reason(self) -> str:
        state = self.state(self.container(self.colour))
        return "" if state in ("ready", "starting") else f"{service(self.colour)}: {state}"

    def logs(self) -> str:
        done = call(("docker", "logs", "--tail", "20", self.running_id(service(self.colour), "--all")), timeout=30)
        return (done.stdout + done.stderr).strip()

    def switch(self, timeout: float, tell: Progress) -> str:
        was = self.pointer("current")
        if was == self.colour:
            return f"{service(was)} already has the traffic"
        if version := self.version_of(was):
            if version not in self.verified():
                self.note([*self.verified(), version])  # it was live until now: the rollback target
        self.point(self.colour)
        self.moved = time.monotonic()
        return f"from {service(was)} to {service(self.colour)}"

    def roll_back(self, reason: str, tell: Progress) -> str:
        bad, good = self.colour, self.pointer("previous")
        if self.pointer("current") == bad:
            if good == bad or not self.container(good).get("State", {}).get("Running"):
                raise StepFailed(f"Nothing to roll back to: {service(good)} is not running. Start it with ./run up.")
            self.point(good)
            for left in range(DRAIN, 0, -1):  # requests that it was given before get their answers
                tell(f"{service(good)} has the traffic; {left} s left for requests in flight")
                time.sleep(1)
        return self.version_of(self.pointer("current"))

    def cleanup(self) -> None:
        if self.colour and self.pointer("current") != self.colour:
            self.retire(service(self.colour))

    def mark_good(self) -> str:
        self.note([*(one for one in self.verified() if one != self.version), self.version])
        previous = self.pointer("previous")
        time.sleep(max(0.0, self.moved + DRAIN - time.monotonic()))  # until then it still gets a request now and then
        if "web" not in (self.colour, previous):
            self.retire("web")  # older than the rollback target
        return f"{service(previous)} ({self.version_of(previous)}) stays running"

    def mark_bad(self, version: str) -> None:
        self.note([one for one in self.verified() if one != version])

    # Its parts

    def point(self, colour: str) -> None:
        """Gives it the name. rename(2) is the moment: a crash before or after leaves one of the two serving."""
        script = (
            'cd /run/web; [ "$1" = "$2" ] || { ln -sfn "$1.sock" .previous; mv -fT .previous previous.sock; }; '
            'ln -sfn "$2.sock" .next; mv -fT .next current.sock'
        )
        words = ("sh", "-euc", script, "-", self.pointer("current"), colour)
        done = self.exec(service(colour), *words, timeout=30)
        if done.returncode:
            raise StepFailed(f"Switching failed: {last_line(done.stderr)}")

    def retire(self, name: str) -> None:
        """Ends it, with the time that its requests in flight need."""
        self.try_compose("--profile", "*", "rm", "--stop", "--force", name, timeout=90)

    def exec(self, name: str, *words: str, timeout: float, given: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a program in the service's container."""
        key = self.running_id(name) or name  # whose absence docker then says
        return call(("docker", "exec", "--interactive", key, *words), timeout=timeout, given=given)

    def compose(self, *words: str, why: str, timeout: float = 180, **variables: str) -> str:
        done = self.try_compose(*words, timeout=timeout, **variables)
        if done.returncode:
            said = (done.stdout + done.stderr).strip()
            raise StepFailed(f"{why} failed: {last_line(said)}", "\n".join(said.splitlines()[-20:]))
        return done.stdout

    def try_compose(self, *words: str, timeout: float, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {"BLUE_IMAGE": self.image, "GREEN_IMAGE": self.image, **variables}
        command = ("docker", "compose", "--progress", "quiet", "--profile", "colours", *words)
        return call(command, timeout=timeout, cwd=self.folder, env=env)
