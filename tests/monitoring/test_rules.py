"""monitoring/rules: held to promtool, to the metrics that the app has, to the objectives and to the runbook."""

import os
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings

from health.reasons import Reason
from ledger.models import Deployment
from tests.monitoring.promql import Expression, Selector, values
from tests.support.servers import ROOT
from tests.support.tools import needs

Rule = dict[str, Any]
MONITORING = ROOT / "monitoring"
TESTS = sorted((MONITORING / "tests").glob("*.yml"))
COUNTING = {"rate", "increase", "irate", "resets"}


def rules() -> list[Rule]:
    """Every rule of every file in monitoring/rules."""
    files = sorted((MONITORING / "rules").glob("*.yml"))
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


RECORDS = [rule for rule in rules() if "record" in rule]
ALERTS = [rule for rule in rules() if "alert" in rule]
alerts = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
every = pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])


@cache
def metrics() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of each series of the app, as docs/metrics.md has them (a test compares); and `up`."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*)\|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    found: dict[str, tuple[str, set[str]]] = {
        "up": ("gauge", set()),
        "ALERTS": ("gauge", {"alertname", "alertstate", "environment", "severity"}),
    }
    for name, kind, labels in rows:
        own = set(labels.replace(",", " ").split())
        if kind == "histogram":
            found |= {f"{name}_{part}": ("counter", own) for part in ("count", "sum")}
            found[f"{name}_bucket"] = ("counter", own | {"le"})
        else:
            found[name] = (kind, own)
    return found


@cache
def recorded(name: str) -> tuple[str, set[str]]:
    """Type and labels of a recorded series. The labels may be more than it has: those of all that it is made from."""
    labels: set[str] = set()
    for rule in RECORDS:
        if rule["record"] == name:
            expression = Expression(rule["expr"])
            labels |= expression.grouping | set(rule.get("labels", {}))
            for each in expression.selectors:
                labels |= known(each.metric)[1]
    assert labels, f"nothing records {name}"
    return ("counter" if name.endswith(":total") else "gauge"), labels


def known(metric: str) -> tuple[str, set[str]]:
    """Type and labels of a series; fails if there is none of that name."""
    if ":" in metric:
        return recorded(metric)
    assert metric in metrics(), f"{metric} is not a metric of the app"
    return metrics()[metric]


# What promtool knows


@needs("promtool")
def test_promtool_finds_nothing_to_say() -> None:
    words = ["promtool", "check", "rules", *map(str, (MONITORING / "rules").glob("*.yml"))]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs("promtool")
def test_every_unit_test_of_the_rules_passes() -> None:
    env = {**os.environ, "GOGC": "400"}  # unlike kubectl, it makes gigabytes of garbage
    done = subprocess.run(["promtool", "test", "rules", *map(str, TESTS)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# What it does not


def test_the_rules_of_the_objectives_are_made_from_them(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import sys; from scripts import slo_rules as s; print(s.rules(sys.stdin.read()))"]
    source = (MONITORING / "slo.toml").read_text()
    made = subprocess.run(words, input=source, cwd=ROOT, capture_output=True, text=True, check=True).stdout[:-1]
    assert made == (MONITORING / "rules" / "slo.yml").read_text(), "run scripts/slo_rules.py"


def test_the_latency_objective_has_a_bucket() -> None:
    objectives = tomllib.loads((MONITORING / "slo.toml").read_text())["objectives"]
    assert {each["seconds"] for each in objectives.values() if "seconds" in each} <= set(settings.METRICS_BUCKETS)


def test_no_two_alerts_have_one_name() -> None:
    assert [name for name, count in Counter(rule["alert"] for rule in ALERTS).items() if count > 1] == []


@every
def test_a_rule_uses_only_series_and_labels_that_there_are(rule: Rule) -> None:
    expression = Expression(rule["expr"])
    assert expression.selectors
    there = {"job", "instance"}
    for each in expression.selectors:
        labels = known(each.metric)[1] | {"job", "instance"}
        assert set(each.matchers) <= labels, f"{each.metric} has no label {set(each.matchers) - labels}"
        there |= labels
    assert expression.grouping <= there, f"no series has a label {expression.grouping - there}"


@every
def test_a_counter_is_never_read_as_it_is_and_no_rate_is_taken_of_a_gauge(rule: Rule) -> None:
    for each in Expression(rule["expr"]).selectors:
        innermost = each.inside[-1] if each.range and each.inside else ""
        if known(each.metric)[0] == "counter":
            adds_up = rule.get("record", "").endswith(":total") and each.inside == ("sum",)  # scripts/slo_rules.py
            assert innermost in COUNTING or adds_up, f"{each.metric} is a counter: take its rate()"
        else:
            assert innermost not in COUNTING, f"{each.metric} is a gauge: rate() has no meaning"


def allowed(one: Selector, label: str) -> set[str] | None:
    """The values that a label can have; None if that is not known."""
    found: dict[tuple[str, str], set[str]] = {
        ("health_check_up", "check"): {*settings.HEALTH_CHECKS, "storage", "disk"},
        ("health_check_reason", "check"): {*settings.HEALTH_CHECKS, "storage", "disk"},
        ("health_check_reason", "reason"): set(map(str, Reason)),
        ("deployments_total", "result"): set(map(str, Deployment.Status.values)),
        ("ALERTS", "alertname"): {alert["alert"] for alert in ALERTS},
        ("ALERTS", "alertstate"): {"pending", "firing"},
        ("worker_exits_total", "reason"): {"timeout", "crash", "recycled"},
        ("http_request_duration_seconds_bucket", "le"): {*map(str, settings.METRICS_BUCKETS), "+Inf"},
    }
    return found.get((one.metric, label))


@every
def test_a_matcher_asks_for_values_that_the_label_can_have(rule: Rule) -> None:
    for each in Expression(rule["expr"]).selectors:
        for label, matcher in each.matchers.items():
            possible = allowed(each, label)
            assert possible is None or set(values(matcher)) <= possible, f"{each.metric}: {label} {matcher}"


@alerts
def test_an_alert_says_how_urgent_it_is_where_and_what_to_do(alert: Rule) -> None:
    assert {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"} == set(alert)
    assert alert["labels"]["severity"] in ("page", "ticket", "none") and alert["labels"]["service"] == "backstagetest1"
    assert "environment" in alert["annotations"]["summary"]
    file, _, section = alert["annotations"]["runbook_url"].partition("/blob/main/")[2].partition("#")
    sections = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", (ROOT / file).read_text(), re.MULTILINE | re.DOTALL))
    assert section == alert["alert"].lower()
    text = sections[alert["alert"]]
    assert text.startswith(f"*{alert['labels']['severity'].capitalize()}.* "), "the runbook has another severity"
    assert "```sh\n" in text, "the runbook names no command"


def test_the_runbook_and_the_list_of_alerts_have_every_alert_in_this_order_and_no_other() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    listed = re.findall(
        r"^\| \[(\w+)\]\(runbook\.md#(\w+)\) \| (\w+) \| .* (\w+) \|$",
        (ROOT / "docs" / "monitoring.md").read_text(),
        re.MULTILINE,
    )
    assert sorted(sections) == sorted(alert["alert"] for alert in ALERTS)
    assert listed == [
        (alert["alert"], alert["alert"].lower(), alert["labels"]["severity"], alert["for"]) for alert in ALERTS
    ]


# The unit tests themselves


def assertions() -> dict[str, list[Rule]]:
    """What monitoring/tests says about each alert."""
    found: dict[str, list[Rule]] = defaultdict(list)
    for file in TESTS:
        for test in yaml.safe_load(file.read_text())["tests"]:
            for one in test.get("alert_rule_test", []):
                found[one["alertname"]].append(one)
    return found


def test_the_assertions_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    found = assertions()
    silent = sum(not one["exp_alerts"] for each in found.values() for one in each)
    with capsys.disabled():
        print(f"\n{sum(map(len, found.values()))} assertions about {len(found)} alerts; {silent} that nothing fires")
    assert set(found) <= {alert["alert"] for alert in ALERTS}


@alerts
def test_an_alert_is_seen_to_fire_not_to_fire_and_to_name_its_environment(alert: Rule) -> None:
    found = assertions()[alert["alert"]]
    fires = [one for one in found if one["exp_alerts"]]
    assert len(found) >= 3 and fires and len(fires) < len(found)
    for one in fires:
        for expected in one["exp_alerts"]:
            assert expected["exp_labels"]["environment"] and expected["exp_labels"]["severity"]
