"""The four DORA measures of each environment: how often, how fast, how many went wrong, how soon that was mended.

https://dora.dev/guides/dora-metrics-four-keys/ has the measures, docs/ledger.md how they are taken from the ledger.
All is counted by the database, in one statement that PostgreSQL and SQLite both understand.
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any

from django.db import connection

# The periods in days, each with the days that one bar of a chart stands for.
PERIODS = {7: 1, 30: 1, 90: 5}

SECONDS = {
    "postgresql": "EXTRACT(EPOCH FROM ({} - {}))::float8",
    "sqlite": "((julianday({}) - julianday({})) * 86400.0)",
}
WHOLE = {"postgresql": "FLOOR({})::int", "sqlite": "CAST({} AS INTEGER)"}

# The windows run backwards in time: what is "before" a row there came after it. Forwards, PostgreSQL would begin each
# minimum anew and take the square of the time.
STATEMENT = """
WITH ended AS (
  SELECT d.id, d.environment_id, d.release_id, d.kind, d.status, d.created, d.started, d.finished,
    LAG(d.kind) OVER backwards AS next_kind,
    LAG(d.hotfix) OVER backwards AS next_hotfix,
    MIN(CASE WHEN d.status = 'succeeded' THEN d.finished END) OVER (
      PARTITION BY d.environment_id ORDER BY d.created DESC, d.id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS next_success
  FROM ledger_deployment AS d
  WHERE d.finished IS NOT NULL AND d.created >= %(since)s {only}
  WINDOW backwards AS (PARTITION BY d.environment_id ORDER BY d.created DESC, d.id DESC)
),
changes AS (
  SELECT ended.*, {bucket} AS bucket,
    CASE WHEN status = 'succeeded' THEN 1 ELSE 0 END AS live,
    CASE WHEN status <> 'succeeded' OR next_kind = 'rollback' OR next_hotfix THEN 1 ELSE 0 END AS failing
  FROM ended WHERE kind = 'deploy'
),
times AS (
  SELECT environment_id, bucket, 'lead' AS measure, {lead} AS seconds
  FROM changes JOIN ledger_release AS r ON r.id = release_id
  WHERE live = 1 AND NOT EXISTS (
    SELECT 1 FROM ledger_deployment AS d
    WHERE d.release_id = changes.release_id AND d.environment_id = changes.environment_id AND d.status = 'succeeded'
      AND (d.created < changes.created OR (d.created = changes.created AND d.id < changes.id))
  )
  UNION ALL
  SELECT environment_id, bucket, 'restore', CASE WHEN status = 'rolled_back' THEN {rolled_back} ELSE {restore} END
  FROM changes WHERE failing = 1
),
ranked AS (
  SELECT environment_id, bucket, measure, seconds,
    ROW_NUMBER() OVER (PARTITION BY environment_id, bucket, measure ORDER BY seconds) AS place,
    COUNT(*) OVER (PARTITION BY environment_id, bucket, measure) AS number
  FROM times WHERE seconds IS NOT NULL
)
SELECT environment_id, bucket, measure, AVG(seconds) FROM ranked
WHERE 2 * place BETWEEN number AND number + 2 GROUP BY environment_id, bucket, measure
UNION ALL SELECT environment_id, bucket, 'changes', COUNT(*) FROM changes GROUP BY environment_id, bucket
UNION ALL SELECT environment_id, bucket, 'live', SUM(live) FROM changes GROUP BY environment_id, bucket
UNION ALL SELECT environment_id, bucket, 'failing', SUM(failing) FROM changes GROUP BY environment_id, bucket
"""


@dataclass(frozen=True)
class Measures:
    """Of one environment in one stretch of time. Times are medians in seconds, None where there is nothing to take."""

    changes: int = 0  # that ended, in whatever way
    live: int = 0
    failing: int = 0
    lead: float | None = None
    restore: float | None = None

    @property
    def failure_rate(self) -> float | None:
        """The part of the changes that failed, from 0 to 1."""
        return self.failing / self.changes if self.changes else None


def beginning(days: int, now: datetime) -> datetime:
    """When a period of so many days begins: at midnight UTC, today being its last day."""
    return datetime.combine(now.astimezone(UTC).date() - timedelta(days=days - 1), time(), UTC)


def by_environment(days: int, now: datetime) -> dict[int, Measures]:
    """The measures of the whole period, by the environment's key. One query."""
    return {environment: found[0] for environment, found in measure(beginning(days, now)).items()}


def by_bar(environment: int, days: int, now: datetime) -> list[tuple[datetime, Measures]]:
    """The measures of each bar's stretch of time, with its beginning, the oldest first. One query."""
    since, width = beginning(days, now), timedelta(days=PERIODS[days])
    found = measure(since, width, environment).get(environment, {})
    return [(since + number * width, found.get(number, Measures())) for number in range(days // width.days)]


def measure(
    since: datetime, width: timedelta | None = None, environment: int | None = None
) -> dict[int, dict[int, Measures]]:
    """By the environment's key and the number of the stretch of `width` after `since` (0 for all, without a width)."""
    vendor = connection.vendor
    seconds = SECONDS[vendor].format
    statement = STATEMENT.format(
        only="AND d.environment_id = %(environment)s" if environment else "",
        bucket=WHOLE[vendor].format(seconds("ended.created", "%(since)s") + " / %(width)s") if width else "0",
        lead=seconds("finished", "r.built_at"),
        rolled_back=seconds("finished", "started"),
        restore=seconds("next_success", "finished"),
    )
    values: dict[str, Any] = {"since": connection.ops.adapt_datetimefield_value(since)}
    if width:
        values["width"] = width.total_seconds()
    if environment:
        values["environment"] = environment
    found: dict[int, dict[int, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        for key, bucket, name, value in cursor.fetchall():
            found[key][bucket][name] = float(value) if name in ("lead", "restore") else int(value)
    return {key: {bucket: Measures(**values) for bucket, values in buckets.items()} for key, buckets in found.items()}
