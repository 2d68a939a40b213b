"""The README's story on one machine, with nothing to configure: up, deploy, the board, rollback, a bad release."""

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.stack import LABEL, Client, Load, Stack, clone, docker, keep_alive, say
from tests.support.servers import ROOT


@pytest.fixture(scope="module")
def own(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A clone with a git history of one commit, which nobody has started yet."""
    folder = clone(tmp_path_factory.mktemp("story"))
    stack = Stack(folder, "story", f"{LABEL}:latest")  # it is built here: `image` is there for the build's cache
    stack.use(LABEL)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    for words in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message", "The first commit")):
        git(stack, *words)
    try:
        yield stack
    finally:
        stack.close()


def git(stack: Stack, *words: str) -> str:
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run(
        ("git", *who, *words), cwd=stack.folder, env=env, check=True, capture_output=True, text=True
    ).stdout.strip()


def board(client: Client) -> str:
    """The card of development on the board, as text."""
    page = client.get("/").text
    card = page.partition('id="name-development"')[2].partition('id="name-')[0]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", card))


def commit(stack: Stack, change: str) -> str:
    """Commits a change of the code, and returns the commit as git abbreviates it."""
    with (stack.folder / "manage.py").open("a") as file:
        file.write(f"# {change}\n")
    git(stack, "commit", "--all", "--quiet", "--message", change)
    return git(stack, "rev-parse", "--short=7", "HEAD")


def live(stack: Stack) -> str:
    """The version that answers."""
    return str(stack.client().get("/health/").json()["version"])


def run(stack: Stack, *words: str) -> str:
    done = stack.run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_readmes_story(own: Stack) -> None:
    said = run(own, "up")
    assert f"http://localhost:{own.port}" in said
    first = git(own, "rev-parse", "--short=7", "HEAD")
    client = own.client()
    email = client.sign_up()
    shown = board(client)
    assert first in shown and "Nothing has been deployed" not in shown, shown
    run(own, "app", "role", "grant", email, "maintainer")  # who deployed what is shown to members

    # A dirty tree, with a version of its own, under load
    with (own.folder / "manage.py").open("a") as file:
        file.write("# a change\n")
    with Load(keep_alive(own, client), rate=30) as load:
        run(own, "deploy", "0.9.1", "--watch", "5", "--reason", "A change")
    say(f"./run deploy: {load}")
    assert not load.failed and client.get("/health/").json()["version"] == "0.9.1"
    shown = board(client)
    assert "0.9.1" in shown and f"{os.environ.get('USER', 'root')}@" in shown, shown
    listed = run(own, "deployments")
    assert re.search(r"0\.9\.1 .*succeeded", listed) and first in listed, listed
    assert "var" not in git(own, "status", "--porcelain", "--ignored=no")

    # The same version cannot be another build
    with (own.folder / "manage.py").open("a") as file:
        file.write("# another\n")
    done = own.run("deploy", "0.9.1")
    assert done.returncode == 4 and "not from the working tree" in done.stderr, done.stderr

    assert re.search(rf"{first}\S*: succeeded", run(own, "rollback", "--reason", "Pictures are lost"))
    assert live(own).startswith(first)
    assert "rollback" in run(own, "deployments")
    assert not list((own.folder / "var").glob("unrecorded/*"))


def test_a_release_that_does_not_start_is_left_and_nobody_notices(own: Stack) -> None:
    client, was = own.client(), live(own)
    client.sign_up()
    file = own.folder / "gunicorn.conf.py"
    whole = file.read_text()
    file.write_text(f"{whole}\nraise SystemExit('broken on purpose')\n")
    with Load(keep_alive(own, client), rate=30) as load:
        done = own.run("deploy", "0.9.2")
    file.write_text(whole)
    say(f"a bad release: {load}")
    assert done.returncode == 5 and "broken on purpose" in done.stdout, done.stdout + done.stderr
    assert not load.failed and live(own) == was
    assert re.search(r"0\.9\.2 .*failed", run(own, "deployments"))
    assert "0.9.2" in (shown := board(client)) and was in shown, shown


def test_up_brings_two_colours_back_to_one(own: Stack) -> None:
    client = own.client()
    client.sign_up()
    second = commit(own, "Another")
    with Load(keep_alive(own, client), rate=30) as load:
        run(own, "up")
    say(f"back to one: {load}")
    assert not load.failed
    assert own.exec("nginx", "readlink", "/run/web/current.sock").strip() == "web.sock"
    assert sorted(own.compose("ps", "--services", "--status", "running").split()) == ["db", "nginx", "redis", "web"]
    assert live(own).startswith(second) and live(own) in run(own, "deployments").splitlines()[1]


@pytest.mark.full
def test_after_a_stop_the_stack_comes_back_and_what_it_runs_is_recorded(own: Stack) -> None:
    third = commit(own, "A third")
    run(own, "deploy", "--watch", "3")  # the version is left to git
    assert live(own).startswith(third)
    run(own, "down")
    run(own, "up")
    assert live(own).startswith(third) and live(own) in run(own, "deployments").splitlines()[1]
    assert docker("image", "inspect", f"{LABEL}:{live(own)}")  # what can be rolled back to


def test_what_cannot_be_deployed_is_one_line_and_touches_nothing(own: Stack) -> None:
    was = live(own)
    for words, code, told in (
        (("deploy", "a b"), 2, "is not a valid version"),
        (("deploy", "--dry-run"), 2, "cannot be combined"),
        (("deploy", "1", "2"), 2, "Unexpected argument"),
        (("rollback", "7.7.7"), 4, "not found on this machine"),
    ):
        done = own.run(*words)
        assert (done.returncode, told in done.stderr) == (code, True), done.stdout + done.stderr
    assert live(own) == was
