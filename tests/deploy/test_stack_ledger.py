"""The stack's own ledger: a token is made when there is none, kept, and replaced when the stack no longer knows it."""

import json
import stat
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from deploy.errors import StepFailed
from deploy.ledger_client import LedgerUnavailable
from deploy.stack_ledger import StackLedger
from ledger.models import ApiToken, Deployment
from tests.support.ledgers import deployed

pytestmark = pytest.mark.django_db


class Container:
    """Stands for the app's container: its API by Django's client, its commands in this process."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.down = False

    def execute(self, *words: str, timeout: float, given: str = "") -> "CompletedProcess[str]":
        if self.down:
            raise StepFailed("docker not found; install it.")
        if words[1] == "-c":
            sent = json.loads(given)
            assert sent["token"] not in " ".join(words)  # arguments can be read by other processes
            more: dict[str, Any] = {"HTTP_AUTHORIZATION": f"Bearer {sent['token']}"}
            answer = Client().generic(
                sent["method"], f"/api/{sent['path']}", sent["body"], "application/json", secure=True, **more
            )
            return CompletedProcess(words, 0, json.dumps([answer.status_code, answer.content.decode()]), "")
        self.commands.append(" ".join(words[2:4]))
        out, err = StringIO(), StringIO()
        try:
            call_command(*words[2:], stdout=out, stderr=err)
        except CommandError as error:
            return CompletedProcess(words, 1, "", str(error))
        return CompletedProcess(words, 0, out.getvalue(), err.getvalue())


@pytest.fixture
def container() -> Container:
    return Container()


def ledger(container: Container, folder: Path) -> StackLedger:
    return StackLedger(container.execute, "development", folder / "var" / "token")


def test_a_token_is_made_once_and_kept_for_its_owner_alone(container: Container, tmp_path: Path) -> None:
    ledger(container, tmp_path).register("1.0", "4f2a9c1", "2026-01-31T09:15:00+00:00", "backstagetest1:1.0")
    assert ledger(container, tmp_path).registered("1.0") and not ledger(container, tmp_path).registered("1.1")
    assert container.commands == ["api_token create"]
    assert stat.S_IMODE((tmp_path / "var" / "token").stat().st_mode) == 0o600
    row = ApiToken.objects.get()
    assert row.may_register and [each.name for each in row.environments.all()] == ["development"]


def test_a_token_that_the_stack_does_not_know_is_replaced(container: Container, tmp_path: Path) -> None:
    deployed("development", "1.0")
    ledger(container, tmp_path).in_flight("development")
    ApiToken.objects.all().delete()  # as ./run down --volumes does
    assert ledger(container, tmp_path).succeeded("1.0", "development")
    (tmp_path / "var" / "token").write_text("bst1_of-another-stack\n")  # as ./run restore may leave it
    assert ledger(container, tmp_path).succeeded("1.0", "development")
    assert container.commands == ["api_token create"] * 3 + ["api_token rotate"]
    assert Deployment.objects.count() == 1


def test_a_stack_that_cannot_be_asked_is_a_ledger_that_is_unavailable(container: Container, tmp_path: Path) -> None:
    container.down = True
    with pytest.raises(LedgerUnavailable, match="the stack's ledger .*docker not found"):
        ledger(container, tmp_path).registered("1.0")
