"""The app under gunicorn with a database of its own, for settings that a process reads once."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2

from tests.support.servers import PATIENCE, ROOT, Gunicorn, Redis


class Site:
    """The app, at a host name, as passkeys require one; and its database."""

    def __init__(self, url: str, env: dict[str, str]) -> None:
        self.url, self.env, self.database = url, os.environ | env, env["DATABASE_URL"]

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self.database)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(query, values)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def served(redis: Redis, name: str, prepare: str, **env: str) -> Iterator[Site]:
    """Runs the app under settings.testing; `prepare` is run after the migrations, in the same settings."""
    base = os.environ["DATABASE_URL"]
    name = f"{name}_{os.getpid()}"
    with closing(psycopg2.connect(base)) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {name}")
    database = f"{base.rpartition('/')[0]}/{name}"
    env = {"DJANGO_SETTINGS_MODULE": "settings.testing", "DATABASE_URL": database, "REDIS_URL": redis.url} | env
    setup = "import django; django.setup()\nfrom django.core.management import call_command\n"
    program = [sys.executable, "-c", f'{setup}call_command("migrate", verbosity=0)\n{prepare}']
    subprocess.run(program, cwd=ROOT, env=os.environ | env, check=True, timeout=PATIENCE)
    with Gunicorn(**env) as server:
        yield Site(server.url.replace("127.0.0.1", "localhost"), env)
