"""The lock on one machine: a file, whose holder may have died. The cluster's is tried in test_kubernetes.py."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.operators import holder
from deploy.errors import LockHeld
from deploy.locks import FileLock


@pytest.fixture
def locks(tmp_path: Path) -> Iterator[tuple[FileLock, FileLock]]:
    """Two runs' views of the same lock. Each opens the file for itself, as two processes would."""
    first, second = (FileLock(tmp_path / "var" / "deploy.lock", "staging") for _ in range(2))
    yield first, second
    first.close()
    second.close()


def test_one_run_holds_it_and_everybody_sees_whose_it_is(locks: tuple[FileLock, FileLock]) -> None:
    mine, theirs = locks
    assert mine.status() is None
    assert mine.acquire("deploy of 3 to staging") == "" and mine.held()
    found = theirs.status()
    assert found and (found.holder, found.purpose, found.by_hand) == (holder(), "deploy of 3 to staging", False)
    for refused in (theirs.check_free, lambda: theirs.acquire("deploy of 4"), theirs.force_release):
        with pytest.raises(LockHeld, match="has held the lock since .* for: deploy of 3 to staging"):
            refused()
    mine.release()
    assert theirs.status() is None and theirs.acquire("deploy of 4") == ""


def test_a_lock_by_hand_stays_until_it_is_released(locks: tuple[FileLock, FileLock]) -> None:
    mine, theirs = locks
    mine.acquire_by_hand("The database is being moved")
    mine.release()
    for refused in (theirs.check_free, lambda: theirs.acquire("deploy of 4")):
        with pytest.raises(LockHeld, match="Release it with: manage.py lock release -e staging"):
            refused()
    shown = theirs.status()
    assert shown and shown.by_hand
    was = theirs.force_release()
    assert was and was.by_hand and was.purpose == "The database is being moved"
    assert theirs.force_release() is None and theirs.acquire("deploy of 4") == ""


def test_a_holder_that_died_is_reported_and_blocks_nobody(locks: tuple[FileLock, FileLock]) -> None:
    mine, theirs = locks
    mine.acquire("deploy of 3")
    mine.close()  # what the operating system does to a process that dies
    assert theirs.status() is None
    theirs.check_free()
    assert "had held the lock since" in theirs.acquire("deploy of 4")


def test_a_file_that_was_cut_off_blocks_nobody(locks: tuple[FileLock, FileLock]) -> None:
    mine, _ = locks
    mine.path.parent.mkdir()
    for text in ("", "{", "[]", json.dumps("x")):
        mine.path.write_text(text)
        assert mine.status() is None and mine.acquire("deploy of 3") == ""
        mine.release()
