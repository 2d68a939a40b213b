"""Reads what a database enforces for the tables of our apps, a fact a line: columns, constraints, indexes, triggers."""

import re
from collections.abc import Iterator
from typing import Any

OURS = ("accounts_", "audit_", "ledger_", "statuspage_")

# Each answers with the kind of fact, its table and what it says.
POSTGRESQL = (
    """
SELECT 'column', relname, concat_ws(' ', attname, format_type(atttypid, atttypmod),
  CASE WHEN attnotnull THEN 'NOT NULL' END, CASE WHEN attidentity <> '' THEN 'IDENTITY' END)
FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace AND attnum > 0 AND NOT attisdropped
""",
    """
SELECT 'constraint', conrelid::regclass::text, concat_ws(' ', CASE WHEN contype <> 'f' THEN conname END,
  pg_get_constraintdef(oid))
FROM pg_constraint WHERE connamespace = current_schema()::regnamespace AND contype <> 'n'
""",
    """
SELECT 'index', tablename, indexdef FROM pg_indexes
WHERE schemaname = current_schema() AND indexname NOT IN (SELECT conname FROM pg_constraint)
""",
    "SELECT 'trigger', tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    """
SELECT 'function', proname, concat_ws(' ', prosrc, array_to_string(proconfig, ','))
FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
""",
)
SQLITE = ("SELECT type, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL",)


def facts(connection: Any) -> list[str]:
    """Returns a sorted line for each fact about our tables in the database of `connection`, PostgreSQL or SQLite."""
    found = set()
    with connection.cursor() as cursor:
        for query in POSTGRESQL if connection.vendor == "postgresql" else SQLITE:
            cursor.execute(query)
            for kind, table, text in cursor.fetchall():
                if table.startswith(OURS) or re.search("(ledger|audit)_", text):
                    found |= {
                        f"{kind} {table}: {plain(each)}" for each in (clauses(text) if kind == "table" else [text])
                    }
    return sorted(found)


def clauses(sql: str) -> Iterator[str]:
    """Yields what the outermost commas of CREATE TABLE divide, as SQLite keeps columns and constraints in any order."""
    inner, depth, start = sql[sql.index("(") + 1 : sql.rindex(")")], 0, 0
    for at, char in enumerate(f"{inner},"):
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            yield inner[start:at]
            start = at + 1


def plain(text: str) -> str:
    """Returns `text` on one line, without hashes in names, the names of foreign keys, and the words of messages."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"(?<=[a-z_]{3})_[0-9a-f]{8}(?=_|\b)", "_#", text)
    text = re.sub(r'CONSTRAINT "\w+" FOREIGN', "FOREIGN", text)
    return re.sub(r"'((?:ledger|audit)_\w+): [^']*'", r"'\1'", text)
