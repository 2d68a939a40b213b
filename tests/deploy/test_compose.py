"""What the compose target reads out of docker's answers, without an engine; tests/e2e/test_deploy.py has one."""

from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from django.conf import LazySettings

from deploy.management.base import prometheus_of
from deploy.targets.compose import Compose
from ledger.environments import EnvironmentConfig


def test_a_release_is_known_by_its_own_version_whatever_the_tag_of_its_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stack = Compose(EnvironmentConfig(name="development", image="backstagetest1"), "0.9.1", tmp_path)
    containers: dict[str, dict[str, Any]] = {
        "web": {"Config": {"Image": "backstagetest1:mine", "Env": ["PATH=/bin", "APP_VERSION=0.9.0", "A=b=c"]}},
        "blue": {"Config": {"Image": "backstagetest1:0.9.1", "Env": ["APP_VERSION=0.9.1"]}},
        "green": {},
    }
    monkeypatch.setattr(stack, "container", containers.__getitem__)
    monkeypatch.setattr(stack, "pointer", lambda name: "web")
    assert [stack.version_of(colour) for colour in containers] == ["0.9.0", "0.9.1", ""]
    stack.remember([stack.live_version(), "0.9.1"])
    monkeypatch.setattr(stack, "pointer", lambda name: "blue")
    assert stack.previous_good() == "0.9.0"


@pytest.mark.parametrize(
    ("named", "published", "asked"),
    [
        ("http://prometheus:9090", "127.0.0.1:9193\n", "http://localhost:9193"),
        ("http://prometheus:9090", "", "http://prometheus:9090"),  # it does not run, and the watch says so
        ("https://metrics.example.com/prod", "127.0.0.1:9193\n", "https://metrics.example.com/prod"),
        ("", "127.0.0.1:9193\n", None),
    ],
)
def test_the_stacks_prometheus_is_asked_by_its_port_on_this_machine(
    named: str, published: str, asked: str | None, monkeypatch: pytest.MonkeyPatch, settings: LazySettings
) -> None:
    settings.PROMETHEUS_URL = named
    config = EnvironmentConfig(name="development")
    stack = Compose(config, "0.9.1", Path())
    monkeypatch.setattr(stack, "try_compose", lambda *words, timeout: CompletedProcess(words, 0, published))
    found = prometheus_of(stack, config)
    assert (found.url if found else None) == asked
