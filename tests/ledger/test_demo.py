"""The mock history for development, and the mock deployment that advances."""

from datetime import timedelta

import pytest
from django.utils import timezone

from ledger import demo, queries, steps
from ledger.models import Deployment, Step

pytestmark = pytest.mark.django_db


def test_mock_data_are_a_plausible_history() -> None:
    assert demo.load("testing") is None and not Deployment.objects.exists()
    told = demo.load("mock")
    rows = list(Deployment.objects.select_related("environment").order_by("created"))
    assert told and str(len(rows)) in told and 50 <= len(rows) <= 70
    statuses = [each.status for each in rows]
    assert statuses.count("failed") >= 2 and "rolled_back" in statuses
    assert sum(each.hotfix for each in rows) == 1 and sum(each.kind == "rollback" for each in rows) == 1
    (running,) = [each for each in rows if not each.is_finished]
    assert running.environment.name == "production"
    assert [step.outcome for step in running.steps.all()] == ["succeeded", "succeeded", "running"]
    assert all(each.current for each in queries.board())
    span = rows[-1].created - rows[0].created
    assert timedelta(days=80) < span < timedelta(days=91)
    assert {each.actor for each in rows} <= {demo.PIPELINE, *demo.PEOPLE}
    assert all(each.steps.exists() for each in rows)
    assert demo.load("mock") is None and Deployment.objects.count() == len(rows)


def test_mock_data_have_the_steps_that_the_deployer_reports_also_of_the_one_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    demo.load("mock")
    assert set(Step.objects.values_list("name", flat=True)) == set(steps.EVERY)
    for row in Deployment.objects.filter(status="succeeded", kind="deploy"):
        assert tuple(row.steps.values_list("name", flat=True)) == steps.DEPLOY
    for row in Deployment.objects.filter(status="rolled_back"):
        assert [(each.name, each.outcome) for each in row.steps.all()][-2:] == [
            (steps.WATCH, "failed"),
            (steps.ROLL_BACK, "succeeded"),
        ]

    # The one in progress advances and ends.
    (running,) = Deployment.objects.filter(status="running")
    running.steps.filter(name=steps.SMOKE_TEST).update(started=timezone.now())
    waited: list[timedelta] = []

    def wait(pause: timedelta) -> bool:
        waited.append(pause)
        return len(waited) < 3

    assert demo.simulate(wait) == 0, "stopped while it was watched"
    running.refresh_from_db()
    assert running.status == "running" and [each.name for each in running.steps.all()][-1] == steps.WATCH
    tomorrow = timezone.now() + timedelta(days=1)
    monkeypatch.setattr(timezone, "now", lambda: tomorrow)
    assert demo.simulate(lambda _: pytest.fail("what was left lying has ended in the past")) == 1
    running.refresh_from_db()
    assert running.status == "succeeded" and running.duration and running.duration < timedelta(minutes=10)
    assert tuple(running.steps.values_list("name", flat=True)) == steps.DEPLOY
    assert demo.simulate(wait) == 0, "none is under way"
