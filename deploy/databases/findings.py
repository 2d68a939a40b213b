"""What preflight finds, and what each finding means for a deployment. docs/blue-green.md has the same list."""

from dataclasses import dataclass, field
from typing import Literal

from psycopg2 import sql

Verdict = Literal["allow", "refuse"]

# Each code with its verdict. An allowed one is reported because somebody should know of it.
CODES: dict[str, Verdict] = {
    # Columns
    "column-new": "allow",
    "column-gone": "allow",
    "column-order": "allow",
    "column-needs-default": "refuse",
    "column-gone-needs-default": "refuse",
    "default-collides": "refuse",
    "column-renamed": "refuse",
    "column-replaced": "refuse",
    "generated-changed": "refuse",
    "type-looser": "allow",
    "type-stricter": "allow",
    "type-rounds": "refuse",
    "type-changed": "refuse",
    "collation-changed": "allow",
    "null-allowed": "allow",
    "null-refused": "allow",
    # Tables
    "table-new": "allow",
    "table-gone": "allow",
    "table-renamed": "refuse",
    "table-replaced": "refuse",
    "partitions-differ": "refuse",
    "partition-alone": "allow",
    # Indexes, constraints, triggers
    "index": "allow",
    "unique-new": "allow",
    "unique-gone": "allow",
    "unique-deferrable": "refuse",
    "check-new": "allow",
    "check-gone": "allow",
    "foreign-key-new": "allow",
    "foreign-key-gone": "allow",
    "orphans": "refuse",
    "trigger-differs": "allow",
    "trigger-always": "refuse",
    "row-security": "refuse",
    # What replication cannot carry
    "no-key": "refuse",
    "key-changed": "refuse",
    "identity-full": "refuse",
    "unlogged": "refuse",
    "large-objects": "refuse",
    "view-empty": "refuse",
    "encoding": "refuse",
    "sequence-near-end": "refuse",
    "server-version": "refuse",
    # What the migration wrote
    "permissions-written": "allow",
    "rows-seeded": "allow",
    "rows-written": "refuse",
    "table-new-filled": "refuse",
    # Guards and publications
    "unguarded": "refuse",
    "unpublished": "refuse",
    "columns-unpublished": "refuse",
    "published-alone": "refuse",
    "publication-partial": "refuse",
    # The state of replication
    "subscription-missing": "refuse",
    "worker-down": "refuse",
    "copy-unfinished": "refuse",
    "apply-errors": "refuse",
    "conflicts": "refuse",
    "slot-missing": "refuse",
    "slot-lost": "refuse",
    "long-transaction": "refuse",
    "prepared-transaction": "refuse",
    "clocks": "refuse",
    # Requirements
    "wal-level": "refuse",
    "slots": "refuse",
    "walsenders": "refuse",
    "workers": "refuse",
    "wal-unlimited": "allow",
    "role": "refuse",
    "owner": "refuse",
    "password": "refuse",
    "extension": "refuse",
}


@dataclass(frozen=True)
class Finding:
    """One difference or fault: what is wrong, what follows, and what heals it.

    `cure_sql` is what heals it when run on the side `cure_side` ("source" or "target"), statement by statement.
    """

    verdict: Verdict
    code: str
    table: str
    column: str
    reason: str
    cure: str = ""
    cure_sql: tuple[sql.Composable, ...] = field(default=(), hash=False)
    cure_side: str = ""

    @property
    def refused(self) -> bool:
        return self.verdict == "refuse"


def finding(
    code: str,
    reason: str,
    cure: str = "",
    *,
    table: str = "",
    column: str = "",
    sql: tuple[sql.Composable, ...] = (),
    side: str = "",
) -> Finding:
    """A finding with the verdict that its code has."""
    return Finding(CODES[code], code, table, column, reason, cure, sql, side if sql else "")
