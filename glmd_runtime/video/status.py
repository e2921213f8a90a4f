"""What a source is doing, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import Literal

State = Literal["connecting", "running", "lost", "ended"]


@dataclass(frozen=True)
class Status:
    """The state of a source and what is known about it.

    state    "connecting": no frame yet; "running": frames come; "lost": none come, and it will be tried again;
             "ended": closed, or there are no more
    detail   for people: the reason, the size of the pictures, when it is tried again; never a password
    since    when the source came into this state, in seconds of `time.monotonic()`
    attempt  attempts to connect since the camera last ran well, 0 before the first; a file needs none
    """

    state: State
    detail: str = ""
    since: float = field(default_factory=monotonic)
    attempt: int = 0
