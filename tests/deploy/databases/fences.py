"""The fence of a database, opened and shut by hand, as a test needs it."""

from deploy.databases import fence, statements
from deploy.databases.side import Side


def prepare(side: Side) -> None:
    """Puts the fence, shut, and the guards in place."""
    fence.install(side)
    fence.guard_tables(side)


def flip(side: Side, writable: bool) -> bool:
    """Sets the fence when no transaction is under way that has entered, as a switch does."""
    with side.session(default_transaction_read_only="off") as session:
        session.run("select pg_advisory_lock(%s)", [statements.LOCK])
        session.run("select setval('bg.fence', %s)", [int(writable)])
    return writable
