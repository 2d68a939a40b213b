"""monitoring/alertmanager.yml: amtool and a real Alertmanager say who is told what, and what is not told."""

import json
import re
import secrets
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.test_rules import ALERTS
from tests.support.servers import ROOT, eventually, free_port
from tests.support.tools import needs

CONFIG = ROOT / "monitoring" / "alertmanager.yml"
NAMES = [alert["alert"] for alert in ALERTS]
Labels = dict[str, str]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration with a URL in place of the file with the URL, which Debian 12's Alertmanager does not know."""
    text = CONFIG.read_text()
    assert text.count("url_file: /run/secrets/webhook_url") == 1
    file = tmp_path_factory.mktemp("alertmanager") / "alertmanager.yml"
    file.write_text(text.replace("url_file: /run/secrets/webhook_url", "url: http://127.0.0.1:9/"))
    return file


@needs("amtool")
def test_amtool_finds_nothing_to_say(config: Path) -> None:
    done = subprocess.run(["amtool", "check-config", str(config)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs("amtool")
@pytest.mark.parametrize(
    ("receiver", "labels"),
    [
        ("page", {"severity": "page", "environment": "production"}),
        ("page", {"severity": "page", "environment": "unknown"}),
        ("page", {"severity": "page"}),
        ("ticket", {"severity": "ticket", "environment": "production"}),
        ("ticket", {"severity": "ticket", "environment": "unknown"}),
        ("ticket", {}),
        ("nobody", {"severity": "none", "environment": "production"}),
        ("nobody", {"severity": "none", "environment": "staging"}),
        ("rehearsal", {"severity": "page", "environment": "staging"}),
        ("rehearsal", {"severity": "page", "environment": "development"}),
        ("rehearsal", {"severity": "ticket", "environment": "testing"}),
    ],
)
def test_an_alert_reaches_its_receiver(receiver: str, labels: Labels, config: Path) -> None:
    words = ["amtool", "config", "routes", "test", f"--config.file={config}", f"--verify.receivers={receiver}"]
    done = subprocess.run([*words, *(f"{k}={v}" for k, v in labels.items())], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_in_an_inhibition_exists() -> None:
    for rule in yaml.safe_load(CONFIG.read_text())["inhibit_rules"]:
        for matcher in rule["source_matchers"] + rule["target_matchers"]:
            label, _, pattern = re.fullmatch(r'(\w+) (=~|=|!=) "(.+)"', matcher).groups()  # type: ignore[union-attr]
            for each in pattern.split("|") if label == "alertname" else []:
                assert any(re.fullmatch(each, name) for name in NAMES), f"alert {each} not found"


# These last by right: a budget that was burned, a state that is still there when the worse one has gone, and restarts.
OUTLIVES = {
    *(f"{slo}BudgetBurns{how}" for slo in ("Availability", "Latency") for how in ("Fast", "Slowly")),
    *("CertificateExpiresSoon", "MediaDiskAlmostFull", "CrashLoop"),
}
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> int:
    return int(text[:-1]) * SECONDS[text[-1]]


def test_what_is_suppressed_ends_before_what_suppresses_it() -> None:
    """Else the end of an outage is notified by its consequences."""
    outlives = set()
    for rule in yaml.safe_load(CONFIG.read_text())["inhibit_rules"]:
        matched = [
            re.fullmatch(r'alertname =~? "(.+)"', rule[f"{which}_matchers"][0]) for which in ("source", "target")
        ]
        if all(matched):
            sources, targets = ([a for a in ALERTS if re.fullmatch(m[1], a["alert"])] for m in matched if m)
            for target in targets:
                if max(map(lasts, sources)) < lasts(target):
                    outlives.add(target["alert"])
    assert outlives == OUTLIVES


def lasts(alert: dict[str, Any]) -> int:
    """Seconds for which an alert fires after its cause has gone: its window, and what it is kept for."""
    windows = re.findall(r"(?:\[|increase|ratio_rate|rate|p95_)(\d+[smh])\b", alert["expr"])
    return max(map(seconds, windows), default=0) + seconds(alert["keep_firing_for"])


class Alertmanager:
    """A real Alertmanager, with its API."""

    def __init__(self, config: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.process = subprocess.Popen(
            [
                "prometheus-alertmanager",
                f"--config.file={config}",
                f"--storage.path={config.parent / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                "--cluster.listen-address=",
            ],
            stderr=subprocess.DEVNULL,
        )

    def call(self, path: str, data: Any = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def post(self, *alerts: Labels) -> str:
        """Posts these alerts; returns the service that they are of, so that no other test's alerts silence them."""
        service = secrets.token_hex(4)
        self.call("/api/v2/alerts", [{"labels": {"service": service, **each}} for each in alerts])
        return service

    def silenced(self, service: str) -> list[str]:
        """The names of the service's alerts that another of them silences."""
        found = [each for each in self.call("/api/v2/alerts") if each["labels"]["service"] == service]
        return sorted(each["labels"]["alertname"] for each in found if each["status"]["inhibitedBy"])


@pytest.fixture(scope="module")
def alertmanager(config: Path) -> Iterator[Alertmanager]:
    server = Alertmanager(config)
    try:
        eventually(lambda: server.call("/api/v2/status"))
        yield server
    finally:
        server.process.terminate()
        server.process.wait()


def alert(name: str, environment: str = "production", **labels: str) -> Labels:
    return {"alertname": name, "environment": environment, **labels}


A, B = {"job": "j", "instance": "a"}, {"job": "j", "instance": "b"}
FOLLOWS = {
    "a database that is down": (
        [
            alert("DatabaseDown"),
            alert("HealthCheckFailing", check="database", **A),
            alert("HealthCheckFailing", check="migrations", **A),
            alert("AvailabilityBudgetBurnsFast", slo="availability"),
            alert("UptimeSamplesMissing"),
            alert("CollectorErrors", **A),
        ],
        [alert("CacheDown"), alert("HealthCheckFailing", "staging", check="database"), alert("TargetDown", **B)],
    ),
    "a database that was down a while ago": (
        [
            alert("DatabaseDownRecently"),
            alert("HealthCheckFailing", check="migrations", **A),
            alert("AvailabilityBudgetBurnsFast", slo="availability"),
            alert("LatencyBudgetBurnsSlowly", slo="latency"),
            alert("UptimeSamplesMissing"),
            alert("CollectorErrors", **A),
            alert("WorkerTimeouts", **A),
        ],
        [alert("ReleaseFailing"), alert("HealthCheckFailing", check="cache", **B), alert("CollectorErrors", "staging")],
    ),
    "an instance that is down": (
        [alert("TargetDown", **A), alert("MemoryNearLimit", **A), alert("CrashLoop", **A)],
        [alert("MemoryNearLimit", **B), alert("DatabaseDown"), alert("DeploymentFailed")],
    ),
    "no instance at all": (
        [alert("InstancesAbsent"), alert("TargetDown", **A), alert("LatencyBudgetBurnsSlowly", slo="latency")],
        [alert("TargetDown", "staging", **B), alert("CertificateExpiresSoon")],
    ),
    "a cache that is down": (
        [alert("CacheDown"), alert("HealthCheckFailing", check="cache", **A), alert("CacheHitRatioCollapsed")],
        [alert("HealthCheckFailing", check="storage", **B), alert("AvailabilityBudgetBurnsFast", slo="availability")],
    ),
    "a budget that burns fast": (
        [
            alert("AvailabilityBudgetBurnsFast", slo="availability"),
            alert("AvailabilityBudgetBurnsSlowly", slo="availability"),
        ],
        [alert("LatencyBudgetBurnsSlowly", slo="latency"), alert("AvailabilityBudgetBurnsSlowly", "staging")],
    ),
    "a certificate that expires": (
        [alert("CertificateExpiresVerySoon"), alert("CertificateExpiresSoon")],
        [alert("CertificateExpiresSoon", "staging")],
    ),
}


@needs("prometheus-alertmanager")
@pytest.mark.parametrize(("chain", "others"), FOLLOWS.values(), ids=list(FOLLOWS))
def test_what_follows_is_silenced_and_nothing_else(
    chain: list[Labels], others: list[Labels], alertmanager: Alertmanager
) -> None:
    _, *following = chain
    service, expected = alertmanager.post(*chain, *others), sorted(each["alertname"] for each in following)
    eventually(lambda: len(alertmanager.silenced(service)) >= len(expected))
    assert alertmanager.silenced(service) == expected
