"""A database of its own in which every migration has been applied, on PostgreSQL or SQLite."""

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from django.core.management import call_command
from django.db import connections
from pytest_django import DjangoDbBlocker

SCRATCH = "scratch"


@contextmanager
def scratch_database(vendor: str, blocker: DjangoDbBlocker, folder: Path) -> Iterator[Any]:
    """Yields the connection to a new database, of the alias SCRATCH. `folder` is for SQLite's file."""
    given = connections.settings["default"]
    name = f"{SCRATCH}_{secrets.token_hex(4)}"
    if vendor == "sqlite":
        given = given | {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / name), "OPTIONS": {}}
    else:
        administer(given, f"CREATE DATABASE {name}")
        given = given | {"NAME": name}
    connections.settings[SCRATCH] = given
    try:
        with blocker.unblock():
            migrate()
            yield connections[SCRATCH]
            connections[SCRATCH].close()
    finally:
        del connections[SCRATCH], connections.settings[SCRATCH]
        if vendor == "postgresql":
            administer(given, f"DROP DATABASE {name}")


def administer(server: dict[str, Any], statement: str) -> None:
    where = {name: server[key] for name, key in (("host", "HOST"), ("port", "PORT"), ("user", "USER"))}
    with closing(psycopg2.connect(dbname="postgres", password=server["PASSWORD"], **where)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)


def migrate(*words: str) -> None:
    call_command("migrate", *words, database=SCRATCH, verbosity=0)
