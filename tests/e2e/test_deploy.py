"""manage.py deploy and rollback on the compose target: good releases, bad ones, and runs that are killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.e2e.stack import LABEL, Client, Load, Stack, clone, closing, docker, keep_alive, say
from tests.support.servers import PATIENCE, eventually

ENVIRONMENT = ("-e", "development")
SEEN = 500  # POST requests at least, for a load to have seen a release go out and come back
FAIL = 'raise RuntimeError("broken on purpose")'


def spoil(*lines: str) -> str:
    """A shell command that ends the app's wsgi.py with these lines."""
    code = "\n".join(("import os, signal, time", *lines)) + "\n"
    program = f"import sys; sys.stdout.write(bytes.fromhex('{code.encode().hex()}').decode())"
    return f'python -c "{program}" >>/app/backstagetest1/wsgi.py'


def wsgi(line: str) -> str:
    """Spoils the app by a line before it: `e` is the request, `real` that it came through nginx."""
    body = (
        "inner, began = application, time.monotonic()",
        "def application(e, s):",
        " real = 'HTTP_X_REQUEST_ID' in e",
    )
    return spoil(*body, f" {line}", " return inner(e, s)")


def variant(image: str, version: str, script: str = "true", told: str = "") -> str:
    """An image of that version, made from `image` by a shell script that spoils it; `told` is what it says it were."""
    named = f"ENV APP_VERSION={told or version} APP_COMMIT={version.encode().hex()}"
    content = f"FROM {image}\nUSER 0\nRUN {script}\nUSER 10001:10001\n{named}\n"
    label = f"LABEL org.opencontainers.image.revision={version.encode().hex():0<7}\n"
    docker("build", "--quiet", "--tag", f"{LABEL}:{version}", "-", input=content + label)
    return version


class Deploying(Stack):
    """A stack in a clone of its own. The ledger is the stack's."""

    def manage(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "manage.py", *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def command(self, *words: str) -> tuple[int, list[dict[str, Any]], str]:
        """The exit code, the events that it printed (with --json) and all that it said."""
        with self.manage(*words) as process:
            out, err = process.communicate(timeout=300)
        events = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        return process.returncode, events, out + err

    def deploy(self, version: str, *words: str) -> tuple[int, list[dict[str, Any]], str]:
        return self.command("deploy", version, *ENVIRONMENT, "--json", *words)

    def version(self) -> str:
        return str(self.client().get("/health/").json()["version"])

    def metrics(self) -> str:
        """A scrape of the live release."""
        program = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/metrics').read().decode())"
        live = self.exec("nginx", "readlink", "/run/web/current.sock").strip().rpartition("/")[2].partition(".")[0]
        return self.exec("web" if live == "web" else f"web_{live}", "python", "-c", program)

    def ledger(self) -> list[dict[str, Any]]:
        """Its rows, the newest first."""
        done = self.run("deployments", "--json")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def own(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploying]:
    folder = clone(tmp_path_factory.mktemp("deploy"))
    for tag in ("1.0.0", "first"):  # as ./run up does with an IMAGE whose tag is not its version
        docker("tag", image, f"{LABEL}:{tag}")
    stack = Deploying(folder, "deploy", f"{LABEL}:first")
    stack.use(LABEL)
    with closing(stack):
        yield stack


@pytest.fixture(scope="module")
def member(own: Deploying) -> Client:
    client = own.client()
    client.sign_up()
    return client


def steps(events: list[dict[str, Any]]) -> dict[str, str]:
    return {each["name"]: each["outcome"] for each in events if each["event"] == "step"}


def found(events: list[dict[str, Any]], name: str) -> float:
    """After how many seconds the step of that name failed."""
    return float(next(e["seconds"] for e in events if e.get("name") == name and e.get("outcome") == "failed"))


ALL = ["promotion check", "lock", "migrate", "start", "smoke test", "switch", "watch", "mark good"]


def last_request(own: Deploying, events: list[dict[str, Any]]) -> float:
    """How many seconds after the switch began the instance that the traffic left got its last request."""
    (moved,) = [each["time"] for each in events if each.get("name") == "switch" and each["outcome"] == "running"]
    previous = own.exec("nginx", "readlink", "/run/web/previous.sock").strip().removesuffix(".sock")
    name = "web" if previous == "web" else f"web_{previous}"
    times = [line["time"] for line in own.logs(name) if line.get("path") == "/accounts/profile/"]
    return (datetime.fromisoformat(times[-1]) - datetime.fromisoformat(moved)).total_seconds()


def test_a_good_release_goes_out_without_a_failed_request_and_back_again(own: Deploying, member: Client) -> None:
    """And within five seconds it gets all requests, those of connections that are kept included."""
    variant(own.variables["IMAGE"], "2.0.0")
    with Load(keep_alive(own, member), rate=50) as load:
        code, events, said = own.deploy("2.0.0", "--watch", "8")
        assert code == 0, said
        assert own.version() == "2.0.0"
        last = last_request(own, events)
        back, _, back_said = own.command("rollback", *ENVIRONMENT, "--reason", "Tried", "--json")
        assert back == 0, back_said
        assert own.version() == "1.0.0"
    say(f"out and back: {load}")
    took = {each["name"]: each["seconds"] for each in events if each.get("seconds")}
    say(f"steps took {took}; the old one got its last request {last:.1f} s after the switch")
    assert not load.failed and load.outcomes["302"] > SEEN and member.signed_in()
    assert -5 < last < 5
    (told,) = [each for each in events if each["event"] == "answers"]
    assert told["version"] == "2.0.0" and told["after"] < 5, "so says who asked from outside"
    assert min(told["answers"]["2.0.0"].values()) > 0 and events[-1]["answers"].keys() == {"1.0.0", "2.0.0"}
    assert list(steps(events)) == ALL and set(steps(events).values()) == {"succeeded"}
    assert events[-1]["probe_requests"] > 50 and events[-1]["failed_requests"] == 0
    (row,) = own.ledger()
    assert (row["release"], row["status"], row["failed_requests"]) == ("2.0.0", "succeeded", 0)


def test_what_runs_and_was_found_good_is_left_alone(own: Deploying) -> None:
    code, events, said = own.deploy("1.0.0")
    assert code == 0 and events[-1]["result"] == "unchanged", said


def test_a_restart_of_one_of_two_that_run_fails_no_request(own: Deploying, member: Client) -> None:
    current = own.exec("nginx", "readlink", "/run/web/current.sock").strip().removesuffix(".sock")
    with Load(keep_alive(own, member)) as load:
        for name in ("web_blue", "web_green", f"web_{current}"):
            time.sleep(1)
            own.compose("--profile", "colours", "restart", name)
            # With the next one down, this one is all there is.
            eventually(lambda: own.inspect(name)["State"]["Health"]["Status"] == "healthy", every=0.2)
    say(f"each restarted, and the one that serves twice: {load}")
    assert not load.failed and load.total > 200


@pytest.mark.full
def test_ten_switches_under_load_fail_no_request(own: Deploying, member: Client) -> None:
    """Out with a new release and back, again and again."""
    variant(own.variables["IMAGE"], "2.0.0")
    took, requests = [], 10_000
    with Load(keep_alive(own, member)) as load:
        for number in range(10):
            words = ("rollback",) if number % 2 else ("deploy", "2.0.0", "--watch", "3")
            began = time.monotonic()
            code, _, said = own.command(*words, *ENVIRONMENT, "--json")
            assert code == 0, said
            took.append(time.monotonic() - began)
        while load.total < requests:
            time.sleep(0.5)
    say(f"ten switches: {load}")
    say(f"a release took {max(took[::2]):.0f} s at most, a rollback {max(took[1::2]):.0f} s")
    assert not load.failed and load.outcomes["302"] > requests // 3 and member.signed_in()
    assert own.version() == "1.0.0"


CRASHES = "echo 'raise SystemExit(\"broken on purpose\")' >/app/gunicorn.conf.py"
DEAF = "echo 'bind = [\"127.0.0.1:9999\"]' >>/app/gunicorn.conf.py"
SLOW = spoil(
    "kind = type(application)",
    "resolve = kind.resolve_request",
    "def slowly(self, request):",
    " if 'HTTP_X_REQUEST_ID' in request.META: time.sleep(1.5)",
    " return resolve(self, request)",
    "kind.resolve_request = slowly",
)
ANSWERS_500 = wsgi(f"if e['PATH_INFO'] == '/': {FAIL}")
ENDS = wsgi("real and os.kill(os.getppid(), signal.SIGTERM)")
WAIT = 12.0  # seconds after which the one that fails late does so: ten minutes, for those who have them
LATE = wsgi(f"if time.monotonic() - began > {WAIT}: {FAIL}")


@pytest.mark.parametrize(
    ("version", "script", "told", "step", "bound", "words"),
    [  # One for each step that finds something; the others in full.
        pytest.param("3.1.0", CRASHES, "", "start", 10, (), id="crashes"),
        pytest.param("3.5.0", "true", "9.9.9", "smoke test", 10, (), id="wrong-version"),
        pytest.param("3.6.0", LATE, "", "watch", 30, (), id="fails-late"),
        pytest.param("3.2.0", DEAF, "", "start", 20, ("--timeout", "12"), id="never-ready", marks=pytest.mark.full),
        pytest.param("3.3.0", ANSWERS_500, "", "smoke test", 10, (), id="answers-500", marks=pytest.mark.full),
        pytest.param("3.4.0", SLOW, "", "watch", 30, (), id="slow", marks=pytest.mark.full),
        pytest.param("3.7.0", ENDS, "", "watch", 30, (), id="crashes-under-traffic", marks=pytest.mark.full),
    ],
)
def test_a_bad_release_is_found_and_left_once_with_the_old_one_serving(
    own: Deploying,
    member: Client,
    version: str,
    script: str,
    told: str,
    step: str,
    bound: float,
    words: tuple[str, ...],
) -> None:
    variant(own.variables["IMAGE"], version, script, told)
    was = own.version()
    with Load(keep_alive(own, member), rate=30) as load:
        code, events, said = own.deploy(version, "--watch", "40", *words)
    assert code == 5, said
    outcomes = steps(events)
    if step == "watch" and outcomes["switch"] == "failed":  # visitors have noticed before the watch began
        step = "switch"
    took = found(events, step)
    if step == "start":  # from the start of the bad one: before it, an older release may have had to end
        took = float(re.findall(r"([0-9.]+) s after its start", events[-1]["why"])[0])
    say(f"found by the {step} after {took:.1f} s (bound {bound} s): {events[-1]['why']}")
    failed, probes = events[-1]["failed_requests"], events[-1]["probe_requests"]
    say(f"meanwhile {load}; of the probe traffic {failed} of {probes} failed")
    assert took < bound + (WAIT if script == LATE else 0)
    assert list(steps(events))[-1] == "roll back" and steps(events)["roll back"] == "succeeded"
    assert sum(e["event"] == "step" and e["name"] == "roll back" and e["outcome"] == "running" for e in events) == 1
    if step in ("switch", "watch"):
        assert sum(load.failed.values()) <= load.rate * bound
    else:
        assert not load.failed and events[-1]["failed_requests"] == 0 and "switch" not in steps(events)
    assert own.version() == was and member.signed_in()
    row = own.ledger()[0]
    assert (row["release"], row["status"]) == (version, "rolled_back" if step in ("switch", "watch") else "failed")
    assert row["failed_requests"] == events[-1]["failed_requests"]
    assert own.exec("nginx", "readlink", "/run/web/current.sock").strip() != "", said
    running = own.compose("--profile", "*", "ps", "--format", "{{.Image}}").split()
    assert f"{LABEL}:{version}" not in running  # the bad one is stopped, and not started again


def test_a_run_that_is_killed_is_resumed_by_the_same_command(own: Deploying, member: Client, full: bool) -> None:
    """Killed in each of its steps in full; in short, in one before the traffic moves and in the one that moves it."""
    version, was = variant(own.variables["IMAGE"], "4.0.0"), own.version()
    killed = ("migrate", "start", "smoke test", "switch", "watch") if full else ("start", "switch")
    with Load(keep_alive(own, member), rate=30) as load:
        for step in killed:
            process = own.manage("deploy", version, *ENVIRONMENT, "--json", "--watch", "20")
            assert process.stdout
            seen = []
            for line in process.stdout:
                seen.append(json.loads(line))
                if (seen[-1]["event"], seen[-1].get("name"), seen[-1].get("outcome")) == ("step", step, "running"):
                    break
            time.sleep(0.3)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=PATIENCE)
            again = any("Resuming deployment" in str(each.get("text")) for each in seen)
            assert again == (step != killed[0]), seen
            serving = own.version()
            assert serving in ((was,) if step in ("migrate", "start", "smoke test") else (was, version)), step
            say(f"killed in {step} with {serving} serving")
        code, events, said = own.deploy(version, "--watch", "3")
    say(f"gone on with: {load}")
    assert code == 0, said
    assert not load.failed and own.version() == version
    first, second = own.ledger()[:2]
    assert (first["status"], first["release"], second["release"] != version) == ("succeeded", version, True)


def test_ctrl_c_says_in_what_state_it_leaves_things_and_the_next_release_clears_up(own: Deploying) -> None:
    first, second = variant(own.variables["IMAGE"], "5.0.0"), variant(own.variables["IMAGE"], "5.1.0")
    was = own.version()
    process = own.manage("deploy", first, *ENVIRONMENT, "--watch", "30")
    assert process.stdout
    eventually(lambda: "migrate" in str(process.stdout and process.stdout.readline()))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 6, out + err
    assert f"Live: {was}" in out and "Run the same command to resume" in out
    code, events, said = own.deploy(second, "--watch", "3")
    assert code == 0, said
    assert [(row["release"], row["status"]) for row in own.ledger()[:2]] == [(second, "succeeded"), (first, "failed")]


def test_two_at_once_and_a_lock_by_hand(own: Deploying) -> None:
    version = variant(own.variables["IMAGE"], "6.0.0")
    first = own.manage("deploy", version, *ENVIRONMENT, "--watch", "3")
    assert first.stdout
    eventually(lambda: "lock" in str(first.stdout and first.stdout.readline()))
    code, _, said = own.deploy(version)
    assert code == 3 and "has held the lock since" in said and f"deploy of {version}" in said
    assert first.wait(PATIENCE) == 0
    assert "deployment_lock_held_since_timestamp_seconds{" not in own.metrics()
    assert own.command("lock", "acquire", "--reason", "The database is being moved", *ENVIRONMENT)[0] == 0
    code, _, said = own.deploy("1.0.0")
    assert code == 3 and "The database is being moved" in said and "lock release" in said
    assert 'deployment_lock_held_since_timestamp_seconds{environment="' in own.metrics()
    assert own.command("lock", "release", *ENVIRONMENT)[0] == 0
    assert "deployment_lock_held_since_timestamp_seconds{" not in own.metrics()
    assert own.deploy(version)[0] == 0


def test_what_cannot_be_is_refused_before_anything_is_touched(own: Deploying) -> None:
    was = own.exec("nginx", "readlink", "/run/web/current.sock")
    for words, expected, told in (
        (("deploy", "7.7.7", *ENVIRONMENT), 4, "not found on this machine"),
        (("deploy", "$(reboot)", *ENVIRONMENT), 2, "is not a valid version"),
        (("deploy", "1.0.0", *ENVIRONMENT, "--strategy", "rolling"), 2, "blue-green only"),
        (("deploy", "1.0.0", *ENVIRONMENT, "--hotfix"), 2, "requires a reason"),
        (("deploy", *ENVIRONMENT), 2, "Missing VERSION"),
        (("rollback", "7.7.7", *ENVIRONMENT), 4, "not found on this machine"),
        (("rollback", "6.0.0", *ENVIRONMENT), 4, "nothing to roll back"),
    ):
        code, _, said = own.command(*words)
        assert (code, told in said) == (expected, True), said
    assert own.exec("nginx", "readlink", "/run/web/current.sock") == was
