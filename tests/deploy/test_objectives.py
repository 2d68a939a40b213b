"""Releases judged by Prometheus: what the watch makes of its answers, and the error budget that holds deployments."""

import io
import json
import math
import re
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from django.core.management.base import OutputWrapper

from board import plots
from deploy import objectives, probe_traffic, watch
from deploy.console import Output
from deploy.errors import DeployRefused, ExitCode, StepFailed
from deploy.ledger_client import DatabaseLedger, Request
from deploy.objectives import ERRORS, P95, REQUESTS, Evidence, check_budget
from deploy.recorder import Recorder
from deploy.rollout import Deploy, Options, Rollback
from ledger import rules
from ledger.environments import Check, WatchConfig
from ledger.models import Deployment
from metrics.budgets import HOUR, REMAINING, WINDOW, Budget, recovery, spent_by
from metrics.prometheus import Prometheus, PrometheusError, Series
from tests.deploy.test_rollout import Recording
from tests.deploy.test_watch import BROKEN, WELL, replies, target_of
from tests.support.ledgers import begun, deployed
from tests.support.prometheus import PrometheusServer, constant
from tests.support.servers import PATIENCE, ROOT, Gunicorn, eventually
from tests.support.tools import needs

AMPLE = 60.0  # seconds
AWAY = "Prometheus (http://prometheus): refused the connection; is it running, and on this port?"


class Answers(Prometheus):
    """A Prometheus with these values by name or by expression; `down` is why it does not answer."""

    def __init__(self, down: str = "", /, **values: float) -> None:
        super().__init__("http://prometheus")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "down", down)

    values: dict[str, float]
    down: str

    def query(self, expression: str, seconds: float, at: float | None = None) -> list[Series]:
        if self.down:
            raise PrometheusError(self.down)
        names = {"requests": REQUESTS, "errors": ERRORS, "p95": P95}
        if REQUESTS in expression:
            found = {names[key]: value for key, value in self.values.items() if key in names}
        elif expression == REMAINING:
            return [
                Series({"environment": "testing", "slo": key}, [(0.0, value)]) for key, value in self.values.items()
            ]
        else:
            found = {expression: self.values[expression]} if expression in self.values else {}
        return [Series({"__name__": name}, [(0.0, value)]) for name, value in found.items()]

    def query_range(self, *_: Any) -> list[Series]:
        return []


# The watch


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "EVERY", 0.01)
    monkeypatch.setattr(watch, "INTERVAL", 0.01)
    monkeypatch.setattr(watch, "WINDOW", 0.1)


def watched(prometheus: Prometheus, limits: WatchConfig = WatchConfig(), seconds: float = 0.05) -> tuple[str, str]:
    """The note of a watch of release 1.0 that sees nothing wrong itself, and what is kept of it."""
    evidence = Evidence(prometheus, "testing", "1.0", limits)
    traffic = probe_traffic.Traffic("")
    target = target_of(replies(WELL), [])
    note = watch.watch(target, seconds, math.nan, traffic, lambda: True, lambda _: None, evidence)
    return note, evidence.record()


def test_the_watch_asks_prometheus_for_the_releases_own_series_and_keeps_what_it_answered() -> None:
    note, record = watched(Answers(requests=1.0, errors=0.01, p95=0.2))
    assert note.endswith("; by Prometheus 1.0% errors, p95 latency 200 ms")
    assert record == (
        "Asked http://prometheus: "
        'release:http_errors:ratio_rate5m{environment="testing",version="1.0"} = 0.01, max 0.05; '
        'release:http_request_duration_seconds:p95_5m{environment="testing",version="1.0"} = 0.2, max 1.'
    )


QUEUE = WatchConfig(checks=(Check("jobs that wait", "jobs\n  {}", max=9), Check("workers", "workers", min=2)))


@pytest.mark.parametrize(
    ("prometheus", "limits", "told"),
    [
        (
            Answers(requests=1.0, errors=0.1, p95=0.2),
            WatchConfig(),
            "10% of the responses in the last 5 min were 5xx errors, limit 5%.",
        ),
        (Answers(requests=1.0, errors=0.02), WatchConfig(0.01), "2% of the responses in the last 5 min were"),
        (Answers(requests=1.0, p95=1.9), WatchConfig(), "p95 latency 1.9 s, limit 1.0 s (in the last 5 min)."),
        (Answers(requests=1.0, p95=0.6), WatchConfig(0.05, 0.5), "p95 latency 0.6 s, limit 0.5 s (in the last 5 min)."),
        (Answers(**{"jobs\n  {}": 10.0}), QUEUE, "jobs that wait: 10, max 9."),
        (Answers(**{"jobs\n  {}": 9.0, "workers": 1.0}), QUEUE, "workers: 1, min 2."),
    ],
)
def test_a_bad_release_is_told_by_its_own_series_and_the_limit(
    prometheus: Prometheus, limits: WatchConfig, told: str
) -> None:
    with pytest.raises(StepFailed) as found:
        watched(prometheus, limits, AMPLE)
    assert str(found.value).startswith(told)


@pytest.mark.parametrize(
    ("prometheus", "told"),
    [
        (Answers(requests=0.01, errors=1.0, p95=9.0), "by Prometheus 100.0% errors, p95 latency 9000 ms"),  # 3 requests
        (Answers(errors=1.0, p95=9.0), "by Prometheus 100.0% errors, p95 latency 9000 ms"),  # nobody knows how many
        (Answers(), "Prometheus has no series of 1.0, so it was judged by /metrics and probe traffic alone"),
        (Answers(AWAY), f"{AWAY}, so the release was judged by /metrics and probe traffic alone"),
    ],
)
def test_too_little_traffic_unknown_values_and_no_answer_condemn_no_release(prometheus: Prometheus, told: str) -> None:
    assert watched(prometheus)[0].endswith(f"; {told}")


def test_a_release_that_prometheus_does_not_see_is_still_seen() -> None:
    target = target_of(lambda *_: [BROKEN], [])
    evidence = Evidence(Answers(AWAY), "testing", "1.0")
    with pytest.raises(StepFailed, match="/ answered 500, 2 times in a row"):
        watch.watch(target, 0, math.nan, probe_traffic.Traffic(""), lambda: True, lambda _: None, evidence)
    assert "= unknown, max 0.05; " in evidence.record() and "no answer" in evidence.record()


def test_a_check_that_is_exceeded_at_the_very_end_is_asked_again_and_one_that_is_rejected_is_unknown() -> None:
    with pytest.raises(StepFailed, match="workers: 1, min 2"):
        watched(Answers(workers=1.0), QUEUE, 0)
    note, record = watched(Answers("it rejected the query"), QUEUE)
    assert "jobs {} = unknown (it rejected the query), max 9" in record


def test_the_words_and_the_limits_are_those_of_the_alerts() -> None:
    rules_of = yaml.safe_load((ROOT / "monitoring/rules/alerts.yml").read_text())["groups"]
    alerts = {rule["alert"]: rule for group in rules_of for rule in group["rules"]}
    found = Evidence(Prometheus("http://prometheus"), "testing", "1.0", errors=0.123, p95=1.94, requests=100.0)
    for name, words in (
        ("ReleaseFailing", found.against(watch.FEWEST_ERRORS)),
        ("ReleaseSlow", found.slowness(found.limits.max_p95_seconds, watch.ENOUGH)[0]),
    ):
        summary = alerts[name]["annotations"]["summary"]
        for template, value in (
            ("{{ $labels.environment }}", "testing"),
            ("{{ $labels.version }}", "1.0"),
            ("{{ $value | humanizePercentage }}", "12.3%"),
            ('{{ $value | printf "%.1f" }}', "1.9"),
        ):
            summary = summary.replace(template, value)
        assert summary == f"testing, release 1.0: {words}" and words
    failing, slow = (" ".join(alerts[name]["expr"].split()) for name in ("ReleaseFailing", "ReleaseSlow"))
    count = f"{REQUESTS} * {objectives.RATE:g}"
    assert failing == f"{ERRORS} >= 0.05 and {ERRORS} * {count} >= {watch.FEWEST_ERRORS - 0.5}"
    assert slow == f"{P95} > 1 and {count} >= {watch.ENOUGH}" and WatchConfig() == WatchConfig(0.05, 1.0)


def test_what_was_asked_is_kept_with_the_step_of_the_watch_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _, printed = prepared(tmp_path)
    run.evidence = Evidence(Answers(errors=0.01), "testing", "2")
    run.evidence.look()
    kept: list[str] = []
    monkeypatch.setattr(run.recorder, "step", lambda name, outcome, note: kept.append(note))
    for name in ("watch", "mark good"):
        run.output.begin(name)
        run.ended(name, "succeeded", "Well.", True)
    assert kept[0].startswith("Well. Asked http://prometheus: release:http_errors") and "= 0.01, max 0.05" in kept[0]
    assert kept[1].strip() == "Well." and "Asked" not in printed.getvalue()


@pytest.mark.slow
@pytest.mark.usefixtures("django_db_setup")
@needs("prometheus")
def test_a_bad_release_that_a_real_prometheus_scrapes_is_told_in_the_words_of_its_alert() -> None:
    env = {"DJANGO_SETTINGS_MODULE": "tests.support.more_settings", "APP_VERSION": "9.9"}
    rules_of = (
        f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{ROOT}/monitoring/rules/*.yml']\n"
    )
    with Gunicorn(1, **env) as app:
        job = f"scrape_configs: [{{job_name: backstagetest1, static_configs: [{{targets: ['127.0.0.1:{app.port}']}}]}}]"
        with PrometheusServer(rules_of + job) as server:
            evidence = Evidence(Prometheus(server.url), "testing", "9.9")

            def known() -> bool:
                evidence.look()
                return evidence.errors is not None and evidence.requests is not None

            eventually(known, every=0.2)
            assert evidence.against(watch.FEWEST_ERRORS) == "" and "9.9" in evidence.record()

            def told() -> str:
                evidence.look()
                return evidence.against(watch.FEWEST_ERRORS)

            def asked_and_told() -> str:
                # In rounds, as the rate does not see the errors before the first scrape that has any.
                for number in range(40):
                    assert get(app.port, "/fail/" if number % 4 else "/pid/") == (500 if number % 4 else 200)
                return told()

            assert re.fullmatch(
                r"[0-9.]+% of the responses in the last 5 min were 5xx errors, limit 5%",
                eventually(asked_and_told, every=1.5),
            )

            def alerts() -> list[str]:
                with urlopen(f"{server.url}/api/v1/alerts", timeout=PATIENCE) as answer:
                    active = json.load(answer)["data"]["alerts"]
                said = [each["annotations"]["summary"] for each in active]
                return [each for each in said if each == f"testing, release 9.9: {told()}"]

            assert eventually(alerts)


def get(port: int, path: str) -> int:
    """The status of a page."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as link:
        link.request("GET", path, headers={"Host": "localhost"})
        return link.getresponse().status


def test_every_series_that_is_asked_for_is_recorded() -> None:
    files = "".join(path.read_text() for path in (ROOT / "monitoring/rules").glob("*.yml"))
    recorded = set(re.findall("record: (.+)", files))
    asked = {REQUESTS, ERRORS, P95, REMAINING, "slo:bad_requests:increase1h", "release_endpoint:http_errors:rate5m"}
    assert asked | set(plots.NAMES) <= recorded
    objectives_file = tomllib.loads((ROOT / "monitoring/slo.toml").read_text())["objectives"]
    assert {each["window"] for each in objectives_file.values()} == {f"{WINDOW / 86_400:.0f}d"}


# The error budget


@pytest.mark.parametrize(
    ("prometheus", "note"),
    [
        (None, "unknown, as no Prometheus is configured; not held"),
        (Answers(AWAY), f"unknown; not held: {AWAY}"),
        (Answers(), "unknown, as Prometheus has no budget of testing; not held"),
        (Answers(availability=math.inf), "unknown, as Prometheus has no budget of testing; not held"),
        (Answers(availability=0.8, latency=0.01), "1% left (latency), 80% left (availability)"),
    ],
)
def test_a_budget_that_is_left_or_unknown_holds_nothing_and_says_so(prometheus: Any, note: str) -> None:
    assert check_budget(prometheus, "testing", pass_because="") == note


def test_a_spent_budget_says_how_much_and_that_nobody_knows_until_when() -> None:
    with pytest.raises(DeployRefused) as refused:
        check_budget(Answers(availability=-0.34, latency=0.5), "testing", pass_because="")
    assert str(refused.value) == (
        "The error budget of testing is spent: 134% of the availability budget of 30 days. When it recovers is "
        "unknown. Wait, or pass --hotfix --reason TEXT if the release cannot wait. Rollbacks are not held."
    )
    assert refused.value.exit_code == ExitCode.REFUSED
    note = check_budget(Answers(availability=0.0), "testing", pass_because="allowed as a hotfix")
    assert note == "spent (100% of the availability budget); allowed as a hotfix"


@pytest.fixture(scope="module")
def history() -> Iterator[tuple[Prometheus, float]]:
    """A window in which production had 60 errors an hour for an hour, 20 days ago, and again 10 days ago."""
    now = time.time()
    bad = (now - 20 * 24 * HOUR, now - 10 * 24 * HOUR)

    def errors(share: float) -> Callable[[float], float]:
        return lambda at: share if any(abs(at - each) < HOUR / 2 for each in bad) else 0.0

    where = {"environment": "production"}
    series = [
        (REMAINING, where | {"slo": "availability"}, constant(-0.2)),
        (REMAINING, where | {"slo": "latency"}, constant(0.75)),
        ("slo:bad_requests:increase1h", where | {"slo": "availability"}, errors(60.0)),
        ("release_endpoint:http_errors:rate5m", where | {"version": "1.4.0", "endpoint": "home"}, errors(0.8)),
        ("release_endpoint:http_errors:rate5m", where | {"version": "1.3.0", "endpoint": "signup"}, errors(0.2)),
    ]
    server = PrometheusServer()
    server.write(series, seconds=WINDOW, step=HOUR, until=now)
    with server:
        yield Prometheus(server.url), now


@needs("prometheus")
def test_a_spent_budget_says_by_what_and_until_when_at_the_earliest(history: tuple[Prometheus, float]) -> None:
    prometheus, now = history
    assert spent_by(prometheus, "production", AMPLE) == "80% of the errors came from 1.4.0, 80% from home"
    # 120 bad requests are 120% of the budget: more than a sixth has to leave, so the first 60 are enough.
    found = recovery(prometheus, "production", Budget("availability", -0.2), AMPLE)
    assert found and abs(found - (now + 10 * 24 * HOUR)) < HOUR
    # As 240% of it more than 70 have to.
    found = recovery(prometheus, "production", Budget("availability", -1.4), AMPLE)
    assert found and abs(found - (now + 20 * 24 * HOUR)) < HOUR
    assert recovery(prometheus, "production", Budget("latency", -0.2), AMPLE) is None
    with pytest.raises(DeployRefused) as refused:
        check_budget(prometheus, "production", pass_because="")
    told = str(refused.value)
    assert told.startswith(
        "The error budget of production is spent: 120% of the availability budget of 30 days; 80% of"
    )
    assert "80% from home. It recovers at 20" in told and " UTC at the earliest." in told


def prepared(folder: Path, kind: Any = Deploy, prometheus: Any = None, **more: Any) -> tuple[Any, Any, io.StringIO]:
    """A run to version 2 where a spent budget holds deployments, its target, and what it prints."""
    target: Any = Recording(folder, "2")
    printed = io.StringIO()
    output = Output(OutputWrapper(printed), as_json=False, no_color=True, force_color=False)
    name = "deploy" if kind is Deploy else "rollback"
    request = Request("testing", "2", "blue-green", "ann", kind=name, **more)
    recorder = Recorder(DatabaseLedger(), request, folder / "unrecorded", output.note)
    options = Options(
        "2", "blue-green", "", commit="abcdef0", built_at="2026-03-01T12:00:00+00:00", prometheus=prometheus, hold=True
    )
    return kind(target, recorder, output, options), target, printed


SPENT = Answers(availability=-0.5)


@pytest.mark.django_db
def test_a_spent_budget_refuses_a_deployment_before_anything_is_changed(tmp_path: Path) -> None:
    run, target, _ = prepared(tmp_path, prometheus=SPENT)
    for act in (run.run, run.dry_run):
        with pytest.raises(DeployRefused, match="150% of the availability budget"):
            act()
    assert target.done == [] and not target.lock.held() and not Deployment.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("kind", "prometheus", "more", "told"),
    [
        (
            Deploy,
            SPENT,
            {"hotfix": True, "reason": "Urgent"},
            "spent (150% of the availability budget); allowed as a h",
        ),
        (Deploy, Answers(AWAY), {}, f"unknown; not held: {AWAY}"),
        (Deploy, Answers(availability=0.4), {}, "error budget"),
        (Rollback, SPENT, {}, ""),
    ],
)
def test_a_hotfix_a_rollback_and_an_unknown_budget_pass(
    tmp_path: Path, kind: Any, prometheus: Any, more: Any, told: str
) -> None:
    deployed("testing", "2")
    deployed("testing", "1")
    run, _, printed = prepared(tmp_path, kind, prometheus, **more)
    assert run.run() == ExitCode.DONE
    assert told in printed.getvalue() and ("error budget" in printed.getvalue()) == bool(told)


@pytest.mark.django_db
def test_what_spends_the_budget_half_way_is_resumed(tmp_path: Path) -> None:
    rules.step(begun("testing", "2").pk, "migrate", "succeeded")
    run, _, printed = prepared(tmp_path, prometheus=SPENT)
    assert run.run() == ExitCode.DONE
    assert "spent (150% of the availability budget); the deployment has begun, so it is resumed" in printed.getvalue()
