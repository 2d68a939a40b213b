"""The four DORA metrics of each environment: deployment frequency, lead time, change failure rate, time to restore.

https://dora.dev/guides/dora-metrics-four-keys/ defines the metrics, docs/ledger.md how the ledger computes them.
The database computes them in one statement that PostgreSQL and SQLite both understand.
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any

from django.db import connection

# The periods in days, each with the days that one bar of a chart covers.
PERIODS = {7: 1, 30: 1, 90: 5}

SECONDS = {
    "postgresql": "EXTRACT(EPOCH FROM ({} - {}))::float8",
    "sqlite": "((julianday({}) - julianday({})) * 86400.0)",
}
WHOLE = {"postgresql": "FLOOR({})::int", "sqlite": "CAST({} AS INTEGER)"}

# The windows run backwards in time, so the rows that precede one are newer. Forwards, PostgreSQL would compute each
# minimum from scratch, in quadratic time.
STATEMENT = """
WITH ended AS (
  SELECT d.id, d.environment_id, d.release_id, d.kind, d.status, d.created, d.started, d.finished,
    LAG(d.kind) OVER backwards AS next_kind,
    LAG(d.hotfix) OVER backwards AS next_hotfix,
    MIN(CASE WHEN d.status = 'succeeded' THEN d.finished END) OVER (
      PARTITION BY d.environment_id ORDER BY d.created DESC, d.id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS next_success
  FROM ledger_deployment AS d
  WHERE d.finished IS NOT NULL AND d.status NOT IN ('rejected', 'expired') AND d.created >= %(since)s {only}
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
    """The metrics of one environment in one period. Times are medians in seconds, None without data."""

    changes: int = 0  # that finished, with any result
    live: int = 0
    failing: int = 0
    lead: float | None = None
    restore: float | None = None

    @property
    def failure_rate(self) -> float | None:
        """The share of changes that failed, from 0 to 1; None without changes."""
        return self.failing / self.changes if self.changes else None


def beginning(days: int, now: datetime) -> datetime:
    """Returns the start of the period of `days` days whose last day is today: a midnight in UTC."""
    return datetime.combine(now.astimezone(UTC).date() - timedelta(days=days - 1), time(), UTC)


def by_environment(days: int, now: datetime) -> dict[int, Measures]:
    """Returns the measures of the whole period, by the environment's primary key. One query."""
    return {environment: found[0] for environment, found in measure(beginning(days, now)).items()}


def by_bar(environment: int, days: int, now: datetime) -> list[tuple[datetime, Measures]]:
    """Returns the start and the measures of each bar of the chart, oldest first. One query."""
    since, width = beginning(days, now), timedelta(days=PERIODS[days])
    found = measure(since, width, environment).get(environment, {})
    return [(since + number * width, found.get(number, Measures())) for number in range(days // width.days)]


def measure(
    since: datetime, width: timedelta | None = None, environment: int | None = None
) -> dict[int, dict[int, Measures]]:
    """Returns the measures since `since`, by the environment's primary key and the number of the bar, `width` each.

    Without `width` there is one bar, 0. With `environment`, a primary key, they are of that environment only.
    """
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
