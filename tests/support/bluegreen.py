"""Two databases of the same tables that replicate to each other, for tests that need no migration."""

import json
import secrets
import signal
import subprocess
import sys

from psycopg2 import sql

from deploy.databases import fence
from deploy.databases.side import Side
from tests.support.servers import PATIENCE, ROOT, eventually

PROGRAM = """
import json, os, signal, sys
from deploy.databases import switch as module
from deploy.databases.side import Side
*names, last, limits = sys.argv[1:]
for name, seconds in json.loads(limits).items():
    setattr(module, name, seconds)
end = lambda name: name == last and os.kill(os.getpid(), signal.SIGKILL)
module.switch(Side(*names[:2]), Side(*names[2:]), deadline=200, lag=10, on_step=end)
"""


def link(blue: Side, green: Side, *, guarded: bool = True) -> None:
    """Installs the fence, with blue writable, and replicates both ways. The tables are there, and empty or equal."""
    for side in (blue, green):
        fence.install(side, writable=side is blue)
        if guarded:
            fence.guard_tables(side)
        side.run("create publication bg_pub for tables in schema public, table bg.heartbeat")
    for source, target in ((blue, green), (green, blue)):
        name = f"bg_{secrets.token_hex(4)}"
        source.run("select pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
        statement = "create subscription {} connection {} publication bg_pub with ({})"
        options = "create_slot = false, slot_name = {}, copy_data = false, origin = none"
        target.run(
            sql.SQL(statement).format(
                sql.Identifier(name), sql.Literal(source.url), sql.SQL(options).format(sql.Identifier(name))
            )
        )
        working = "select exists (select from pg_stat_replication where application_name = %s)"
        eventually(lambda: source.value(working, [name]))
    for side in (blue, green):
        fence.remember_tables(side)


def unlink(*sides: Side) -> None:
    """Drops subscriptions and slots, without which a server cannot drop the database."""
    for side in sides:
        for (name,) in side.run("select subname from pg_subscription where subdbid = %s", [database(side)]):
            named = sql.Identifier(name)
            side.run(sql.SQL("alter subscription {} disable").format(named))
            side.run(sql.SQL("alter subscription {} set (slot_name = none)").format(named))
            side.run(sql.SQL("drop subscription {}").format(named))
    for side in sides:
        slots = "select slot_name from pg_replication_slots where database = current_database()"
        for (name,) in side.run(slots):
            eventually(lambda: side.run("select pg_drop_replication_slot(%s)", [name]) or True)


def killed(source: Side, target: Side, step: str, **limits: float) -> None:
    """Begins a switch in a process of its own and kills that after `step`; `limits` are the switch's own."""
    words = [source.colour, source.url, target.colour, target.url, step, json.dumps(limits)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=ROOT, timeout=PATIENCE, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def database(side: Side) -> int:
    """The oid of the side's database."""
    return int(side.value("select oid::bigint from pg_database where datname = current_database()"))
