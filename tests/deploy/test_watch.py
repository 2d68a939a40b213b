"""The smoke test and the watch: what they make of an instance's answers, without an instance."""

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
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


WELL = (200, '{"status": "healthy", "version": "1.0", "checks": {"database": "healthy"}}')


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "PAUSE", 0.0)
    monkeypatch.setattr(watch, "INTERVAL", 0.01)


@pytest.mark.usefixtures("quick")
def test_a_check_that_is_late_is_asked_again_by_the_smoke_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "RETRIED", 60)
    assert probe.late(Answer("/", 0, 5.0, error="timed out")) and not probe.late(Answer("/", 0, 5.0, error="refused"))
    assert smoke.test(replies((503, LATE), (503, LATE), WELL), "1.0").startswith("healthy")
    monkeypatch.setattr(smoke, "RETRIED", 0)
    for answer in ((503, LATE), (503, NO_DATABASE), (503, NO_CACHE)):
        with pytest.raises(StepFailed, match=r"/health/ answered 503 \(\w+ is unhealthy: \w+\); expected 200"):
            smoke.test(replies(answer), "1.0")


Other = Callable[[Any], list[Answer]]


def pages(path: str, *turns: Answer) -> Other:
    """An instance that answers `path` by turns as given, the last of them for ever, and everything else well."""
    left, rest = list(turns), replies(WELL)

    def ask(paths: Any) -> list[Answer]:
        return [
            (left.pop(0) if len(left) > 1 else left[0]) if each == path else found
            for each, found in zip(paths, rest(paths), strict=True)
        ]

    return ask


HOME = Answer("/", 200, 0.1, '"/static/app.0a1b.css"')
BROKEN, DOWN = replace(HOME, status=500), replace(HOME, status=503)
TIMED_OUT = Answer("/", 0, 5.0, error="timed out")


def slow(seconds: float, waited: float = 0.0) -> Answer:
    return replace(HOME, seconds=seconds, waited=waited)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("turns", "other", "told"),
    [
        ([DOWN, HOME], [HOME], "healthy, version 1.0; 4 pages and an asset, slowest 100 ms"),
        ([TIMED_OUT, TIMED_OUT, HOME], None, "healthy"),
        ([slow(3.0), slow(3.0), slow(3.0), HOME], [HOME], "slowest 100 ms"),
        ([slow(4.0)], [slow(3.5)], "/ took 4.0 s, limit 2 s. The other release took 3.5 s as well."),
        ([slow(4.0, 3.0)], [slow(3.5)], "/ took 4.0 s, limit 2 s. The node is short of CPU."),
        ([slow(4.0, 3.0)], None, "/ took 4.0 s, limit 2 s. The node is short of CPU."),
    ],
)
def test_the_smoke_test_bears_what_passes_and_what_the_live_release_suffers_from_as_well(
    monkeypatch: pytest.MonkeyPatch, turns: list[Answer], other: list[Answer] | None, told: str
) -> None:
    monkeypatch.setattr(smoke, "DEADLINE", 0.05)
    assert told in smoke.test(pages("/", *turns), "1.0", pages("/", *other) if other else None)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("turns", "other", "told"),
    [
        ([BROKEN], [HOME], "/ answered 500; expected 200. The live release took 0.1 s at the same moment."),
        ([BROKEN], None, "/ answered 500; expected 200."),
        ([BROKEN], [slow(4.0)], "/ answered 500; expected 200."),
        ([BROKEN], [TIMED_OUT], "/ answered 500; expected 200."),
        ([BROKEN, BROKEN, BROKEN, HOME, BROKEN, HOME, HOME, BROKEN], [HOME], "/ answered 500"),
        ([slow(4.0)], [slow(0.5)], "/ took 4.0 s, limit 2 s. The live release took 0.5 s at the same moment."),
        ([slow(4.0, 3.0)], [slow(0.5)], "/ took 4.0 s, limit 2 s."),
        ([slow(4.0)], None, "/ took 4.0 s, limit 2 s."),
        ([TIMED_OUT], [HOME], "/ timed out; expected 200."),
        ([TIMED_OUT], [TIMED_OUT], "Not better for 0.05 s, but the other release is late as well."),
        ([DOWN], [DOWN], "Not better for 0.05 s, but the other release fails as well (503)."),
    ],
)
def test_the_smoke_test_refuses_what_is_worse_than_the_live_release(
    monkeypatch: pytest.MonkeyPatch, turns: list[Answer], other: list[Answer] | None, told: str
) -> None:
    monkeypatch.setattr(smoke, "RETRIED", 0.0)
    monkeypatch.setattr(smoke, "DEADLINE", 0.05)
    with pytest.raises(StepFailed) as refused:
        smoke.test(pages("/", *turns), "1.0", pages("/", *other) if other else None)
    assert told in str(refused.value)


def test_the_program_that_asks_says_how_long_the_instance_waited_for_a_cpu() -> None:
    words = (sys.executable, "-", "1", "localhost", "/")
    done = subprocess.run(words, input=probe.PROGRAM, capture_output=True, text=True, check=True)
    (answer,) = probe.answers(done)
    assert '"waited"' in done.stdout and answer.waited >= 0 and answer.error == "[Errno 111] Connection refused"
    assert probe.starved(slow(3.0, 1.5)) and not probe.starved(slow(3.0, 1.4)) and not probe.starved(slow(0.0, 0.0))


def target_of(ask: Callable[..., list[Answer]], others: list[str]) -> Any:
    return SimpleNamespace(
        failure_reason=lambda: "",
        new_instances=lambda: ["one"],
        other_instances=lambda: others,
        ask=ask,
        logs=lambda: "",
    )


def watched(monkeypatch: pytest.MonkeyPatch, seconds: float, *healths: tuple[int, str]) -> str:
    monkeypatch.setattr(watch, "INTERVAL", 0.01)
    target = target_of(replies(*healths), [])
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
    target = target_of(lambda *_: [BROKEN], [])
    with pytest.raises(StepFailed, match="/ answered 500, 2 times in a row"):
        watch.watch(target, 0.0, math.nan, probe_traffic.Traffic(""), lambda: True, lambda _: None)


def counted(requests: float, errors: float, seconds: float) -> watch.Counters:
    """So many responses, each of which took just under `seconds`."""
    return watch.Counters(requests, errors, {seconds / 2: 0, seconds: requests, math.inf: requests})


@pytest.mark.parametrize(
    ("recent", "limit", "probes", "told"),
    [
        (counted(100, 0, 0.5), 1.0, (0, 100, 0.1), ""),
        (counted(100, 5, 0.5), 1.0, (0, 100, 0.1), "5 of 100 responses in the last 10 s were 5xx errors"),
        (counted(101, 5, 0.5), 1.0, (0, 100, 0.1), ""),
        (counted(4, 4, 0.5), 1.0, (0, 100, 0.1), ""),
        (counted(100, 0, 0.5), 1.0, (5, 100, 0.1), "5 of 100 probe requests in the last 10 s failed"),
        (counted(100, 0, 2.0), 1.0, (0, 100, 0.1), "p95 latency 1.9 s, limit 1.0 s (in the last 10 s)"),
        (counted(100, 0, 2.0), 2.1, (0, 100, 0.1), ""),
        (counted(19, 0, 2.0), 1.0, (0, 100, 0.1), ""),
        (
            counted(0, 0, 1.0),
            1.0,
            (0, 5, 1.5),
            "median latency of the probe requests 1.5 s, limit 1.0 s (in the last 10 s)",
        ),
    ],
)
def test_the_verdict_names_what_is_wrong_and_its_limit(
    recent: watch.Counters, limit: float, probes: tuple[int, int, float], told: str
) -> None:
    failed, tried, median = probes
    assert (watch.errors(recent, failed, tried) or watch.slowness(recent, limit, tried, median)[0]) == told


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
            {("2", True, "old"): 30, ("2", False, "new"): 30},
            {("2", True, "old"): 4, ("2", False, "new"): 5},
            "4 of 9 answers at the end of the watch came from 2 (old)",
        ),
        (
            {("1", True): 100, ("2", False): 100},
            {("1", True): 5, ("", True): 1, ("2", False): 4},
            "6 of 10 answers at the end of the watch came from 1, a release that does not say which",
        ),
    ],
)
def test_a_release_is_called_good_only_if_it_alone_answers_and_often_enough(
    answers: dict[tuple[Any, ...], int], recent: dict[tuple[Any, ...], int], told: str
) -> None:
    counts = [
        Counter({probe_traffic.Source(*key): number for key, number in each.items()}) for each in (answers, recent)
    ]
    found = watch.unseen(counts[0], counts[1], "2", "new")
    assert found == told


def watched_beside(ask: Other, other: Other | None, *, seconds: float = 0.1, median: float = 0.1) -> str:
    """The watch of a release whose probe requests take so long, beside another one."""
    target = target_of(lambda name, paths: (ask if name == "one" or not other else other)(paths), ["two"] * bool(other))
    traffic: Any = SimpleNamespace(lately=lambda _: (0, 100, median))
    return watch.watch(target, seconds, 0.1, traffic, lambda: True, lambda _: None)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("ask", "other", "median", "told"),
    [
        (pages("/", TIMED_OUT), pages("/", TIMED_OUT), 0.1, "; / timed out; the other release is late as well"),
        (pages("/", HOME), pages("/", slow(1.5)), 3.0, "; the other release is as slow"),
        (pages("/", HOME), pages("/", slow(1.5, 1.0)), 3.0, "; the node is short of CPU"),
        (pages("/", slow(3.0, 2.0)), None, 3.0, "; the node is short of CPU"),
        (pages("/", TIMED_OUT, TIMED_OUT, HOME), pages("/", HOME), 0.1, "in the last 10 s"),
    ],
)
def test_the_watch_excuses_what_another_release_suffers_from_as_well(
    monkeypatch: pytest.MonkeyPatch, ask: Other, other: Other | None, median: float, told: str
) -> None:
    monkeypatch.setattr(watch, "EXCUSED", 60.0 if other is None or median > 1 else 0.05)
    assert watched_beside(ask, other, median=median).endswith(told)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("ask", "other", "median", "told"),
    [
        (pages("/", BROKEN), pages("/", HOME), 0.1, "/ answered 500, 2 times in a row."),
        (pages("/", BROKEN), pages("/", slow(4.0)), 0.1, "/ answered 500, 2 times in a row."),
        (pages("/", BROKEN), pages("/", BROKEN), 0.1, "/ answered 500; the other release fails as well (500)."),
        (pages("/", TIMED_OUT), pages("/", HOME), 0.1, "/ timed out, "),
        (pages("/", HOME), pages("/", slow(0.1, 0.1)), 3.0, "median latency of the probe requests 3.0 s, limit 1.0 s"),
        (pages("/", slow(3.0, 2.0)), None, 3.0, "median latency of the probe requests 3.0 s, limit 1.0 s"),
    ],
)
def test_the_watch_finds_what_is_worse_than_another_release(
    monkeypatch: pytest.MonkeyPatch, ask: Other, other: Other | None, median: float, told: str
) -> None:
    for name in ("EXCUSED", "LATE"):
        monkeypatch.setattr(watch, name, 0.05)
    monkeypatch.setattr(watch, "WINDOW", 0.1)
    with pytest.raises(StepFailed) as found:
        watched_beside(ask, other, median=median)
    assert str(found.value).startswith(told)


@pytest.mark.parametrize(("seconds", "waited", "excused"), [(0.1, 0.09, ""), (1.5, 1.0, probe.SHORT), (1.5, 0.1, "")])
def test_a_wait_for_a_cpu_excuses_no_more_than_it_explains(seconds: float, waited: float, excused: str) -> None:
    compared = watch.Comparison(target_of(replies(WELL), []), 0.1)
    assert compared.slow(watch.Counters(), 100, 3.0, [slow(seconds, waited)]) == ""
    assert (compared.why, compared.undecided()) == (excused, not excused)


@pytest.mark.usefixtures("quick")
def test_a_release_without_a_ready_instance_is_not_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LATE", 0.05)
    target = target_of(replies(WELL), [])
    target.new_instances = lambda: []
    with pytest.raises(StepFailed, match="no instance is ready, "):
        watch.watch(target, 0.1, math.nan, probe_traffic.Traffic(""), lambda: True, lambda _: None)
    visited: Any = SimpleNamespace(lately=lambda _: (0, 20, 0.1))
    monkeypatch.setattr(watch, "EXCUSED", 0.05)
    note = watch.watch(target, 0.2, math.nan, visited, lambda: True, lambda _: None)
    assert note.endswith("no instance is ready; visitors get their answers")
    visited.lately = lambda _: (1, 20, 0.1)
    with pytest.raises(StepFailed, match="no instance is ready, "):
        watch.watch(target, 0.2, math.nan, visited, lambda: True, lambda _: None)
