"""Prepares the other colour's database while this one serves, and ends the preparation.

prepare() copies the source's schema and rows to the target, keeps them in step, migrates the target, and links it back:
what either of them writes from then on reaches the other. Both links are made with origin = none, so that nothing
returns to where it came from; a switch and a rollback then touch no link at all. Its state is in the two databases, so
it can be killed at any step and run again: what is not finished is made anew.

https://www.postgresql.org/docs/current/logical-replication.html
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from psycopg2 import sql

from deploy.databases import fence, links, statements
from deploy.databases.copying import retried
from deploy.databases.errors import DatabaseError
from deploy.databases.links import Link, Say
from deploy.databases.preparation import After, Before, Options, Preparation
from deploy.databases.rehearsal import Rehearsal
from deploy.databases.side import Side
from deploy.errors import DeployRefused, LockHeld

GONE = ("42703", "42P01")  # SQLSTATEs: no such column, no such table


def prepare(
    source: Side,
    target: Side,
    *,
    migrate: Callable[[], None],
    say: Say,
    release: str = "",
    before: Before = lambda: (),
    after: After = lambda notes, written: (),
    options: Options = Options(),
) -> Link:
    """Prepares `target` to take over from `source`, which goes on serving. Returns the links once both run.

    `migrate` migrates the target; it has to connect with `-c bg.bypass=on`. `before` is asked before anything is
    changed, and `after` once the target is migrated. With two Rehearsals it changes nothing, and shows the SQL.

    A link of the same release that is ready is left as it is. Raises DeployRefused, LockHeld if another command is at
    work, and DatabaseError; whatever it raises, no slot that keeps WAL is left behind, if the databases can be reached.
    """
    with alone(source):
        old = links.noted(source)
        same = old and not options.again and old == Link(old.id, source.colour, target.colour, release, ready=True)
        if old and same and links.intact(source, target, old):
            say(f"{target.colour} is already prepared for {release or 'this release'}; nothing to do")
            return old
        preparation = Preparation(
            source, target, migrate=migrate, say=say, release=release, before=before, after=after, options=options
        )
        begun = False
        try:
            for name, step in preparation.steps():
                preparation.step = name
                say(f"{name} ...")
                preparation.say(step() or "done")
                begun = True
        except BaseException:
            if begun:
                say("failed; dropping the links, so that no replication slot keeps WAL")
                try:
                    links.clear(source, target)
                except DatabaseError as error:
                    say(f"cannot drop the links, which keep WAL until prepare or finalize is run again: {error}")
            raise
        found = links.noted(source)
        return found or Link(preparation.id, source.colour, target.colour, release)


def finalize(active: Side, idle: Side, *, say: Say) -> None:
    """Ends the links: slots, subscriptions, publications, and on the active side the guards and temporary defaults.

    After this, a rollback would lose rows. The idle side stays fenced and guarded, so that nobody writes there
    by mistake. If it cannot be reached, the active side is done all the same, and what is left goes with the next
    prepare(). Idempotent. Raises DeployRefused if `active` does not accept writes, and DatabaseError.
    """
    with alone(active):
        if links.installed(active) and not fence.read(active).writable:
            raise DeployRefused(
                f"The {active.colour} database does not accept writes, so it is not the active one. "
                "Run `manage.py bluegreen recover` first."
            )
        failure: DatabaseError | None = None
        try:
            say(links.clear(active, idle) or "nothing was linked")
            links.forget(idle, "default", "lossless")
        except DatabaseError as error:
            failure = error
        for name in links.notes(active, "default"):
            schema, table, column = json.loads(name)
            form = sql.SQL(statements.DROP_DEFAULT)
            try:
                retried(active, form.format(sql.Identifier(schema, table), sql.Identifier(column)))
            except DatabaseError as error:
                if error.code not in GONE:
                    raise
        links.forget(active, "default", "lossless")
        fence.unguard_tables(active)
        if failure:
            raise failure


def loosen(idle: Side, cures: Iterable[sql.Composable]) -> None:
    """Runs statements that let the idle side take rows that it does not take yet, such as ALTER COLUMN TYPE.

    Its worker then goes on with the row that stopped it, within wal_retrieve_retry_interval. Raises DeployRefused if
    the side accepts writes, and DatabaseError.
    """
    if fence.read(idle).writable:
        raise DeployRefused(f"The {idle.colour} database accepts writes; only the idle one can be loosened.")
    published = {(schema, table): columns for schema, table, columns in idle.run(statements.LISTS)}
    # PostgreSQL changes no column that is in a list. Nothing is sent meanwhile, as nobody writes here.
    links.publish(idle, published)
    try:
        for cure in cures:
            retried(idle, cure, timeout=3600)
    finally:
        links.publish(idle, published, {key: columns for key, columns in published.items() if columns})
    fence.remember_tables(idle)


@contextmanager
def alone(side: Side) -> Iterator[None]:
    """Holds a lock in `side`, so that one command at a time prepares or finalizes. Raises LockHeld."""
    with side.session() as session:
        if not isinstance(side, Rehearsal) and not session.value(statements.ALONE):
            raise LockHeld(f"Another command is at work on the {side.colour} database; wait until it has ended.")
        yield
