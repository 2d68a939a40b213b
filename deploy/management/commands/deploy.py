"""manage.py deploy: ship a version to an environment, watch it, and roll it back if it proves bad."""

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser

from deploy import build, rollout
from deploy.errors import DeployRefused, InvalidUsage, StepFailed
from deploy.management.base import Operation
from deploy.targets.compose import Compose
from deploy.targets.kubernetes.cluster import Kubernetes
from ledger import durations
from ledger.environments import CHOICES, REPOSITORY, EnvironmentConfig

WATCH_PRODUCTION = 720.0  # seconds: long enough for what fails after ten minutes
WATCH_ELSEWHERE = 60.0
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Command(Operation):
    help = """\
Deploy a version to an environment. The steps: promotion check, approval where
the environment requires it, lock, migrate, start, smoke test, switch, watch,
mark good. If a step fails, the release is rolled back.
"""
    watch_help = "time to watch the release under traffic (default 60; production 720)"
    examples = """\
examples:
  manage.py deploy 1.4.0 -e staging
  manage.py deploy 1.4.0 -e production --dry-run
  manage.py deploy 1.4.0 -e production --wait-approval 24h
  manage.py deploy 1.4.1 -e production --hotfix --reason "Nobody can sign in"
  manage.py deploy 1.4.1 -e production --break-glass --reason "Nobody is awake to approve"
  manage.py deploy 1.4.0 -e development --watch 20 --json
  manage.py deploy 1.4.0 -e development --strategy blue-green --database per-colour
  manage.py deploy --config -e production          new settings of k8s/overlays, without a new version
  manage.py deploy --build -e development          the working tree, as ./run deploy does
  manage.py deploy 1.4.0 -e staging --image registry.example.com/team/backstagetest1@sha256:...

Run the same command again to resume an interrupted run. docs/deploying.md explains each step.

"""

    def add_arguments(self, parser: CommandParser) -> None:
        """The arguments of a deployment."""
        parser.add_argument("version", metavar="VERSION", nargs="?", default="", help="the tag of the image")
        super().add_arguments(parser)
        parser.add_argument(
            "--image",
            default="",
            metavar="REPOSITORY[@DIGEST]",
            help="override the image of environments.toml; a digest selects exactly that build of the version",
        )
        parser.add_argument(
            "--build",
            action="store_true",
            help="first build the image from the working tree; VERSION defaults to git's (compose only)",
        )
        parser.add_argument(
            "--onto-web",
            action="store_true",
            help="replace both colours by the service web, which docker compose up has started (compose only)",
        )
        parser.add_argument(
            "--config",
            action="store_true",
            help="also apply the settings of k8s/overlays; VERSION defaults to the live one (clusters only)",
        )
        parser.add_argument(
            "--database",
            choices=CHOICES["database"],
            help="per-colour: give the release a migrated database of its own, and move the writes there and back "
            "without losing one (blue-green only); default as in environments.toml",
        )
        parser.add_argument("--hotfix", action="store_true", help="skip the promotion check; requires --reason")
        parser.add_argument(
            "--break-glass",
            action="store_true",
            help="a hotfix without approval; requires --reason and the token of an approver, and is red on the board "
            "until somebody else has reviewed it",
        )
        parser.add_argument(
            "--wait-approval",
            type=duration,
            default=0.0,
            metavar="DURATION",
            help="where approvals are required, wait so long for them, such as 90s, 30m or 24h (default: do not wait; "
            "run the same command again once it is approved)",
        )
        parser.add_argument(
            "--unsafe-migrations",
            action="store_true",
            help="migrate even if the previous release cannot run on the new schema; requires --reason",
        )

    def operate(self, config: EnvironmentConfig, options: dict[str, Any]) -> int:
        """Deploys. Returns the exit code. Raises DeployRefused and StepFailed."""
        version = options["version"]
        for flag in ("build", "onto_web"):
            if options[flag] and config.target != "compose":
                raise InvalidUsage(
                    f"--{flag.replace('_', '-')} requires the compose target; {config.name} runs on a cluster."
                )
        if options["config"] and config.target != "kubernetes":
            raise InvalidUsage(
                f"--config requires a cluster; {config.name} runs on compose, where ./run up applies new settings."
            )
        if options["config"] and not version:
            live = self.target(config, "")
            live.validate()
            version = live.live_version()
            if not version:
                raise DeployRefused(
                    f"Nothing was changed: no pod of {config.name} is ready, so which version is live is unknown. "
                    f"Pass it: manage.py deploy VERSION -e {config.name} --config"
                )
        if not version and not options["build"]:
            raise InvalidUsage("Missing VERSION: manage.py deploy VERSION -e ENVIRONMENT")
        options["hotfix"] = options["hotfix"] or options["break_glass"]
        for flag in ("break_glass", "hotfix", "unsafe_migrations"):
            if options[flag] and not options["reason"].strip():
                raise InvalidUsage(f"--{flag.replace('_', '-')} requires a reason: --reason TEXT")
        if options["image"]:
            config = with_image(config, options["image"], version)
        if options["build"]:
            version = self.build(config, version, options)
        target = self.target(config, version)
        if isinstance(target, Compose):
            target.onto_web = options["onto_web"]
        target.validate()
        if config.database == "per-colour":
            if options["onto_web"]:
                raise InvalidUsage("--database per-colour requires two colours; leave --onto-web out.")
            settings_only = options["config"] and target.live_version() == version
            if isinstance(target, Compose | Kubernetes) and not settings_only:
                target.use_two_databases()
        if options["config"] and isinstance(target, Kubernetes):
            target.use_settings()
            options["reason"] = options["reason"] or "New settings"
        self.confirm(config, options, f"About to deploy {version} to {config.name}")
        watch = options["watch"]
        return self.run(
            rollout.Deploy,
            target,
            config,
            version,
            options,
            watch=(WATCH_PRODUCTION if config.production else WATCH_ELSEWHERE) if watch is None else watch,
            unsafe_migrations=options["unsafe_migrations"],
            wait_approval=options["wait_approval"],
            settings=options["config"],
        )

    def build(self, config: EnvironmentConfig, version: str, options: dict[str, Any]) -> str:
        """Builds the working tree's image and returns its version. Raises DeployRefused and StepFailed."""
        if options["dry_run"]:
            raise InvalidUsage("--build cannot be combined with --dry-run, which changes nothing.")
        self.target(config, "").validate()  # a stack that is not running is said before a long build
        self.output.begin("build")
        try:
            version, commit, note = build.image(config, version, Path(settings.BASE_DIR))
        except (DeployRefused, StepFailed) as error:
            self.output.end("failed", str(error))
            if isinstance(error, StepFailed):
                self.output.details(error.details)
            raise
        self.output.end("succeeded", note)
        options["commit"] = options["commit"] or commit
        return version


def duration(text: str) -> float:
    """The value of an option in seconds, from a duration such as 30m. Raises ArgumentTypeError."""
    try:
        return durations.parse(text).total_seconds()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def with_image(config: EnvironmentConfig, image: str, version: str) -> EnvironmentConfig:
    """The environment with that image: a repository, with a digest or without; a tag in it can only be the version.

    Raises InvalidUsage.
    """
    name, _, digest = image.partition("@")
    name = name.removesuffix(f":{version}")
    if not REPOSITORY.fullmatch(name) or (digest or "@" in image) and not DIGEST.fullmatch(digest):
        raise InvalidUsage(
            f"--image {image}: expected a repository such as host/team/backstagetest1, optionally followed by @sha256: "
            f"and 64 hex digits. Its tag is the version, {version}."
        )
    if digest and config.target == "compose":
        raise InvalidUsage("--image with a digest requires a cluster; compose runs the image that is on this machine.")
    return replace(config, image=name, digest=digest)
