"""Processes of their own with the test's database, for races on PostgreSQL."""

import json
import os
import subprocess
import sys
from typing import Any

from django.db import connection

from tests.support.servers import PATIENCE, ROOT


class Process:
    """Another process, which runs `program`: that prints `ready`, and one line for each line of JSON that it reads."""

    def __init__(self, program: str) -> None:
        given = connection.settings_dict
        url = f"postgres://{given['USER']}:{given['PASSWORD']}@{given['HOST']}:{given['PORT']}/{given['NAME']}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT, env=os.environ | {"DATABASE_URL": url}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.answer() == "ready"

    def ask(self, *words: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.communicate(timeout=PATIENCE)
