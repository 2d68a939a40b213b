"""The app's next migration, made by Django: shipped, used by visitors of both releases, rolled back, shipped again."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from django.db import connection, connections, migrations, models
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from psycopg2 import extensions

from deploy.databases import dump, preflight
from deploy.databases.preparation import Options
from deploy.databases.replication import loosen, prepare
from deploy.databases.side import Side
from deploy.databases.switch import switch
from deploy.errors import DeployRefused
from tests.deploy.databases.conftest import OPTIONS
from tests.deploy.databases.pairs import Pair
from tests.support.servers import PATIENCE, Postgres, eventually

pytestmark = [pytest.mark.slow, pytest.mark.django_db]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(OPTIONS) as it:
        yield it


@contextmanager
def django(side: Side, options: str = "") -> Iterator[None]:
    """Makes a side the database of Django, as it is the app's if there are no `options` of the session."""
    given = extensions.parse_dsn(side.url)
    words = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    settings = connections.settings["default"] | {name: given[word] for name, word in words.items()}
    ours, other = connections["default"], DatabaseWrapper(settings | {"OPTIONS": {"options": options}}, "default")
    connections["default"] = other
    try:
        yield
    finally:
        connections["default"] = ours
        other.close()


def migrate(side: Side, app: str, operations: list[Operation], state: ProjectState) -> None:
    """Does what `manage.py migrate` does with a migration that has these operations, and brings the state up to it."""
    with django(side, "-c bg.bypass=on"), connections["default"].schema_editor(atomic=True) as editor:
        for operation in operations:
            old = state.clone()
            operation.state_forwards(app, state)
            operation.database_forwards(app, editor, old, state)


NEXT = [
    migrations.AlterField("user", "display_name", models.CharField(max_length=200, blank=True)),
    migrations.AddField("user", "nickname", models.CharField(max_length=20, null=True)),
    migrations.AddField("user", "points", models.IntegerField(default=5)),
    migrations.AddField("user", "language", models.CharField(max_length=2, db_default="en")),
    migrations.AddField(
        "user",
        "shouted",
        models.GeneratedField(
            expression=models.functions.Upper("display_name"),
            output_field=models.CharField(max_length=200),
            db_persist=True,
        ),
    ),
    migrations.AlterField("user", "avatar", models.CharField(max_length=100, null=True)),
    migrations.RemoveField("user", "is_staff"),
    migrations.AddIndex("user", models.Index(fields=["nickname"], name="user_nickname")),
    migrations.AddConstraint("user", models.CheckConstraint(condition=~models.Q(email=""), name="user_has_an_email")),
    migrations.AddConstraint("user", models.UniqueConstraint(fields=["nickname"], name="user_nickname_unique")),
    migrations.CreateModel(
        "Badge",
        [
            ("id", models.BigAutoField(primary_key=True)),
            ("user", models.ForeignKey("accounts.User", models.CASCADE)),
            ("title", models.CharField(max_length=20)),
        ],
    ),
]
EXPECTED = {
    ("column-new", "nickname"),
    ("column-new", "points"),
    ("column-new", "language"),
    ("column-new", "shouted"),
    ("type-looser", "display_name"),
    ("null-allowed", "avatar"),
    ("column-gone", "is_staff"),
    ("index", ""),
    ("check-new", ""),
    ("table-new", ""),
}


def test_the_next_release_of_this_app_is_shipped_rolled_back_and_shipped_again(server: Postgres) -> None:
    settings = connection.settings_dict
    now = Side("blue", f"{os.environ['DATABASE_URL'].rpartition('/')[0]}/{settings['NAME']}")
    program = dump.find(str(server.bin / "pg_dump"), 18, "blue")
    text = dump.schema(now, program, target_major=18)
    now.close()
    blue, green = (Side(colour, server.create(f"app_{colour}")) for colour in ("blue", "green"))
    dump.restore(blue, text)
    before, after = (MigrationLoader(None).project_state() for _ in range(2))
    old = before.apps.get_model("accounts", "User").objects
    with django(blue):
        old.create(email="eve@example.com", display_name="Eve", avatar="")
    found: list[Any] = []

    def judge(notes: Any, written: Any) -> list[Any]:
        found[:] = preflight.compare(blue, green, notes=notes, written=written)
        return found

    ship = partial(
        prepare,
        blue,
        green,
        migrate=lambda: migrate(green, "accounts", copy.deepcopy(NEXT), after),
        say=lambda text: None,
        after=judge,
        options=Options(pg_dump=program, patience=PATIENCE),
    )
    with pytest.raises(DeployRefused, match="accounts_user.is_staff.*Set a default in the source"):
        ship()
    (refused,) = [each for each in found if each.refused]
    assert (refused.code, refused.cure_side) == ("column-gone-needs-default", "source")
    blue.run(refused.cure_sql[0])
    after = MigrationLoader(None).project_state()
    ship()
    assert {(each.code, each.column) for each in found} >= EXPECTED
    assert not [each for each in found if each.refused]

    new = after.apps.get_model("accounts", "User").objects
    badges = after.apps.get_model("accounts", "Badge").objects
    moved = partial(switch, say=lambda text: None, lag=PATIENCE, deadline=PATIENCE)

    with django(blue):
        ann = old.create(email="ann@example.com", display_name="Ann", avatar="ann.png", is_staff=True)
    with django(green):
        there = eventually(lambda: new.filter(pk=ann.pk).first())
        assert (there.nickname, there.points, there.language, there.shouted) == (None, 5, "en", "ANN")

    assert moved(blue, green).lossless
    with django(green):
        bob = new.create(email="bob@example.com", display_name="Bob", nickname="bobby", points=9, avatar="b.png")
        badges.create(user=bob, title="first")
        new.filter(pk=ann.pk).update(nickname="annie", display_name="Ann A.")

    assert moved(green, blue).lossless  # the rollback
    with django(blue):
        assert not old.get(email="bob@example.com").is_staff
        assert old.get(pk=ann.pk).display_name == "Ann A." and old.get(pk=ann.pk).is_staff
        old.filter(pk=bob.pk).update(display_name="Robert")
        old.create(email="cid@example.com", display_name="Cid", avatar="")

    assert moved(blue, green).lossless  # shipped again
    with django(green):
        bob.refresh_from_db()
        assert (bob.display_name, bob.nickname, bob.points, bob.shouted) == ("Robert", "bobby", 9, "ROBERT")
        assert [badge.user_id for badge in badges.all()] == [bob.pk]
        assert new.get(email="cid@example.com").points == 5
        # What only the new release accepts stops replication back, until the idle side is loosened.
        new.create(email="dan@example.com", display_name="D" * 150, nickname="dan", avatar=None)
    looser = [each for each in preflight.compare(green, blue) if each.code in ("type-stricter", "null-refused")]
    assert {(each.column, each.cure_side) for each in looser} == {("display_name", "target"), ("avatar", "target")}
    loosen(blue, [statement for each in looser for statement in each.cure_sql])
    assert moved(green, blue).lossless
    with django(blue):
        assert old.get(email="dan@example.com").display_name == "D" * 150
        # The old release knows nothing of badges, so it deletes somebody who has one.
        old.filter(pk=bob.pk).delete()
    with django(green):
        eventually(lambda: not new.filter(pk=bob.pk).exists())
    assert {each.table for each in preflight.compare(blue, green) if each.refused} == {"accounts_badge"}
    blue.close()
    green.close()


ORDER = migrations.CreateModel(
    "Order",
    [
        ("id", models.AutoField(primary_key=True)),
        ("title", models.CharField(max_length=20)),
        ("note", models.TextField(null=True)),
        ("amount", models.DecimalField(max_digits=6, decimal_places=2, default=0)),
        ("at", models.DateTimeField(null=True)),
        ("parent", models.ForeignKey("self", models.CASCADE, null=True, db_constraint=False)),
    ],
)


def shout(apps: Any, editor: Any) -> None:
    """A data migration."""
    apps.get_model("shop", "Order").objects.create(title="of the migration")


OPERATIONS: dict[str, tuple[list[Operation], set[str]]] = {
    "AddField null": ([migrations.AddField("order", "x", models.IntegerField(null=True))], {"column-new"}),
    "AddField default": ([migrations.AddField("order", "x", models.IntegerField(default=3))], {"column-needs-default"}),
    "AddField db_default": ([migrations.AddField("order", "x", models.IntegerField(db_default=3))], {"column-new"}),
    "AddField unique": (
        [migrations.AddField("order", "x", models.IntegerField(db_default=3, unique=True))],
        {"column-new", "default-collides"},
    ),
    "AddField ForeignKey": (
        [migrations.AddField("order", "x", models.ForeignKey("shop.Order", models.CASCADE, null=True))],
        {"column-new", "index", "foreign-key-new"},
    ),
    "AddField ManyToMany": ([migrations.AddField("order", "x", models.ManyToManyField("shop.Order"))], {"table-new"}),
    "RemoveField null": ([migrations.RemoveField("order", "note")], {"column-gone"}),
    "RemoveField": ([migrations.RemoveField("order", "title")], {"column-gone-needs-default"}),
    "RenameField": ([migrations.RenameField("order", "title", "name")], {"column-renamed"}),
    "RenameField keeping its column": (
        [
            migrations.SeparateDatabaseAndState(
                state_operations=[
                    migrations.RenameField("order", "title", "name"),
                    migrations.AlterField("order", "name", models.CharField(max_length=20, db_column="title")),
                ]
            )
        ],
        set(),
    ),
    "RenameModel": ([migrations.RenameModel("Order", "Purchase")], {"table-renamed"}),
    "DeleteModel": ([migrations.DeleteModel("Order")], {"table-gone"}),
    "AlterField longer": (
        [migrations.AlterField("order", "title", models.CharField(max_length=40))],
        {"type-looser"},
    ),
    "AlterField shorter": (
        [migrations.AlterField("order", "title", models.CharField(max_length=10))],
        {"type-stricter"},
    ),
    "AlterField TextField": ([migrations.AlterField("order", "title", models.TextField())], {"type-looser"}),
    "AlterField BigAutoField": (
        [migrations.AlterField("order", "id", models.BigAutoField(primary_key=True))],
        {"type-looser"},
    ),
    "AlterField decimal places": (
        [migrations.AlterField("order", "amount", models.DecimalField(max_digits=8, decimal_places=4, default=0))],
        {"type-rounds"},
    ),
    "AlterField DateField": ([migrations.AlterField("order", "at", models.DateField(null=True))], {"type-rounds"}),
    "AlterField JSONField": (
        [migrations.RemoveField("order", "note"), migrations.AddField("order", "note", models.JSONField(null=True))],
        {"column-replaced", "column-order"},
    ),
    "AlterField not null": (
        [migrations.AlterField("order", "note", models.TextField(default=""))],
        {"null-refused"},
    ),
    "AlterField constraint": (
        [migrations.AlterField("order", "parent", models.ForeignKey("shop.Order", models.CASCADE, null=True))],
        {"foreign-key-new"},
    ),
    "AddIndex": ([migrations.AddIndex("order", models.Index(fields=["title"], name="by_title"))], {"index"}),
    "AddConstraint": (
        [migrations.AddConstraint("order", models.CheckConstraint(condition=~models.Q(title=""), name="titled"))],
        {"check-new"},
    ),
    "AddConstraint deferrable": (
        [
            migrations.AddConstraint(
                "order",
                models.UniqueConstraint(fields=["title"], name="one", deferrable=models.Deferrable.DEFERRED),
            )
        ],
        {"unique-deferrable"},
    ),
    "AlterField db_comment": (
        [migrations.AlterField("order", "title", models.CharField(max_length=20, db_comment="What it is"))],
        set(),
    ),
    "RunPython": ([migrations.RunPython(shout)], {"rows-written"}),
    "CreateModel filled": (
        [
            migrations.CreateModel("Thing", [("id", models.AutoField(primary_key=True))]),
            migrations.RunSQL("insert into shop_thing default values"),
        ],
        {"table-new", "table-new-filled"},
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_preflight_says_of_each_kind_of_operation(databases: Pair, name: str) -> None:
    operations, expected = OPERATIONS[name]
    databases.begin("")
    try:
        for side in (databases.source, databases.target):
            state = ProjectState()
            migrate(side, "shop", [ORDER], state)
        databases.take_notes()
        databases.publish()
        migrate(databases.target, "shop", operations, state)
        written = databases.peeked()
        assert databases.codes(written=written) == expected
    finally:
        databases.end()
