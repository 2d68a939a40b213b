"""What a server must offer before anything is prepared on it."""

from collections.abc import Collection, Iterator

from psycopg2 import extensions

from deploy.databases import statements
from deploy.databases.findings import Finding, finding
from deploy.databases.schemas import OLDEST
from deploy.databases.side import Side

SLOTS = 3  # of each side: one that stays, and two while tables are copied
ORIGINS = "max_active_replication_origins"  # before 18, max_replication_slots bounded these too
WORKERS = 3  # apply, and two that copy


def requirements(side: Side, *, installed: Collection[str] = (), sides: int = 1) -> list[Finding]:
    """What the server or the role lacks. `installed` are the extensions of the other side's database.

    `sides` is 2 if both databases are in this server. Raises DatabaseError.
    """
    return [*server(side, sides), *role(side), *extensions_missing(side, installed)]


def server(side: Side, sides: int) -> Iterator[Finding]:
    """The server's version and settings, and how much of them is free."""
    ((version, wal_level, kept, slots, origins, walsenders, workers, processes),) = side.run(statements.SETTINGS)
    name = f"The {side.colour} server"
    if version < OLDEST:
        yield finding(
            "server-version",
            f"{name} runs PostgreSQL {version // 10000}; both directions at once require 16.",
            "Upgrade PostgreSQL, or deploy with one database.",
        )
    if wal_level != "logical":
        yield finding(
            "wal-level",
            f"{name} has wal_level = {wal_level}; expected: logical.",
            "ALTER SYSTEM SET wal_level = 'logical', and restart it.",
        )
    for code, setting, free, wanted in (
        ("slots", "max_replication_slots", slots, SLOTS * sides),
        ("slots", ORIGINS if version >= 180000 else "max_replication_slots (for origins)", origins, SLOTS * sides),
        ("walsenders", "max_wal_senders", walsenders, SLOTS * sides),
        ("workers", "max_logical_replication_workers", workers, WORKERS * sides),
        ("workers", "max_worker_processes", processes, WORKERS * sides),
    ):
        if free < wanted:
            yield finding(
                code,
                f"{name} has {max(free, 0)} of {setting} left; {wanted} are needed.",
                f"Raise {setting}, and restart it.",
            )
    if kept == "-1":
        yield finding(
            "wal-unlimited",
            f"{name} has no max_slot_wal_keep_size: if the other side is down, its disk fills.",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '10GB', say, and reload.",
        )


def role(side: Side) -> Iterator[Finding]:
    """What the role that the URL names may do."""
    ((name, superuser, replicates, creates, subscribes),) = side.run(statements.ROLE)
    for allowed, what, cure in (
        (superuser or replicates, "may not replicate", f'ALTER ROLE "{name}" REPLICATION.'),
        (subscribes, "may not create subscriptions", f'GRANT pg_create_subscription TO "{name}".'),
        (creates, "may not create in the database", f'GRANT CREATE ON DATABASE ... TO "{name}".'),
    ):
        if not allowed:
            yield finding("role", f"The role {name} of the {side.colour} database {what}.", cure)
    if not superuser and not extensions.parse_dsn(side.url).get("password"):
        yield finding(
            "password",
            f"The URL of the {side.colour} database has no password, which a subscription requires.",
            "Give the role a password, and put it into the URL.",
        )
    for schema, table, owner in side.run(statements.NOT_OWNED):
        yield finding(
            "owner",
            f"Belongs to {owner}, whose role {name} does not have; only an owner can publish and guard a table.",
            f'GRANT "{owner}" TO "{name}", or ALTER TABLE ... OWNER TO "{name}".',
            table=table if schema == "public" else f"{schema}.{table}",
        )


def extensions_missing(side: Side, installed: Collection[str]) -> Iterator[Finding]:
    """Extensions that the other side uses and this server does not have."""
    available = {name for (name,) in side.run(statements.AVAILABLE)}
    for name in sorted(set(installed) - available):
        yield finding(
            "extension",
            f"The {side.colour} server does not have the extension {name}.",
            "Install its package on the server.",
        )
