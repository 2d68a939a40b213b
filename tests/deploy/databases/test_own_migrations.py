"""The app's own tables and its newest migration, prepared as a release is."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from django.core.management import call_command
from django.db import connections
from django.db.migrations.loader import MigrationLoader
from psycopg2 import sql
from pytest_django.plugin import DjangoDbBlocker

from accounts.models import User
from deploy.databases import catalogs, links, preflight
from deploy.databases.preparation import Options
from deploy.databases.replication import prepare
from deploy.databases.requirements import requirements
from deploy.databases.side import Side
from tests.support.servers import PATIENCE, Postgres

pytestmark = pytest.mark.slow

APP = "ledger"


@pytest.fixture
def aliases(sides: tuple[Side, Side], django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Django's connections to blue and green, which the fence does not stop."""
    with django_db_blocker.unblock():
        for side in sides:
            url = urlsplit(side.url)
            connections.databases[side.colour] = connections.databases["default"] | {
                "HOST": url.hostname,
                "PORT": url.port,
                "USER": url.username,
                "PASSWORD": url.password,
                "NAME": url.path[1:],
                "OPTIONS": {"options": "-c bg.bypass=on"},
            }
        yield
        for side in sides:
            connections[side.colour].close()
            del connections[side.colour], connections.databases[side.colour]


def test_all_tables_of_the_app_are_the_same_on_both_sides_after_its_newest_migration(
    clusters: tuple[Postgres, Postgres], sides: tuple[Side, Side], aliases: None
) -> None:
    blue, green = sides
    call_command("migrate", database="blue", verbosity=0)
    newest = [name for app, name in MigrationLoader(connections["blue"]).graph.leaf_nodes(APP)][0]
    before = sorted(name for app, name in MigrationLoader(None).disk_migrations if app == APP and name < newest)[-1]
    call_command("migrate", APP, before, database="blue", verbosity=0)
    for number in range(20):
        User.objects.db_manager("blue").create_user(f"user{number}", f"user{number}@example.com")
    assert requirements(blue) == requirements(green) == []

    def migrate() -> None:
        assert preflight.compare(blue, green) == [], "the restored schema is the one that was dumped"
        call_command("migrate", database="green", verbosity=0)

    prepare(
        blue,
        green,
        migrate=migrate,
        say=lambda text: None,
        after=lambda notes, written: preflight.compare(blue, green, notes=notes, written=written),
        options=Options(pg_dump=str(clusters[0].bin / "pg_dump"), patience=PATIENCE),
    )
    assert preflight.state(blue, green)[0] == []
    tables = links.published(catalogs.read(blue))
    assert len(tables) > 20
    for table in tables:
        query = sql.SQL("select * from {} order by 1").format(sql.Identifier(*table.key))
        assert blue.run(query) == green.run(query), table.label
    missing = "select name from django_migrations where app = %s and name = %s"
    assert not blue.run(missing, [APP, newest]) and green.run(missing, [APP, newest])
