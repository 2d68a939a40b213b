"""What the commands have in common: manage.py deploy and rollback, and those that read the ledger."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from deploy import rollout
from deploy.console import Output
from deploy.errors import DeployRefused, InvalidUsage, LockHeld, StepFailed
from deploy.ledger_client import Request, configured
from deploy.locks import holder
from deploy.recorder import Recorder
from deploy.shell import call
from deploy.targets.base import Target
from deploy.targets.compose import Compose
from deploy.targets.kubernetes.blue_green import BlueGreen
from deploy.targets.kubernetes.rolling import RollingUpdate
from ledger.environments import NAMES, EnvironmentConfig, environment_configs
from ledger.models import Deployment
from settings.text import clean

TEXT = 500  # characters of a reason or a lock's purpose
STRATEGIES: dict[str, dict[str, Callable[[EnvironmentConfig, str, Path], Target]]] = {
    "kubernetes": {"rolling": RollingUpdate, "blue-green": BlueGreen},
    "compose": {"blue-green": Compose},
}
UNRECORDED = Path(settings.BASE_DIR) / "var" / "unrecorded"  # what the ledger could not be told

CODES = """\
exit codes: 0 done; 2 wrong usage; 3 somebody else holds the lock; 4 refused before anything was changed;
  5 it failed, and the release before serves again; 6 it failed, or was interrupted, and needs a person.
"""


class Operation(BaseCommand):
    """A command that changes what runs in an environment."""

    requires_system_checks = []
    examples = ""

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        kwargs |= {"epilog": self.examples + CODES, "formatter_class": argparse.RawDescriptionHelpFormatter}
        return super().create_parser(prog_name, subcommand, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "-e", "--environment", required=True, choices=NAMES, help="where, as environments.toml has it"
        )
        parser.add_argument("--target", choices=("kubernetes", "compose"), help="instead of the environment's own")
        parser.add_argument("--strategy", choices=Deployment.Strategy.values, help="instead of the environment's own")
        parser.add_argument(
            "--reason", default="", metavar="TEXT", help="why, for the ledger: one line, 500 characters"
        )
        parser.add_argument("--wait", type=seconds, default=0.0, metavar="SECONDS", help="wait so long for the lock")
        parser.add_argument(
            "--timeout",
            type=seconds,
            default=120.0,
            metavar="SECONDS",
            help="within which the release must be ready (default 120)",
        )
        parser.add_argument("--watch", type=seconds, metavar="SECONDS", help=self.watch_help)
        parser.add_argument(
            "--commit", default="", metavar="SHA", help="of the release, for the ledger, if not known there"
        )
        parser.add_argument("--dry-run", action="store_true", help="show what would be done, and change nothing")
        parser.add_argument("--json", action="store_true", help="print one JSON object a line")
        parser.add_argument(
            "--yes", action="store_true", help="do not ask, on a terminal, before production is touched"
        )

    watch_help = ""

    def handle(self, *args: Any, **options: Any) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as pipelines cancel: like Ctrl-C
        self.output = Output(
            self.stdout, as_json=options["json"], no_color=options["no_color"], force_color=options["force_color"]
        )
        try:
            options["reason"] = self.fitted("reason", options["reason"])
            code = self.operate(self.place(options), options)
        except KeyboardInterrupt:
            code = self.fail(rollout.REFUSED, "Interrupted; nothing was changed.")
        except InvalidUsage as error:
            code = self.fail(rollout.USAGE, str(error))
        except LockHeld as error:
            code = self.fail(rollout.LOCKED, str(error))
        except (
            DeployRefused,
            StepFailed,
        ) as error:  # StepFailed: a look at what is there failed, before anything was begun
            code = self.fail(rollout.REFUSED, str(error))
        if code:
            sys.exit(code)

    def fitted(self, name: str, text: str) -> str:
        """`text` as the ledger, annotations and locks take it: words never stop what they are about. Notes a change."""
        fit = clean(text, TEXT)
        if fit != text.strip():
            self.output.note(f"The {name} was changed to fit (one line, {TEXT} characters): {fit}")
        return fit

    def operate(self, place: EnvironmentConfig, options: dict[str, Any]) -> int:
        raise NotImplementedError

    def place(self, options: dict[str, Any]) -> EnvironmentConfig:
        place = environment_configs()[options["environment"]]
        return replace(place, target=options["target"] or place.target, strategy=options["strategy"] or place.strategy)

    def target(self, place: EnvironmentConfig, version: str) -> Target:
        strategies = STRATEGIES[place.target]
        if place.strategy not in strategies:
            raise InvalidUsage(
                "The compose target deploys blue-green only: there is one app behind nginx, so replacing it in place "
                "would leave nobody to serve meanwhile. Leave --strategy out."
            )
        return strategies[place.strategy](place, version, Path(settings.BASE_DIR))

    def fail(self, code: int, text: str) -> int:
        self.output.quiet()
        self.output.event("result", result="refused", why=text, exit_code=code)
        if not self.output.as_json:
            self.stderr.write(text)
        return code

    def sure(self, place: EnvironmentConfig, options: dict[str, Any], what: str) -> None:
        """On a terminal, asks before production is touched; a pipeline has its own approval. Raises DeployRefused."""
        if place.name != "production" or options["yes"] or options["dry_run"] or not sys.stdin.isatty():
            return
        self.stderr.write(f"{what} ({place.url or place.namespace}).", str)
        if input("Type production to confirm: ").strip() != "production":
            raise DeployRefused("Nothing was changed.")

    def run(self, target: Target, place: EnvironmentConfig, version: str, options: dict[str, Any], **more: Any) -> int:
        """Carries it out."""
        kind = "deploy" if more.get("migrate", True) else "rollback"
        request = Request(
            place.name,
            version,
            place.strategy,
            clean(holder(), 100),
            kind=kind,
            hotfix=options.get("hotfix", False),
            reason=options["reason"],
            run_url=run_url(),
        )
        record = Recorder(configured(), request, UNRECORDED, self.output.note)
        commit, built_at = origin(target, version, options["commit"])
        plan = rollout.Options(
            version=version,
            strategy=place.strategy,
            purpose=f"{kind} of {version} to {place.name}",
            timeout=options["timeout"],
            wait=options["wait"],
            commit=commit,
            built_at=built_at,
            image=place.tagged(version),
            **more,
        )
        if options["dry_run"]:
            return self.dry_run(target, record, plan)
        return rollout.Run(target, record, self.output, plan).run()

    def dry_run(self, target: Target, record: Recorder, plan: rollout.Options) -> int:
        self.output.note(f"Dry run: {plan.purpose}, {plan.strategy}. Serving: {target.live_version() or 'nobody'}.")
        self.output.note(f"  {'promotion rule':<15} {record.check_promotion()}")
        target.lock.check_free()
        self.output.note(f"  {'lock':<15} free")
        self.output.note(f"  {'ledger':<15} {record.preview(bool(plan.commit))}")
        if not plan.migrate and (script := target.rollback_script):
            code, said = script(record.request.reason, plan.timeout, True)
            self.output.details(said)
            return code
        if target.already_live():
            self.output.note(f"{plan.version} is already live and verified; nothing to do.")
            return rollout.DONE
        for name, what in target.plan():
            if name != "migrations" or plan.migrate:
                self.output.note(f"  {name:<15} {what}")
        if plan.watch:
            self.output.note(f"  {'watch':<15} {plan.watch:g} s: containers, errors, latency, probe traffic")
        return rollout.DONE


def seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 86_400:
        raise argparse.ArgumentTypeError("expected seconds, from 0 to 86400")
    return value


def origin(target: Target, version: str, commit: str) -> tuple[str, str]:
    """The commit that the release was built from, and when: as told, as its image has it, as git knows it."""
    if commit and not re.fullmatch(r"[0-9a-f]{7,64}", commit):
        raise InvalidUsage(f"--commit {commit}: expected 7 to 64 hex digits, as git prints them.")
    found, built_at = target.origin()
    commit = commit or found
    if not commit and Path(settings.BASE_DIR, ".git").exists():
        for name in (version, f"v{version}"):
            words = ("git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
            try:
                commit = commit or call(words, timeout=10, cwd=settings.BASE_DIR).stdout.strip()
            except StepFailed:
                break
    if not commit and re.fullmatch(r"[0-9a-f]{7,64}", version):
        commit = version
    return commit, built_at or datetime.now(UTC).isoformat(timespec="seconds")


def run_url() -> str:
    """The pipeline's run, where there is one."""
    server, project, run = (os.environ.get(f"GITHUB_{name}", "") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID"))
    url = f"{server}/{project}/actions/runs/{run}" if server and project and run else ""
    return (
        url if re.fullmatch(r"https?://[A-Za-z0-9][A-Za-z0-9.:-]*/[!#-;=?-Z_a-z~%]*", url) and len(url) <= 500 else ""
    )
