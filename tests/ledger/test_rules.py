"""The ledger's rules, asked through ledger.rules and, behind its back, of PostgreSQL itself."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, connections, transaction

from ledger import metrics as ledger_metrics
from ledger import rules
from ledger.models import Deployment, Environment, Release, Step
from ledger.rules import Invalid, RuleViolation
from metrics.registry import REGISTRY
from tests.support.ledgers import START, begun, deployed, release
from tests.support.servers import PATIENCE

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


def refused(code: str) -> Any:
    return pytest.raises(RuleViolation, check=lambda error: error.code == code)


def denied(name: str) -> Any:
    """The database itself says no, and names the rule."""
    return pytest.raises(IntegrityError, match=name)


# Environments


def test_the_guides_environments_are_there() -> None:
    fields = ("pk", "name", "purpose", "data", "access", "deployment", "promotes_from__name")
    assert list(Environment.objects.values_list(*fields)) == [
        (1, "development", "Local development", "Mock data", "Developers only", "Manual", None),
        (2, "testing", "Automated testing", "Test data", "CI/CD system", "Automated", None),
        (3, "staging", "Pre-production testing", "Production-like data", "QA team", "Automated", None),
        (4, "production", "Live application", "Real data", "End users", "Manual approval", "staging"),
    ]
    assert [each.name for each in Environment.objects.all()] == ["development", "testing", "staging", "production"]


# Releases


def test_a_release_is_registered_once_and_never_changes() -> None:
    first, new = rules.register("1.0", "4F2A9C1", START, "First", "example.com/app:4f2a9c1", at=START)
    assert new and first.commit == "4f2a9c1"
    assert rules.register("1.0", "4f2a9c1", START, "First", "example.com/app:4f2a9c1") == (first, False)
    with refused("release-differs"):
        rules.register("1.0", "5f2a9c1", START, "First", "example.com/app:4f2a9c1")
    with denied("ledger_append_only"), transaction.atomic():
        Release.objects.update(commit="0000000")


def test_a_release_that_was_never_deployed_can_be_withdrawn_and_another_build_takes_its_version() -> None:
    rules.register("1.0", "4f2a9c1", START, token="ci", at=START)
    with refused("release-differs") as error:
        rules.register("1.0", "5f2a9c1", START)
    assert "by the token ci at 2026-03-01 12:00Z" in str(error.value) and "withdraw_release 1.0" in str(error.value)
    assert rules.withdraw("1.0").token == "ci"
    assert rules.register("1.0", "5f2a9c1", START)[1]
    rules.create("testing", "1.0", "rolling", "ci")
    with refused("release-used") as error:
        rules.withdraw("1.0")
    assert "to testing" in str(error.value)
    used = Release.objects.filter(version="1.0")
    with denied("ledger_release_used"), transaction.atomic():
        used._raw_delete(used.db)


@pytest.mark.parametrize("commit", ["", "4f2a9c", "4f2a9g1", "4f2a9c1\n", "a" * 65, "HEAD"])
def test_a_commit_is_hex(commit: str) -> None:
    with pytest.raises(Invalid):
        rules.register("1.0", commit, START)
    with denied("ledger_release_commit_is_hex|too long"), transaction.atomic():
        try:
            Release.objects.create(version="1.0", commit=commit, built_at=START)
        except Exception as error:
            raise IntegrityError(str(error)) from None


def test_a_release_was_not_built_tomorrow() -> None:
    rules.register("1.0", "4f2a9c1", START + timedelta(minutes=4), at=START)
    with pytest.raises(Invalid, match="clock"):
        rules.register("1.1", "4f2a9c1", START + HOUR, at=START)


# The way of a deployment


def test_a_deployment_goes_from_pending_to_running_to_its_end() -> None:
    release("1.0")
    row = rules.create("testing", "1.0", "blue-green", "ci", run_url="https://ci.example.com/7", at=START)
    assert (row.status, row.started, row.previous) == ("pending", None, None)
    row = rules.start(row.pk, at=START + HOUR)
    assert (row.status, row.started) == ("running", START + HOUR)
    row = rules.finish(row.pk, "succeeded", at=START + 2 * HOUR)
    assert (row.status, row.duration) == ("succeeded", HOUR)
    after = deployed("testing", "1.1", at=START + 3 * HOUR)
    assert after.previous == row


@pytest.mark.parametrize("result", ["succeeded", "failed", "rolled_back"])
def test_what_has_finished_is_refused_every_further_step(result: str) -> None:
    row = deployed("testing", "1.0", result)
    for act in (
        lambda: rules.start(row.pk),
        lambda: rules.step(row.pk, "late", "succeeded"),
        lambda: rules.finish(row.pk, "failed"),
    ):
        with refused("wrong-state"):
            act()


def test_a_pending_deployment_has_no_steps_and_can_only_start_or_fail() -> None:
    release("1.0")
    row = rules.create("testing", "1.0", "rolling", "ci")
    with refused("wrong-state"):
        rules.step(row.pk, "early", "running")
    with refused("wrong-state"):
        rules.finish(row.pk, "succeeded")
    assert rules.finish(row.pk, "failed").duration is None


def test_a_step_begins_ends_and_stays() -> None:
    row = begun("testing", "1.0")
    first, new = rules.step(row.pk, "migrate", "running", at=START)
    assert new and first.duration is None
    first, new = rules.step(row.pk, "migrate", "succeeded", at=START + HOUR)
    assert not new and first.duration == HOUR
    assert rules.step(row.pk, "migrate", "succeeded")[1] is False
    with refused("wrong-state"):
        rules.step(row.pk, "migrate", "failed")
    rules.step(row.pk, "smoke test", "skipped", at=START + HOUR)
    rules.step(row.pk, "watch", "running", at=START + HOUR)
    rules.finish(row.pk, "failed", at=row.started + HOUR if row.started else None)
    assert list(row.steps.values_list("position", "name", "outcome")) == [
        (1, "migrate", "succeeded"),
        (2, "smoke test", "skipped"),
        (3, "watch", "failed"),
    ]


def test_a_deployment_has_a_bounded_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_STEPS", 2)
    row = begun("testing", "1.0")
    rules.step(row.pk, "one", "succeeded")
    rules.step(row.pk, "two", "running")
    with refused("too-many-steps"):
        rules.step(row.pk, "three", "running")
    rules.step(row.pk, "two", "succeeded")


# One at a time


def test_an_environment_takes_one_deployment_at_a_time() -> None:
    first = begun("testing", "1.0")
    with refused("environment-busy"):
        rules.create("testing", "1.0", "rolling", "ci")
    begun("staging", "1.0")
    rules.finish(first.pk, "failed")
    assert rules.create("testing", "1.0", "rolling", "ci").previous is None


def test_the_database_refuses_a_second_one_by_itself() -> None:
    row = begun("testing", "1.0")
    with denied("ledger_one_in_flight"), transaction.atomic():
        Deployment.objects.create(
            environment_id=2, release=row.release, strategy="rolling", actor="shell", created=START
        )


def race(*acts: Callable[[], Any]) -> list[Any]:
    """What each of `acts` returns or raises, all let go at the same moment in threads of their own."""
    gate = threading.Barrier(len(acts))
    results: list[Any] = [None] * len(acts)

    def run(index: int) -> None:
        try:
            connection.ensure_connection()
            gate.wait(PATIENCE)
            results[index] = acts[index]()
        except Exception as error:
            results[index] = error
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return results


@pytest.mark.django_db(transaction=True)
def test_of_many_creates_at_once_one_wins_and_the_others_are_refused() -> None:
    release("1.0")
    results = race(*[lambda: rules.create("testing", "1.0", "rolling", "ci")] * 6)
    assert sum(isinstance(each, Deployment) for each in results) == 1
    assert sum(isinstance(each, RuleViolation) and each.code == "environment-busy" for each in results) == 5, results


@pytest.mark.django_db(transaction=True)
def test_of_two_ends_at_once_one_holds() -> None:
    row = begun("testing", "1.0")
    results = race(lambda: rules.finish(row.pk, "succeeded"), lambda: rules.finish(row.pk, "failed"))
    won = [each for each in results if isinstance(each, Deployment)]
    assert len(won) == 1 and Deployment.objects.get(pk=row.pk).status == won[0].status, results


@pytest.mark.django_db(transaction=True)
def test_a_flush_leaves_the_guides_environments() -> None:
    assert Environment.objects.count() == 4  # the tests before this one have ended in a flush


# The gate


def test_production_takes_only_what_succeeded_in_staging() -> None:
    for version, result in (("1.0", "succeeded"), ("1.1", "failed"), ("1.2", "rolled_back")):
        deployed("testing", version, at=START)
        deployed("staging", version, result, at=START + HOUR)
    release("1.3")
    begun("staging", "1.4")
    for version in ("1.1", "1.2", "1.3", "1.4"):
        with refused("not-promotable"):
            rules.create("production", version, "rolling", "ci")
    assert rules.create("production", "1.0", "rolling", "ci").status == "waiting"


def test_a_hotfix_passes_the_gate_if_it_says_why() -> None:
    release("1.0")
    for reason in ("", "  \t "):
        with pytest.raises(Invalid, match="reason"):
            rules.create("production", "1.0", "rolling", "ci", hotfix=True, reason=reason)
    assert rules.create("production", "1.0", "rolling", "ci", hotfix=True, reason=" down ").reason == "down"


def test_a_rollback_goes_to_what_was_live_there_and_is_not_now() -> None:
    deployed("production", "1.0", hotfix=True, reason="first")
    with refused("already-live"):
        rules.create("production", "1.0", "rolling", "ci", kind="rollback")
    deployed("production", "1.1", hotfix=True, reason="second", at=START + HOUR)
    deployed("staging", "1.2")
    with refused("never-live"):
        rules.create("production", "1.2", "rolling", "ci", kind="rollback")
    with pytest.raises(Invalid, match="rollback cannot be a hotfix"):
        rules.create("production", "1.0", "rolling", "ci", kind="rollback", hotfix=True, reason="x")
    assert deployed("production", "1.0", kind="rollback", at=START + 2 * HOUR).status == "succeeded"


def test_a_rollback_to_other_settings_of_what_is_live_names_the_revision() -> None:
    deployed("production", "1.0", hotfix=True, reason="first")
    back = deployed("production", "1.0", kind="rollback", revision="5d8f", at=START + HOUR)
    assert (back.status, back.revision) == ("succeeded", "5d8f")
    with refused("already-live"):
        rules.create("production", "1.0", "rolling", "ci", kind="rollback")
    with pytest.raises(Invalid, match="Only a rollback has a revision"):
        rules.create("production", "1.0", "rolling", "ci", revision="77c1")
    again = rules.create("production", "1.0", "rolling", "ci", kind="rollback", revision="5d8f")
    assert again.status == "pending", "kubectl may have applied others meanwhile, which no ledger sees"


def row(**fields: Any) -> Deployment:
    """A deployment that no rule but the database's has seen."""
    given = {"environment_id": 4, "release": release("9.0"), "strategy": "rolling", "actor": "shell", "created": START}
    return Deployment.objects.create(**given | fields)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({}, "ledger_promotion"),
        ({"hotfix": True, "break_glass": True}, "ledger_hotfix_has_a_reason"),
        ({"hotfix": True, "break_glass": True, "reason": " \n"}, "ledger_hotfix_has_a_reason"),
        ({"hotfix": True, "reason": "down"}, "ledger_approval"),
        ({"environment_id": 2, "break_glass": True, "reason": "x"}, "ledger_break_glass_is_a_hotfix"),
        ({"kind": "rollback"}, "ledger_rollback"),
        ({"environment_id": 2, "kind": "rollback"}, "ledger_rollback"),
        ({"environment_id": 2, "strategy": "canary"}, "ledger_known_strategy"),
        ({"environment_id": 2, "kind": "promote"}, "ledger_known_kind"),
        ({"environment_id": 2, "actor": ""}, "ledger_has_an_actor"),
        ({"environment_id": 2, "status": "done"}, "ledger_times_fit_the_status"),
        ({"environment_id": 2, "status": "succeeded"}, "ledger_times_fit_the_status"),
        ({"environment_id": 2, "status": "running"}, "ledger_times_fit_the_status"),
        ({"environment_id": 2, "started": START}, "ledger_times_fit_the_status"),
        ({"environment_id": 2, "status": "running", "started": START - HOUR}, "ledger_starts_after"),
        (
            {"environment_id": 2, "status": "failed", "started": START + HOUR, "finished": START},
            "ledger_finishes_after",
        ),
    ],
)
def test_the_database_refuses_by_itself(fields: dict[str, Any], rule: str) -> None:
    with denied(rule), transaction.atomic():
        row(**fields)


def test_the_database_lets_through_what_fits() -> None:
    row(hotfix=True, break_glass=True, reason="down", status="failed", finished=START)
    row(environment_id=3, status="succeeded", started=START, finished=START)
    row(hotfix=True, break_glass=True, reason="down", status="succeeded", started=START, finished=START)
    row(kind="rollback", status="running", started=START)


# What has happened has happened


@pytest.mark.parametrize("result", ["succeeded", "failed", "rolled_back"])
@pytest.mark.parametrize(
    "change", [{"status": "running", "finished": None}, {"actor": "nobody"}, {"finished": START + 2 * HOUR}]
)
def test_a_finished_row_never_changes(result: str, change: dict[str, Any]) -> None:
    done = deployed("testing", "1.0", result)
    with denied("ledger_append_only"), transaction.atomic():
        Deployment.objects.filter(pk=done.pk).update(**change)


def test_no_row_is_ever_deleted() -> None:
    done, running = deployed("testing", "1.0"), begun("staging", "1.0")
    rules.step(running.pk, "one", "running")
    for victims in (Deployment.objects.filter(pk=done.pk), Deployment.objects.filter(status="running")):
        with denied("ledger_append_only"), transaction.atomic():
            victims._raw_delete(victims.db)
    with denied("ledger_append_only"), transaction.atomic():
        Step.objects.all().delete()


def test_steps_of_a_finished_deployment_never_change() -> None:
    running = begun("testing", "1.0")
    rules.step(running.pk, "one", "succeeded")
    with denied("ledger_append_only"), transaction.atomic():
        Step.objects.update(outcome="failed")
    rules.finish(running.pk, "succeeded")
    with denied("ledger_append_only"), transaction.atomic():
        Step.objects.create(deployment=running, position=2, name="two", started=START)


@pytest.mark.parametrize(
    "change",
    [
        {"environment_id": 1},
        {"actor": "nobody"},
        {"token": "x"},
        {"hotfix": True, "reason": "x"},
        {"created": START - HOUR},
    ],
)
def test_what_a_running_deployment_is_does_not_change(change: dict[str, Any]) -> None:
    begun("testing", "1.0")
    with denied("ledger_fixed"), transaction.atomic():
        Deployment.objects.update(**change)


def test_no_status_is_skipped_or_taken_back() -> None:
    release("1.0")
    rules.create("testing", "1.0", "rolling", "ci", at=START)
    with denied("ledger_order"), transaction.atomic():
        Deployment.objects.update(status="succeeded", started=START, finished=START)
    Deployment.objects.update(status="running", started=START)
    with denied("ledger_order"), transaction.atomic():
        Deployment.objects.update(status="pending", started=None)


# Metrics


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_an_ended_deployment_is_counted_and_timed(django_capture_on_commit_callbacks: Any) -> None:
    where = {"environment": "testing", "strategy": "blue-green"}

    def totals() -> list[float]:
        return [
            sample("deployments_total", **where, result="succeeded"),
            sample("deployments_total", **where, result="failed"),
            sample("deployment_duration_seconds_count", **where),
            sample("deployment_lead_time_seconds_count", environment="testing"),
        ]

    before = totals()
    with django_capture_on_commit_callbacks(execute=True):
        for result in ("failed", "succeeded", "succeeded"):
            rules.finish(begun("testing", "1.0", strategy="blue-green").pk, result)
    assert [after - old for after, old in zip(totals(), before, strict=True)] == [2, 1, 3, 1]


def test_a_deployment_in_progress_is_shown_with_its_beginning(django_assert_num_queries: Any) -> None:
    def shown() -> dict[str, float]:
        (family,) = ledger_metrics.in_progress()
        return {each.labels["environment"]: each.value for each in family.samples}

    deployed("testing", "1.0")
    assert shown() == {}
    running = begun("testing", "1.1", at=START)
    release("1.2")
    rules.create("development", "1.2", "rolling", "ci", at=START + timedelta(minutes=5))
    with django_assert_num_queries(1):
        assert shown() == {"testing": START.timestamp(), "development": START.timestamp() + 300}
    rules.finish(running.pk, "failed")
    assert list(shown()) == ["development"], "a pending one blocks its environment, too"


def test_a_lock_held_by_hand_is_shown_with_its_beginning(django_assert_num_queries: Any) -> None:
    def shown() -> dict[str, float]:
        (family,) = ledger_metrics.locks()
        return {each.labels["environment"]: each.value for each in family.samples}

    assert shown() == {}
    rules.report_lock("production", "alice@laptop", "Move", START)
    rules.report_lock("testing", "alice@laptop", "Move", START)
    with django_assert_num_queries(1):
        assert shown() == {"production": START.timestamp(), "testing": START.timestamp()}
    begun("testing", "1.0")
    assert list(shown()) == ["production"], "nothing is deployed past a lock, so somebody has released it"
    rules.report_unlock("production")
    assert shown() == {}
    with pytest.raises(Invalid):
        rules.report_lock("production", "alice@laptop", "two\nlines", START)
