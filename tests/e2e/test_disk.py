"""A full disk: what cannot be stored is refused in so many words, nothing is broken, and it works again with room."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import PASSWORD, Stack, closing, picture, say
from tests.support.servers import eventually

# The same stack on volumes that can be filled. They are gone when no container has them: nothing here is restarted.
SMALL = """
volumes:
  media_volume: {driver_opts: {type: tmpfs, device: tmpfs, o: "size=1m,uid=10001,gid=10001"}}
  postgres_data: {driver_opts: {type: tmpfs, device: tmpfs, o: "size=160m,mode=1777"}}
services:
  db: {deploy: {resources: {limits: {memory: 1G}}}}
"""


@pytest.fixture(scope="module")
def small(checkout: Path, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    override = tmp_path_factory.mktemp("small") / "small.yml"
    override.write_text(SMALL)
    files = f"{checkout / 'docker-compose.yml'}:{override}"
    with closing(Stack(checkout, "disk", image, COMPOSE_FILE=files)) as one:
        yield one


def fill(stack: Stack, service: str, path: str) -> None:
    stack.exec(service, "dd", "if=/dev/zero", f"of={path}", "bs=4k", check=False)


def test_with_a_full_disk_of_uploads_a_picture_is_refused_and_the_old_one_stays(small: Stack) -> None:
    client = small.client()
    client.sign_up()
    assert client.give_avatar(picture()).status == 302
    old = client.avatar()
    fill(small, "web", "/app/media/filler")
    answer = client.give_avatar(picture(400, noise=True))
    assert answer.status == 200 and "Cannot store the picture" in answer.text
    assert client.avatar() == old and client.get(old).status == 200
    left = small.exec("web", "find", "/app/media", "-type", "f", "-size", "0").strip()
    assert not left, f"empty files are left behind: {left}"
    small.exec("web", "rm", "/app/media/filler")
    assert client.give_avatar(picture(400, noise=True)).status == 302
    assert client.avatar() != old


def test_with_a_full_disk_of_the_database_what_is_written_fails_with_a_page_and_nothing_is_lost(small: Stack) -> None:
    reader = small.client()
    reader.sign_up()
    rows = small.sql("SELECT count(*) FROM accounts_user")
    fill(small, "db", "/var/lib/postgresql/filler")
    # What room is left in the pages that the table has; after that it would have to grow.
    insert = "INSERT INTO django_session SELECT md5(random()::text), repeat('x', {}), '2000-01-01';"
    words = ("psql", "--username", "postgres", "--dbname", "backstagetest1", "--quiet")
    small.exec("db", *words, input="\n".join(insert.format(size) for size in [900] * 30 + [10] * 80), check=False)

    client = small.client()
    email = f"{secrets.token_hex(8)}@example.com"
    answer = client.post("/accounts/signup/", {"email": email, "password1": PASSWORD, "password2": PASSWORD})
    say(f"a sign-up on a full disk: {answer.status}")
    assert answer.status == 503 and "unavailable" in answer.text
    assert reader.signed_in()
    assert small.sql("SELECT count(*) FROM accounts_user") == rows
    small.exec("db", "rm", "/var/lib/postgresql/filler")
    eventually(small.ready, every=0.2)
    small.client().sign_up()
    assert reader.signed_in()
    assert small.inspect("db")["RestartCount"] == 0
