"""What the commands have in common: `manage.py deploy`, `rollback` and `lock`."""

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
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import CommandParser

from audit.operators import holder
from deploy import rollout
from deploy.console import Output
from deploy.errors import DeployRefused, ExitCode, InvalidUsage, StepFailed
from deploy.ledger_client import Ledger, Request, configured
from deploy.recorder import Recorder
from deploy.shell import call
from deploy.stack_ledger import StackLedger
from deploy.targets.base import Target
from deploy.targets.compose import Compose
from deploy.targets.kubernetes.blue_green import BlueGreen
from deploy.targets.kubernetes.rolling import RollingUpdate
from health.management.base import DocumentedCommand
from ledger.environments import EnvironmentConfig, environment_configs, names
from ledger.models import Deployment
from metrics.prometheus import Prometheus
from settings.text import clean

STRATEGIES: dict[str, dict[str, Callable[[EnvironmentConfig, str, Path], Target]]] = {
    "kubernetes": {"rolling": RollingUpdate, "blue-green": BlueGreen},
    "compose": {"blue-green": Compose},
}
TEXT = 500  # characters of a reason
UNRECORDED = Path(settings.BASE_DIR) / "var" / "unrecorded"  # what could not be recorded in the ledger


class EnvironmentCommand(DocumentedCommand):
    """A command about one environment."""

    requires_system_checks = []
    reason_help = f"why: one line of at most {TEXT} characters, kept in the ledger"

    def add_arguments(self, parser: CommandParser) -> None:
        """The options that all these commands have."""
        parser.add_argument(
            "-e",
            "--environment",
            required=True,
            choices=names(),
            help="the environment, as in environments.toml",
        )
        parser.add_argument("--target", choices=STRATEGIES, help="override the target of environments.toml")
        parser.add_argument("--reason", default="", metavar="TEXT", help=self.reason_help)
        parser.add_argument("--json", action="store_true", help="print one JSON object per line")

    def handle(self, *args: Any, **options: Any) -> None:
        """Carries the command out. Exits with an ExitCode; whatever ends it is one line on standard error."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as pipelines cancel: like Ctrl-C
        self.output = Output(
            self.stdout, as_json=options["json"], no_color=options["no_color"], force_color=options["force_color"]
        )
        try:
            options["reason"] = self.fitted(options["reason"])
            config = environment_configs()[options["environment"]]
            chosen = {name: options[name] for name in ("target", "strategy", "database") if options.get(name)}
            code = self.operate(replace(config, **chosen), options)
        except KeyboardInterrupt:
            code = self.fail(ExitCode.REFUSED, "Interrupted; nothing was changed.")
        except (DeployRefused, StepFailed) as error:
            code = self.fail(error.exit_code, str(error))
        if code:
            sys.exit(code)

    def operate(self, config: EnvironmentConfig, options: dict[str, Any]) -> int:
        """Carries the command out and returns its exit code. Raises DeployRefused and StepFailed."""
        raise NotImplementedError

    def fitted(self, text: str) -> str:
        """The reason as the ledger, annotations and locks take it, as its form must not stop a deployment. Says so if
        that differs from `text`.
        """
        fit = clean(text, TEXT)
        if fit != text.strip():
            self.output.note(f"The reason was shortened to one line of {TEXT} characters: {fit}")
        return fit

    def target(self, config: EnvironmentConfig, version: str) -> Target:
        """The release's target, by the environment's strategy. Raises InvalidUsage if its kind has no such strategy."""
        strategies = STRATEGIES[config.target]
        if config.strategy not in strategies:
            raise InvalidUsage(
                "The compose target supports blue-green only: one app runs behind nginx, so replacing it in place "
                "would interrupt the service. Leave --strategy out."
            )
        return strategies[config.strategy](config, version, Path(settings.BASE_DIR))

    def fail(self, code: int, text: str) -> int:
        """Shows why nothing was done. Returns `code`."""
        self.output.quiet()
        self.output.event("result", result="refused", why=text, exit_code=code)
        if not self.output.as_json:
            self.stderr.write(text)
        return code


class Operation(EnvironmentCommand):
    """A command that changes what is live in an environment."""

    exit_codes = """\
exit codes:
  0  the version is live and verified
  2  usage error
  3  somebody else holds the lock
  4  refused; nothing was changed
  5  failed; the previous release is live again
  6  failed or interrupted; needs a person
"""
    watch_help = ""

    def add_arguments(self, parser: CommandParser) -> None:
        """The options of a run."""
        super().add_arguments(parser)
        parser.add_argument(
            "--strategy", choices=Deployment.Strategy.values, help="override the strategy of environments.toml"
        )
        parser.add_argument(
            "--wait", type=seconds, default=0.0, metavar="SECONDS", help="wait for the lock (default 0)"
        )
        parser.add_argument(
            "--timeout",
            type=seconds,
            default=120.0,
            metavar="SECONDS",
            help="time for an instance to become ready (default 120)",
        )
        parser.add_argument("--watch", type=seconds, metavar="SECONDS", help=self.watch_help)
        parser.add_argument(
            "--commit", default="", metavar="SHA", help="the release's commit, if the ledger does not know it"
        )
        parser.add_argument("--dry-run", action="store_true", help="show the plan; change nothing")
        parser.add_argument("--yes", action="store_true", help="skip the confirmation for production on a terminal")

    def confirm(self, config: EnvironmentConfig, options: dict[str, Any], what: str) -> None:
        """Asks on a terminal before production is changed; a pipeline is not asked. Raises DeployRefused."""
        if not config.production or options["yes"] or options["dry_run"] or not sys.stdin.isatty():
            return
        self.stderr.write(f"{what} ({config.url or config.namespace}).", str)
        if input(f"Type {config.name} to confirm: ").strip() != config.name:
            raise DeployRefused("Not confirmed; nothing was changed.")

    def run(
        self,
        kind: Callable[[Target, Recorder, Output, rollout.Options], rollout.Run],
        target: Target,
        config: EnvironmentConfig,
        version: str,
        options: dict[str, Any],
        **more: Any,
    ) -> int:
        """Carries out a run of that kind, or shows its plan, and returns the exit code. `more` is for rollout.Options.

        Raises DeployRefused and StepFailed.
        """
        names: dict[Any, str] = {rollout.Deploy: "deploy", rollout.Verify: "verify"}
        name = names.get(kind, "rollback")
        request = Request(
            config.name,
            version,
            config.strategy,
            clean(holder(), 100),
            kind=name,
            hotfix=options.get("hotfix", False),
            reason=options["reason"],
            run_url=run_url(),
            revision=options.get("revision", ""),
            break_glass=options.get("break_glass", False),
            digest=target.digest(),
        )
        commit, built_at = origin(target, version, options["commit"])
        plan = rollout.Options(
            version=version,
            strategy=config.strategy,
            purpose=f"{name} of {version} to {config.name}",
            timeout=options["timeout"],
            wait=options["wait"],
            commit=commit,
            built_at=built_at,
            image=config.tagged(version),
            limits=config.watch,
            prometheus=prometheus_of(target, config),
            hold=config.error_budget == "hold",
            **more,
        )
        recorder = Recorder(ledger_of(target, config), request, UNRECORDED, self.output.note)
        run = kind(target, recorder, self.output, plan)
        return run.dry_run() if options["dry_run"] else run.run()


def ledger_of(target: Target, config: EnvironmentConfig) -> Ledger:
    """The ledger of the settings; without LEDGER_URL, of a stack on this machine its own."""
    if isinstance(target, Compose) and not settings.LEDGER_URL:
        return StackLedger(target.execute, config.name, target.folder / "var" / f"ledger-token-{config.name}")
    return configured()


def prometheus_of(target: Target, config: EnvironmentConfig) -> Prometheus | None:
    """The Prometheus of the environment; that of a stack by its port on this machine, where its name means nothing."""
    found = config.prometheus
    if found and isinstance(target, Compose) and urlsplit(found.url).hostname == "prometheus":
        return Prometheus(target.published("prometheus", 9090) or found.url, settings.PROMETHEUS_TOKEN)
    return found


def seconds(text: str) -> float:
    """The value of an option in seconds. Raises ArgumentTypeError, and ValueError if it is not a number."""
    value = float(text)
    if not 0 <= value <= 86_400:
        raise argparse.ArgumentTypeError("expected seconds, from 0 to 86400")
    return value


def origin(target: Target, version: str, commit: str) -> tuple[str, str]:
    """The commit that the release was built from, empty if unknown, and when (ISO 8601): as given, as the image has it,
    or as git knows it. Raises InvalidUsage.
    """
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
    """The URL of the pipeline's run; empty outside GitHub Actions.

    https://docs.github.com/en/actions/reference/workflows-and-actions/variables
    """
    server, project, run = (os.environ.get(f"GITHUB_{name}", "") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID"))
    url = f"{server}/{project}/actions/runs/{run}" if server and project and run else ""
    return (
        url if re.fullmatch(r"https?://[A-Za-z0-9][A-Za-z0-9.:-]*/[!#-;=?-Z_a-z~%]*", url) and len(url) <= 500 else ""
    )
