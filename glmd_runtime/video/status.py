"""How a source is doing."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import Literal

State = Literal["connecting", "running", "lost", "ended"]


@dataclass(frozen=True)
class Status:
    """The state of a source.

    state    "connecting" before its first frame, "running", "lost" while it is tried again, "ended" for good
    detail   for people: why, without credentials
    since    of `time.monotonic()`, when it came into this state
    attempt  how often it was tried to connect since it last ran
    """

    state: State
    detail: str = ""
    since: float = field(default_factory=monotonic)
    attempt: int = 0
