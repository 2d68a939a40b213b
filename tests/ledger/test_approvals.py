"""Approvals: by ledger.approvals, the API, the pages, and behind their back by the database itself on each engine."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from accounts.models import User
from audit.models import Entry
from ledger import approvals, queries, rules
from ledger.environment_rows import follow_file
from ledger.models import Approval, Deployment, Environment, Release
from ledger.rules import RuleViolation
from tests.support.approving import approved
from tests.support.ledgers import deployed, release, token
from tests.support.people import member
from tests.support.scratch import SCRATCH

HOUR = timedelta(hours=1)
DIGEST, OTHER = (f"sha256:{letter * 64}" for letter in "ab")
Row = Deployment


def waiting(version: str = "1.0", **more: Any) -> Row:
    """A deployment to production that waits; the release has succeeded in staging."""
    if not Release.objects.filter(version=version).exists():
        deployed("staging", version, at=timezone.now() - 3 * HOUR)
    given = {"digest": DIGEST, "actor": "ci"} | more
    return rules.create("production", version, "rolling", given.pop("actor"), **given)


def refused(code: str) -> Any:
    return pytest.raises(RuleViolation, check=lambda error: error.code == code)


def status(row: Row) -> str:
    row.refresh_from_db()
    return row.status


# The rules


@pytest.mark.django_db
def test_a_deployment_waits_until_somebody_else_has_approved_it() -> None:
    row, approver = waiting(), member("approver", "production")
    with refused("not-approved"):
        rules.start(row.pk)
    approvals.decide(row.pk, approver, "approved", DIGEST, "looks good")
    assert rules.start(row.pk).status == "running"
    found = Entry.objects.filter(environment="production").order_by("pk")
    assert [(each.action, each.actor) for each in found] == [
        ("approval_requested", "ci"),
        ("approved", approver.email),
    ]
    assert found[1].details == {"digest": DIGEST, "comment": "looks good"}


@pytest.mark.django_db
def test_the_same_request_waits_once_and_another_image_by_itself() -> None:
    row = waiting()
    assert waiting() == row and waiting(digest=OTHER) != row and waiting(hotfix=True, reason="x") != row
    assert Environment.objects.get(name="production").deployments.count() == 3, "waiting stops nobody"
    approvals.decide(row.pk, member("approver"), "approved", DIGEST)
    with refused("not-approved"):
        rules.start(waiting(digest=OTHER).pk)
    with refused("wrong-state"):
        approvals.decide(row.pk, member("approver"), "approved", OTHER)


@pytest.mark.django_db
def test_only_approvers_of_the_environment_who_have_not_asked_decide() -> None:
    for role, place in ((None, None), ("viewer", None), ("deployer", "production"), ("approver", "staging")):
        with refused("may-not"):
            approvals.decide(waiting().pk, member(role, place), "approved", DIGEST)
    approver = member("approver", "production")
    for more in ({"requester": approver.pk}, {"actor": approver.email.upper()}, {"actor": approver.display_name}):
        row = waiting(**more, hotfix=True, reason=str(more))
        for verdict in ("approved", "rejected"):
            with refused("own-request"):
                approvals.decide(row.pk, approver, verdict, DIGEST)
        Deployment.objects.filter(pk=row.pk).update(status="expired", finished=timezone.now())
    suspended = member("approver")
    User.objects.filter(pk=suspended.pk).update(is_active=False)
    with refused("may-not"):
        approvals.decide(waiting().pk, User.objects.get(pk=suspended.pk), "approved", DIGEST)


@pytest.mark.django_db
def test_a_rejected_deployment_has_ended() -> None:
    row = waiting()
    approvals.decide(row.pk, member("approver"), "rejected", DIGEST, "not on a Friday")
    assert status(row) == "rejected" and row.started is None and row.finished
    with refused("wrong-state"):
        rules.start(row.pk)
    with refused("wrong-state"):
        approvals.decide(row.pk, member("approver"), "approved", DIGEST)
    assert waiting() != row, "it may be requested again"
    measured = queries.board()[3]
    assert measured.current is None and [each.status for each in measured.waiting] == ["waiting"]


@pytest.mark.django_db
def test_an_approval_ends(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    row, approver = waiting(), member("approver")
    approvals.decide(row.pk, approver, "approved", DIGEST)
    with refused("already-approved"):
        approvals.decide(row.pk, member("approver"), "approved", DIGEST)
    real = timezone.now
    monkeypatch.setattr(timezone, "now", lambda: real() + 24 * HOUR)
    with refused("not-approved"):
        rules.start(row.pk)
    monkeypatch.undo()
    settings.APPROVAL_HOURS = 0.5
    assert "production" in follow_file()
    assert Environment.objects.get(name="production").approval_seconds == 1800


@pytest.mark.django_db
def test_what_waits_expires_when_something_else_goes_live() -> None:
    row, approver = waiting(), member("approver")
    approvals.decide(row.pk, approver, "approved", DIGEST)
    deployed("production", "2.0", at=timezone.now(), hotfix=True, reason="down")
    assert status(row) == "expired"
    with refused("wrong-state"):
        rules.start(row.pk)
    again = waiting()
    assert again != row and again.previous and again.previous.release.version == "2.0"
    with refused("not-approved"):
        rules.start(again.pk)


@pytest.mark.django_db
def test_two_are_needed_where_the_file_says_so() -> None:
    Environment.objects.filter(name="production").update(approvals=2)
    row, first = waiting(), member("approver")
    for _ in range(2):  # one person counts once
        approvals.decide(row.pk, first, "approved", DIGEST)
    with refused("not-approved"):
        rules.start(row.pk)
    approvals.decide(row.pk, member("approver"), "approved", DIGEST)
    assert rules.start(row.pk).status == "running"


@pytest.mark.django_db
def test_a_rollback_waits_for_nobody_and_a_hotfix_does() -> None:
    first = deployed("production", "1.0", at=timezone.now() - 2 * HOUR, hotfix=True, reason="first")
    deployed("production", "1.1", at=timezone.now() - HOUR, hotfix=True, reason="second")
    assert waiting("2.0", hotfix=True, reason="down").status == "waiting"
    assert rules.create("production", "1.0", "rolling", "ci", kind="rollback").status == "pending"
    assert first.status == "succeeded"


@pytest.mark.django_db
def test_a_broken_glass_is_red_until_somebody_else_has_reviewed_it() -> None:
    breaker, reviewer = member("approver"), member("approver")
    release("1.0")
    with pytest.raises(rules.Invalid):
        rules.create("production", "1.0", "rolling", "ci", break_glass=True, reason="down")
    given: Any = {"hotfix": True, "break_glass": True, "reason": "down", "requester": breaker.pk}
    row = rules.create("production", "1.0", "rolling", breaker.email, **given)
    assert row.status == "pending" and Entry.objects.filter(action="glass_broken", actor=breaker.email).exists()
    rules.start(row.pk)
    rules.finish(row.pk, "succeeded")
    assert queries.board()[3].unreviewed == [row]
    client = Client()
    assert "Deployed without approval, not reviewed" in client.get("/").content.decode()
    with refused("own-request"):
        approvals.decide(row.pk, breaker, "reviewed", "")
    with refused("wrong-state"):
        approvals.decide(row.pk, reviewer, "approved", "")
    client.force_login(reviewer)
    assert "Mark as reviewed" in client.get(f"/deployments/{row.pk}/").content.decode()
    client.post(f"/deployments/{row.pk}/decide/", {"verdict": "reviewed", f"comment-{row.pk}": "It was right."})
    assert queries.board()[3].unreviewed == []
    page = client.get(f"/deployments/{row.pk}/").content.decode()
    assert "not reviewed" not in page and "It was right." in page
    with refused("wrong-state"):
        approvals.decide(row.pk, member("approver"), "reviewed", "")


@pytest.mark.django_db
def test_the_digest_is_that_of_the_registered_image() -> None:
    built = timezone.now() - 4 * HOUR
    rules.register("1.0", "4f2a9c1", built, image=f"example.com/app@{DIGEST}", at=built)
    deployed_row = rules.create("staging", "1.0", "rolling", "ci")
    assert deployed_row.digest == DIGEST
    with refused("release-differs"):
        rules.create("testing", "1.0", "rolling", "ci", digest=OTHER)
    with pytest.raises(rules.Invalid, match="sha256"):
        rules.create("testing", "1.0", "rolling", "ci", digest="latest")


@pytest.mark.django_db
def test_an_account_that_is_deleted_leaves_its_name_and_no_longer_counts() -> None:
    row, approver = waiting(), member("approver")
    approvals.decide(row.pk, approver, "approved", DIGEST)
    email = approver.email
    approver.delete()
    found = Approval.objects.get(deployment=row)
    assert (found.approver, found.name) == (None, email)
    with refused("not-approved"):
        rules.start(row.pk)


# The API and the pages


@pytest.mark.django_db
def test_a_token_asks_and_never_approves() -> None:
    row = waiting()
    bearer = {"Authorization": f"Bearer {token('production')}"}
    client = Client(headers=bearer)
    for verdict in ("approve", "reject", "review"):
        answer = client.post(f"/api/deployments/{row.pk}/{verdict}", {"digest": DIGEST}, "application/json")
        assert answer.status_code == 403 and answer.json()["type"].endswith("may-not"), verdict
    client.force_login(member("approver"))  # a session beside it changes nothing
    answer = client.post(f"/api/deployments/{row.pk}/approve", {"digest": DIGEST}, "application/json")
    assert answer.status_code == 403 and status(row) == "waiting"
    assert client.get(f"/api/deployments/{row.pk}").json()["standing"] == {
        "given": 0, "needed": 1, "approved": False, "ends": None,
    }  # fmt: skip


@pytest.mark.django_db
def test_an_approver_approves_by_the_api_in_a_session_with_a_csrf_token() -> None:
    row, path = waiting(), ""
    path = f"/api/deployments/{row.pk}/approve"
    assert Client().post(path, {"digest": DIGEST}, "application/json").status_code == 401
    client = Client(enforce_csrf_checks=True)
    client.force_login(member("approver"))
    assert client.post(path, {"digest": DIGEST}, "application/json").status_code == 403
    client.get(f"/deployments/{row.pk}/")
    headers = {"X-CSRFToken": client.cookies["csrftoken" if "csrftoken" in client.cookies else "csrf"].value}
    assert client.post(path, {"digest": OTHER}, "application/json", headers=headers).status_code == 409
    answer = client.post(path, {"digest": DIGEST, "comment": "yes"}, "application/json", headers=headers)
    assert answer.status_code == 200 and answer.json()["standing"]["approved"], answer.content
    assert [each["verdict"] for each in answer.json()["approvals"]] == ["approved"]
    viewer = Client(enforce_csrf_checks=False)
    viewer.force_login(member("viewer"))
    assert viewer.post(path, {"digest": DIGEST}, "application/json").status_code == 403


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("button", "verdict", "ends"), [("Approve", "approved", "waiting"), ("Reject", "rejected", "rejected")]
)
def test_approvers_see_the_buttons_on_the_board_and_on_the_page(button: str, verdict: str, ends: str) -> None:
    deployed("production", "0.9", at=timezone.now() - 4 * HOUR, hotfix=True, reason="first")
    deployed("staging", "1.0", at=timezone.now() - 3 * HOUR)
    row = waiting()
    pages = ("/", f"/deployments/{row.pk}/")
    client = Client()
    for page in pages:
        text = client.get(page).content.decode()
        assert "Waiting for approval" in text and DIGEST in text and "0.9 → 1.0" in text
        assert "Succeeded in staging" in text and 'id="decide"' not in text and ">Approve<" not in text
    client.force_login(member("deployer"))
    assert not any('id="decide"' in client.get(page).content.decode() for page in pages)
    assert client.post(f"/deployments/{row.pk}/decide/", {"verdict": "approved"}).status_code == 403
    client.force_login(member("approver", "production"))
    assert all(f">{button}<" in client.get(page).content.decode() for page in pages)
    given = {"verdict": verdict, f"digest-{row.pk}": DIGEST, f"comment-{row.pk}": "Seen."}
    answer = client.post(f"/deployments/{row.pk}/decide/", given, follow=True)
    assert answer.redirect_chain == [(f"/deployments/{row.pk}/", 302)] and "Seen." in answer.content.decode()
    assert status(row) == ends
    assert [each.verdict for each in row.approvals.all()] == [verdict]


@pytest.mark.django_db
def test_whoever_asked_reads_why_there_is_no_button() -> None:
    approver = member("approver")
    row = waiting(requester=approver.pk)
    client = Client()
    client.force_login(approver)
    text = client.get(f"/deployments/{row.pk}/").content.decode()
    assert "You asked for it yourself" in text and ">Approve<" not in text
    answer = client.post(
        f"/deployments/{row.pk}/decide/", {"verdict": "approved", f"digest-{row.pk}": DIGEST}, follow=True
    )
    assert "You asked for deployment" in answer.content.decode() and status(row) == "waiting"
    assert Client().post(f"/deployments/{row.pk}/decide/").status_code == 302, "a stranger signs in"
    assert client.post("/deployments/999999/decide/", {"verdict": "approved"}).status_code == 404


@pytest.mark.django_db
def test_tests_support_approves() -> None:
    assert rules.start(approved(waiting()).pk).status == "running"


# What the database itself refuses, on each engine


@pytest.fixture
def rolled_back(scratch: Any) -> Any:
    with transaction.atomic(using=SCRATCH):
        yield
        transaction.set_rollback(True, using=SCRATCH)


def write(environment: str, **more: Any) -> Row:
    """Writes a row without ledger.rules."""
    releases = Release.objects.using(SCRATCH)
    built = {"commit": "4f2a9c1", "built_at": datetime(2026, 1, 1, tzinfo=UTC)}
    given: dict[str, Any] = {
        "environment": Environment.objects.using(SCRATCH).get(name=environment),
        "release": releases.get_or_create(version="1.0", defaults=built)[0],
        "strategy": "rolling",
        "actor": "x",
        "created": timezone.now() - HOUR,
        "hotfix": environment == "production",
        "reason": "down",
        "status": "waiting",
    }
    with transaction.atomic(using=SCRATCH):
        return Deployment.objects.using(SCRATCH).create(**given | more)


def run(row: Row, **more: Any) -> None:
    with transaction.atomic(using=SCRATCH):
        found = Deployment.objects.using(SCRATCH).filter(pk=row.pk)
        found.update(**{"status": "running", "started": timezone.now()} | more)


def person(name: str) -> User:
    return User.objects.using(SCRATCH).get_or_create(email=f"{name}@example.com")[0]


def say(row: Row, **more: Any) -> Approval:
    given: dict[str, Any] = {"verdict": "approved", "digest": row.digest, "time": timezone.now()}
    given |= {"approver": person("ann"), "name": "ann@example.com"} | more
    with transaction.atomic(using=SCRATCH):
        return Approval.objects.using(SCRATCH).create(deployment=row, **given)


def denied(name: str) -> Any:
    return pytest.raises(IntegrityError, match=name)


@pytest.mark.usefixtures("rolled_back")
def test_no_row_begins_without_approval() -> None:
    now = timezone.now()
    for more in (
        {"status": "pending"},
        {"status": "running", "started": now},
        {"status": "succeeded", "started": now, "finished": now},
        {"status": "failed", "finished": now},
    ):
        with denied("ledger_approval"):
            write("production", **more)
    with denied("ledger_break_glass_is_a_hotfix"):
        write("testing", status="pending", hotfix=False, break_glass=True)
    with denied("ledger_only_a_deployment_waits"):
        write("production", break_glass=True)
    write("production", status="pending", break_glass=True)
    write("testing", status="pending")


@pytest.mark.usefixtures("rolled_back")
def test_no_row_runs_without_valid_approvals() -> None:
    row = write("production", digest=DIGEST)
    now = timezone.now()
    with denied("ledger_approval"):
        run(row)
    for age in (25 * HOUR, -2 * HOUR):  # too old, and of a time to come
        say(row, time=now - age)
        with denied("ledger_approval"):
            run(row)
    with denied("ledger_order"), transaction.atomic(using=SCRATCH):
        Deployment.objects.using(SCRATCH).filter(pk=row.pk).update(status="pending")
    say(row)
    with denied("ledger_fixed|ledger_approval"):
        run(row, digest=OTHER)
    with denied("ledger_fixed|ledger_approval"):
        run(row, break_glass=True)
    Environment.objects.using(SCRATCH).filter(name="production").update(approvals=2)
    say(row)
    with denied("ledger_approval"):
        run(row)
    say(row, approver=person("bob"), name="bob@example.com")
    run(row)


@pytest.mark.usefixtures("rolled_back")
def test_a_rejection_and_another_release_stop_it() -> None:
    row = write("production")
    say(row)
    say(row, verdict="rejected", approver=person("bob"), name="bob@example.com")
    with denied("ledger_approval"):
        run(row)
    second = write("production", created=timezone.now())
    say(second)
    now = timezone.now()
    live = write("production", status="pending", break_glass=True, created=now)
    run(live)
    with transaction.atomic(using=SCRATCH):
        Deployment.objects.using(SCRATCH).filter(pk=live.pk).update(status="succeeded", finished=timezone.now())
    with denied("ledger_approval"):
        run(second)
    with denied("ledger_decision"):
        say(second, approver=person("bob"), name="bob@example.com")


@pytest.mark.usefixtures("rolled_back")
def test_no_decision_is_made_by_who_asked_or_about_another_image_or_changed() -> None:
    ann = person("ann")
    row = write("production", digest=DIGEST, requester=ann.pk)
    with denied("ledger_own_approval"):
        say(row)
    with denied("ledger_own_approval"):
        say(write("production", actor="BOB@example.com"), approver=person("bob"), name="bob@example.com")
    other = write("production", digest=DIGEST)
    for more in ({"digest": OTHER}, {"digest": ""}, {"approver": None}, {"verdict": "reviewed"}):
        with denied("ledger_decision"):
            say(other, **more)
    with denied("ledger_known_verdict|ledger_decision"):
        say(other, verdict="maybe")
    done = say(other)
    for change in ({"verdict": "rejected"}, {"name": "x"}, {"digest": OTHER}, {"approver": person("bob")}):
        with denied("ledger_decision"), transaction.atomic(using=SCRATCH):
            Approval.objects.using(SCRATCH).filter(pk=done.pk).update(**change)
    with denied("ledger_decision"), transaction.atomic(using=SCRATCH):
        Approval.objects.using(SCRATCH).filter(pk=done.pk)._raw_delete(SCRATCH)
