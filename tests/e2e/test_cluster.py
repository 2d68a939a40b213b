"""Releases on a real Kubernetes: what visitors see of good and bad ones, of switches, and of ways back.

Doubles know neither conntrack nor the kubelet. The visitors are strict clients that never close a connection, at the
Service itself and behind an nginx that keeps connections to it. At the end there is one table of figures.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.cluster import APP, FIRST, NGINX, POSTGRES, REDIS, Environment, Request, Run, load, release, table
from tests.e2e.test_deploy import spoil, steps, wsgi
from tests.support.servers import eventually

pytestmark = pytest.mark.skipif(not os.environ.get("KUBECONFIG_E2E"), reason="KUBECONFIG_E2E names no cluster")

Figures = list[tuple[str, ...]]

HEADINGS: tuple[str, ...] = (
    "scenario",
    "exit",
    "seconds",
    "requests",
    "failed",
    "by the old",
    "5 s later",
    "last failed",
)
SETTLED = 5.0  # seconds after which a switch has moved every client
# To visitors only, as the smoke test finds what everybody gets.
FAILS = wsgi("if real: s('500 Internal Server Error', [('Content-Length', '0')]); return [b'']")


@pytest.fixture(scope="module")
def figures() -> Iterator[Figures]:
    """The rows of the table, which is printed at the end."""
    rows = [HEADINGS]
    yield rows
    print(f"\n\n{table(rows)}\n")
    print("by the old: answers of the release that was left, since the Service selects the other; 5 s later: of these,")
    print("those after that. last failed: seconds from the verdict to the last failed request.")


@pytest.fixture(scope="module")
def good(checkout: Path, image: str) -> str:
    """The image; the first release of both environments is in the cluster, as is what they need."""
    release(image, FIRST)
    load(POSTGRES, REDIS, NGINX)
    return image


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, checkout: Path, good: str) -> Iterator[Environment]:
    """The environment of that name, with visitors; it is gone before the next one comes."""
    one = Environment(checkout, request.param)
    try:
        one.create()
        with one.visited():
            yield one
    finally:
        one.delete()


rolling = pytest.mark.parametrize("place", ["staging"], indirect=True)
blue_green = pytest.mark.parametrize("place", ["production"], indirect=True)


@dataclass
class Seen:
    """What visitors saw from the beginning of a command until now."""

    requests: list[Request]
    failed: list[Request]
    late: list[Request]  # answers of the release that was left, over SETTLED seconds after it was

    def answered_by(self, version: str) -> int:
        return sum(each.release == version for each in self.requests)


def measure(figures: Figures, scenario: str, place: Environment, run: Run, old: str = "", bad: float = 0.0) -> Seen:
    """Adds a row. `old` is the release that a switch has left; `bad` when a release was found bad, if not by `run`."""
    requests = [each for each in place.requests() if each.at >= run.began]
    failed = [each for each in requests if each.failed]
    switched = next((at for at, _ in place.switches if at >= run.began), run.ended)
    left = [each for each in requests if old and each.release == old and each.at > switched]
    late = [each for each in left if each.at > switched + SETTLED]
    bad = bad or next((each["at"] for each in run.events if each.get("outcome") == "failed"), 0.0)
    counts = (run.code, round(run.seconds), len(requests), len(failed))
    old_counts = (len(left), len(late)) if old else ("-", "-")
    after = f"{max(0.0, failed[-1].at - bad):.1f}" if failed and bad else "-"
    figures.append((scenario, *map(str, counts + old_counts), after))
    return Seen(requests, failed, late)


def told(place: Environment, requests: list[Request]) -> str:
    """What went wrong, and what the app logged."""
    return f"{Counter(map(str, requests))}\n{place.errors()}"


# Rolling


@rolling
def test_a_good_rolling_release_fails_nobody(place: Environment, good: str, figures: Figures) -> None:
    run = place.deploy(release(good, "0.2.0"), "--watch", "10")
    seen = measure(figures, "rolling, good", place, run)
    assert run.code == 0, run.said
    assert not seen.failed, told(place, seen.failed)


@rolling
def test_a_release_that_crashes_meets_no_visitor(place: Environment, good: str, figures: Figures) -> None:
    run = place.deploy(release(good, "0.3.0", spoil("raise RuntimeError('broken on purpose')")))
    seen = measure(figures, "rolling, crashes", place, run)
    assert run.code == 5 and steps(run.events)["start"] == "failed", run.said
    assert not seen.failed, told(place, seen.failed)


@rolling
def test_a_rolling_release_that_fails_its_visitors_is_taken_back(
    place: Environment, good: str, figures: Figures
) -> None:
    run = place.deploy(release(good, "0.4.0", FAILS), "--watch", "60")
    place.settle()
    seen = measure(figures, "rolling, 500 to visitors", place, run)
    assert run.code == 5, run.said
    assert seen.failed and {each.outcome for each in seen.failed} == {"500"}, told(place, seen.failed)


@rolling
def test_settings_that_break_the_pages_meet_no_visitor(place: Environment, figures: Figures) -> None:
    with place.hosts("typo.example.com"):
        run = place.manage("deploy", "--config", "-e", place.name, "--json", "--commit", "0200000", "--watch", "10")
    seen = measure(figures, "rolling, wrong settings deployed", place, run)
    assert run.code == 5, run.said
    assert not seen.failed, told(place, seen.failed)


@rolling
def test_settings_that_kubectl_applied_are_rolled_back(place: Environment, figures: Figures) -> None:
    with place.hosts("typo.example.com"):
        applied = place.apply_again()
    assert applied.code == 0, applied.said
    place.kubectl("rollout", "status", f"deployment/{APP}", "--timeout=5m")
    eventually(lambda: place.requests()[-1].outcome == "400", every=1)
    run = place.rollback("--previous", "--reason", "Wrong hosts")
    place.settle()
    seen = measure(figures, "rolling, settings rolled back", place, run, bad=run.began)
    assert run.code == 0, run.said
    assert {each.outcome for each in seen.failed} == {"400"}, told(place, seen.failed)
    assert seen.answered_by("0.2.0")


@rolling
def test_rollback_sh_fails_nobody_in_a_rolling_environment(place: Environment, figures: Figures) -> None:
    run = place.rollback(FIRST)
    seen = measure(figures, "rolling, rollback.sh", place, run)
    assert run.code == 0, run.said
    assert not seen.failed, told(place, seen.failed)


# Blue-green


@blue_green
def test_a_good_switch_fails_nobody(place: Environment, good: str, figures: Figures) -> None:
    run = place.deploy(release(good, "1.2.0"), "--watch", "20")
    seen = measure(figures, "blue-green, good", place, run, old=FIRST)
    assert run.code == 0, run.said
    assert not seen.failed, told(place, seen.failed)
    assert seen.answered_by("1.2.0")
    assert not seen.late, told(place, seen.late)


@blue_green
def test_rollback_sh_moves_everybody_back(place: Environment, figures: Figures) -> None:
    run = place.rollback(FIRST)
    time.sleep(SETTLED + 5)  # what is measured is what comes after it
    seen = measure(figures, "blue-green, rollback.sh", place, run, old="1.2.0")
    assert run.code == 0, run.said
    assert not seen.failed, told(place, seen.failed)
    assert seen.answered_by(FIRST)
    assert not seen.late, told(place, seen.late)


@blue_green
def test_a_release_that_fails_its_visitors_is_taken_back(place: Environment, good: str, figures: Figures) -> None:
    run = place.deploy(release(good, "1.3.0", FAILS), "--watch", "60")
    place.settle()
    seen = measure(figures, "blue-green, 500 to visitors", place, run)
    assert run.code == 5, run.said
    assert seen.failed and {each.outcome for each in seen.failed} == {"500"}, told(place, seen.failed)
