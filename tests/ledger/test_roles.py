"""The two roles of docs/production.md on a real PostgreSQL: the app can do what it has to, and the guards hold."""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg2
import pytest
import yaml

from deploy.blocking import WAITING
from tests.support.servers import PATIENCE, ROOT, Postgres, eventually

OWNER, APP = "backstagetest1_owner", "backstagetest1"


class Roles:
    """A database that was made and migrated as docs/production.md says, and has a ledger written by the app."""

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self.passwords = {OWNER: secrets.token_urlsafe(12), APP: secrets.token_urlsafe(12)}
        text = (ROOT / "docs" / "production.md").read_text()
        (block,) = re.findall(r"```sql\n(.*?)```", text, re.S)
        assert block.count("'OWNER-PASSWORD'") == block.count("'APP-PASSWORD'") == 1
        block = block.replace("OWNER-PASSWORD", self.passwords[OWNER]).replace("APP-PASSWORD", self.passwords[APP])
        before, _, inside = block.partition("\\connect backstagetest1\n")
        assert inside
        for name, statements in (("app", before), ("backstagetest1", inside)):
            with closing(server.connect(name)) as connection, connection.cursor() as cursor:
                for statement in filter(str.strip, statements.split(";")):
                    cursor.execute(statement)
        self.manage(OWNER, "migrate_release")
        self.manage(APP, "demo_data", "--profile", "mock")

    def url(self, role: str) -> str:
        return f"postgresql://{role}:{self.passwords[role]}@127.0.0.1:{self.server.port}/backstagetest1"

    def manage(self, role: str, *words: str, ends: int = 0) -> str:
        given = {"DATABASE_URL": self.url(role), "DJANGO_SETTINGS_MODULE": "settings.testing"}
        done = subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=ROOT, env=os.environ | given, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == ends, done.stderr
        return done.stdout + done.stderr

    def manage_all(self, role: str, *commands: str) -> None:
        """Each of the commands, in one process."""
        given = {"DATABASE_URL": self.url(role), "DJANGO_SETTINGS_MODULE": "settings.testing"}
        program = "import django, sys; django.setup()\nfrom django.core.management import call_command\n"
        program += "for name in sys.argv[1:]: call_command(name)"
        done = subprocess.run(
            [sys.executable, "-c", program, *commands],
            cwd=ROOT, env=os.environ | given, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def connect(self, role: str) -> Any:
        connection = psycopg2.connect(self.url(role))
        connection.autocommit = True
        return connection


@pytest.fixture(scope="module")
def roles() -> Iterator[Roles]:
    with Postgres() as server:
        yield Roles(server)


@pytest.fixture
def app(roles: Roles) -> Iterator[Any]:
    with closing(roles.connect(APP)) as connection, connection.cursor() as cursor:
        yield cursor


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE ledger_deployment DISABLE TRIGGER ALL",
        "ALTER TABLE ledger_deployment DISABLE TRIGGER ledger_guard",
        "DROP TRIGGER ledger_guard ON ledger_deployment",
        "DROP TRIGGER ledger_owner_only ON ledger_environment",
        "CREATE TRIGGER mine BEFORE INSERT ON ledger_deployment FOR EACH ROW EXECUTE FUNCTION ledger_refuse()",
        "CREATE RULE mine AS ON UPDATE TO ledger_deployment DO INSTEAD NOTHING",
        "CREATE OR REPLACE FUNCTION ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'",
        "ALTER FUNCTION ledger_guard_deployment() RESET search_path",
        "DROP FUNCTION ledger_guard_deployment() CASCADE",
        "ALTER TABLE ledger_deployment DROP CONSTRAINT ledger_hotfix_has_a_reason",
        "DROP INDEX ledger_one_in_flight",
        "ALTER TABLE ledger_deployment ADD COLUMN mine text",
        "ALTER TABLE ledger_deployment OWNER TO backstagetest1",
        "DROP TABLE ledger_step",
        "TRUNCATE ledger_deployment CASCADE",
        "TRUNCATE ledger_step",
        "SET session_replication_role = replica",
        "SET ROLE backstagetest1_owner",
        "SET SESSION AUTHORIZATION backstagetest1_owner",
        "GRANT backstagetest1_owner TO backstagetest1",
        "ALTER ROLE backstagetest1 SUPERUSER",
        "ALTER DEFAULT PRIVILEGES FOR ROLE backstagetest1_owner GRANT ALL ON TABLES TO backstagetest1",
        "ALTER DATABASE backstagetest1 OWNER TO backstagetest1",
        "CREATE TABLE mine (id int)",
        "CREATE TEMPORARY TABLE ledger_promotion (environment_id int, source_id int)",
        "CREATE SCHEMA mine",
        "CREATE EXTENSION hstore",
        "UPDATE ledger_environment SET soak = 0",
        "DELETE FROM ledger_promotion",
        "INSERT INTO ledger_promotion (environment_id, source_id) VALUES (4, 1)",
        "UPDATE ledger_environment SET name = 'x' WHERE false",
        "DELETE FROM ledger_environment WHERE name = 'development'",
        "INSERT INTO ledger_environment SELECT 9, 'x', 9, '', '', '', '', '', 0",
        "DELETE FROM django_migrations WHERE app = 'ledger'",
        "INSERT INTO django_migrations (app, name, applied) VALUES ('ledger', '9999_guards', now())",
    ],
)
def test_the_apps_role_cannot_alter_or_disable_what_guards_the_ledger(app: Any, statement: str) -> None:
    with pytest.raises(psycopg2.Error) as refused:
        app.execute(statement)
    assert refused.value.pgcode == "42501", refused.value  # insufficient_privilege


@pytest.mark.parametrize(
    ("statement", "guard"),
    [
        ("UPDATE ledger_deployment SET actor = 'nobody' WHERE status = 'succeeded'", "ledger_append_only"),
        ("DELETE FROM ledger_step", "ledger_append_only"),
        ("UPDATE ledger_release SET commit = '0000000'", "ledger_append_only"),
        ("SET search_path = pg_temp, public; UPDATE ledger_release SET commit = '0000000'", "ledger_append_only"),
    ],
)
def test_the_guards_hold_against_the_apps_role(app: Any, statement: str, guard: str) -> None:
    with pytest.raises(psycopg2.errors.CheckViolation, match=guard):
        app.execute(statement)


def test_no_guard_reads_a_table_of_the_session(roles: Roles) -> None:
    """Also of a role that may make temporary tables, as every role may unless the database says otherwise."""
    with closing(roles.connect(OWNER)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE ledger_promotion (environment_id int, source_id int)")
        with pytest.raises(psycopg2.errors.CheckViolation, match="ledger_promotion"):
            cursor.execute(
                "INSERT INTO public.ledger_release (version, commit, message, built_at, image, token) "
                "VALUES ('9.9', '4f2a9c1', '', now(), '', ''); "
                "INSERT INTO public.ledger_deployment (environment_id, release_id, kind, strategy, hotfix, reason, "
                "status, actor, token, finished_token, created, run_url, revision) "
                "SELECT 4, id, 'deploy', 'rolling', false, '', 'pending', 'x', '', '', now(), '', '' "
                "FROM public.ledger_release WHERE version = '9.9'"
            )


def test_the_app_has_nothing_but_rows(app: Any) -> None:
    app.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
    assert app.fetchall() == [(OWNER,)]
    app.execute(
        "SELECT DISTINCT privilege_type FROM information_schema.role_table_grants WHERE grantee = 'backstagetest1'"
    )
    assert {row for (row,) in app.fetchall()} == {"SELECT", "INSERT", "UPDATE", "DELETE"}


def test_the_app_does_with_its_role_what_it_has_to(roles: Roles) -> None:
    """The ledger was written with it (demo_data), each table is written, and the commands that run now and then do."""
    roles.manage_all(APP, "clearsessions", "rollup_samples", "deployments", "health")
    assert "nothing" in roles.manage(APP, "migrate_release").lower()
    with closing(roles.connect(APP)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id FROM ledger_environment FOR UPDATE")  # how creators of deployments queue
        assert len(cursor.fetchall()) == 4


def test_a_migration_by_the_app_changes_nothing_and_says_why(roles: Roles) -> None:
    said = roles.manage(APP, "migrate", "ledger", "0001", ends=1)
    assert any(reason in said for reason in ("must be owner", "permission denied", "ledger_owner_only"))
    assert "Nothing to migrate" in roles.manage(OWNER, "migrate_release")


def test_the_owner_of_the_tables_sees_who_waits_for_a_migration(roles: Roles) -> None:
    with (
        closing(roles.connect(OWNER)) as migration,
        closing(roles.connect(OWNER)) as watcher,
        closing(roles.connect(APP)) as app,
        ThreadPoolExecutor() as pool,
        migration.cursor() as locks,
        watcher.cursor() as looks,
        app.cursor() as reads,
    ):
        locks.execute("BEGIN; LOCK TABLE ledger_release")

        def waiting() -> list[int]:
            looks.execute(WAITING, [migration.info.backend_pid])
            return [pid for (pid,) in looks.fetchall()]

        assert waiting() == []
        read = pool.submit(reads.execute, "SELECT count(*) FROM ledger_release")
        assert eventually(waiting) == [app.info.backend_pid]
        looks.execute("SELECT pg_terminate_backend(%s)", [migration.info.backend_pid])
        read.result(PATIENCE)


def test_each_service_of_the_stack_is_given_its_own_secrets_and_no_other() -> None:
    stack = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    given = {
        name: {volume.partition(":")[0] for volume in service.get("volumes", []) if "_secrets:" in volume}
        for name, service in stack["services"].items()
    }
    every = {name for name in stack["volumes"] if name.endswith("secrets")}
    assert given.pop("secrets") == every and not {"nginx", "prepare"} & {name for name in given if given[name]}
    assert {name: volumes for name, volumes in given.items() if volumes} == {
        **dict.fromkeys(("web", "web_blue", "web_green"), {"app_secrets"}),
        "migrate": {"migrate_secrets"},
        "bluegreen": {"migrate_secrets"},
        "db": {"db_secrets"},
        "db_green": {"db_green_secrets"},
        "redis": {"redis_secrets"},
        "prometheus": {"prometheus_secrets"},
        "alertmanager": {"alertmanager_secrets"},
    }
