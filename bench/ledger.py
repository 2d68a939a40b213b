"""What the ledger's pages cost with a million deployments: gunicorn and PostgreSQL as they are, asked over HTTP.

Five years of four environments, each release going through all of them; one in twelve fails, one deployment runs.
"""

import http.client
import json
import secrets
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from statistics import median, quantiles

from bench.measure import Options, clean, cpu, goal, ms, say, table
from tests.support.servers import ROOT, Gunicorn, Postgres, Redis

MOST = 0.05  # seconds: the board's goal
WARM = 10  # requests that are not counted
# The rules of the ledger have no part in how fast it is read, and would take hours to fill it.
FILL = """
SET session_replication_role = replica;
INSERT INTO ledger_release (id, version, commit, message, built_at, image)
  SELECT n, '1.' || n, md5(n::text), 'Change ' || n, now() - (%(releases)s - n + 1) * %(every)s::interval, ''
  FROM generate_series(1, %(releases)s) AS n;
INSERT INTO ledger_deployment (id, environment_id, release_id, kind, strategy, hotfix, reason, status, actor,
    previous_id, created, started, finished, run_url, revision)
  SELECT 4 * (n - 1) + e, e, n, 'deploy', CASE e WHEN 4 THEN 'blue-green' ELSE 'rolling' END, false, '',
    CASE WHEN n %% 12 <> 5 THEN 'succeeded' WHEN n %% 5 = 0 THEN 'rolled_back' ELSE 'failed' END,
    'person-' || n %% 20, CASE WHEN n > 1 THEN 4 * (n - 2) + e END, at, at, at + interval '1 minute', '', ''
  FROM generate_series(1, %(releases)s) AS n, generate_series(1, 4) AS e,
    LATERAL (SELECT now() - (%(releases)s - n + 1) * %(every)s::interval + e * interval '2 minutes' AS at) AS time
  ORDER BY n, e;
INSERT INTO ledger_step (deployment_id, position, name, outcome, started, finished)
  SELECT id, p, (ARRAY['migrate', 'update', 'smoke test'])[p], 'succeeded', started, finished
  FROM ledger_deployment, generate_series(1, 3) AS p;
INSERT INTO ledger_deployment (id, environment_id, release_id, kind, strategy, hotfix, reason, status, actor,
    previous_id, created, started, run_url, revision)
  SELECT id + 9, environment_id, release_id, kind, strategy, false, '', 'running', actor, id, now(), now(), '', ''
  FROM ledger_deployment WHERE environment_id = 4 ORDER BY created DESC LIMIT 1;
SET session_replication_role = DEFAULT;
VACUUM ANALYZE;
"""
# A member's session, and the cursor of the middle of the list.
PREPARE = """
import json, django; django.setup()
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.cached_db import SessionStore
from django.conf import settings
from accounts.models import User
from ledger.models import Deployment, write_cursor
user = User.objects.create(email="bench@example.com", password="!")
session = SessionStore()
session[SESSION_KEY], session[HASH_SESSION_KEY] = str(user.pk), user.get_session_auth_hash()
session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
session.create()
newest = Deployment.objects.newest_first()[0].pk
middle = Deployment.objects.get(pk=newest // 2)
cookie = f"{settings.SESSION_COOKIE_NAME}={session.session_key}"
print(json.dumps({"cookie": cookie, "cursor": write_cursor(middle), "key": middle.pk}))
"""


class App(Gunicorn):
    """The app itself, under settings.testing, knowing no environment but what it is given."""

    def environment(self) -> dict[str, str]:
        return clean() | {"HOME": str(self.folder)} | self.env


def run(options: Options) -> str:
    count = options.times(1_000_000, 20_000)
    with ExitStack() as stack:
        database, cache = stack.enter_context(Postgres()), stack.enter_context(Redis())
        static = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        env = {
            "DJANGO_SETTINGS_MODULE": "settings.testing",
            "DATABASE_URL": database.url,
            "REDIS_URL": cache.url,
            "SECRET_KEY": secrets.token_urlsafe(50),
            "STATIC_ROOT": static,
        }
        for words in (["migrate"], ["collectstatic", "--noinput"]):
            python(env, "manage.py", *words, "--verbosity=0")
        say(f"ledger: writing {count:,} deployments")
        with closing(database.connect()) as connection, connection.cursor() as cursor:
            values = {"releases": count // 4, "every": f"{5 * 365 * 86_400 / (count // 4)} seconds"}
            for statement in FILL.strip().split(";\n"):
                cursor.execute(statement, values)
        made = json.loads(python(env, "-c", PREPARE))
        member = {"Cookie": made["cookie"]}
        pages: list[tuple[str, str, dict[str, str]]] = [
            ("board", "/", {}),
            ("board, a member's", "/", member),
            ("board, poll for changes", "/?seen=x", {"HX-Request": "true"}),
            ("deployments", "/deployments/", member),
            ("deployments, the middle", f"/deployments/?older={made['cursor']}", member),
            ("deployments that failed in production", "/deployments/?environment=production&status=failed", member),
            ("deployments by a person, of one month", "/deployments/?actor=person-7&since=2024-06-01", member),
            ("deployments, found by version", "/deployments/?search=1.77", member),
            ("deployments, nothing found", "/deployments/?search=zz&environment=testing", member),
            ("a deployment", f"/deployments/{made['key']}/", member),
            ("insights, 30 days", "/insights/?days=30", {}),
            ("insights, 90 days", "/insights/?days=90", {}),
        ]
        rows, board = [], 0.0
        with App(**env) as app:
            for name, path, headers in pages:
                say(f"ledger: {name}")
                number, before = options.times(100, 20), sum(map(cpu, app.workers()))
                times, size = ask(app.port, path, headers, number)
                busy = (sum(map(cpu, app.workers())) - before) / (number + WARM)
                p95 = quantiles(times, n=20)[-1]
                rows.append([name, ms(median(times)), ms(p95), ms(busy), f"{size / 1000:,.1f} KB"])
                board = board or median(times)
    head = ["", "p50", "p95", "CPU time of the app", "page"]
    met = goal(f"board below {ms(MOST)} at p50", board < MOST)
    text = f"{count:,} deployments with {3 * count:,} steps; one visitor, one request after the other, over HTTP."
    return f"{text}\n\n{table(head, rows)}\n\n{met[0].upper()}{met[1:]}."


def python(env: dict[str, str], *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=clean() | env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"python {words[0]} ended with {done.returncode}: see above")
    return done.stdout


def ask(port: int, path: str, headers: dict[str, str], number: int) -> tuple[list[float], int]:
    """How long each of `number` requests took, in seconds, and how many bytes the page has. All must succeed."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    times, size = [], 0
    for turn in range(number + WARM):
        started = time.perf_counter()
        link.request("GET", path, headers=headers)
        answer = link.getresponse()
        size = len(answer.read())
        if turn >= WARM:
            times.append(time.perf_counter() - started)
        if answer.status != 200:
            raise RuntimeError(f"{path} was answered with {answer.status}")
    link.close()
    return times, size
