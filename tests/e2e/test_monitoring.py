"""The stack with a real Prometheus and Alertmanager: every request is counted, and an outage is notified once.

Without --full all times of the rules and of Alertmanager are a twentieth, and Prometheus looks every other second.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e.stack import Client, Stack, clone, closing, docker, say
from tests.support.servers import PATIENCE, eventually, free_port

FASTER = 20
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
APPS = ("web", "web_blue")  # two instances, each with two workers

# A receiver that prints what Alertmanager posts, one line each.
WEBHOOK = """
services:
  webhook:
    image: ${IMAGE}
    command: [python, -uc, "%s"]
    healthcheck: {test: [CMD, "true"], interval: 1s}
    networks: [frontend]
"""
PROGRAM = """
import http.server
class Webhook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print(self.rfile.read(int(self.headers['Content-Length'])).decode())
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(('', 8080), Webhook).serve_forever()
"""

# Sends a number of requests to an instance over four connections, and prints how many were answered with 200.
LOAD = """
import http.client, sys, concurrent.futures
host, number = sys.argv[1], int(sys.argv[2])
def send(number):
    link, good = http.client.HTTPConnection(host, 8000, timeout=60), 0
    for _ in range(number):
        link.request("GET", "/accounts/login/", headers={"Host": "localhost"})
        answer = link.getresponse()
        answer.read()
        good += answer.status == 200
    return good
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(sum(pool.map(send, [number // 4] * 4)))
"""


def hurry(folder: Path) -> None:
    """Divides the times of the rules and of Alertmanager in this clone; Prometheus scrapes every other second."""

    def less(found: re.Match[str]) -> str:
        seconds = int(found[2]) * UNITS[found[3]] / FASTER
        return f"{found[1]}{max(1, round(seconds))}s"

    times = re.compile(r"(\b(?:for|keep_firing_for|interval|group_wait|group_interval): )(\d+)([smhd])\b")
    for file in (folder / "monitoring" / "alertmanager.yml", *(folder / "monitoring" / "rules").glob("*.yml")):
        file.write_text(times.sub(less, file.read_text()))
    prometheus = folder / "monitoring" / "prometheus.yml"
    prometheus.write_text(re.sub(r"(_interval): \d+s", r"\1: 2s", prometheus.read_text()))


class Watched(Stack):
    """A stack with its monitoring."""

    def ask(self, path: str) -> Any:
        """What Prometheus's API answers."""
        answer = Client(int(self.variables["PROMETHEUS_PORT"])).get(f"/api/v1/{path}").json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """The series of an expression, with their values."""
        when = "" if at is None else f"&time={at:.3f}"
        found = self.ask(f"query?query={quote(expression)}{when}")["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    def value(self, expression: str) -> float:
        """The one value of an expression; 0 without a series."""
        return sum(value for _, value in self.query(expression))

    def told(self, status: str) -> list[str]:
        """The names of the alerts in all messages that say that an alert is firing, or resolved."""
        messages = [message for message in self.logs("webhook") if message["status"] == status]
        return [alert["labels"]["alertname"] for message in messages for alert in message["alerts"]]

    def load(self, number: int) -> int:
        """Sends as many requests to each instance; returns how many were answered well."""
        return sum(int(self.exec("web", "python", "-c", LOAD, service, str(number))) for service in APPS)


@pytest.fixture(scope="module")
def watched(image: str, full: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = clone(tmp_path_factory.mktemp("watched"))
    if not full:
        hurry(folder)
    override = folder / "webhook.yml"
    override.write_text(WEBHOOK % PROGRAM.replace("\n", "\\n"))
    stack = Watched(
        folder,
        "watched",
        image,
        COMPOSE_FILE=f"docker-compose.yml:{override.name}",
        PROMETHEUS_PORT=str(free_port()),
        ALERTMANAGER_PORT=str(free_port()),
        PROMETHEUS_URL="http://prometheus:9090",
        METRICS_TOKEN="a token of this test",
        ALERT_WEBHOOK_URL="http://webhook:8080/",
        WEB_CONCURRENCY="2",
        BLUE_IMAGE=image,
        SAMPLE_UPTIME="false",
    )
    with closing(stack):
        stack.compose("up", "--detach", "--wait", "--no-build", "web_blue")
        # Now that there is something to watch: at a twentieth of the time, a stack that starts is one that is down.
        stack.variables["COMPOSE_PROFILES"] = "monitoring"
        stack.compose("up", "--detach", "--wait", "--no-build")
        eventually(lambda: stack.value('count(up{job="backstagetest1"} == 1)') == 2, seconds=60)
        yield stack


def test_prometheus_finds_every_instance_with_the_token_and_has_no_fault_with_a_rule(watched: Watched) -> None:
    assert {each["health"] for each in watched.ask("targets?state=active")["activeTargets"]} == {"up"}
    eventually(lambda: watched.value("count(slo:error_budget_remaining:ratio)") == 2)
    rules = [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in rules if rule["health"] not in ("ok", "unknown")] == []
    assert watched.value('release:http_errors:ratio_rate5m{environment="development"}') == 0
    eventually(lambda: '<div class="plots">' in watched.client().get("/").text, every=1)  # the app finds it, too
    watched.exec("alertmanager", "amtool", "check-config", "/etc/alertmanager/alertmanager.yml")
    for service in ("prometheus", "alertmanager"):
        host = watched.inspect(service)
        assert {bound[0]["HostIp"] for bound in host["NetworkSettings"]["Ports"].values() if bound} == {"127.0.0.1"}
        assert host["HostConfig"]["ReadonlyRootfs"] and host["HostConfig"]["CapDrop"] == ["ALL"], service
        top = docker("top", watched.container(service), "-eo", "pid,uid,args").splitlines()[1:]
        assert top and all(int(line.split()[1]) != 0 for line in top), (service, top)


def counted(stack: Watched) -> float:
    """The requests that increase() finds in all that Prometheus has, as of each instance's last scrape."""
    series = 'http_requests_total{endpoint="/accounts/login/"}'
    last = {labels["instance"]: at for labels, at in stack.query(f"timestamp({series})")}
    return sum(
        stack.query(f'sum(increase({series[:-1]},instance="{instance}"}}[1h]))', at)[0][1]
        for instance, at in last.items()
    )


def test_prometheus_counts_what_was_sent_also_when_workers_are_killed(watched: Watched, full: bool) -> None:
    total = 'sum(http_requests_total{endpoint="/accounts/login/"})'
    number = 20_000 if full else 400
    sent = watched.load(4)  # so that the series are there
    eventually(lambda: watched.value(total) == sent)
    for _ in range(2):
        assert (answered := watched.load(number)) == 2 * number
        sent += answered
        for service in APPS:
            watched.exec(service, "python", "-c", KILL_A_WORKER)
    eventually(lambda: watched.value(total) >= sent)
    assert watched.value(total) == sent
    found = counted(watched)
    say(f"{sent} requests sent, {found:.1f} counted by increase(): {abs(found - sent) / sent:.4%} off")
    assert abs(found - sent) <= sent / 1000


KILL_A_WORKER = """
import os, pathlib, signal
for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    if stat.read_text().rsplit(")")[1].split()[1] == "1":
        os.kill(int(stat.parent.name), signal.SIGKILL)
        break
"""


def test_a_frozen_database_is_told_once_and_so_is_its_recovery(watched: Watched, full: bool) -> None:
    patience = PATIENCE * (20 if full else 2)
    follows = {"HealthCheckFailing", "CollectorErrors", "TargetDown", "DatabaseReadOnly", "UptimeSamplesMissing"}
    assert "DatabaseDown" not in watched.told("firing")
    eventually(lambda: watched.compose("pause", "db") == "", every=1)  # a busy kernel may refuse at first
    try:
        eventually(lambda: "DatabaseDown" in watched.told("firing"), seconds=patience, every=0.5)
        scrapes = 60 if full else 8  # seconds of four scrapes in a row
        eventually(lambda: watched.value(f"min(min_over_time(up[{scrapes}s]))") == 1)
        assert watched.value('count(ALERTS{alertname="HealthCheckFailing"})') >= 2  # which Alertmanager keeps to itself
    finally:
        watched.compose("unpause", "db")
    eventually(lambda: "DatabaseDown" in watched.told("resolved"), seconds=patience, every=0.5)
    firing = [each for each in watched.logs("webhook") if each["commonLabels"].get("alertname") == "DatabaseDown"]
    assert [each["status"] for each in firing] == ["firing", "resolved"], json.dumps(firing)[:3000]
    assert not follows & set(watched.told("firing")), "consequences of the database being down were sent as well"
    (alert,) = firing[0]["alerts"]
    assert firing[0]["receiver"] == "rehearsal" and alert["labels"]["environment"] == "development"
    assert alert["annotations"]["runbook_url"].endswith("docs/runbook.md#databasedown")


def test_an_instance_that_is_stopped_is_no_target_and_no_token_is_needed(watched: Watched) -> None:
    watched.compose("stop", "web_blue")
    up: Callable[[str], bool] = lambda which: watched.value(f'count(up{{job="backstagetest1"}}{which})') == 1
    eventually(lambda: up("") and up(" == 1"))
    del watched.variables["METRICS_TOKEN"]
    watched.compose("up", "--detach", "--wait", "--no-build", "web")
    began = watched.value("max(process_start_time_seconds)")
    eventually(lambda: watched.value("max(process_start_time_seconds)") >= began and up(" == 1"))
    assert watched.direct().get("/metrics").status == 200
