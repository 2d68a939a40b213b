"""./run bench: that it runs and says what it should. How fast anything is, is no test."""

import subprocess
import sys

import pytest

from tests.support.servers import PATIENCE, ROOT

pytestmark = pytest.mark.slow


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )


def test_a_quick_benchmark_prints_a_table_of_ours_beside_the_peers() -> None:
    result = bench("scrape", "--quick")
    assert result.returncode == 0, result.stderr
    assert "scrape: two workers" in result.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in result.stdout.splitlines() if "|" in line]
    head, table = rows[0], {row[0]: row for row in rows[2:]}
    assert {len(row) for row in rows} == {len(head)}
    files = {name: row[head.index("files")] for name, row in table.items()}
    assert (files["ours"], files["prometheus_client"]) == ("2", "23")
    assert int(table["ours"][1].replace(",", "")) > 700


@pytest.mark.full
def test_a_quick_benchmark_of_blue_green_loses_nothing() -> None:
    result = bench("bluegreen", "--quick")
    assert result.returncode == 0, result.stderr
    assert "nothing lost: met" in result.stdout and "recovered in" in result.stdout


@pytest.mark.full
def test_a_quick_benchmark_of_the_copy_says_how_fast_it_was() -> None:
    result = bench("copy", "--quick")
    assert result.returncode == 0, result.stderr
    assert "8 writers at work; copy: 6 tables, " in result.stdout and "| while it was prepared | " in result.stdout


def test_what_is_no_folder_of_programs_is_refused() -> None:
    result = bench("bluegreen", "--versions", "docs")
    assert result.returncode == 2
    assert "--versions docs: expected a folder with postgres and initdb" in result.stderr


def test_an_unknown_part_is_refused_with_the_list_of_parts() -> None:
    result = bench("speed")
    assert result.returncode == 2
    assert "unknown part 'speed'; choose from middleware" in result.stderr
