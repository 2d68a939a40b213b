"""What a database per colour costs the app: the same statements through Django's connection to one database and to two.

One process and one PostgreSQL, without load, and without waiting for the disk (fsync is off): what is compared is the
messages, and what the server does for them.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from bench.measure import Options, clean, in_turns, say, table, us
from tests.support.servers import ROOT, Postgres

BATCH = 50  # of one kind, before it is the next one's turn
KINDS = {
    "transaction": "a transaction with one INSERT",
    "apart": "the same, entered by a message of its own",
    "statement": "an INSERT outside a transaction",
    "first read": "the first SELECT of a request",
    "read": "a further SELECT",
}


def run(options: Options) -> str:
    with Postgres() as server:
        say("colours: one database, and one per colour")
        urls = [server.create(name) for name in ("one", "blue", "green")]
        done = subprocess.run(
            [sys.executable, "-m", "bench.colours", *urls, str(options.times(100, 4))],
            cwd=ROOT,
            env=clean(),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    rows = []
    for kind, label in KINDS.items():
        one, two = found["one"].get(kind) or found["one"]["transaction"], found["two"][kind]
        rows.append([label, us(one), us(two), us(two - one)])
    return table(["", "one database", "a database per colour", "more"], rows)


def main(one: str, blue: str, green: str, rounds: str) -> None:
    """Prints the medians, in seconds, as JSON."""
    import django
    from django.conf import settings
    from django.db import connections, transaction

    from deploy.databases import fence
    from deploy.databases.side import Side
    from settings.services import postgresql

    entries = {colour: postgresql("DATABASE_URL", url) for colour, url in (("blue", blue), ("green", green))}
    two = {"ENGINE": "backstagetest1.bluegreen", "COLOURS": entries, "HOLD_LIMIT": 5.0, "OWN": ""}
    databases = {
        "default": {},
        "one": postgresql("DATABASE_URL", one) | {"ENGINE": "backstagetest1.postgresql"},
        "two": entries["blue"] | two,
    }
    settings.configure(DATABASES=databases, HEALTH_CHECKS={}, USE_TZ=True)
    django.setup()
    for url in (one, blue, green):
        side = Side("blue", url)
        side.run("create table t (n int)")
        if url != one:
            fence.install(side, writable=url == blue)
            fence.guard_tables(side)
        side.close()

    def execute(alias: str, sql: str) -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute(sql)

    def transact(alias: str) -> None:
        with transaction.atomic(using=alias):
            execute(alias, "insert into t values (1)")

    def apart(alias: str) -> None:
        with transaction.atomic(using=alias):
            wrapper: Any = connections[alias]
            wrapper.ensure_connection()
            with wrapper.connection.cursor() as cursor:
                cursor.execute("select bg.enter()")
            wrapper.entered = True
            execute(alias, "insert into t values (1)")

    def first_read(alias: str) -> None:
        connections[alias].close_if_unusable_or_obsolete()
        execute(alias, "select n from t limit 1")

    work: dict[str, Callable[[str], None]] = {
        "transaction": transact,
        "apart": apart,
        "statement": lambda alias: execute(alias, "insert into t values (1)"),
        "first read": first_read,
        "read": lambda alias: execute(alias, "select n from t limit 1"),
    }
    turns = [(alias, kind) for kind in work for alias in ("one", "two") if (alias, kind) != ("one", "apart")]
    took: dict[str, dict[str, list[float]]] = {"one": {}, "two": {}}
    for alias, kind in in_turns(turns, int(rounds)):
        for _ in range(BATCH):
            started = time.perf_counter()
            work[kind](alias)
            took[alias].setdefault(kind, []).append(time.perf_counter() - started)
    json.dump(
        {alias: {kind: median(times) for kind, times in kinds.items()} for alias, kinds in took.items()}, sys.stdout
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
