"""How each environment is. Until one is asked: unknown."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from deploy.environments import NAMES


@dataclass(frozen=True)
class Reading:
    environment: str
    state: Literal["healthy", "unhealthy", "unreachable", "unknown"] = "unknown"
    version: str = ""
    checks: dict[str, str] = field(default_factory=dict)
    latency_ms: float | None = None
    at: datetime | None = None


def readings() -> dict[str, Reading]:
    return {name: Reading(name) for name in NAMES}
