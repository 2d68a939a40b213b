"""Releases on a real Kubernetes: what visitors see of good and bad ones, of switches, and of ways back.

Doubles know neither conntrack nor the kubelet. The visitors are strict clients that never close a connection, at the
Service itself and behind an nginx that keeps connections to it. At the end there is one table of figures.
"""

import os
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import demo  # of scripts/
import pytest

from tests.e2e.cluster import (
    APP,
    FIRST,
    NGINX,
    POSTGRES,
    REDIS,
    Environment,
    Moment,
    Pair,
    Request,
    Run,
    Writers,
    killed,
    load,
    release,
    table,
)
from tests.e2e.test_deploy import spoil, steps, wsgi
from tests.support.servers import ROOT, eventually

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
CRASHES = spoil("raise RuntimeError('broken on purpose')")
# To visitors only, as the smoke test finds what everybody gets.
FAILS = wsgi("if real: s('500 Internal Server Error', [('Content-Length', '0')]); return [b'']")
UNREADY = wsgi("if e['PATH_INFO'] == '/health/ready/': s('503 Unready', [('Content-Length', '0')]); return [b'']")
SLOW = wsgi("if e['PATH_INFO'] == '/': time.sleep(3)")
SLOW_TO_VISITORS = wsgi("if real: time.sleep(2)")
LATEST = max(path.stem for path in (ROOT / "ledger" / "migrations").glob("0*.py"))
# The home page reads this table.
MIGRATION = f"""\
from django.db import migrations

class Migration(migrations.Migration):
    dependencies = [("ledger", "{LATEST}")]
    operations = [migrations.RunSQL("LOCK TABLE ledger_environment; SELECT pg_sleep(20)")]
"""
WRITE = f"open('/app/ledger/migrations/0099_block.py', 'w').write(bytes.fromhex('{MIGRATION.encode().hex()}').decode())"
BLOCKS = f'python -c "{WRITE}"'
# A cluster whose API server comes back may take its only node for lost until that has reported, and with it the stores
# of these tests. Traffic moves only once the controllers are connected again.
NODE_LOST = {"503"}
WAIT = ("--wait", "100")  # seconds until the lock of a run that was killed has expired
# What the deployer, and rollback.sh, say to kubectl when they move the traffic.
DEPLOYER_SWITCHES = f" patch service {APP} --type merge"
SCRIPT_SWITCHES = f" patch service {APP} --type=merge"
SCRIPT_HURRIES = f" patch deployment {APP} --type=merge"


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
    one = Pair(checkout) if request.param == "pair" else Environment(checkout, request.param)
    try:
        one.create()
        with one.visited():
            yield one
    finally:
        one.delete()


rolling = pytest.mark.parametrize("place", ["staging"], indirect=True)
blue_green = pytest.mark.parametrize("place", ["production"], indirect=True)
per_colour = pytest.mark.parametrize("place", ["pair"], indirect=True)


@dataclass
class Seen:
    """What visitors saw from the beginning of a command until now."""

    requests: list[Request]
    failed: list[Request]
    late: list[Request]  # answers of the release that was left, over SETTLED seconds after it was

    def failed_outcomes(self) -> set[str]:
        return {each.outcome for each in self.failed}

    def answered_by(self, source: str) -> int:
        """How many answers came from this release, or from this revision."""
        return sum(source in (each.release, each.revision) for each in self.requests)


def measure(figures: Figures, scenario: str, place: Environment, run: Run, old: str = "", bad: float = 0.0) -> Seen:
    """Adds a row. `old` is the release, or the revision, that a switch has left; `bad` when a release was found bad, if
    not by `run`.
    """
    requests = [each for each in place.requests() if each.at >= run.began]
    failed = [each for each in requests if each.failed]
    switched = next((at for at, _ in place.switches if at >= run.began), run.ended)
    left = [each for each in requests if old and old in (each.release, each.revision) and each.at > switched]
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


@pytest.fixture
def away() -> Iterator[Callable[[str], Moment]]:
    """Stops the API server when a command prints this, and waits at the end until it is up again."""
    words, begun = shlex.split(os.environ.get("KUBECONFIG_E2E_API_AWAY", "")), []
    if not words:
        pytest.skip("KUBECONFIG_E2E_API_AWAY is not set; it takes a command that stops the API server for 25 s")
    yield lambda text: Moment(text, lambda _: begun.append(subprocess.Popen(words)))
    for process in begun:
        assert process.wait(180) == 0


def begins(step: str) -> str:
    """What a run prints with --json when this step begins."""
    return f'"name": "{step}", "outcome": "running"'


# Rolling


@rolling
def test_a_good_rolling_release_fails_nobody(place: Environment, good: str, figures: Figures) -> None:
    run = place.deploy(release(good, "0.2.0"), "--watch", "10")
    seen = measure(figures, "rolling, good", place, run)
    assert run.code == 0, run.said
    assert not seen.failed, told(place, seen.failed)


@rolling
@pytest.mark.parametrize(
    ("version", "what", "script", "failed_step"),
    [
        ("0.3.1", "crashes", CRASHES, "start"),
        pytest.param("0.3.2", "is never ready", UNREADY, "start", marks=pytest.mark.full),
        pytest.param("0.3.3", "is slow", SLOW, "smoke test", marks=pytest.mark.full),
        pytest.param("0.3.4", "blocks by its migration", BLOCKS, "migrate", marks=pytest.mark.full),
    ],
)
def test_a_bad_release_fails_no_visitor(
    place: Environment, good: str, figures: Figures, version: str, what: str, script: str, failed_step: str
) -> None:
    run = place.deploy(release(good, version, script), "--timeout", "30")
    seen = measure(figures, f"rolling, {what}", place, run)
    assert run.code == 5 and steps(run.events)[failed_step] == "failed", run.said
    assert not seen.failed and not seen.answered_by(version), told(place, seen.failed)
    assert failed_step != "migrate" or "(MIGRATION_BLOCK_LIMIT)" in run.said, run.said


@rolling
@pytest.mark.parametrize(
    ("version", "what", "script", "outcomes"),
    [
        ("0.4.0", "500 to visitors", FAILS, {"500"}),
        pytest.param("0.4.1", "slow to visitors", SLOW_TO_VISITORS, set(), marks=pytest.mark.full),
    ],
)
def test_a_rolling_release_that_is_bad_for_its_visitors_is_taken_back(
    place: Environment, good: str, figures: Figures, version: str, what: str, script: str, outcomes: set[str]
) -> None:
    run = place.deploy(release(good, version, script), "--watch", "60")
    place.settle()
    seen = measure(figures, f"rolling, {what}", place, run)
    assert run.code == 5, run.said
    assert {each.outcome for each in seen.failed} == outcomes, told(place, seen.failed)


@rolling
def test_a_run_that_is_killed_in_its_watch_is_resumed(place: Environment, good: str, figures: Figures) -> None:
    version = release(good, "0.5.0")
    run = place.deploy(version, "--watch", "60", when=Moment(begins("watch"), killed))
    assert run.code == -9, run.said
    measure(figures, "rolling, killed in the watch", place, run)
    after = place.deploy(version, "--watch", "10", *WAIT)
    seen = measure(figures, "  the next run", place, after)
    assert after.code == 0 and "Resuming deployment" in after.said, after.said
    assert not seen.failed, told(place, seen.failed)


@rolling
def test_a_rollback_that_is_killed_is_resumed(place: Environment, good: str, figures: Figures) -> None:
    run = place.deploy(release(good, "0.5.1", FAILS), "--watch", "60", path=place.dying(SCRIPT_HURRIES))
    assert run.code == -9, run.said
    place.settle()
    measure(figures, "rolling, killed in the rollback", place, run, bad=run.ended)
    after = place.deploy("0.5.0", "--watch", "10", *WAIT)
    seen = measure(figures, "  the next run", place, after)
    assert after.code == 0, after.said
    assert not seen.failed, told(place, seen.failed)
    assert place.requests()[-1].release == "0.5.0"


@rolling
def test_without_the_api_server_a_good_release_is_still_good(
    place: Environment, good: str, figures: Figures, away: Callable[[str], Moment]
) -> None:
    run = place.deploy(release(good, "0.2.0"), "--watch", "45", when=away(begins("watch")))
    seen = measure(figures, "rolling, API server down in the watch", place, run)
    assert run.code == 0 and "API server does not answer" in run.said, run.said
    assert seen.failed_outcomes() <= NODE_LOST, told(place, seen.failed)


@rolling
def test_a_paused_deployment_is_refused_before_anything(place: Environment, good: str, figures: Figures) -> None:
    place.kubectl("rollout", "pause", f"deployment/{APP}")
    before = place.kubectl("get", "deployments,jobs,pods", "--output", "name")
    try:
        for run, who in ((place.deploy("0.5.0"), "manage.py deploy"), (place.rollback(FIRST), "rollback.sh")):
            measure(figures, f"rolling, paused, {who}", place, run)
            assert run.code == 4 and "is paused. Resume it first" in run.said, run.said
        assert place.kubectl("get", "deployments,jobs,pods", "--output", "name") == before
    finally:
        place.kubectl("rollout", "resume", f"deployment/{APP}")
        place.settle()


@rolling
@pytest.mark.full
def test_on_a_node_that_is_short_of_cpu_a_good_release_is_good(place: Environment, good: str, figures: Figures) -> None:
    version = release(good, "0.5.2")
    with place.busy(pods=2, cpu="500m"):
        run = place.deploy(version, "--watch", "20", "--timeout", "180")
        short = "short of CPU" in run.said
        seen = measure(figures, f"rolling, node short of CPU ({'said' if short else 'not noticed'})", place, run)
    assert run.code == 0, run.said
    assert not seen.failed, told(place, seen.failed)


@rolling
def test_settings_that_break_the_pages_meet_no_visitor(place: Environment, figures: Figures) -> None:
    before = place.live()
    with place.hosts("typo.example.com"):
        run = place.deploy_settings("0200000", "--watch", "10")
    seen = measure(figures, "rolling, wrong settings deployed", place, run)
    assert run.code == 5, run.said
    assert not seen.failed, told(place, seen.failed)
    assert place.tasks() == place.live() == before


@rolling
def test_settings_that_kubectl_applied_are_rolled_back(place: Environment, figures: Figures) -> None:
    before, revision = place.live(), place.requests()[-1].revision
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
    assert place.requests()[-1].revision == revision
    assert place.tasks() == place.live() == before


@rolling
def test_rollback_sh_fails_nobody_in_a_rolling_environment(place: Environment, figures: Figures) -> None:
    run = place.rollback(FIRST)
    seen = measure(figures, "rolling, rollback.sh", place, run)
    assert run.code == 0, run.said
    assert not seen.failed, told(place, seen.failed)
    assert place.tasks() == place.live() and any(f":{FIRST} " in each for each in place.tasks())


@rolling
def test_rollback_sh_bears_an_api_server_that_goes_away(
    place: Environment, figures: Figures, away: Callable[[str], Moment]
) -> None:
    run = place.rollback("0.2.0", when=away("replicas updated"))
    seen = measure(figures, "rolling, rollback.sh, API server down", place, run)
    assert run.code == 0 and "The API server does not answer" in run.said, run.said
    assert seen.failed_outcomes() <= NODE_LOST, told(place, seen.failed)


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
def test_new_settings_go_live_in_the_other_colour_and_back(place: Environment, figures: Figures) -> None:
    assert (
        place.manage("verify", "-e", place.name, "--watch", "10").code == 0
    )  # makes the first release a rollback target
    before, old = place.live(), place.requests()[-1].revision
    with place.hosts(f"{place.host},{place.node},more.example.com"):
        run = place.deploy_settings("0100000", "--watch", "20")
    seen = measure(figures, "blue-green, new settings", place, run, old=old)
    assert run.code == 0, run.said
    assert not seen.failed and not seen.late, told(place, seen.failed or seen.late)
    new = place.requests()[-1].revision
    assert new != old and place.tasks() == place.live() != before
    run = place.rollback("--previous", "--reason", "Tried")
    time.sleep(SETTLED + 5)
    seen = measure(figures, "blue-green, settings rolled back", place, run, old=new)
    assert run.code == 0, run.said
    assert not seen.failed and not seen.late, told(place, seen.failed or seen.late)
    assert place.tasks() == place.live() == before


@blue_green
def test_a_run_that_is_killed_between_the_mark_and_the_selector_is_resumed(
    place: Environment, good: str, figures: Figures
) -> None:
    version = release(good, "1.4.0")
    run = place.deploy(version, path=place.dying(DEPLOYER_SWITCHES))
    assert run.code == -9, run.said
    time.sleep(SETTLED)
    seen = measure(figures, "blue-green, killed at the selector", place, run)
    assert not seen.failed and not seen.answered_by(version), told(place, seen.failed)
    after = place.deploy(version, "--watch", "20", *WAIT)
    seen = measure(figures, "  the next run", place, after, old=FIRST)
    assert after.code == 0, after.said
    assert not seen.failed and not seen.late, told(place, seen.failed or seen.late)


@blue_green
def test_without_the_api_server_a_switch_waits(
    place: Environment, good: str, figures: Figures, away: Callable[[str], Moment]
) -> None:
    run = place.deploy(release(good, "1.5.0"), "--watch", "20", when=away(begins("switch")))
    seen = measure(figures, "blue-green, API server down in the switch", place, run, old="1.4.0")
    assert run.code == 0 and "API server does not answer" in run.said, run.said
    assert seen.failed_outcomes() <= NODE_LOST and seen.answered_by("1.5.0"), told(place, seen.failed)


@blue_green
def test_a_rollback_between_colours_that_is_killed_is_resumed(place: Environment, good: str, figures: Figures) -> None:
    live = place.requests()[-1].release
    run = place.deploy(release(good, "1.6.0", FAILS), "--watch", "60", path=place.dying(SCRIPT_SWITCHES))
    assert run.code == -9, run.said
    after = place.manage("rollback", "-e", place.name, "--json", "--reason", "500s", *WAIT)
    place.settle()
    measure(figures, "blue-green, killed in the rollback", place, run)
    seen = measure(figures, "  manage.py rollback", place, after, bad=after.began)
    assert after.code == 0, after.said
    assert {each.outcome for each in seen.failed} == {"500"}, told(place, seen.failed)
    assert place.requests()[-1].release == live


@blue_green
def test_a_release_that_fails_its_visitors_is_taken_back(place: Environment, good: str, figures: Figures) -> None:
    run = place.deploy(release(good, "1.3.0", FAILS), "--watch", "60")
    place.settle()
    seen = measure(figures, "blue-green, 500 to visitors", place, run)
    assert run.code == 5, run.said
    assert seen.failed and {each.outcome for each in seen.failed} == {"500"}, told(place, seen.failed)


# A database per colour


COLUMN = f"python -c \"exec(bytes.fromhex('{demo.COLUMN.encode().hex()}'))\""
PER_COLOUR = ("--database", "per-colour")


def nothing_is_lost(place: Pair, writers: Writers) -> None:
    """Asserts that each acknowledged row is in both databases, once, and that no write failed."""
    assert not writers.failed, f"{writers.outcomes}\n{place.errors()}"
    for colour in place.servers:
        eventually(lambda: len(place.ask(colour, ROWS)) >= len(writers.rows), every=1)
        rows = Counter(place.ask(colour, ROWS))
        assert not set(writers.rows) - rows.keys() and set(rows.values()) == {1}, colour


ROWS = "select version from ledger_release where version like 'row-%'"


@per_colour
def test_with_two_databases_releases_and_rollbacks_fail_nobody_and_lose_nothing(
    place: Pair, good: str, figures: Figures
) -> None:
    with place.written() as writers:
        run = place.deploy(release(good, "5.0.0", COLUMN), *PER_COLOUR, "--watch", "20")
        seen = measure(figures, "two databases, good", place, run, old=FIRST)
        assert run.code == 0 and steps(run.events)["switch database"] == "succeeded", run.said
        assert place.writable() == ["green"] and not seen.failed and not seen.late, told(place, seen.failed)
        run = place.rollback(FIRST, "--reason", "Tried")
        time.sleep(SETTLED + 5)
        seen = measure(figures, "two databases, rollback.sh", place, run, old="5.0.0")
        assert run.code == 0 and place.writable() == ["blue"], run.said
        assert not seen.failed and not seen.late, told(place, seen.failed)
        run = place.rollback("5.0.0")
        assert run.code == 4 and "needs the writes in the green database" in run.said, run.said
        run = place.deploy(release(good, "5.1.0", f"{COLUMN} && {FAILS}"), *PER_COLOUR, "--watch", "60")
        place.settle()
        seen = measure(figures, "two databases, 500 to visitors", place, run)
        assert run.code == 5 and place.writable() == ["blue"], run.said
        assert {each.outcome for each in seen.failed} == {"500"}, told(place, seen.failed)
    writers.outcomes.pop("500", None)  # of the bad release
    nothing_is_lost(place, writers)
    figures.append((f"  {len(writers.rows)} rows, 0 lost; longest write {writers.longest:.2f} s", *"-------"))


@per_colour
@pytest.mark.full
@pytest.mark.parametrize(("number", "step"), list(enumerate(("prepare database", "switch database", "switch"))))
def test_with_two_databases_a_run_that_is_killed_is_resumed_and_loses_nothing(
    place: Pair, good: str, figures: Figures, number: int, step: str
) -> None:
    version = release(good, f"6.{number}.0", COLUMN)
    with place.written() as writers:
        run = place.deploy(version, *PER_COLOUR, when=Moment(begins(step), killed))
        assert run.code == -9, run.said
        measure(figures, f"two databases, killed in {step}", place, run)
        after = place.deploy(version, *PER_COLOUR, "--watch", "10", *WAIT)
        seen = measure(figures, "  the next run", place, after)
        assert after.code == 0 and len(place.writable()) == 1, after.said
        assert not seen.failed, told(place, seen.failed)
    nothing_is_lost(place, writers)
