"""What the ledger says of its rows: ledger.queries, and the queries of the models."""

from datetime import timedelta
from typing import Any

import pytest

from ledger import queries, rules
from ledger.models import Deployment, Environment
from tests.support.ledgers import START, begun, deployed, release

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


def test_the_board_shows_what_runs_what_is_under_way_and_what_was() -> None:
    for number in range(7):
        deployed("testing", f"1.{number}", "failed" if number == 6 else "succeeded", at=START + number * HOUR)
    running = begun("testing", "2.0")
    deployed("staging", "1.0")
    development, testing, staging, production = queries.board()
    assert testing.current and testing.current.release.version == "1.5"
    assert testing.in_flight == running
    assert [each.release.version for each in testing.recent] == ["2.0", "1.6", "1.5", "1.4", "1.3"]
    assert staging.current and staging.current.release.version == "1.0" and staging.in_flight is None
    assert (production.current, production.in_flight, production.recent) == (None, None, [])
    assert development.recent == []


@pytest.mark.parametrize("count", [3, 20])
def test_the_board_takes_five_queries_however_many_deployments(count: int, django_assert_num_queries: Any) -> None:
    for number in range(count):
        deployed("testing", f"1.{number % 10}", at=START + number * HOUR)
    with django_assert_num_queries(5):
        for environment in queries.board():
            for each in environment.recent:
                assert each.release.version and each.environment.name and (not each.previous or each.previous.release)


def test_what_is_promotable_went_through_the_gate_and_was_not_there_yet() -> None:
    production, staging = Environment.objects.get(name="production"), Environment.objects.get(name="staging")
    for number, result in enumerate(("succeeded", "succeeded", "failed", "succeeded")):
        deployed("staging", f"1.{number}", result, at=START + number * HOUR)
    deployed("production", "1.1", at=START + 9 * HOUR)
    found = queries.promotable(production)
    assert [(each.release.version, each.proven) for each in found] == [
        ("1.3", START + 3 * HOUR + timedelta(minutes=1)),
        ("1.0", START + timedelta(minutes=1)),
    ]
    assert [each.release.version for each in queries.promotable(production, 1)] == ["1.3"]
    release("2.0", START + HOUR)
    assert [each.release.version for each in queries.promotable(staging)] == ["2.0", "1.2"]


def test_rollback_targets_were_live_before_what_is() -> None:
    testing = Environment.objects.get(name="testing")
    assert queries.rollback_targets(testing) == []
    for number, (version, result) in enumerate(
        (("1.0", "succeeded"), ("1.1", "succeeded"), ("1.2", "failed"), ("1.0", "succeeded"), ("1.3", "succeeded"))
    ):
        deployed("testing", version, result, at=START + number * HOUR)
    assert [each.release.version for each in queries.rollback_targets(testing)] == ["1.0", "1.1"]
    for target in queries.rollback_targets(testing):
        rules.finish(rules.create("testing", target.release.version, "rolling", "ci", kind="rollback").pk, "failed")


def test_the_history_is_what_was_live_and_not_what_was_built() -> None:
    """1.0, 1.1, 1.0 again and 1.2."""
    for number, version in enumerate(("1.0", "1.1", "1.0", "1.2")):
        deployed("testing", version, at=START + number * HOUR)
    testing = Environment.objects.get(name="testing")
    assert [each.release.version for each in queries.rollback_targets(testing)] == ["1.0", "1.1"]
    assert queries.previous_good(testing) == "1.0"


def versions(**filters: Any) -> list[str]:
    return [each.release.version for each in Deployment.objects.newest_first().matching(**filters)]


def test_the_history_is_filtered_by_everything_and_searched_by_version_and_commit() -> None:
    deployed("testing", "1.0", at=START)
    deployed("testing", "1.1", "failed", at=START + HOUR, strategy="blue-green")
    last = deployed("staging", "2.0", at=START + 2 * HOUR)
    assert versions() == ["2.0", "1.1", "1.0"]
    assert versions(environment="testing") == ["1.1", "1.0"]
    assert versions(environment="testing", status="succeeded") == ["1.0"]
    assert versions(strategy="blue-green") == ["1.1"]
    assert versions(actor="pipeline", status="") == ["2.0", "1.1", "1.0"] and versions(actor="pipe") == []
    assert versions(since=START + HOUR, until=START + 2 * HOUR) == ["1.1"]
    assert versions(search="1.") == ["1.1", "1.0"] and versions(search="%") == []
    assert versions(search=last.release.commit[:7].upper()) == ["2.0"]


def test_pages_neither_repeat_nor_miss_a_row_while_others_come() -> None:
    for number in range(7):
        deployed("testing", f"1.{number}", at=START + (number // 2) * HOUR)  # some at the same time
    page = Deployment.objects.page(3)
    seen = page.rows[:]
    deployed("testing", "9.0", at=START + 99 * HOUR)
    while page.next:
        page = Deployment.objects.page(3, page.next)
        seen += page.rows
    assert len({each.pk for each in seen}) == len(seen) == 7
    assert [(-each.created.timestamp(), -each.pk) for each in seen] == sorted(
        (-each.created.timestamp(), -each.pk) for each in seen
    )


@pytest.mark.parametrize("cursor", ["x", "é", "MQ", "LTEuMQ", "MS4tMQ", "MS5_", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OS4x"])
def test_an_invalid_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(ValueError, match="Invalid cursor"):
        Deployment.objects.page(3, cursor)


def test_the_typical_duration_is_the_median_of_what_succeeded() -> None:
    testing = Environment.objects.get(name="testing")
    assert Deployment.objects.typical_duration(testing, "rolling") is None
    for number, minutes in enumerate((1, 2, 60)):
        release("1.0")
        at = START + number * 2 * HOUR
        key = rules.create("testing", "1.0", "rolling", "ci", at=at).pk
        rules.start(key, at=at)
        rules.finish(key, "succeeded", at=at + timedelta(minutes=minutes))
    assert Deployment.objects.typical_duration(testing, "rolling") == timedelta(minutes=2)
