"""manage.py deploy on compose as a pipeline runs it: through an approval, against a freeze, and with a broken glass."""

import html
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.stack import LABEL, Client, Load, clone, closing, keep_alive, say
from tests.e2e.test_deploy import ENVIRONMENT, Deploying, variant
from tests.support.servers import PATIENCE, eventually

pytestmark = pytest.mark.full
APPROVED = "sed -i 's/^\\[development\\]$/[development]\\napprovals = 1/' /app/environments.toml"


@pytest.fixture(scope="module")
def own(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploying]:
    """A stack whose one environment needs an approval, and two later releases of it."""
    folder = clone(tmp_path_factory.mktemp("approvals"))
    file = folder / "environments.toml"
    file.write_text(file.read_text().replace("[development]\n", "[development]\napprovals = 1\n", 1))
    for version in ("1.0.0", "2.0.0", "2.0.1"):
        variant(image, version, APPROVED)
    stack = Deploying(folder, "approvals", f"{LABEL}:1.0.0")
    stack.use(LABEL)
    with closing(stack):
        yield stack


def join(own: Deploying, role: str) -> Client:
    """Somebody with that role, signed in."""
    client = own.client()
    own.exec("web", "python", "manage.py", "role", "grant", client.sign_up(), role)
    return client


def pipeline(own: Deploying, owner: Client, name: str) -> dict[str, str]:
    """The variables of a pipeline that has a token of `owner`, made on the page."""
    page = owner.get("/tokens/").text
    box = re.search(r'value="(\d+)"[^>]*id="(id_environments_\d+)"[^>]*>\s*<label for="\2">development<', page)
    assert box, page
    rights = {"may_request": "on", "may_record": "on", "may_register": "on"}
    made = owner.post("/tokens/", {"name": name, "environments": box[1], "days": "1", **rights}).text
    secret = re.search(r'aria-labelledby="secret">([^<]+)<', made)
    assert secret, made
    return {"LEDGER_URL": f"http://localhost:{own.port}", "LEDGER_TOKEN": secret[1]}


def decide(client: Client, row: dict[str, Any], verdict: str) -> str:
    """Decides on the deployment's page as a browser without JavaScript does, and returns what the page says then."""
    page, key = f"/deployments/{row['id']}/", row["id"]
    shown = client.get(page).text
    digest = re.search(rf'name="digest-{key}" value="([^"]*)"', shown)
    assert digest, shown
    fields = {"verdict": verdict, f"digest-{key}": html.unescape(digest[1]), f"comment-{key}": "Looks good"}
    answer = client.post(f"{page}decide/", fields, token=client.token(page))
    assert answer.status == 302, answer.text[:2000]
    return client.get(answer.headers["location"]).text


def test_an_approval_lets_a_release_out_and_a_freeze_only_a_hotfix_that_somebody_reviews(own: Deploying) -> None:
    asks, approves, reviews = join(own, "deployer"), join(own, "approver"), join(own, "approver")
    by_deployer, by_approver = pipeline(own, asks, "ci"), pipeline(own, approves, "rescue")

    own.variables |= by_deployer
    code, _, said = own.deploy("2.0.0", "--watch", "3")
    assert code == 4 and own.version() == "1.0.0", said
    row = own.ledger()[0]
    assert (row["status"], row["release"]) == ("waiting", "2.0.0")
    assert f"/deployments/{row['id']}/" in said and "waiting for approval (0 of 1)" in said, said

    with Load(keep_alive(own, asks), rate=20) as load:
        waiting = own.manage("deploy", "2.0.0", *ENVIRONMENT, "--watch", "3", "--wait-approval", "5m")
        assert waiting.stdout
        lines: list[str] = []
        eventually(lambda: lines.append(waiting.stdout.readline()) or "0 of 1 approvals" in lines[-1])  # type: ignore
        assert own.version() == "1.0.0"
        assert "Approved 2.0.0 for development." in decide(approves, row, "approved")
        out, err = waiting.communicate(timeout=PATIENCE)
    say(f"approved: {load}")
    assert waiting.returncode == 0, "".join(lines) + out + err
    assert not load.failed and load.total and own.version() == "2.0.0"
    assert own.ledger()[0]["id"] == row["id"] and own.ledger()[0]["status"] == "succeeded"

    added = ("python", "manage.py", "freeze", "add", "--all", "--for", "2h", "--reason", "The database is being moved")
    colour = own.exec("nginx", "readlink", "/run/web/current.sock").strip().removesuffix(".sock")
    live = colour if colour == "web" else f"web_{colour}"
    own.exec(live, *added)
    code, _, said = own.deploy("2.0.1", "--watch", "3")
    assert code == 4 and re.search(r"frozen until", said, re.IGNORECASE), said

    glass = ("2.0.1", "--watch", "3", "--break-glass", "--reason", "Pictures are lost")
    code, _, said = own.deploy(*glass)
    assert code == 4 and own.version() == "2.0.0", said  # not by a deployer's token
    own.variables |= by_approver
    code, _, said = own.deploy(*glass)
    assert code == 0 and own.version() == "2.0.1", said
    assert "without approval" in reviews.get("/").text
    row = own.ledger()[0]
    before = reviews.get(f"/deployments/{row['id']}/").text
    assert 'value="reviewed"' in before, before
    assert "Reviewed 2.0.1 in development." in decide(reviews, row, "reviewed")
    assert 'value="reviewed"' not in reviews.get(f"/deployments/{row['id']}/").text
