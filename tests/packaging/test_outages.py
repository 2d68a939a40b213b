"""The whole app under gunicorn while PostgreSQL or Redis goes down and comes back."""

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlencode

import pytest

from tests.health.test_outages import read_only
from tests.support.servers import PATIENCE, ROOT, Gunicorn, Postgres, Redis, eventually

pytestmark = pytest.mark.slow

PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="module")
def app(own_postgres: Postgres, own_redis: Redis) -> Iterator[Gunicorn]:
    urls = {"DATABASE_URL": own_postgres.url, "REDIS_URL": own_redis.url, "EMAIL_VERIFICATION": "none"}
    environment = os.environ | urls | {"DJANGO_SETTINGS_MODULE": "settings.testing"}
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "--verbosity=0"],
        cwd=ROOT,
        env=environment,
        check=True,
        timeout=PATIENCE,
    )
    with Gunicorn(**urls) as server:
        yield server


class Browser:
    """A client with cookies and nothing else."""

    def __init__(self, server: Gunicorn) -> None:
        self.server = server
        self.cookies: dict[str, str] = {}

    def ask(
        self, method: str, path: str, form: dict[str, str] | None = None, body: str = "", token: str = ""
    ) -> tuple[int, str]:
        """The status and the body; cookies are kept, redirects are not followed."""
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        link = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        if token:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        link.request(method, path, urlencode(form) if form is not None else body or None, headers)
        response = link.getresponse()
        text = response.read().decode()
        for cookie in response.headers.get_all("Set-Cookie") or []:
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        self.retry_after = response.headers.get("Retry-After")
        link.close()
        return response.status, text

    def submit(self, path: str, **form: str) -> int:
        """GETs the page for its token and POSTs the form; the status of the answer."""
        _, body = self.ask("GET", path)
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', body)
        assert token, body
        return self.ask("POST", path, form | {"csrfmiddlewaretoken": token[1]})[0]


@pytest.fixture(scope="module")
def member(app: Gunicorn) -> Browser:
    """Somebody who has signed up and is signed in."""
    browser = Browser(app)
    form = {"email": "member@example.com", "password1": PASSWORD, "password2": PASSWORD}
    assert browser.submit("/accounts/signup/", **form) == 302
    assert "session" in browser.cookies
    return browser


def test_a_redis_outage_signs_nobody_out_and_lets_people_sign_in(member: Browser, own_redis: Redis) -> None:
    profile = "/accounts/profile/"
    assert member.ask("GET", profile)[0] == 200
    own_redis.stop()
    try:
        assert member.ask("GET", profile)[0] == 200
        newcomer = Browser(member.server)
        assert newcomer.submit("/accounts/login/", login="member@example.com", password=PASSWORD) == 302
        assert newcomer.ask("GET", profile)[0] == 200
    finally:
        own_redis.start()
    assert member.ask("GET", profile)[0] == 200


def test_a_database_outage_is_503_and_ends_by_itself(member: Browser, own_postgres: Postgres) -> None:
    before = member.server.workers()
    own_postgres.stop()
    try:
        status, body = member.ask("POST", "/accounts/login/", {})
        assert status in (403, 503)  # the token is looked at before the database is
        status, body = member.ask("GET", "/accounts/email/")
        assert (status, member.retry_after) == (503, "30")
        assert "OperationalError" not in body and str(own_postgres.port) not in body
    finally:
        own_postgres.start()
    assert eventually(lambda: member.ask("GET", "/accounts/email/")[0] == 200)
    assert member.server.workers() == before, "it recovered only by a restart"


def test_a_restart_between_two_requests_costs_no_failed_one(member: Browser, own_postgres: Postgres) -> None:
    assert member.ask("GET", "/accounts/email/")[0] == 200
    own_postgres.stop()
    own_postgres.start()
    assert [member.ask("GET", "/accounts/email/")[0] for _ in range(20)] == [200] * 20


def test_a_read_only_database_is_503_for_whoever_writes_and_still_read(member: Browser, own_postgres: Postgres) -> None:
    """An old primary after a failover: no connection to it is kept."""
    app = member.server
    visitor = Browser(app)
    command = [sys.executable, "manage.py", "api_token", "create", "outages", "--environment", "staging"]
    environment = member.server.environment()
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    with closing(own_postgres.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE accounts_user SET is_staff = true, is_superuser = true")
    before = kept(own_postgres)
    with read_only(own_postgres):
        assert eventually(lambda: member.ask("GET", "/health/")[0] == 503)
        assert '"database": "unhealthy: read-only"' in member.ask("GET", "/health/")[1]
        assert member.ask("GET", "/")[0] == visitor.ask("GET", "/status/")[0] == 200
        for browser, path, form in (
            (visitor, "/accounts/login/", {"login": "member@example.com", "password": PASSWORD}),
            (visitor, "/accounts/signup/", {"email": "n@example.com", "password1": PASSWORD, "password2": PASSWORD}),
            (member, "/accounts/profile/", {"display_name": "Another"}),
            (member, "/admin/auth/group/add/", {"name": "Writers"}),
            (member, "/accounts/logout/", {}),
        ):
            assert (browser.submit(path, **form), browser.retry_after) == (503, "30"), path
        release = json.dumps({"version": "1.0", "commit": "0123456789abcdef0123456789abcdef01234567"})
        status, body = member.ask("POST", "/api/releases", body=release, token=done.stdout.strip())
        assert (status, member.retry_after) == (503, "30"), body
        assert "ReadOnly" not in body
        # Each thread leaves it at its next request: long before CONN_MAX_AGE, a minute, would end the connection.
        with ThreadPoolExecutor(16) as pool:  # so that each thread of each worker has its turn

            def left() -> bool:
                assert set(pool.map(lambda _: Browser(app).ask("GET", "/deployments/")[0], range(64))) == {200}
                return not before & kept(own_postgres)

            assert eventually(left)
    assert eventually(lambda: member.submit("/accounts/profile/", display_name="Another") == 302)


def kept(postgres: Postgres) -> set[int]:
    """The process ids of the pages' connections to the database."""
    with closing(postgres.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity"
            " WHERE datname = 'app' AND application_name = '' AND pid <> pg_backend_pid()"
        )
        return {pid for (pid,) in cursor.fetchall()}
