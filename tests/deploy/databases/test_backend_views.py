"""The whole app with a database per colour: two instances with two workers each, under load, while the writes move."""

import http.client
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import connection

from deploy.databases import dump
from deploy.databases.preparation import Options
from deploy.databases.replication import prepare
from deploy.databases.side import Side
from deploy.databases.switch import switch
from ledger.tokens import digest
from tests.deploy.databases.conftest import OPTIONS
from tests.support.servers import PATIENCE, Gunicorn, Postgres, eventually

pytestmark = [pytest.mark.slow, pytest.mark.django_db]  # whose database has the schema

TOKEN = "bst1_of-a-pipeline-that-registers-releases"
TOKENS = """
insert into ledger_apitoken (name, digest, may_register, may_take_over, may_request, may_record, created, last_address)
values ('load', %s, true, false, true, true, now(), '')
"""
CLIENTS = 8
RATE = 30.0  # requests a second of each client, if the machine gives as many


@pytest.fixture(scope="module")
def sides(django_db_setup: None, django_db_blocker: Any) -> Iterator[tuple[Side, Side]]:
    """Blue, with the app's schema, and green, which follows it and is followed by it."""
    with Postgres(OPTIONS) as first, Postgres(OPTIONS) as second:
        blue, green = Side("blue", first.url), Side("green", second.url)
        given = urlsplit(os.environ["DATABASE_URL"])
        name = connection.settings_dict["NAME"]
        dumped = subprocess.run(
            [first.bin / "pg_dump", "--no-owner", "--inserts", given._replace(path=f"/{name}").geturl()],
            check=True,
            capture_output=True,
            text=True,
        )
        dump.restore(blue, dump.OMITTED.sub("", dumped.stdout))
        blue.run(TOKENS, [digest(TOKEN)])
        options = Options(pg_dump=str(first.bin / "pg_dump"), patience=PATIENCE)
        prepare(blue, green, migrate=lambda: None, say=lambda text: None, options=options)
        yield blue, green
        blue.close()
        green.close()


@pytest.fixture(scope="module")
def instances(sides: tuple[Side, Side]) -> Iterator[list[Gunicorn]]:
    blue, green = sides
    env = {"DATABASE_URL_BLUE": blue.url, "DATABASE_URL_GREEN": green.url}
    env |= {"API_RATE_PER_TOKEN": "1000000", "API_RATE_PER_ADDRESS": "1000000"}
    with ExitStack() as stack:
        yield [stack.enter_context(Gunicorn(2, **env)) for _ in range(2)]


class Load:
    """Clients that register releases, write down each acknowledgement, and read back what was acknowledged."""

    def __init__(self, instances: list[Gunicorn]) -> None:
        self.ports = [instance.port for instance in instances]
        self.numbers = itertools.count()
        self.lock = threading.Lock()
        self.acknowledged: list[tuple[float, str]] = []  # when, and which version
        self.failed: list[str] = []
        self.asked = self.broken = 0
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.client, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def client(self, number: int) -> None:
        links = [http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE) for port in self.ports]
        turns = itertools.cycle(links)
        while not self.stop.is_set():
            began = time.monotonic()
            version = f"1.{next(self.numbers)}"
            body = {"version": version, "commit": "4f2a9c1", "built_at": "2026-03-01T12:00:00Z"}
            status, replayed = self.ask(next(turns), "POST", "releases", body)
            if status == 201 or (status == 200 and replayed):
                with self.lock:
                    self.acknowledged.append((time.monotonic(), version))
                status, _ = self.ask(next(turns), "GET", f"releases/{version}")
                if status != 200:
                    self.failed.append(f"GET of {version}, which was acknowledged: {status}")
            else:
                self.failed.append(f"POST of {version}: {status}{' (written twice)' if status == 200 else ''}")
            self.stop.wait(max(0, 2 / RATE - (time.monotonic() - began)))
        for link in links:
            link.close()

    def ask(self, link: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> tuple[int, bool]:
        """The answer's status and whether it is a repeated one. What a broken connection left open is asked again."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        if body:
            headers["Idempotency-Key"] = body["version"]
        while True:
            with self.lock:
                self.asked += 1
            try:
                link.request(method, f"/api/{path}", json.dumps(body) if body else None, headers)
                answer = link.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException):
                with self.lock:
                    self.broken += 1
                link.close()
                continue
            if answer.status >= 300:
                self.failed.append(text.decode()[:200])
            return answer.status, "Idempotency-Replayed" in answer.headers

    def gaps(self, windows: list[tuple[float, float]]) -> list[float]:
        """The longest time between two acknowledgements in each of the windows, in seconds."""
        times = sorted(moment for moment, _ in self.acknowledged)
        pairs = list(itertools.pairwise(times))
        return [max((b - a for a, b in pairs if b >= begin and a <= end), default=0.0) for begin, end in windows]


def figures(gaps: list[float]) -> str:
    p95 = sorted(gaps)[int(0.95 * len(gaps))]
    return f"median {median(gaps) * 1000:.0f}, p95 {p95 * 1000:.0f}, max {max(gaps) * 1000:.0f} ms"


def rows(side: Side) -> list[tuple[Any, ...]]:
    return side.run("select version from ledger_release order by 1")


def test_no_request_fails_and_no_write_is_lost_or_doubled_while_the_writes_move(
    sides: tuple[Side, Side], instances: list[Gunicorn], full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two short moves; with --full 20 there and 20 back. In between a worker is killed."""
    blue, green = sides
    moves = 40 if full else 2
    windows, quiet = [], []
    with Load(instances) as load:
        assert eventually(lambda: len(load.acknowledged) > 10 * CLIENTS)
        for number in range(moves):
            source, target = (blue, green) if number % 2 == 0 else (green, blue)
            began = time.monotonic()
            switched = switch(source, target, deadline=PATIENCE, lag=1.0)
            windows.append((began, time.monotonic()))
            assert switched.lossless
            if number == moves // 2:
                os.kill(instances[0].workers()[0], signal.SIGKILL)
            began, count = time.monotonic(), len(load.acknowledged)
            assert eventually(lambda: len(load.acknowledged) > count + 5 * CLIENTS)
            if number != moves // 2:
                quiet.append((began, time.monotonic()))
    gaps = load.gaps(windows)
    with capsys.disabled() if full else nullcontext():
        print(
            f"\n{moves} moves, {load.asked} requests, {len(load.failed)} failed, {load.broken} cut off by the kill; "
            f"gap {figures(gaps)}; without a switch: {figures(load.gaps(quiet))}"
        )
    assert load.failed == []
    assert 0 < len(load.acknowledged) and load.broken <= 2 * CLIENTS
    versions = {version for _, version in load.acknowledged}
    assert eventually(lambda: rows(blue) == rows(green))
    there = {version for (version,) in rows(blue)}
    assert versions <= there and len(versions) == len(load.acknowledged)
