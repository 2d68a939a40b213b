"""./run switch: to another image under load, with nobody noticing; and what it does about images that are broken."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.e2e.stack import LABEL, Client, Load, Stack, build, clone, closing, docker, say
from tests.support.servers import PATIENCE, eventually


@pytest.fixture(scope="module")
def own(checkout: Path, image: str) -> Iterator[Stack]:
    with closing(Stack(checkout, "switch", image)) as one:
        yield one


@pytest.fixture(scope="module")
def member(own: Stack) -> Client:
    client = own.client()
    client.sign_up()
    return client


@pytest.fixture(scope="module")
def second(image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The next release."""
    return build(clone(tmp_path_factory.mktemp("second")), "second", version="2.0.0")


def broken(image: str, name: str, script: str) -> str:
    """An image made from `image` by a shell script that spoils it."""
    tag = f"{LABEL}:{name}"
    docker("build", "--quiet", "--tag", tag, "-", input=f"FROM {image}\nUSER 0\nRUN {script}\nUSER 10001:10001\n")
    return tag


def keep_alive(stack: Stack, person: Client) -> Callable[[int], Callable[[], int]]:
    """For Load: strict clients that keep their connection and never look whether it is still there, nor try again.

    By turns a page for somebody signed in, which needs the database, and a POST, which nobody may repeat.
    """

    def start(_: int) -> Callable[[], int]:
        reader, sender, turn = stack.client(), stack.client(), [0]
        reader.cookies = dict(person.cookies)
        token = sender.token("/accounts/login/")
        reader.keep_alive = sender.keep_alive = True

        def act() -> int:
            turn[0] += 1
            if turn[0] % 2:
                return reader.get("/accounts/profile/").status
            return sender.post("/accounts/logout/", {}, token=token).status

        return act

    return start


def version(stack: Stack) -> str:
    return str(stack.client().get("/health/").json()["version"])


def test_switches_under_load_fail_no_request(own: Stack, member: Client, image: str, second: str, full: bool) -> None:
    """Ten of them during 10,000 requests with --full, else four during 3,000."""
    back, requests = (8, 10_000) if full else (2, 3_000)
    took = []
    with Load(keep_alive(own, member)) as load:
        for words in [(second,), (image,), *[("--back",)] * back]:
            began = time.monotonic()
            done = own.run("switch", *words)
            assert done.returncode == 0, done.stdout + done.stderr
            took.append(time.monotonic() - began)
        while load.total < requests:
            time.sleep(0.5)
    say(f"{len(took)} switches: {load}")
    say(f"a switch to a new image took {max(took[:2]):.0f} s, one back {max(took[2:]):.0f} s")
    assert not load.failed and load.total >= requests
    assert load.outcomes["302"] > 0.4 * requests and member.signed_in()
    assert version(own) == "1.0.0"


def test_all_requests_go_to_the_new_image_within_seven_seconds(own: Stack, member: Client, second: str) -> None:
    assert own.run("switch", second).returncode == 0
    with Load(keep_alive(own, member), rate=50):
        time.sleep(1)
        words = ["./run", "switch", "--back"]
        with subprocess.Popen(words, cwd=own.folder, env=own.environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout and "The traffic goes to" in process.stdout.readline()
            moved = time.time()
            assert process.wait(PATIENCE) == 0
    old = own.exec("nginx", "readlink", "/run/web/previous.sock").strip().removesuffix(".sock")
    times = [line["time"] for line in own.logs(f"web_{old}") if line.get("path") == "/accounts/profile/"]
    last = datetime.fromisoformat(times[-1]).timestamp() - moved
    say(f"the old one got its last request {last:.1f} s after the switch")
    assert -5 < last < 7.5


def test_a_restart_of_one_of_two_that_run_fails_no_request(own: Stack, member: Client) -> None:
    current = own.exec("nginx", "readlink", "/run/web/current.sock").strip().removesuffix(".sock")
    with Load(keep_alive(own, member)) as load:
        for name in ("web_blue", "web_green", f"web_{current}"):
            time.sleep(1)
            own.compose("--profile", "colours", "restart", name)
            # With the next one away, this one is all there is.
            eventually(lambda: own.inspect(name)["State"]["Health"]["Status"] == "healthy", every=0.2)
    say(f"each restarted, and the one that serves twice: {load}")
    assert not load.failed and load.total > 200


@pytest.mark.parametrize(
    ("name", "script", "said"),
    [
        (
            "exits",
            "echo 'raise SystemExit(\"broken on purpose\")' >/app/gunicorn.conf.py",
            "broken on purpose",
        ),
        ("deaf", "echo 'bind = [\"127.0.0.1:9999\"]' >>/app/gunicorn.conf.py", "127.0.0.1:9999"),
        (
            "fails",
            "printf '%s\\n' 'inner = application' 'def application(e, s):' "
            '\' if e["PATH_INFO"] == "/": raise RuntimeError("broken on purpose")\' \' return inner(e, s)\' '
            ">>/app/backstagetest1/wsgi.py",
            "broken on purpose",
        ),
    ],
)
def test_a_broken_image_gets_no_traffic_and_its_own_words_are_shown(
    own: Stack, member: Client, image: str, name: str, script: str, said: str
) -> None:
    bad, was = broken(image, name, script), version(own)
    own.variables["SWITCH_TIMEOUT"] = "16" if name == "deaf" else "90"
    with Load(keep_alive(own, member), rate=30) as load:
        began = time.monotonic()
        done = own.run("switch", bad)
        took = time.monotonic() - began
    say(f"{name}: refused after {took:.0f} s; meanwhile {load}")
    assert done.returncode == 1 and said in done.stderr, done.stdout + done.stderr
    assert not load.failed
    assert version(own) == was


def test_an_image_that_fails_under_traffic_loses_it_again_by_itself(own: Stack, member: Client, image: str) -> None:
    script = (
        "printf '%s\\n' 'inner, seen = application, []' "
        "'def application(e, s):' ' if \"HTTP_X_REQUEST_ID\" in e: seen.append(1)' "
        "' if len(seen) > 5: raise RuntimeError(\"broken on purpose\")' ' return inner(e, s)' "
        ">>/app/backstagetest1/wsgi.py"
    )
    bad, was = broken(image, "late", script), version(own)
    with Load(keep_alive(own, member), rate=30) as load:
        done = own.run("switch", bad)
        said = done.stdout + done.stderr
        assert done.returncode == 1 and "The traffic is back" in said and "broken on purpose" in said, said
        time.sleep(8)
        mended = Load(keep_alive(own, member), rate=30)
    say(f"failed under traffic: {load}")
    with mended:
        time.sleep(2)
    assert not mended.failed and version(own) == was


def test_a_switch_that_is_killed_anywhere_leaves_the_site_serving_and_the_next_one_clears_up(
    own: Stack, member: Client, second: str
) -> None:
    def state() -> str:
        names = ["bt1"] + own.compose("ps", "--all", "--format", "{{.Service}} {{.State}} {{.Health}}").splitlines()
        return " ".join(names)

    def idle() -> str:
        current = own.exec("nginx", "readlink", "/run/web/current.sock").strip()
        return "web_green" if current == "blue.sock" else "web_blue"

    moments: dict[str, Callable[[str, str], bool]] = {
        "before it starts": lambda output, name: True,
        "while it migrates": lambda output, name: bool(docker("ps", "-q", "-f", f"name={own.name}-migrate-run")),
        "while the new one starts": lambda output, name: f"{name} running starting" in state(),
        "when it is ready": lambda output, name: "is ready" in output,
        "when the traffic has moved": lambda output, name: "The traffic goes to" in output,
    }
    with Load(keep_alive(own, member), rate=50) as load:
        for moment, come in moments.items():
            name = idle()
            with (own.folder / "switch.out").open("w+") as output:
                process = subprocess.Popen(
                    ["./run", "switch", second],
                    cwd=own.folder,
                    env=own.environment,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
                eventually(lambda: come(Path(output.name).read_text(), name), every=0.05)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(PATIENCE)
            assert member.signed_in(), moment
            moved = idle() != name
            assert moved == (moment == "when the traffic has moved")
            say(f"killed {moment}: the site serves, {'the new' if moved else 'the old'} one has the traffic")
        done = own.run("switch", second)
        assert done.returncode == 0, done.stdout + done.stderr
    say(f"{len(moments)} killed and one let through: {load}")
    assert not load.failed
    assert version(own) == "2.0.0"
    assert len([line for line in state().split() if line.startswith("web_")]) <= 2


def test_what_cannot_be_is_refused_before_anything_is_touched(own: Stack) -> None:
    was = own.exec("nginx", "readlink", "/run/web/current.sock")
    for words in (("no-such-image:1",), (), ("--sideways",), ("a", "b")):
        done = own.run("switch", *words)
        assert done.returncode == 2 and done.stderr, words
    assert own.exec("nginx", "readlink", "/run/web/current.sock") == was


def test_up_brings_two_colours_back_to_one(own: Stack, member: Client) -> None:
    own.variables["IMAGE"] = f"{LABEL}:up"  # it builds, and the other tests have an image of that name
    with Load(keep_alive(own, member), rate=30) as load:
        done = own.run("up")
    assert done.returncode == 0, done.stdout + done.stderr
    say(f"back to one: {load}")
    assert not load.failed
    assert own.exec("nginx", "readlink", "/run/web/current.sock").strip() == "web.sock"
    running = own.compose("ps", "--services", "--status", "running").split()
    assert sorted(running) == ["db", "nginx", "redis", "web"]
