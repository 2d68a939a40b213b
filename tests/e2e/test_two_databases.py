"""A database per colour in the stack: releases, bad ones and rollbacks under load lose no acknowledged write."""

import json
import os
import signal
import subprocess
import time
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import demo  # of scripts/
import pytest

from tests.e2e.stack import LABEL, clone, closing, docker, say
from tests.e2e.test_deploy import ENVIRONMENT, Deploying, variant
from tests.support.servers import PATIENCE, ROOT

PER_COLOUR = ("--database", "per-colour")
TURNS = 20  # switches, and as many rollbacks
RATES = {"API_RATE_PER_TOKEN": "100000", "API_RATE_PER_ADDRESS": "100000"}


def test_the_demonstration_fails_nobody_and_loses_nothing(tmp_path: Path, full: bool) -> None:
    """A release with two databases, a rollback, and a bad release that is rolled back with its database.

    With --full a release with one database comes first, as test_deploy.py has it, and there are twice the visitors.
    """
    words = ["./run", "demo", "--json", str(tmp_path / "figures"), "--picture", str(tmp_path / "demo.svg")]
    words += [] if full else ["--short"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "figures").read_text())
    say(str(found))
    assert (found["failed"], found["lost"], found["doubled"], found["missing_on_the_other_side"]) == (0, 0, 0, 0)
    assert found["database_switches"] == len(found["held_ms"]) == 4 and found["writes"] > 500
    drawn = xml.etree.ElementTree.parse(tmp_path / "demo.svg").getroot()
    assert sum(1 for each in drawn.iter() if each.tag.endswith("circle")) == found["writes"]


class Pair(Deploying):
    """A stack with two databases."""

    def bluegreen(self, *words: str, kill_at: str = "") -> tuple[int, list[dict[str, Any]]]:
        """The exit code and the events of one action, as the deployer runs it, killed once it has said `kill_at`."""
        name = f"{self.name}-action"
        run = (
            "docker",
            "compose",
            "--progress",
            "quiet",
            "run",
            "--rm",
            "--no-deps",
            "-T",
            "--name",
            name,
            "bluegreen",
        )
        events = []
        with subprocess.Popen(
            [*run, "python", "manage.py", "bluegreen", *words, "--json"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout
            for line in process.stdout:
                if line.startswith("{"):
                    events.append(json.loads(line))
                    if kill_at and events[-1].get("text") == kill_at:
                        docker("kill", "--signal", "KILL", name, check=False)
        return process.returncode, events

    def writable(self) -> list[str]:
        """The services whose database accepts writes."""
        return [name for name in ("db", "db_green") if self.ask(name, "select last_value from bg.fence") == "1"]

    def ask(self, service: str, statement: str) -> str:
        words = ("psql", "--username", "postgres", "--dbname", "backstagetest1", "-qtAc", statement)
        return self.exec(service, *words).strip()

    def api_token(self) -> str:
        words = ("python", "manage.py", "api_token", "create", "writer", "--environment", "development", "--register")
        return self.exec("web", *words).strip()

    def all_there(self, load: demo.Load) -> None:
        """Asserts that each acknowledged write is in both databases, once, and that no request failed."""
        assert not load.failed and not load.forgotten, load.failed
        for service in ("db", "db_green"):
            rows = Counter(self.ask(service, "select version from ledger_release where version like 'row-%'").split())
            assert not set(load.rows) - rows.keys() and set(rows.values()) == {1}, service
            names = dict(
                line.split("|", 1)
                for line in self.ask(service, "select email, display_name from accounts_user").splitlines()
            )
            assert {email: names.get(email) for email in load.names} == load.names, service


@pytest.fixture(scope="module")
def pair(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = clone(tmp_path_factory.mktemp("pair"))
    for tag in ("1.0.0", "first"):
        docker("tag", image, f"{LABEL}:{tag}")
    profile = {"COMPOSE_PROFILES": "two-databases", "DATABASE_PER_COLOUR": "true"}
    stack = Pair(folder, "pair", f"{LABEL}:first", **profile, **RATES)
    stack.use(LABEL)
    demo.prepare(folder)
    with closing(stack):
        yield stack


def release(pair: Pair, version: str, change: str = demo.COLUMN) -> str:
    """A release with a schema of its own."""
    return variant(pair.variables["IMAGE"], version, f"python -c \"exec(bytes.fromhex('{change.encode().hex()}'))\"")


@pytest.mark.full
def test_a_run_killed_in_each_of_its_steps_is_resumed_and_loses_nothing(pair: Pair) -> None:
    version = release(pair, "2.0.0")
    with demo.Load(pair.port, pair.api_token()) as load:
        for step in ("prepare database", "start", "smoke test", "switch database", "switch", "watch"):
            process = pair.manage("deploy", version, *ENVIRONMENT, *PER_COLOUR, "--json", "--watch", "20")
            assert process.stdout
            for line in process.stdout:
                event = json.loads(line)
                if (event["event"], event.get("name"), event.get("outcome")) == ("step", step, "running"):
                    break
            time.sleep(1)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=PATIENCE)
            say(f"killed in {step}, with {pair.writable() or ['none']} writable")
        code, _, said = pair.deploy(version, *PER_COLOUR, "--watch", "3")
        assert code == 0, said
        assert pair.version() == version and pair.writable() == ["db_green"]
        code, _, said = pair.command("rollback", *ENVIRONMENT, "--reason", "Tried", "--json")
        assert code == 0 and pair.version() == "1.0.0" and pair.writable() == ["db"], said
    pair.all_there(load)


@pytest.mark.full
def test_twenty_switches_and_rollbacks_under_load_fail_nobody_and_lose_nothing(pair: Pair) -> None:
    code, _, said = pair.deploy(release(pair, "3.0.0"), *PER_COLOUR, "--watch", "3")
    assert code == 0, said
    held = []
    with demo.Load(pair.port, pair.api_token()) as load:
        for turn in range(2 * TURNS):
            code, events = pair.bluegreen("switch" if turn % 2 else "rollback")
            assert code == 0, events
            held.append(events[-1]["held_seconds"])
            assert pair.writable() == ["db_green" if turn % 2 else "db"]
    median = sorted(held)[len(held) // 2]
    say(f"writes held for {median * 1000:.0f} ms (median), {max(held) * 1000:.0f} ms (longest); {load.outcomes}")
    pair.all_there(load)


@pytest.mark.full
def test_a_switch_killed_after_each_step_in_both_directions_leaves_one_writable(pair: Pair) -> None:
    code, _, said = pair.deploy(release(pair, "3.0.0"), *PER_COLOUR, "--watch", "3")
    assert code == 0, said
    steps = ("claimed source", "claimed target", "locked", "fenced", "arrived", "committed", "left")
    with demo.Load(pair.port, pair.api_token()) as load:
        for action, aim in (("rollback", "db"), ("switch", "db_green")):
            for step in steps:
                pair.bluegreen(action, kill_at=step)
                assert len(pair.writable()) < 2
                code, events = pair.bluegreen("recover")
                assert code == 0 and len(pair.writable()) == 1, events
                say(f"{action} killed after {step!r}: {events[-1]['direction']}")
                if pair.writable() == [aim]:  # for the next one
                    code, events = pair.bluegreen("switch" if action == "rollback" else "rollback")
                    assert code == 0, events
            code, events = pair.bluegreen(action)
            assert code == 0 and pair.writable() == [aim], events
    pair.all_there(load)
