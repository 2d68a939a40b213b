"""Releases on a real Kubernetes: what visitors see of good and bad ones, of switches, and of ways back.

Doubles know neither conntrack nor the kubelet. The visitors are strict clients that never close a connection, at the
Service itself and behind an nginx that keeps connections to it. At the end there is one table of figures.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import FIRST, NGINX, POSTGRES, REDIS, Environment, Request, Run, load, release, table
from tests.e2e.test_deploy import spoil, steps, wsgi

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
    print(
        "by the old: answers of the release that was left, after the Service selected the other; 5 s later: of these,"
    )
    print("those that came later than that. last failed: seconds from the verdict to the last failed request.")


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


def measure(
    figures: Figures, scenario: str, place: Environment, run: Run, old: str = "", verdict: float = 0.0
) -> tuple[list[Request], list[Request]]:
    """Adds a row about what visitors saw from the beginning of `run` until now.

    Returns the requests that failed, and those that the `old` release answered over SETTLED seconds after it was left.
    """
    seen = [each for each in place.requests() if each.at >= run.began]
    failed = [each for each in seen if each.failed]
    switched = next((at for at, _ in place.switches if at >= run.began), run.ended)
    left = [each for each in seen if old and each.release == old and each.at > switched]
    late = [each for each in left if each.at > switched + SETTLED]
    after = f"{max(0.0, failed[-1].at - verdict):.1f}" if failed and verdict else "-"
    cells = (
        run.code,
        f"{run.seconds:.0f}",
        len(seen),
        len(failed),
        len(left) if old else "-",
        len(late) if old else "-",
    )
    figures.append((scenario, *map(str, cells), after))
    return failed, late


def said_of(place: Environment, failed: list[Request]) -> str:
    """What failed, and what the app says of it."""
    return f"{Counter(map(str, failed))}\n{place.errors()}"


def verdict_of(run: Run) -> float:
    """When the deployment found the release bad."""
    return float(next(each["at"] for each in run.events if each.get("outcome") == "failed"))


# Rolling


@rolling
def test_a_good_rolling_release_fails_nobody(place: Environment, good: str, figures: Figures) -> None:
    run = place.deploy(release(good, "0.2.0"), "--watch", "10")
    failed, _ = measure(figures, "rolling, good", place, run)
    assert run.code == 0, run.said
    assert not failed, said_of(place, failed)


@rolling
def test_a_release_that_crashes_meets_no_visitor(place: Environment, good: str, figures: Figures) -> None:
    run = place.deploy(release(good, "0.3.0", spoil("raise RuntimeError('broken on purpose')")))
    failed, _ = measure(figures, "rolling, crashes", place, run)
    assert run.code == 5 and steps(run.events)["start"] == "failed", run.said
    assert not failed, said_of(place, failed)


@rolling
def test_a_rolling_release_that_fails_its_visitors_is_taken_back(
    place: Environment, good: str, figures: Figures
) -> None:
    run = place.deploy(release(good, "0.4.0", FAILS), "--watch", "60")
    place.settle()
    failed, _ = measure(figures, "rolling, 500 to visitors", place, run, verdict=verdict_of(run))
    assert run.code == 5, run.said
    assert failed and {each.outcome for each in failed} == {"500"}


@rolling
def test_rollback_sh_fails_nobody_in_a_rolling_environment(place: Environment, figures: Figures) -> None:
    run = place.rollback(FIRST)
    failed, _ = measure(figures, "rolling, rollback.sh", place, run)
    assert run.code == 0, run.said
    assert not failed, said_of(place, failed)


# Blue-green


@blue_green
def test_a_good_switch_fails_nobody(place: Environment, good: str, figures: Figures) -> None:
    run = place.deploy(release(good, "1.2.0"), "--watch", "20")
    failed, _ = measure(figures, "blue-green, good", place, run, old=FIRST)
    assert run.code == 0, run.said
    assert not failed, said_of(place, failed)


@blue_green
def test_rollback_sh_moves_everybody_back(place: Environment, figures: Figures) -> None:
    run = place.rollback(FIRST)
    time.sleep(SETTLED + 5)  # what is measured is what comes after it
    failed, _ = measure(figures, "blue-green, rollback.sh", place, run, old="1.2.0")
    assert run.code == 0, run.said
    assert not failed, said_of(place, failed)


@blue_green
def test_a_release_that_fails_its_visitors_is_taken_back(place: Environment, good: str, figures: Figures) -> None:
    run = place.deploy(release(good, "1.3.0", FAILS), "--watch", "60")
    place.settle()
    failed, _ = measure(figures, "blue-green, 500 to visitors", place, run, verdict=verdict_of(run))
    assert run.code == 5, run.said
    assert failed and {each.outcome for each in failed} == {"500"}
