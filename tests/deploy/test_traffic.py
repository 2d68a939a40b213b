"""Which release answers: counted by the probe traffic, with two real servers behind what moves new connections only."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import probe_traffic
from deploy.probe_traffic import Source, Traffic
from tests.support.gate import Gate
from tests.support.servers import Gunicorn, eventually
from tests.support.web import Page, serving

pytestmark = pytest.mark.django_db  # the fixture django_db_setup makes a database only if a test is marked


@pytest.fixture
def colours(django_db_setup: None, tmp_path: Path) -> Iterator[tuple[Gunicorn, Gunicorn, Path]]:
    """Release 1, release 2, and the file by which 1 learns that it was left."""
    left = tmp_path / "close-connections"
    with Gunicorn(APP_VERSION="1", CLOSE_CONNECTIONS_FILE=str(left)) as blue, Gunicorn(1, APP_VERSION="2") as green:
        yield blue, green, left


@pytest.mark.slow
def test_kept_connections_follow_the_traffic_within_five_seconds_and_no_request_fails(
    colours: tuple[Gunicorn, Gunicorn, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate moves new connections and leaves the others where they are, as kube-proxy and conntrack do."""
    blue, green, left = colours
    monkeypatch.setattr(probe_traffic, "RATE", 20)

    def lately() -> Counter[Source]:
        return traffic.sources(0.5)

    with Gate(blue.port) as gate, Traffic(f"http://127.0.0.1:{gate.port}") as traffic:
        assert traffic.start() == ""
        eventually(lambda: {source.kept for source in traffic.sources()} == {True, False})
        assert {source.release for source in lately()} == {"1"}
        gate.target = green.port
        both = {Source("1", kept=True), Source("2", kept=False)}
        eventually(lambda: lately().keys() == both)
        assert gate.taken > 2, "new connections have moved, the kept ones stay"
        left.write_text("now")
        eventually(lambda: {source.release for source in lately()} == {"2"}, seconds=5)
        assert {source.kept for source in lately()} == {True, False}
        left.unlink()  # and back, before anybody comes there
        gate.target = blue.port
        eventually(lambda: lately().keys() == {Source("2", kept=True), Source("1", kept=False)})
        assert (traffic.failed, traffic.first) == (0, "") and traffic.total > 30
        assert sum(traffic.sources().values()) == traffic.total


@pytest.mark.parametrize(
    ("headers", "release", "revision"),
    [
        ({"App-Version": "1.4.0"}, "1.4.0", ""),
        ({"App-Version": "1.4.0", "App-Revision": "5d8f"}, "1.4.0", "5d8f"),
        ({}, "", ""),
        ({"App-Version": "1.3.0", "App-Revision": "5d8f", "Age": "7"}, "", ""),
    ],
    ids=["says", "says-its-revision", "does-not-say", "from-a-cache"],
)
def test_an_answer_counts_for_the_release_that_gave_it(headers: dict[str, str], release: str, revision: str) -> None:
    class Empty(Page):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            for name, value in (headers | {"Content-Length": "0"}).items():
                self.send_header(name, value)
            self.end_headers()

    with serving(Empty) as port, Traffic(f"http://127.0.0.1:{port}") as traffic:
        assert "no usable form" in traffic.start()
        eventually(lambda: len(traffic.sources()) == 2)
        assert traffic.sources().keys() == {Source(release, kept, revision) for kept in (True, False)}


@pytest.mark.parametrize(
    ("source", "revision", "same"),
    [
        (Source("1", True, "a"), "a", True),
        (Source("1", True, "a"), "b", False),
        (Source("1", True), "b", True),
        (Source("1", True, "a"), "", True),
        (Source("2", True, "a"), "a", False),
    ],
)
def test_revisions_tell_two_of_one_version_apart_where_both_are_known(
    source: Source, revision: str, same: bool
) -> None:
    assert source.of("1", revision) == same
