"""What the documents say is there: files, sections, commands and their options."""

import re
import shlex
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

from backstagetest1.usage import options
from tests.support.servers import ROOT

TEXTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
OURS = {
    name
    for name, app in get_commands().items()
    if app in ("accounts", "audit", "deploy", "health", "ledger", "metrics", "statuspage")
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def slug(heading: str) -> str:
    """What GitHub makes of a heading for links to it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def prose(path: Path) -> str:
    return re.sub(r"^ *```.*?^ *```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[list[str]]:
    """The words of each command that starts with manage.py or ./run, in blocks and between backticks."""
    text = path.read_text().replace("\\\n", " ")
    lines = [line.strip() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", prose(path))
    found = []
    for line in lines:
        for part in re.split(r" && | \| |; ", line):
            if part.startswith(("manage.py ", "./run ")) or " manage.py " in part:
                start = part.index("manage.py") if "manage.py" in part else 0
                found.append(shlex.split(part[start:], comments=True))
    return [words for words in found if len(words) > 1]


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"(?:\]\(|\bsrc(?:set)?=\")([^)\"\s]+)[)\"]", prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, section = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{name(path)} leads to {target}"
        if section:
            headings = re.findall(r"^#+ (.+)$", prose(there), re.MULTILINE)
            assert section in map(slug, headings), f"{name(path)} leads to {target}"


def test_every_document_that_is_named_is_there_and_every_one_is_in_the_index() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    named = set()
    for file in listed:
        if file.endswith((".py", ".sh", ".yml", ".yaml", ".toml", ".md", ".html", ".example", ".conf", "run")):
            named |= set(re.findall(r"docs/[a-z-]+\.md", (ROOT / file).read_text()))
    assert {each for each in named if not (ROOT / each).is_file()} == set()
    listed = re.findall(r"\]\(([a-z-]+\.md)\)", (ROOT / "docs" / "README.md").read_text())
    assert {path.name for path in ROOT.glob("docs/*.md")} == {"README.md", *listed}


def test_the_license_that_pyproject_names_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "MIT"
    assert [(ROOT / file).read_text().splitlines()[0] for file in project["license-files"]] == ["MIT License"]


@cache
def entries() -> set[str]:
    """The commands of ./run, as its help lists them."""
    done = subprocess.run([ROOT / "run", "help"], capture_output=True, text=True, check=True)
    return {"help"} | {line.split()[0] for line in done.stdout.splitlines() if re.match(r"  [a-z]", line)}


@cache
def options_of(command: str) -> set[str]:
    """The options of a manage.py command and of its subcommands, as its parser has them."""
    parser = load_command_class(get_commands()[command], command).create_parser("manage.py", command)
    return set(options(parser))


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_command_is_there_with_these_options(path: Path) -> None:
    for words in commands(path):
        if words[0] == "./run":
            assert words[1] in entries(), f"{name(path)}: {words}"
        elif re.fullmatch("[a-z_]+", words[1]):
            assert words[1] in get_commands(), f"{name(path)}: {words}"
            if words[1] in OURS:
                used = {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)}
                assert used <= options_of(words[1]), f"{name(path)}: {words}"


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_logs_of_several_pods_are_asked_for_whole(path: Path) -> None:
    # With a selector, kubectl prints the last ten lines of each pod unless it is told otherwise.
    for line in re.findall(r"kubectl.* logs .*", path.read_text()):
        assert not re.search(r" (-l|--selector)[ =]", line) or "--tail" in line, f"{name(path)}: {line}"
