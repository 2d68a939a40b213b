"""The smoke test and the watch: what they make of an instance's answers, without an instance."""

import math
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from deploy import probe_traffic, rollout, smoke, watch
from deploy.errors import StepFailed
from deploy.targets import probe
from deploy.targets.probe import Answer

LATE = '{"status": "unhealthy", "checks": {"database": "unhealthy: timeout"}}'
NO_CACHE = '{"status": "unhealthy", "checks": {"database": "healthy", "cache": "unhealthy: refused"}}'
NO_DATABASE = '{"status": "unhealthy", "checks": {"database": "unhealthy: refused", "cache": "healthy"}}'
METRICS = (
    "# TYPE http_requests_total counter\n"
    'http_requests_total{status="200"} 1\n'
    "# TYPE http_request_duration_seconds histogram\n"
    'http_request_duration_seconds_bucket{le="+Inf"} 1\n'
    "# TYPE app_info gauge\n"
    'app_info{version="1.0"} 1\n'
)


def replies(*healths: tuple[int, str]) -> Callable[..., list[Answer]]:
    """What an instance answers: /health/ by turns as given, the last of them for ever, and everything else well."""
    left = list(healths)

    def ask(paths: Any) -> list[Answer]:
        found = []
        for path in paths:
            status, body = left.pop(0) if path == "/health/" and len(left) > 1 else left[0]
            if path != "/health/":
                status, body = 200, METRICS if path == "/metrics" else '"/static/app.0a1b.css"'
            found.append(Answer(path, status, 0.1, body))
        return found

    return lambda *words: ask(words[-1])


def test_a_check_that_is_late_is_asked_again_by_the_smoke_test(monkeypatch: pytest.MonkeyPatch) -> None:
    well = (200, '{"status": "healthy", "version": "1.0", "checks": {"database": "healthy"}}')
    monkeypatch.setattr(smoke, "RETRIED", 60)
    monkeypatch.setattr("deploy.smoke.time.sleep", lambda _: None)
    assert probe.late(Answer("/", 0, 5.0, error="timed out")) and not probe.late(Answer("/", 0, 5.0, error="refused"))
    assert smoke.test(replies((503, LATE), (503, LATE), well), "1.0").startswith("healthy")
    monkeypatch.setattr(smoke, "RETRIED", 0)
    for answer in ((503, LATE), (503, NO_DATABASE), (503, NO_CACHE)):
        with pytest.raises(StepFailed, match=r"/health/ answered 503 \(\w+ is unhealthy: \w+\); expected 200"):
            smoke.test(replies(answer), "1.0")


def watched(monkeypatch: pytest.MonkeyPatch, seconds: float, *healths: tuple[int, str]) -> str:
    monkeypatch.setattr(watch, "INTERVAL", 0.01)
    target: Any = SimpleNamespace(
        failure_reason=lambda: "", new_instances=lambda: ["one"], ask=replies(*healths), logs=lambda: "", url=lambda: ""
    )
    return watch.watch(target, seconds, math.nan, probe_traffic.Traffic(""), lambda: True, lambda _: None)


def test_the_watch_asks_for_the_truth_and_not_whether_the_instance_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness stays when the database goes; a cache that is down is nothing to roll back for."""
    assert "/health/ready/" not in probe.PAGES
    with pytest.raises(StepFailed, match=r"/health/ answered 503 \(database is unhealthy: refused\), 2 times in a row"):
        watched(monkeypatch, 60, (503, NO_DATABASE))
    assert "responses in the last" in watched(monkeypatch, 0.1, (503, NO_CACHE))


def test_the_watch_bears_a_check_that_is_late_and_not_one_that_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    well = (200, '{"status": "healthy", "checks": {"database": "healthy"}}')
    assert "responses in the last" in watched(monkeypatch, 0.1, *[(503, LATE)] * 5, well)
    monkeypatch.setattr(watch, "LATE", 0.1)
    with pytest.raises(StepFailed, match="database is unhealthy: timeout"):
        watched(monkeypatch, 60, (503, LATE))


def test_what_is_usual_is_what_was_so_of_late() -> None:
    buckets = "".join(f'http_request_duration_seconds_bucket{{le="{le}"}} {n}\n' for le, n in (("0.1", 40), ("2", 60)))
    text = f"# TYPE http_request_duration_seconds histogram\n{buckets}"
    target: Any = SimpleNamespace(
        url=lambda: "", live_instances=lambda: ["one"], ask=lambda *_: [Answer("/metrics", 200, 0.1, text)]
    )
    run = rollout.Deploy(target, Any, Any, Any)  # type: ignore[arg-type]
    run.measure(watch.Counters(buckets={0.1: 0, 2: 20}))
    assert run.baseline <= 0.1, "the first answers were slower"
    run.measure(watch.Counters(buckets={0.1: 35, 2: 55}))
    assert run.baseline > 1, "five are too few: all that there were count"


def test_a_bad_answer_at_the_very_end_of_the_watch_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "INTERVAL", 0.01)
    target: Any = SimpleNamespace(
        failure_reason=lambda: "",
        new_instances=lambda: ["one"],
        ask=lambda *_: [Answer("/", 500, 0.1)],
        logs=lambda: "",
    )
    with pytest.raises(StepFailed, match="/ answered 500, 2 times in a row"):
        watch.watch(target, 0.0, math.nan, probe_traffic.Traffic(""), lambda: True, lambda _: None)


def counted(requests: float, errors: float, seconds: float) -> watch.Counters:
    """So many responses, each of which took just under `seconds`."""
    return watch.Counters(requests, errors, {seconds / 2: 0, seconds: requests, math.inf: requests})


@pytest.mark.parametrize(
    ("recent", "baseline", "probes", "told"),
    [
        (counted(100, 0, 0.5), math.nan, (0, 100, 0.1), ""),
        (counted(100, 5, 0.5), math.nan, (0, 100, 0.1), "5 of 100 responses in the last 10 s were 5xx errors"),
        (counted(101, 5, 0.5), math.nan, (0, 100, 0.1), ""),
        (counted(4, 4, 0.5), math.nan, (0, 100, 0.1), ""),
        (counted(100, 0, 0.5), math.nan, (5, 100, 0.1), "5 of 100 probe requests in the last 10 s failed"),
        (counted(100, 0, 2.0), math.nan, (0, 100, 0.1), "p95 latency 1.9 s, limit 1.0 s (in the last 10 s)"),
        (counted(100, 0, 2.0), 0.7, (0, 100, 0.1), ""),
        (counted(19, 0, 2.0), math.nan, (0, 100, 0.1), ""),
        (
            counted(0, 0, 1.0),
            math.nan,
            (0, 5, 1.5),
            "median latency of the probe requests 1.5 s, limit 1.0 s (in the last 10 s)",
        ),
    ],
)
def test_the_verdict_names_what_is_wrong_and_its_limit(
    recent: watch.Counters, baseline: float, probes: tuple[int, int, float], told: str
) -> None:
    assert watch.verdict(recent, baseline, *probes) == told


@pytest.mark.parametrize(
    ("answers", "recent", "told"),
    [
        ({("2", True): 19, ("2", False): 1}, {("2", True): 9}, ""),
        ({("2", True): 19}, {("2", True): 9}, "19 of 19 answers from outside came from 2, fewer than 20"),
        (
            {("1", True): 218, ("2", False): 3},
            {("1", True): 9},
            "3 of 221 answers from outside came from 2, fewer than 20",
        ),
        ({}, {}, "0 of 0 answers from outside came from 2, fewer than 20"),
        (
            {("1", True): 100, ("2", False): 100},
            {("1", True): 5, ("", True): 1, ("2", False): 4},
            "6 of 10 answers at the end of the watch came from 1, a release that does not say which",
        ),
    ],
)
def test_a_release_is_called_good_only_if_it_alone_answers_and_often_enough(
    answers: dict[tuple[str, bool], int], recent: dict[tuple[str, bool], int], told: str
) -> None:
    counts = [
        Counter({probe_traffic.Source(*key): number for key, number in each.items()}) for each in (answers, recent)
    ]
    found = watch.unseen(counts[0], counts[1], "2")
    assert found == told
