"""What the compose target reads out of docker's answers, without an engine; tests/e2e/test_deploy.py has one."""

from pathlib import Path
from typing import Any

import pytest

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
